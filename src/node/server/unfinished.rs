//! Notes of recoveries that are not finished.

use crate::error::Result;
use crate::lsn::{Lsn, Position};
use crate::node::{Query, Statement};

/// What the name of the note is made of, by which an unfinished recovery is known: the position and the node. All
/// databases of a server share their origins, so it is for one of them.
pub(super) const UNFINISHED: &str = "(SELECT roname, m[1] AS lsn, m[2] AS failed
     FROM pg_replication_origin,
          regexp_match(roname, format('^zodan_recovering_%s_([0-9A-F]+/[0-9A-F]+)_(.*)$',
                                      (SELECT oid FROM pg_database WHERE datname = current_database()))) m
    WHERE m IS NOT NULL) note";

/// Notes on the node that from `from` on, a position of `failed`, it is being given what it lacks of that node, and may
/// not have all that belongs to it. A replication origin that nobody uses, since there is a place for one on every node.
/// An earlier note stays.
pub fn note_recovery(failed: &str, from: &Position) -> Result<Statement> {
    let lsn = from.of(failed)?;
    Ok(Statement::new(
        format!(
            "SELECT pg_replication_origin_create(concat_ws('_', 'zodan_recovering', d.oid, $2::pg_lsn, $1::text))
               FROM pg_database d
              WHERE d.datname = current_database()
                AND NOT EXISTS (SELECT FROM {UNFINISHED} WHERE failed = $1)"
        ),
        &[failed, &lsn.to_string()],
    ))
}

/// As [`UNFINISHED`], of a comparison: by which of several subscriptions, and until when the node had the failed one's
/// transactions by it.
pub(super) const COMPARED: &str = "(SELECT roname, m[1] AS lane, m[2] AS had, m[3] AS failed
     FROM pg_replication_origin,
          regexp_match(roname, format('^zodan_compared_%s_([0-9]+)_(never|-?[0-9]+)_(.*)$',
                                      (SELECT oid FROM pg_database WHERE datname = current_database()))) m
    WHERE m IS NOT NULL) compared";

/// As [`COMPARED`], of a comparison that has come to its end and left rows alone for the sake of a member that was away:
/// it is to be made again when that one is back.
pub(super) const UNDECIDED: &str = "(SELECT roname, m[1] AS lane, m[2] AS had, m[3] AS failed
     FROM pg_replication_origin,
          regexp_match(roname, format('^zodan_undecided_%s_([0-9]+)_(never|-?[0-9]+)_(.*)$',
                                      (SELECT oid FROM pg_database WHERE datname = current_database()))) m
    WHERE m IS NOT NULL) undecided";

/// Notes on the node how far it had got `failed` when a comparison began to give it more, in microseconds since 2000.
/// An earlier note stays, and what an earlier comparison that is to be made again has noted holds.
pub fn note_comparison(failed: &str, lane: usize, had: Option<i64>) -> Statement {
    let had = had.map_or("never".into(), |had| had.to_string());
    Statement::new(
        format!(
            "SELECT pg_replication_origin_create(concat_ws('_', 'zodan_compared', d.oid, $2::text,
                       coalesce((SELECT had FROM {UNDECIDED} WHERE failed = $1 AND lane = $2), $3::text), $1::text))
               FROM pg_database d
              WHERE d.datname = current_database()
                AND NOT EXISTS (SELECT FROM {COMPARED} WHERE failed = $1 AND lane = $2)"
        ),
        &[failed, &lane.to_string(), &had],
    )
}

/// A comparison that is not finished.
pub struct UnfinishedComparison {
    /// By which of several subscriptions.
    pub lane: usize,
    /// Until when the node had the transactions of the failed one, in microseconds since 2000.
    pub had: Option<i64>,
}

/// The comparisons with `failed` that the node has been in and that are not finished.
pub fn unfinished_comparison(failed: &str) -> Query<UnfinishedComparison> {
    Query::new(
        format!("SELECT lane, nullif(had, 'never') AS had FROM {COMPARED} WHERE failed = $1"),
        &[failed],
        |row| {
            Ok(UnfinishedComparison {
                lane: row.get("lane")?,
                had: row.get("had")?,
            })
        },
    )
}

/// Notes that the comparison with `failed`, which is not finished, is to be made again when all members are there.
pub fn note_undecided(failed: &str) -> Statement {
    Statement::new(
        format!(
            "SELECT pg_replication_origin_create(regexp_replace(roname, '^zodan_compared', 'zodan_undecided'))
               FROM {COMPARED}
              WHERE failed = $1
                AND NOT EXISTS (SELECT FROM {UNDECIDED} WHERE undecided.failed = $1 AND undecided.lane = compared.lane)"
        ),
        &[failed],
    )
}

/// With which failed nodes a comparison is to be made again on the node.
pub fn undecided_recoveries() -> Query<String> {
    Query::new(
        format!("SELECT DISTINCT failed FROM {UNDECIDED}"),
        &[],
        |row| row.only(),
    )
}

/// The comparison with `failed` need not be made again.
pub fn forget_undecided(failed: &str) -> Statement {
    forget(&[UNDECIDED], Some(failed))
}

/// A recovery that is not finished.
pub struct UnfinishedRecovery {
    pub failed: String,
    /// From where on the node is being given what it lacks of the failed one.
    pub from: Lsn,
}

/// The recoveries of the node that are not finished.
pub fn unfinished_recoveries() -> Query<UnfinishedRecovery> {
    Query::new(
        format!("SELECT failed, lsn FROM {UNFINISHED}"),
        &[],
        |row| {
            Ok(UnfinishedRecovery {
                failed: row.get("failed")?,
                from: row.get("lsn")?,
            })
        },
    )
}

/// Takes the notes about recoveries from the loss of `failed` that are not finished away, but not that it is to be made
/// again.
pub fn forget_unfinished(failed: &str) -> Statement {
    forget(&[UNFINISHED, COMPARED], Some(failed))
}

/// Takes all notes about `failed` away; those about every node where that is `None`.
pub fn forget_recoveries(failed: Option<&str>) -> Statement {
    forget(&[UNFINISHED, COMPARED, UNDECIDED], failed)
}

fn forget(notes: &[&str], failed: Option<&str>) -> Statement {
    let all = failed.is_none().to_string();
    let notes: Vec<String> = notes
        .iter()
        .map(|notes| format!("SELECT roname, failed FROM {notes}"))
        .collect();
    Statement::new(
        format!(
            "SELECT pg_replication_origin_drop(roname) FROM ({}) AS notes WHERE failed = $1 OR $2::boolean",
            notes.join(" UNION ALL ")
        ),
        &[failed.unwrap_or_default(), &all],
    )
}
