//! Apply on a node stands still for a moment.

use super::Native;
use crate::engine::{ApplyPause, PauseState};
use crate::node::{Query, Statement};

/// The class of the advisory lock that says "the coordinator of this pause lives"; `zodp` in ASCII.
/// `zodan.watch_pause` waits for it.
const PAUSE_LOCK: i32 = 2_054_120_560;

impl ApplyPause for Native {
    fn start_watchdog(&self, limit_ms: u128) -> Vec<Statement> {
        // The lock is taken first, so that the worker has something to wait for.
        vec![Statement::new(
            format!(
                "SELECT pg_advisory_lock({PAUSE_LOCK}, pg_backend_pid());
                 SELECT zodan.start_pause_watchdog(pg_backend_pid(), {limit_ms})"
            ),
            &[],
        )]
    }

    fn stop_watchdog(&self) -> Vec<Statement> {
        vec![Statement::new(
            format!("SELECT pg_advisory_unlock({PAUSE_LOCK}, pg_backend_pid())"),
            &[],
        )]
    }

    fn pause(&self, subscriptions: &[String]) -> Statement {
        // Names of subscriptions are made by `names` and hold no comma.
        Statement::new(
            "SELECT zodan.pause_apply(string_to_array($1, ','))",
            &[&subscriptions.join(",")],
        )
    }

    fn resume(&self) -> Statement {
        Statement::new("SELECT zodan.resume_apply()", &[])
    }

    fn resume_orphaned(&self) -> Query<i64> {
        // Whoever pauses has the lock before there is anything to resume.
        Query::new(
            format!(
                "SELECT zodan.resume_apply()
                  WHERE EXISTS (SELECT FROM zodan.paused_subscription)
                    AND NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                                     WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted
                                       AND l.classid = {PAUSE_LOCK} AND d.datname = current_database())"
            ),
            &[],
            |row| row.only(),
        )
    }

    fn pause_state(&self) -> Query<PauseState> {
        Query::new(
            "SELECT (SELECT count(*) FROM zodan.paused_subscription) AS paused,
                    (SELECT count(*) FROM pg_stat_subscription w
                       JOIN pg_subscription s ON s.oid = w.subid
                       JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                       JOIN zodan.paused_subscription p ON p.name = s.subname
                      WHERE w.pid IS NOT NULL) AS alive",
            &[],
            PauseState::read,
        )
    }
}
