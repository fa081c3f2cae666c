//! Apply on a node stands still for a moment.

use crate::node::Statement;

/// Apply on a node stands still for a moment, so that snapshot and progress belong together. Everything is run in one
/// session on the node that is paused. However that session ends, apply goes on by itself soon after.
pub trait ApplyPause {
    /// Something on the node that resumes apply when the coordinator is gone, or after `limit_ms`, if the engine's pause
    /// does not end by itself. Run before the pause.
    fn start_watchdog(&self, limit_ms: u128) -> Option<Statement>;

    /// The end of that, after [`Self::resume`].
    fn stop_watchdog(&self) -> Option<Statement>;

    /// Makes apply of the named subscriptions stop, without waiting for their workers.
    fn pause(&self, subscriptions: &[String]) -> Statement;

    /// The end of the pause. No error where it has ended already.
    fn resume(&self) -> Statement;

    /// The same where whoever ordered the pause is gone: how many subscriptions, or no answer. `None` where such a pause
    /// ends by itself.
    fn resume_orphaned(&self) -> Option<Statement> {
        None
    }

    /// `paused, alive`: whether the pause still holds, and how many workers could still commit.
    fn pause_state(&self) -> Statement;
}
