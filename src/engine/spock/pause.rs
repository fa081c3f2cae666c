//! Apply on a node stands still for a moment.

use super::Spock;
use crate::engine::ApplyPause;
use crate::node::Statement;

impl ApplyPause for Spock {
    fn start_watchdog(&self, _limit_ms: u128) -> Option<Statement> {
        None // spock.pause_timeout
    }

    fn stop_watchdog(&self) -> Option<Statement> {
        None
    }

    fn pause(&self, _subscriptions: &[String]) -> Statement {
        Statement::new("SELECT spock.pause_apply_workers()", &[])
    }

    fn resume(&self) -> Statement {
        Statement::new("SELECT spock.resume_apply_workers()", &[])
    }

    fn pause_state(&self) -> Statement {
        // Spock itself takes a worker for paused that is in a transaction and has not written yet. It
        // would write and commit during the pause, so it is waited for.
        // That the pause holds cannot be asked. Where it ended by itself, progress has moved or nothing
        // was committed, and both readings of it tell which.
        Statement::new(
            "SELECT (SELECT count(*) FROM spock.subscription WHERE sub_enabled),
                    (SELECT count(*) FROM pg_stat_activity a
                       JOIN pg_database d ON d.datname = current_database()
                      WHERE starts_with(a.backend_type, format('spock apply %s:', d.oid))
                        AND a.xact_start IS NOT NULL)",
            &[],
        )
    }
}
