//! Sessions and transactions of a database.

use crate::error::Result;
use crate::libpq::Row;
use crate::node::{Query, Statement};

/// A session of a database.
pub struct OtherSession {
    pub pid: String,
    pub user: String,
    pub application: String,
}

impl OtherSession {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            pid: row.get("pid")?,
            user: row.get("usename")?,
            application: row.get("application_name")?,
        })
    }
}

/// Client sessions in this database but this one's and zodan's own.
pub fn other_sessions() -> Query<OtherSession> {
    Query::new(
        "SELECT pid, usename, application_name FROM pg_stat_activity
          WHERE datname = current_database() AND backend_type = 'client backend'
            AND pid <> pg_backend_pid() AND application_name NOT LIKE 'zodan%'
          ORDER BY pid",
        &[],
        OtherSession::read,
    )
}

/// Sessions in this database whose part in the row counters is not known yet for all that they have done before
/// `since`. A session adds what it has counted at the end of a transaction, but only
/// when a second has passed since it did so last, and at the latest when it has been idle for ten seconds
/// (PGSTAT_MIN_INTERVAL and PGSTAT_IDLE_INTERVAL of the server's pgstat.c).
pub fn sessions_uncounted(since: &str) -> Query<OtherSession> {
    Query::new(
        include_str!("sessions_uncounted.sql"),
        &[since],
        OtherSession::read,
    )
}

/// Ends the client sessions of this database that began before `since`, but this one, `spared` (a pid)
/// and zodan's own. A row for each.
pub fn end_sessions_before(since: &str, spared: &str) -> Statement {
    Statement::new(
        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND backend_type = 'client backend'
            AND pid NOT IN (pg_backend_pid(), $2::integer)
            AND application_name NOT LIKE 'zodan%' AND backend_start < $1::timestamptz",
        &[since, spared],
    )
}

/// Sessions of this database that are being started: they may have read its settings already, and are not shown yet.
pub fn starting_sessions() -> Query<String> {
    // Every session has this lock until it is started, and is shown before it lets go of it.
    Query::new(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.objid
          WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass
            AND l.mode = 'RowExclusiveLock' AND l.granted
            AND d.datname = current_database() AND l.pid <> pg_backend_pid()",
        &[],
        |row| row.only(),
    )
}

/// Transactions of this database that are prepared and neither committed nor rolled back.
pub fn prepared_transactions() -> Query<String> {
    Query::new(
        "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()",
        &[],
        |row| row.only(),
    )
}

/// Ends the sessions with these pids.
pub fn end_sessions(pids: &[&str]) -> Statement {
    let pids = pids.join(", ");
    Statement::new(
        format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{pids}]) pid"),
        &[],
    )
}

/// The pid of this session.
pub fn backend_pid() -> Query<String> {
    Query::new("SELECT pg_backend_pid()", &[], |row| row.only())
}

/// What others see of this session.
pub fn name_session(name: &str) -> Statement {
    Statement::new("SELECT set_config('application_name', $1, false)", &[name])
}
