//! A session that replays transactions of another node.

use crate::node::{Query, Statement};

/// What is committed from here on in this session is of `origin`, and moves its progress. Rows are looked up by their keys, however small
/// the tables were when that was planned.
pub fn begin_replay(origin: &str) -> Statement {
    Statement::new(
        format!(
            "SET session_replication_role = 'replica'; SET synchronous_commit = 'off'; SET plan_cache_mode = 'force_generic_plan';
             SET enable_seqscan = 'off'; SET enable_bitmapscan = 'off'; SET jit = 'off'; SELECT pg_replication_origin_session_setup({})",
            crate::quote::literal(origin)
        ),
        &[],
    )
}

/// What is written from here on is written as the owners of the tables. The extension has to be there.
pub fn replay_as_owners() -> Statement {
    Statement::new("SELECT zodan.replay_as_owners()", &[])
}

/// The end of it; what was replayed is on disk then.
pub fn end_replay() -> Statement {
    Statement::new(
        "SELECT pg_replication_origin_session_reset(); SET synchronous_commit = 'local';
         SELECT pg_logical_emit_message(true, 'zodan', '')",
        &[],
    )
}

/// Whether the node has `zodan.commit_position`.
pub fn has_commit_position() -> Query<bool> {
    Query::new(
        "SELECT to_regprocedure('zodan.commit_position(pg_lsn, timestamptz)') IS NOT NULL",
        &[],
        |row| row.only(),
    )
}
