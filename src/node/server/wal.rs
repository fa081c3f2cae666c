//! Where the WAL and the transactions of a server stand.

use super::facts::END_OF_WAL;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::node::{Node, Query, Statement};

/// What the session has written counts for others at once.
pub fn count_now() -> Statement {
    Statement::new("SELECT pg_stat_force_next_flush()", &[])
}

/// Whether the node knows when, and under which origin, its rows were written.
pub fn has_commit_timestamps(node: &mut Node) -> Result<bool> {
    let is_on = "SELECT current_setting('track_commit_timestamp') = 'on'";
    Query::new(is_on, &[], |row| row.only()).one(node)
}

/// Transaction ids from the first up to, but without, the next.
pub struct TransactionIds {
    pub first: i64,
    pub next: i64,
}

/// The transaction ids whose commit timestamps the node may know.
pub fn commit_timestamp_range() -> Query<TransactionIds> {
    Query::new(
        "SELECT greatest(3, CASE oldest WHEN 0 THEN 3 ELSE next - (next - oldest) % 4294967296 END) AS first, next
           FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
                        oldest_commit_ts_xid::text::bigint AS oldest
                   FROM pg_control_checkpoint()) c",
        &[], |row| {
            Ok(TransactionIds {
                first: row.get("first")?,
                next: row.get("next")?,
            })
        })
}

/// Commit timestamps in microseconds since 2000, where there are any.
pub struct CommitTimes {
    /// The last of the origin.
    pub last: Option<i64>,
    /// The first of the origin after the one that was given.
    pub next: Option<i64>,
    /// The last of all, whatever origin they bear.
    pub last_of_all: Option<i64>,
}

/// When the transactions with ids in `window` that bear `origin` were committed, and the first of them later than `after`.
pub fn commits(origin: u32, window: (i64, i64), after: i64) -> Query<CommitTimes> {
    Query::new(
        "SELECT max(at) FILTER (WHERE roident = $3::oid) AS last,
                min(at) FILTER (WHERE roident = $3::oid AND at > $4::bigint) AS next, max(at) AS last_of_all
           FROM (SELECT w.roident,
                        (extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint AS at
                   FROM (SELECT x::text::xid8::xid AS xid FROM generate_series($1::bigint, $2::bigint) x
                          WHERE x % 4294967296 >= 3) x,
                        pg_xact_commit_timestamp_origin(x.xid) w) c",
        &[
            &window.0.to_string(),
            &window.1.to_string(),
            &origin.to_string(),
            &after.to_string(),
        ], |row| {
            Ok(CommitTimes {
                last: row.get("last")?,
                next: row.get("next")?,
                last_of_all: row.get("last_of_all")?,
            })
        })
}

/// Puts everything that was committed before on disk: apply workers do not wait for that, and decoding
/// reads no further. A commit without a record of its own would not wait either; nobody reads this one.
pub fn flush_wal() -> Statement {
    Statement::new("SELECT pg_logical_emit_message(true, 'zodan', '')", &[])
}

/// The end of what has been written into the WAL.
pub fn wal_position() -> Query<Lsn> {
    Query::new("SELECT pg_current_wal_insert_lsn()", &[], |row| row.only())
}

/// Up to where the node's WAL is on disk; null where a standby is still being sent more.
pub fn wal_flushed() -> Query<Option<Lsn>> {
    Query::new(format!("SELECT {END_OF_WAL}"), &[], |row| row.only())
}

/// The first transaction id that nobody has had.
pub fn next_transaction() -> Query<u64> {
    Query::new(
        "SELECT pg_snapshot_xmax(pg_current_snapshot())",
        &[],
        |row| row.only(),
    )
}

/// The first transaction id that may still be under way.
pub fn oldest_transaction() -> Query<u64> {
    Query::new(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())",
        &[],
        |row| row.only(),
    )
}
