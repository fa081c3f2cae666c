//! Who may change the membership, and who is in the way.

use crate::error::Result;
use crate::node::{Node, Query, Statement};
use std::time::Duration;

/// Begins a transaction that sees what is committed now, and changes nothing.
pub fn begin_reading() -> Statement {
    Statement::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &[])
}

/// The advisory lock that whoever changes the membership holds on every member; `zodm` in ASCII.
/// Session level, so it vanishes with the session.
const MEMBERSHIP_LOCK: &str = "2054120557, 1";

/// Takes the membership lock if it is free, and says what for.
pub fn try_membership_lock(purpose: &str) -> Query<bool> {
    Query::new(
        format!(
            "SELECT pg_try_advisory_lock({MEMBERSHIP_LOCK}) AS taken,
                    set_config('application_name', substr($1, 1, 63), false)"
        ),
        &[purpose],
        |row| row.get("taken"),
    )
}

/// The opposite.
pub fn membership_unlock() -> Statement {
    Statement::new(format!("SELECT pg_advisory_unlock({MEMBERSHIP_LOCK})"), &[])
}

/// Who holds the membership lock.
pub struct LockHolder {
    pub pid: String,
    pub application: String,
    /// Where it is connected from.
    pub from: String,
    pub since: String,
}

/// Who holds the membership lock; no row where nobody does.
pub fn membership_lock_holder() -> Query<LockHolder> {
    Query::new(
        format!(
            "SELECT a.pid, a.application_name, coalesce(a.client_addr::text, 'a local socket') AS address,
                    a.backend_start
               FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
              WHERE l.locktype = 'advisory' AND l.granted
                AND (l.classid::bigint, l.objid::bigint) = ({MEMBERSHIP_LOCK})
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        &[], |row| {
            Ok(LockHolder {
                pid: row.get("pid")?,
                application: row.get("application_name")?,
                from: row.get("address")?,
                since: row.get("backend_start")?,
            })
        })
}

/// A transaction that the creation of a slot has to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    pub who: String,
    pub user: String,
    pub application: String,
    pub seconds: u64,
    pub xid: String,
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (user \"{}\"", self.who, self.user)?;
        if !self.application.is_empty() {
            write!(f, ", application \"{}\"", self.application)?;
        }
        write!(f, ", open for {} s)", self.seconds)
    }
}

/// Write transactions of the whole server that are older than `age`, prepared ones included.
pub fn old_writers(node: &mut Node, age: Duration) -> Result<Vec<Writer>> {
    let age = format!("{} ms", age.as_millis());
    let writers = Query::new(include_str!("old_writers.sql"), &[&age], |row| {
        Ok(Writer {
            who: row.get("who")?,
            user: row.get("usename")?,
            application: row.get("application_name")?,
            seconds: row.get::<i64>("seconds")?.max(0) as u64,
            xid: row.get("backend_xid")?,
        })
    });
    writers.on(node)
}

/// `statement` in a transaction that waits for no lock longer than a blink. Whoever waits for a
/// table lock makes everybody after it wait too.
pub fn without_queueing(statement: &str) -> Statement {
    Statement::new(format!("SET LOCAL lock_timeout = '20ms'; {statement}"), &[])
}

/// As [`without_queueing`], and the transaction stays open until [`commit`] or [`rollback`].
pub fn held(statement: &str) -> Statement {
    Statement::new(
        format!("BEGIN; SET LOCAL lock_timeout = '20ms'; {statement}"),
        &[],
    )
}

pub fn commit() -> Statement {
    Statement::new("COMMIT", &[])
}

pub fn rollback() -> Statement {
    Statement::new("ROLLBACK", &[])
}
