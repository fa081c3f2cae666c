//! Apply on a node stands still for a moment.

use crate::error::Result;
use crate::libpq::Row;
use crate::node::{Query, Statement};

/// What there is of a pause.
pub struct PauseState {
    /// Subscriptions that are paused.
    pub paused: i64,
    /// Workers that could still commit.
    pub alive: i64,
}

impl PauseState {
    /// From columns that are named like the fields.
    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            paused: row.get("paused")?,
            alive: row.get("alive")?,
        })
    }
}

/// Apply on a node stands still for a moment, so that snapshot and progress belong together. Everything is run in one
/// session on the node that is paused. However that session ends, apply goes on by itself soon after.
pub trait ApplyPause {
    /// Something on the node that resumes apply when the coordinator is gone, or after `limit_ms`; nothing is to be run
    /// where the engine's pause ends by itself. Before the pause.
    fn start_watchdog(&self, _limit_ms: u128) -> Vec<Statement> {
        vec![]
    }

    /// The end of that, after [`Self::resume`].
    fn stop_watchdog(&self) -> Vec<Statement> {
        vec![]
    }

    /// Makes apply of the named subscriptions stop, without waiting for their workers.
    fn pause(&self, subscriptions: &[String]) -> Statement;

    /// The end of the pause. No error where it has ended already.
    fn resume(&self) -> Statement;

    /// The same where whoever ordered the pause is gone: how many subscriptions. No row where there are none, or where
    /// such a pause ends by itself.
    fn resume_orphaned(&self) -> Query<i64> {
        Query::none()
    }

    /// Whether the pause still holds, and whether anything could still commit.
    fn pause_state(&self) -> Query<PauseState>;
}
