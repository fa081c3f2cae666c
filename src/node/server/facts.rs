//! What a server and its database are.

use super::unfinished::{COMPARED, UNDECIDED, UNFINISHED};
use crate::error::{Error, Result};
use crate::libpq::Row;
use crate::node::{Query, Statement};

/// A resource of which a server has a fixed number.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub limit: i64,
    pub used: i64,
}

impl Budget {
    pub fn free(self) -> i64 {
        (self.limit - self.used).max(0)
    }
}

/// Which running server it is, and which of its databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseId {
    /// As [`SERVER`] has it.
    pub server: String,
    pub database: String,
}

impl DatabaseId {
    /// The first of what tells the server.
    pub fn system_identifier(&self) -> &str {
        self.server.split(' ').next().unwrap_or_default()
    }

    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            server: row.get("server")?,
            database: row.get("database")?,
        })
    }
}

/// What the checks look at, of one server.
#[derive(Clone, Debug)]
pub struct Facts {
    pub version: u32,
    pub in_recovery: bool,
    pub system_identifier: String,
    pub id: DatabaseId,
    pub wal_level: String,
    pub replication_slots: Budget,
    pub wal_senders: Budget,
    pub logical_workers: Budget,
    /// Subscriptions that have a large transaction applied by workers beside their own, as those of PostgreSQL 18 and newer
    /// have by default.
    pub parallel_subscriptions: i64,
    /// How many such workers each may have.
    pub parallel_workers: i64,
    pub worker_processes: Budget,
    pub origins: Budget,
    /// The setting that limits the origins, which has had a name of its own since PostgreSQL 18.
    pub origins_setting: String,
    pub encoding: String,
    pub collation: String,
    /// Megabytes, -1 for no limit.
    pub max_slot_wal_keep_size: i64,
    /// Seconds, 0 for never; PostgreSQL 18 and newer.
    pub idle_slot_timeout: i64,
    /// `output_plugin_libraries` where the server has it.
    pub output_plugins: Option<String>,
    pub database_size: u64,
}

/// Which running server it is. Those made from one image have the same system identifier, and may have been started
/// in the same microsecond, but not with the same port on one machine.
const SERVER: &str = "concat_ws(' ', system_identifier, extract(epoch FROM pg_postmaster_start_time()), current_setting('port'))";

pub fn facts() -> Query<Facts> {
    Query::new(include_str!("facts.sql"), &[], Facts::read)
}

impl Facts {
    fn read(row: &Row) -> Result<Self> {
        let budget = |what: &str| {
            Ok::<_, Error>(Budget {
                limit: row.get(&format!("{what}_limit"))?,
                used: row.get(&format!("{what}_used"))?,
            })
        };
        Ok(Self {
            version: row.get("version")?,
            in_recovery: row.get("in_recovery")?,
            system_identifier: row.get("system_identifier")?,
            id: DatabaseId::read(row)?,
            wal_level: row.get("wal_level")?,
            replication_slots: budget("replication_slots")?,
            wal_senders: budget("wal_senders")?,
            logical_workers: budget("logical_workers")?,
            parallel_subscriptions: row.get("parallel_subscriptions")?,
            parallel_workers: row.get("parallel_workers")?,
            worker_processes: budget("worker_processes")?,
            origins: budget("origins")?,
            origins_setting: row.get("origins_setting")?,
            encoding: row.get("encoding")?,
            collation: row.get("collation")?,
            max_slot_wal_keep_size: row.get("max_slot_wal_keep_size")?,
            idle_slot_timeout: row.get::<Option<i64>>("idle_slot_timeout")?.unwrap_or(0),
            output_plugins: row.get("output_plugins")?,
            database_size: row.get("database_size")?,
        })
    }
}

/// A setting that leaves no room for one more apply worker.
pub struct FullWorkers {
    pub setting: String,
    pub limit: i64,
    /// Workers that apply parts of a transaction beside that of their subscription.
    pub parallel: i64,
}

/// Processes that are no background workers, as `backend_type` names them.
const OTHER_PROCESSES: &str = "('client backend', 'autovacuum launcher',
               'autovacuum worker', 'background writer', 'checkpointer', 'walwriter',
               'walsender', 'walreceiver', 'walsummarizer', 'startup', 'archiver',
               'slotsync worker', 'io worker', 'logger', 'standalone backend')";

/// The setting that keeps the server from starting an apply worker now, if one does.
pub fn full_workers() -> Query<FullWorkers> {
    Query::new(
        include_str!("full_workers.sql").replace(":other_processes", OTHER_PROCESSES),
        &[],
        |row| {
            Ok(FullWorkers {
                setting: row.get("setting")?,
                limit: row.get("limit")?,
                parallel: row.get("parallel")?,
            })
        },
    )
}

/// Which running server and which database this session is on.
pub fn identity() -> Query<DatabaseId> {
    Query::new(
        format!(
            "SELECT {SERVER} AS server, current_database() AS database FROM pg_control_system()"
        ),
        &[],
        DatabaseId::read,
    )
}

/// Where the server of this session is on its machine.
pub fn place() -> Query<String> {
    Query::new(format!("SELECT {PLACE}"), &[], |row| row.only())
}

/// Not everybody sees the directory.
const PLACE: &str =
    "(SELECT concat('port ', current_setting('port'), ', data directory ' || max(setting))
                        FROM pg_settings WHERE name = 'data_directory')";

/// Whether the role of the session may do what a run does.
pub fn is_superuser() -> Query<bool> {
    Query::new(
        "SELECT current_setting('is_superuser') = 'on'",
        &[],
        |row| row.only(),
    )
}

pub fn now() -> Query<String> {
    Query::new("SELECT clock_timestamp()", &[], |row| row.only())
}

/// A value that nobody has had.
pub fn unique_id() -> Query<String> {
    Query::new("SELECT gen_random_uuid()", &[], |row| row.only())
}

/// Whether nothing can be written on the server but what a primary sends it.
pub fn is_standby() -> Query<bool> {
    Query::new("SELECT pg_is_in_recovery()", &[], |row| row.only())
}

/// One row of what status tells of a member. As JSON its `slots`, each with `name, active, wal_status, retained_bytes,
/// lag_bytes, lag_us`; its subscriptions as `inbound` has them; the members that a comparison with has not come to its end
/// (`compared`) or is to be made again (`undecided`), and those of which a recovery has not (`recovering`). `sent` is an
/// expression.
pub fn member_report(inbound: &Statement, sent: &str) -> Statement {
    // A reader that has confirmed everything has no lag to show. Of a slot that nobody reads, PostgreSQL 17
    // knows since when.
    Statement::new(
        include_str!("member_report.sql")
            .replace(":subscriptions", &inbound.sql)
            .replace(":sent_tables", sent)
            .replace(":end_of_wal", END_OF_WAL)
            .replace(":compared", COMPARED)
            .replace(":server_id", SERVER)
            .replace(":place", PLACE)
            .replace(":unfinished", UNFINISHED)
            .replace(":undecided", UNDECIDED),
        &[],
    )
}

/// Notes on the server where its node is.
pub fn keep_place() -> Statement {
    Statement::new("SELECT zodan.keep_place()", &[])
}

/// Whether the database has a journal.
pub fn has_journal() -> Query<bool> {
    Query::new("SELECT to_regclass('zodan.run') IS NOT NULL", &[], |row| {
        row.only()
    })
}

/// Where the node's WAL ends. A standby that gets none has no more than it replays.
pub(super) const END_OF_WAL: &str =
    "CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()
      WHEN NOT EXISTS (SELECT FROM pg_stat_wal_receiver) THEN pg_last_wal_replay_lsn() END";

/// Free bytes of the file system that holds this server's data directory.
pub fn free_disk_space() -> Result<u64> {
    // SAFETY: DataDir is a C string set at server start; statvfs fills the zeroed struct.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(pgrx::pg_sys::DataDir, &mut stat) != 0 {
            return Err(Error::internal(format!(
                "statvfs of the data directory: {}",
                std::io::Error::last_os_error()
            )));
        }
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

#[cfg(test)]
mod tests {
    /// They stand in the file so that it can be run as it is.
    #[test]
    fn facts_tell_the_server_and_its_workers_as_others_do() {
        let facts = include_str!("facts.sql");
        assert!(facts.contains(super::SERVER));
        assert!(facts.contains(super::OTHER_PROCESSES));
    }
}
