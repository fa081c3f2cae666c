//! Apply on a node stands still for a moment.

use super::Spock;
use crate::engine::{ApplyPause, PauseState};
use crate::node::{Query, Statement};

impl ApplyPause for Spock {
    // spock.pause_timeout ends a pause by itself: no watchdog is needed.

    fn pause(&self, _subscriptions: &[String]) -> Statement {
        Statement::new("SELECT spock.pause_apply_workers()", &[])
    }

    fn resume(&self) -> Statement {
        Statement::new("SELECT spock.resume_apply_workers()", &[])
    }

    fn pause_state(&self) -> Query<PauseState> {
        // Spock itself takes a worker for paused that is in a transaction and has not written yet. It
        // would write and commit during the pause, so it is waited for.
        // That the pause holds cannot be asked. Where it ended by itself, progress has moved or nothing
        // was committed, and both readings of it tell which.
        Query::new(
            "SELECT (SELECT count(*) FROM spock.subscription WHERE sub_enabled) AS paused,
                    (SELECT count(*) FROM pg_stat_activity a
                       JOIN pg_database d ON d.datname = current_database()
                      WHERE starts_with(a.backend_type, format('spock apply %s:', d.oid))
                        AND a.xact_start IS NOT NULL) AS alive",
            &[],
            PauseState::read,
        )
    }
}
