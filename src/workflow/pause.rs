//! Apply on a node is paused for a moment: what it has and how far it has applied its peers stand still together.
//!
//! PostgreSQL moves an origin's progress a moment before the commit becomes visible, so progress read beside a live
//! apply worker may cover a transaction that nobody sees yet. A pause counts only if no apply worker was alive from
//! before the first reading of the progress until after the second, and both readings are the same.

use super::report::Report;
use crate::engine::{Engine, Path, PauseState, SubscriptionState};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::holds_within;
use crate::lsn::{Lsn, Position};
use crate::node::{Node, Statement, ask_one};
use crate::run::Journal;
use crate::settings;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a pause can last. The watchdog outlives an honest attempt: workers going, and each of what is done meanwhile.
pub fn longest() -> Duration {
    settings::slot_timeout() * 3
}

/// By subscription, up to where the changes of its provider have been applied.
pub type Progress = BTreeMap<String, Position>;

/// What came of a pause.
pub enum Paused<T> {
    /// With the progress that the node had all the time.
    Valid(T, Progress),
    /// It did not count, or what was to be done in it did not come to an end.
    GivenUp(String),
}

pub struct Pause<'a> {
    pub engine: &'a dyn Engine,
    pub node: &'a mut Node,
    /// The subscriptions of the node, by which it applies its peers.
    pub inbound: &'a [Path],
    /// What it is for.
    pub moment: &'a str,
}

impl Pause<'_> {
    /// Has `within` run while apply is paused, and `after` once it counts, still before apply resumes. `within` says
    /// why, if it has been given up.
    pub fn hold<T>(
        mut self,
        journal: &Journal,
        report: &Report,
        within: impl FnOnce(&mut Node) -> Result<std::result::Result<T, String>>,
        after: impl FnOnce(&mut Node, &T, &Progress) -> Result<()>,
    ) -> Result<Paused<T>> {
        let limit = settings::slot_timeout();
        let watchdog = self.engine.start_watchdog(longest().as_millis());
        Statement::run_in_turn(&watchdog, self.node)?;
        journal.passed(&format!("the watchdog of {} waits", self.moment))?;
        let begun = Instant::now();
        let outcome = self.paused(journal, limit, within).and_then(|outcome| {
            if let Paused::Valid(value, progress) = &outcome {
                after(self.node, value, progress)?;
            }
            Ok(outcome)
        });
        // Whatever came out of it, an interrupt too: resume first.
        let end = [vec![self.engine.resume()], self.engine.stop_watchdog()];
        let resumed = ask_one(self.node, &end.concat());
        let pause = begun.elapsed();
        let outcome = outcome?;
        resumed?;
        journal.passed(&format!("apply has resumed after {}", self.moment))?;
        journal.note_pause(pause.as_secs_f64() * 1000.0)?;
        report.step(&format!(
            "apply on \"{}\" was paused for {:.0} ms",
            self.node.name,
            pause.as_secs_f64() * 1000.0
        ));
        Ok(outcome)
    }

    fn paused<T>(
        &mut self,
        journal: &Journal,
        limit: Duration,
        within: impl FnOnce(&mut Node) -> Result<std::result::Result<T, String>>,
    ) -> Result<Paused<T>> {
        let names: Vec<String> = self
            .inbound
            .iter()
            .map(|p| p.subscription.clone())
            .collect();
        self.engine.pause(&names).run(self.node)?;
        journal.passed(&format!("apply is told to pause for {}", self.moment))?;
        let Some(before) = self.progress_without_workers(limit)? else {
            return Ok(Paused::GivenUp(format!(
                "apply did not stop within {} ms",
                limit.as_millis()
            )));
        };
        let value = match within(self.node)? {
            Ok(value) => value,
            Err(why) => return Ok(Paused::GivenUp(why)),
        };
        let asked = (self.engine.subscriptions(), self.engine.pause_state());
        let (after, state) = ask_one(self.node, &asked)?;
        let after = progress_of(&self.node.name, &after, self.inbound)?;
        let PauseState { paused, alive } = state_of(state)?;
        if alive > 0 || paused < self.inbound.len() as i64 {
            return Ok(Paused::GivenUp("apply resumed by itself".into()));
        }
        if before != after {
            return Ok(Paused::GivenUp("progress moved during the pause".into()));
        }
        Ok(Paused::Valid(value, after))
    }

    /// How far the node has applied its peers when no worker is alive any more.
    fn progress_without_workers(&mut self, limit: Duration) -> Result<Option<Progress>> {
        let mut progress = None;
        holds_within(limit, || {
            // In this order.
            let asked = (self.engine.pause_state(), self.engine.subscriptions());
            let (state, states) = ask_one(self.node, &asked)?;
            let PauseState { paused, alive } = state_of(state)?;
            if paused < self.inbound.len() as i64 {
                return Err(Error::refused(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "{paused} of {} subscriptions of node \"{}\" could be paused",
                        self.inbound.len(),
                        self.node.name
                    ),
                    "A subscription was disabled or dropped meanwhile. Enable it and run the CALL again.",
                ));
            }
            if alive == 0 {
                progress = Some(progress_of(&self.node.name, &states, self.inbound)?);
            }
            Ok(alive == 0)
        })?;
        Ok(progress)
    }
}

/// How far the node has applied its peers by now. No value is an error: there is no position that could stand in for it.
pub fn progress(engine: &dyn Engine, node: &mut Node, inbound: &[Path]) -> Result<Progress> {
    let states = engine.subscriptions().on(node)?;
    progress_of(&node.name, &states, inbound)
}

fn state_of(answer: Vec<PauseState>) -> Result<PauseState> {
    let state = answer.into_iter().next();
    state.ok_or_else(|| Error::internal("a node does not say whether apply is paused"))
}

fn progress_of(node: &str, states: &[SubscriptionState], inbound: &[Path]) -> Result<Progress> {
    inbound
        .iter()
        .map(|path| {
            let applied: Option<Lsn> = states
                .iter()
                .find(|s| s.name == path.subscription)
                .and_then(|s| s.applied);
            let lsn = applied.ok_or_else(|| {
                Error::refused(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "node \"{}\" has no progress for its subscription {}",
                        node, path.subscription
                    ),
                    "See whether the subscription replicates, then run the CALL again.",
                )
            })?;
            let position = Position::new(&path.provider, lsn);
            Ok((path.subscription.clone(), position))
        })
        .collect()
}
