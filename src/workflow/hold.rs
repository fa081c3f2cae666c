//! Subscriptions that a run holds: they bring nothing until they are let go.

use super::patience::{Seen, wait_until};
use crate::engine::{Engine, Path};
use crate::error::Result;
use crate::journal::{Effect, Journal};
use crate::node::{Node, Statement};
use crate::step::{Action, Step};

/// The step that holds the subscription of `path`.
pub fn step(phase: usize, path: &Path) -> Step {
    let subscription = path.subscription.clone();
    let action = Action::HoldSubscription { subscription };
    Step::new(phase, &path.subscriber, action)
}

/// Announces that the subscription of `path` is held, and how it is let go.
pub fn intend(
    engine: &dyn Engine,
    journal: &mut Journal,
    phase: usize,
    path: &Path,
) -> Result<i32> {
    let undo = engine.enable(path).inlined();
    journal.intend(&step(phase, path), &Effect::Statement { undo })
}

/// How the end of the workers of subscriptions that have been disabled is waited for.
pub struct Ending {
    left: Statement,
    end_connecting: Option<Statement>,
}

impl Ending {
    pub fn of(engine: &dyn Engine) -> Self {
        Self {
            left: engine.workers_ending(),
            end_connecting: engine.end_connecting(),
        }
    }

    /// One that has had nothing from its provider yet has nothing to lose, and may try to connect for long: it is
    /// ended.
    pub fn wait(&self, node: &mut Node) -> Result<()> {
        let name = node.name.clone();
        let what = "waiting for its apply workers to end";
        wait_until(&name, what, "See its log.", || {
            if let Some(end) = &self.end_connecting {
                end.run(node)?;
            }
            let left: u64 = self.left.run(node)?.one()?.parse(0)?;
            Ok(match left {
                0 => Seen::Done(()),
                n => Seen::Pending(format!("{n} workers")),
            })
        })
    }
}
