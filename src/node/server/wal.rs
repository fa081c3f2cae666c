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

/// A subquery for the transactions with ids from one expression to another one, with the origin that they bear and
/// their commit timestamps in microseconds since 2000.
fn commits(from: &str, to: &str) -> String {
    format!(
        "(SELECT x.id, w.roident::bigint AS origin,
                 (extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint AS at
            FROM generate_series({from}, {to}) x (id),
                 pg_xact_commit_timestamp_origin(CASE WHEN x.id % 4294967296 >= 3 THEN x.id::text::xid8::xid END) w) c"
    )
}

/// The latest commit timestamp of the transactions with ids in `window` that bear `origin`.
pub fn last_commit(origin: u32, window: (i64, i64)) -> Query<i64> {
    last(origin, window, "ORDER BY at DESC")
}

/// The commit timestamp of the last of them that was applied: in the order of their ids. Copied rows are none.
pub fn last_applied(origin: u32, window: (i64, i64)) -> Query<i64> {
    last(origin, window, "AND at >= 0 ORDER BY id DESC")
}

fn last(origin: u32, window: (i64, i64), of: &str) -> Query<i64> {
    let commits = commits("$1::bigint", "$2::bigint");
    Query::new(
        format!("SELECT at FROM {commits} WHERE origin = $3::bigint {of} LIMIT 1"),
        &[
            &window.0.to_string(),
            &window.1.to_string(),
            &origin.to_string(),
        ],
        |row| row.only(),
    )
}

/// Transactions of an origin that came after one of them.
pub struct CommitsAfter {
    /// That one is in the window.
    pub known: bool,
    /// The earliest commit timestamp of them.
    pub at: Option<i64>,
    /// The first of their ids.
    pub first: Option<i64>,
    /// The latest commit timestamp at the beginning of the window, whatever origin they bear there.
    pub begins: Option<i64>,
}

/// Those of the transactions with ids in `window` that bear `origin` and came after the one that was committed at
/// `seen`: by their ids or, since one that is streamed has an id before it is committed, by their times.
pub fn commits_after(origin: u32, window: (i64, i64), seen: Option<i64>) -> Query<CommitsAfter> {
    let all = commits("$1::bigint", "$2::bigint");
    let begin = commits("$1::bigint", "least($1::bigint + 1000, $2::bigint)");
    Query::new(
        format!(
            "WITH own AS MATERIALIZED (SELECT id, at FROM {all} WHERE origin = $3::bigint AND at >= 0),
                  seen AS (SELECT min(id) AS id FROM own WHERE at = $4::bigint)
             SELECT bool_or(s.id IS NOT NULL) AS known, min(o.at) AS at, min(o.id) AS first,
                    (SELECT max(at) FROM {begin}) AS begins
               FROM seen s LEFT JOIN own o ON o.id > coalesce(s.id, 0) OR o.at > $4::bigint"
        ),
        &[
            &window.0.to_string(),
            &window.1.to_string(),
            &origin.to_string(),
            &seen.unwrap_or(i64::MIN).to_string(),
        ],
        |row| {
            Ok(CommitsAfter {
                known: row.get("known")?,
                at: row.get("at")?,
                first: row.get("first")?,
                begins: row.get("begins")?,
            })
        },
    )
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
