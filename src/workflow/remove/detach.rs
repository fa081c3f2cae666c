//! Nothing of the node remains on the others, and nothing of them on it.

use super::Removal;
use crate::engine::Path;
use crate::error::{Error, Result, SqlState};
use crate::node::{Node, Statement, ask, ask_each, server};
use crate::run::Journal;
use crate::run::action::{Detach, DropNode, ReadOnlyBefore};
use crate::run::revert::drop_slot;
use crate::workflow::members::{each_in_turn, recovery_slot};
use crate::workflow::registries::{now, publish_registry};

impl Removal {
    /// Every part of it may have been done by a run before this one. The registries come last: they
    /// are what the next run would start from. After them nothing is left to do but on the leaving node.
    pub fn detach(
        &mut self,
        journal: &mut Journal,
        hold: Option<&ReadOnlyBefore>,
        times: Option<u32>,
    ) -> Result<()> {
        self.report
            .phase(&format!("detach \"{}\" from every member", self.target));
        let phase = self.report.current();
        let mut steps = vec![];
        for survivor in &self.cluster.members {
            let step = journal.take::<Detach>(phase, &survivor.name)?;
            steps.push(journal.begin(step)?);
        }
        if self.cluster.subject.is_ok() {
            let step = journal.take::<DropNode>(phase, &self.target)?;
            steps.push(journal.begin(step)?);
        }
        self.record_cleanup()?;
        journal.passed("pending cleanup is recorded")?;
        self.remember_name(times)?;
        journal.passed("the name is remembered")?;
        self.drop_subscriptions()?;
        journal.passed("subscriptions are dropped")?;
        self.report
            .step("subscriptions dropped, with their origins");
        self.drop_slots()?;
        journal.passed("slots are dropped")?;
        self.report.step("replication slots dropped");
        self.drop_node(hold, false)?;
        journal.passed("the node has ceased to be one")?;
        self.deregister()?;
        self.report.step("registries of the other nodes changed");
        journal.passed("the other nodes have forgotten")?;
        self.report.phase(&format!(
            "prove that nothing of \"{}\" is left",
            self.target
        ));
        self.prove()?;
        self.tell_unclaimed()?;
        journal.passed("it is proved that nothing is left")?;
        self.drop_node(hold, true)?;
        for step in steps {
            journal.done(step)?;
        }
        Ok(())
    }

    /// Before any name is free again.
    fn remember_name(&mut self, times: Option<u32>) -> Result<()> {
        let (engine, target) = (&*self.cluster.engine, &self.target);
        let Some(times) = times else {
            return Ok(());
        };
        let mut survivors = self.cluster.members.iter_mut();
        survivors.try_for_each(|node| engine.remember_removed(node, target, times))
    }

    /// What makes the leaving node a database like any other. Writes are let in first: once it is no
    /// node any more, nobody would come back for that.
    fn final_statements(&self, hold: Option<&ReadOnlyBefore>) -> Vec<Statement> {
        let release = hold.map(ReadOnlyBefore::restore);
        release
            .into_iter()
            .chain(self.cluster.engine.drop_node())
            .collect()
    }

    /// What the node that the CALL runs on does with its subscription to the other end of `path`. Where it would
    /// forget that node with it, the next CALL could not go on: there it is dropped last.
    fn let_go(&self, path: &Path) -> Vec<Statement> {
        match self.cluster.engine.drops_node_with_last_subscription() {
            true => vec![self.cluster.engine.disable(path)],
            false => self.cluster.engine.unsubscribe(&path.subscription),
        }
    }

    /// What that leaves for the end.
    fn drop_node_with_subscription(&self, path: &Path) -> Vec<Statement> {
        match self.cluster.engine.drops_node_with_last_subscription() {
            true => self.cluster.engine.unsubscribe(&path.subscription),
            false => vec![],
        }
    }

    /// The leaving node is none any more. Before the others forget how to reach it; or last of all, if the CALL
    /// runs on it: from its registry and its journal the next CALL would start.
    fn drop_node(&mut self, hold: Option<&ReadOnlyBefore>, last: bool) -> Result<()> {
        let own = self.local_name == self.target;
        let mut statements = vec![];
        if own {
            let paths = self.paths_to_target();
            statements.extend(
                paths
                    .iter()
                    .flat_map(|path| self.drop_node_with_subscription(path)),
            );
        }
        statements.extend(self.final_statements(hold));
        let Some(leaving) = self.cluster.subject.iter_mut().find(|_| own == last) else {
            return Ok(());
        };
        // Its node worker sees to that by itself, where one runs.
        let slot = recovery_slot(leaving)?;
        drop_slot(leaving, &slot)?;
        each_in_turn([(leaving, statements)])
    }

    /// One change of the membership, the same on every member that can be reached.
    fn deregister(&mut self) -> Result<()> {
        let statements = self.cluster.engine.forget_node(&self.target);
        let paths = self.cluster.engine.paths(&self.target, &self.local_name);
        let mut on_local: Vec<Statement> = paths
            .iter()
            .flat_map(|p| self.drop_node_with_subscription(p))
            .collect();
        on_local.extend(statements.clone());
        let (local, others): (Vec<_>, Vec<_>) = self
            .cluster
            .members
            .iter_mut()
            .partition(|node| node.name == self.local_name);
        each_in_turn(others.into_iter().map(|node| (node, statements.clone())))?;
        each_in_turn(local.into_iter().map(|node| (node, on_local.clone())))?;
        let Some(registry) = self
            .cluster
            .registry
            .as_ref()
            .filter(|r| r.has(&self.target))
        else {
            return Ok(());
        };
        let next = registry.without(&self.target, now());
        let standing = &self.cluster.confirmed;
        let mut members: Vec<&mut Node> = self
            .cluster
            .members
            .iter_mut()
            .filter(|n| standing.contains(&n.name))
            .collect();
        publish_registry(&*self.cluster.engine, &mut members, &next)?
            .into_iter()
            .collect::<Result<()>>()?;
        self.cluster.registry = Some(next);
        Ok(())
    }

    fn drop_subscriptions(&mut self) -> Result<()> {
        let engine = &*self.cluster.engine;
        let target = &self.target;
        let of = |node: &str, path: &Path| match node == self.local_name {
            true => self.let_go(path),
            false => engine.unsubscribe(&path.subscription),
        };
        let outbound: Vec<Statement> = self
            .paths_to_target()
            .iter()
            .flat_map(|path| of(target, path))
            .chain([server::forget_recoveries(None)])
            .collect();
        let inbound: Vec<Vec<Statement>> = self
            .cluster
            .members
            .iter()
            .map(|node| {
                let paths = engine.paths(target, &node.name);
                paths.iter().flat_map(|path| of(&node.name, path)).collect()
            })
            .collect();
        let mut lanes: Vec<(&mut Node, Vec<Statement>)> =
            self.cluster.members.iter_mut().zip(inbound).collect();
        lanes.extend(
            self.cluster
                .subject
                .iter_mut()
                .map(|node| (node, outbound.clone())),
        );
        each_in_turn(lanes)
    }

    fn drop_slots(&mut self) -> Result<()> {
        let outbound = self.outbound_paths();
        let (engine, target) = (&*self.cluster.engine, &self.target);
        // The first on each at the same time; who streams from one is looked after below.
        let questions = self.cluster.members.iter_mut().filter_map(|survivor| {
            let path = engine.paths(&survivor.name, target).into_iter().next()?;
            Some(server::drop_slot(&path.slot).on(survivor))
        });
        let mut dropped = ask(questions.collect()).into_iter();
        for survivor in &mut self.cluster.members {
            for (i, path) in engine.paths(&survivor.name, target).iter().enumerate() {
                let tried = if i == 0 { dropped.next() } else { None };
                match tried {
                    Some(Ok(_)) => {}
                    Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
                    _ => drop_slot(survivor, &path.slot)?,
                }
            }
        }
        if let Ok(leaving) = &mut self.cluster.subject {
            for path in &outbound {
                drop_slot(leaving, &path.slot)?;
            }
        }
        Ok(())
    }

    /// A node that has died cannot be asked how its subscriptions were called.
    fn tell_unclaimed(&mut self) -> Result<()> {
        if self.cluster.subject.is_ok() {
            return Ok(());
        }
        for node in &mut self.cluster.members {
            let unclaimed = self.cluster.engine.unclaimed_slots(node)?.into_iter();
            for (slot, _) in unclaimed.filter(|(_, active)| !active) {
                let what = format!(
                    "node \"{}\": slot {slot} is inactive and belongs to no member: it may have been that of \"{}\"",
                    node.name, self.target
                );
                let drop = server::drop_slot(&slot).inlined();
                self.report
                    .warn(&what, &format!("If nobody needs it, run there: {drop};"));
            }
        }
        Ok(())
    }

    fn prove(&mut self) -> Result<()> {
        let (engine, target) = (&*self.cluster.engine, &self.target);
        let answers = ask_each(&mut self.cluster.members, |node| {
            let to = engine.paths(&node.name, target).into_iter();
            let slots: Vec<String> = to.map(|path| path.slot).collect();
            let from = engine.paths(target, &node.name).into_iter();
            (
                server::slots_named(&slots),
                engine.subscriptions(),
                from.map(|path| server::origins_named(&path.slot))
                    .collect::<Vec<_>>(),
                engine.members(),
            )
        })?;
        let mut left = vec![];
        for (node, (slots, subscriptions, origins, members)) in
            self.cluster.members.iter().zip(answers)
        {
            let mut found = |what: &str, which: &str| {
                left.push(format!("{what} {which} on node \"{}\"", node.name));
            };
            for slot in slots.iter().filter(|slot| slot.is_own) {
                found("slot", &slot.name);
            }
            for from in engine.paths(target, &node.name) {
                if subscriptions.iter().any(|s| s.name == from.subscription) {
                    found("subscription", &from.subscription);
                }
            }
            for origin in origins.iter().flatten() {
                found("origin", origin);
            }
            if members.iter().any(|member| member.name == *target) {
                found("registry entry", target);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::refused(
            SqlState::OBJECT_IN_USE,
            format!(
                "objects of node \"{}\" still exist: {}",
                self.target,
                left.join(", ")
            ),
            "They were created during the removal.",
        ))
    }
}
