//! Nothing of the node remains on the others, and nothing of them on it.

use super::find::slots_there;
use super::{Hold, Leave};
use crate::error::{Error, Result, SqlState};
use crate::journal::Journal;
use crate::node::{Node, Statement, server};
use crate::step::{Action, Step};
use crate::workflow::members::each_in_turn;
use crate::workflow::undo::drop_slot;

impl Leave {
    /// Every part of it may have been done by a run before this one. The registries come last: they
    /// are what the next run would start from.
    pub fn detach(&mut self, journal: &mut Journal, hold: Option<&Hold>) -> Result<()> {
        self.report
            .phase(&format!("detach \"{}\" from every member", self.target));
        let phase = self.report.current();
        let mut steps = vec![];
        let names: Vec<String> = self.survivors.iter().map(|n| n.name.clone()).collect();
        for name in &names {
            let node = self.target.clone();
            steps.push(journal.go_on(&Step::new(phase, name, Action::Detach { node }))?);
        }
        if self.leaving.is_some() {
            steps.push(journal.go_on(&Step::new(phase, &self.target, Action::Leave))?);
        }
        self.remember_debts()?;
        journal.passed("debts are remembered")?;
        self.drop_subscriptions()?;
        journal.passed("subscriptions are dropped")?;
        self.report
            .step("subscriptions dropped, with their origins");
        self.drop_slots()?;
        journal.passed("slots are dropped")?;
        self.report.step("replication slots dropped");
        self.forget_elsewhere(hold)?;
        self.report.step("registries of the other nodes changed");
        journal.passed("the other nodes have forgotten")?;
        self.report.phase(&format!(
            "prove that nothing of \"{}\" is left",
            self.target
        ));
        self.prove()?;
        journal.passed("it is proved that nothing is left")?;
        self.forget_here(hold)?;
        for step in steps {
            journal.done(step)?;
        }
        Ok(())
    }

    /// What makes the leaving node a database like any other. Writes are let in first: once it is no
    /// node any more, nobody would come back for that.
    fn last_of_leaving(&self, hold: Option<&Hold>) -> Vec<Statement> {
        let release = hold
            .map(|hold| server::set_database_read_only(&hold.database, hold.read_only.as_deref()));
        release
            .into_iter()
            .chain(self.engine.cease_provider())
            .collect()
    }

    /// Registries and the leaving node itself, save the node that the CALL runs on.
    fn forget_elsewhere(&mut self, hold: Option<&Hold>) -> Result<()> {
        let forget = self.engine.unregister(&self.target);
        let last = self.last_of_leaving(hold);
        let here = &self.here;
        let leaving = self.leaving.as_mut().filter(|node| node.name != *here);
        let others = self.survivors.iter_mut().filter(|n| n.name != *here);
        each_in_turn(
            others
                .map(|node| (node, forget.clone()))
                .chain(leaving.map(|node| (node, last))),
        )
    }

    /// The node that the CALL runs on comes last: from its registry and its journal the next CALL
    /// would go on.
    fn forget_here(&mut self, hold: Option<&Hold>) -> Result<()> {
        let forget = self.engine.unregister(&self.target);
        let last = self.last_of_leaving(hold);
        let here = &self.here;
        let leaving = self.leaving.as_mut().filter(|node| node.name == *here);
        let survivor = self.survivors.iter_mut().filter(|n| n.name == *here);
        each_in_turn(
            survivor
                .map(|node| (node, forget.clone()))
                .chain(leaving.map(|node| (node, last))),
        )
    }

    fn drop_subscriptions(&mut self) -> Result<()> {
        let engine = &*self.engine;
        let target = &self.target;
        let outbound: Vec<Statement> = self
            .paths()
            .iter()
            .flat_map(|(_, to)| engine.unsubscribe(&to.subscription))
            .chain([server::forget_unfinished(None)])
            .collect();
        let mut lanes: Vec<(&mut Node, Vec<Statement>)> = self
            .survivors
            .iter_mut()
            .map(|node| {
                let path = engine.path(target, &node.name);
                let mut statements = engine.unsubscribe(&path.subscription);
                statements.push(server::forget_unfinished(Some(target)));
                (node, statements)
            })
            .collect();
        lanes.extend(self.leaving.as_mut().map(|node| (node, outbound)));
        each_in_turn(lanes)
    }

    fn drop_slots(&mut self) -> Result<()> {
        let paths = self.paths();
        for survivor in &mut self.survivors {
            drop_slot(
                survivor,
                &self.engine.path(&survivor.name, &self.target).slot,
            )?;
        }
        if let Some(leaving) = &mut self.leaving {
            for (from, _) in &paths {
                drop_slot(leaving, &from.slot)?;
            }
        }
        Ok(())
    }

    fn prove(&mut self) -> Result<()> {
        let mut left = vec![];
        for node in &mut self.survivors {
            let name = node.name.clone();
            let mut found = |what: &str, which: &str| {
                left.push(format!("{what} {which} on node \"{name}\""));
            };
            let (from, to) = (
                self.engine.path(&self.target, &node.name),
                self.engine.path(&node.name, &self.target),
            );
            for (slot, _) in slots_there(node, std::slice::from_ref(&to.slot))? {
                found("slot", &slot);
            }
            for row in &self.engine.subscriptions().run(node)? {
                if row.text(0) == from.subscription {
                    found("subscription", &from.subscription);
                }
            }
            for row in &server::origins_named(&from.slot).run(node)? {
                found("origin", row.text(0));
            }
            for row in &self.engine.registry().run(node)? {
                if row.text(0) == self.target && name != self.here {
                    found("registry entry", &self.target);
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::refused(
            SqlState::OBJECT_IN_USE,
            format!(
                "node \"{}\" has left traces: {}",
                self.target,
                left.join(", ")
            ),
            "Somebody made them while the node was leaving.",
        ))
    }
}
