//! Subscriptions that a run holds: they bring nothing until they are let go.

use super::members::planned_path;
use crate::engine::{Disabling, Engine, Path};
use crate::error::Result;
use crate::libpq::poll::{Poll, wait_until};
use crate::node::{Node, Query, Statement, server};
use crate::run::Step;
use crate::run::action::HoldSubscription;

/// Holds the subscription of `path`.
pub fn action(engine: &dyn Engine, path: &Path) -> HoldSubscription {
    HoldSubscription {
        subscription: path.subscription.clone(),
        let_go: engine.enable(path).inlined(),
    }
}

/// That of `paths` whose subscription `step` holds.
pub fn path_of<'p>(step: &Step<HoldSubscription>, paths: &'p [Path]) -> Result<&'p Path> {
    let held = &step.action().subscription;
    planned_path(paths, |path| path.subscription == *held)
}

/// Disables the subscription of `path`, between two transactions, and waits until its worker has ended.
pub fn stop(
    engine: &dyn Engine,
    path: &Path,
    provider: &mut Node,
    subscriber: &mut Node,
) -> Result<()> {
    match engine.disable_between_transactions(path) {
        Disabling::OnceIdle(idle) => stop_idle(&idle, path, provider, subscriber)?,
        Disabling::AtOnce(statement) => drop(statement.run(subscriber)?),
    }
    Ending::of(engine).wait(subscriber)
}

/// Disables it with `idle`, as of [`Disabling::OnceIdle`].
pub fn stop_idle(
    idle: &Statement,
    path: &Path,
    provider: &mut Node,
    subscriber: &mut Node,
) -> Result<()> {
    wait_until(
        &path.subscriber,
        &format!("disabling subscription {}", path.subscription),
        "See its log.",
        || {
            server::end_slot_user(&path.slot).run(provider)?;
            Ok(match idle.run(subscriber)?.is_empty() {
                true => Poll::Pending("its worker is there".into()),
                false => Poll::Ready(()),
            })
        },
    )
}

/// How the end of the workers of subscriptions that have been disabled is waited for.
pub struct Ending {
    left: Query<u64>,
    end_connecting_workers: Vec<Statement>,
}

impl Ending {
    pub fn of(engine: &dyn Engine) -> Self {
        Self {
            left: engine.stopping_workers(),
            end_connecting_workers: engine.end_connecting_workers(),
        }
    }

    /// One that has had nothing from its provider yet has nothing to lose, and may try to connect for long: it is
    /// ended.
    pub fn wait(&self, node: &mut Node) -> Result<()> {
        let name = node.name.clone();
        let what = "waiting for its apply workers to end";
        wait_until(&name, what, "See its log.", || {
            Statement::run_in_turn(&self.end_connecting_workers, node)?;
            Ok(match self.left.one(node)? {
                0 => Poll::Ready(()),
                n => Poll::Pending(format!("{n} workers")),
            })
        })
    }
}
