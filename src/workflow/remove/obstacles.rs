//! What else keeps a removal from being exact, or makes others suffer from it: found before anything is waited for.

use super::{Inbound, Removal};
use crate::engine::{Engine, Path};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, scrub};
use crate::node::server::{self, DatabaseId};
use crate::node::{Node, ask_each};
use crate::workflow::lost_wal::LostWal;
use crate::workflow::members;
use crate::workflow::topology::Outsider;
use std::collections::BTreeMap;

/// The node gives its changes to that on which the CALL runs, and takes none of any member.
pub fn no_member(engine: &dyn Engine, local_name: &str, outsider: &Outsider) -> Error {
    let (name, subscription) = (&outsider.node.name, &outsider.subscription);
    let drop = engine.unsubscribe(subscription).pop();
    let drop = drop.map_or(String::new(), |last| last.inlined());
    Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!(
            "node \"{name}\" is not a member of the cluster: subscription {subscription} of node \"{local_name}\" takes its changes, and it takes those of no member"
        ),
        format!("To take no more of them, run on \"{local_name}\": {drop}"),
    )
}

impl Removal {
    /// A node that takes changes of members and that none of them knows only reads. It has never been a member.
    pub fn refuse_reader(&mut self) -> Result<()> {
        let known = !self.known_to.is_empty() || self.local_name == self.target;
        if known || self.cluster.engine.registry().is_some() || self.journal_there()?.is_some() {
            return Ok(());
        }
        let Ok(leaving) = &mut self.cluster.subject else {
            return Ok(());
        };
        let Some(providers) = self.cluster.engine.providers(leaving)? else {
            return Ok(());
        };
        let drop = providers.iter().filter_map(|provider| {
            let last = self
                .cluster
                .engine
                .unsubscribe(&provider.subscription)
                .pop()?;
            Some(last.inlined())
        });
        let drop: Vec<String> = drop.collect();
        Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "node \"{}\" only reads from the cluster and is not a member of it",
                self.target
            ),
            format!("To end that, run on it: {}", drop.join("; ")),
        ))
    }

    /// What survivors have of the leaving node, and that it has not any more. `states` are from before.
    pub fn lost_wal(&mut self, states: &[Vec<Inbound>]) -> Result<Vec<Finding>> {
        let Ok(leaving) = &mut self.cluster.subject else {
            return Ok(vec![]);
        };
        let end = server::wal_flushed().one(leaving)?;
        let find = |i: &Inbound| LostWal::find(&i.path, i.state.as_ref(), end).map(|l| l.finding());
        let found: Vec<Finding> = states.iter().flatten().filter_map(find).collect();
        self.went_back = !found.is_empty();
        Ok(found)
    }

    /// Survivors whose subscriptions lead elsewhere, or nowhere: what the leaving node writes does not get there,
    /// however long it is waited for.
    pub fn not_connected(&mut self, states: &[Vec<Inbound>]) -> Result<Vec<Finding>> {
        let Ok(leaving) = &mut self.cluster.subject else {
            return Ok(vec![]);
        };
        let identity = members::identity(leaving)?;
        let mut findings = vec![];
        let engine = &*self.cluster.engine;
        let paths: BTreeMap<String, Vec<Path>> = self
            .cluster
            .members
            .iter()
            .map(|survivor| survivor.name.clone())
            .zip(states.iter().map(|of| Inbound::enabled_paths(of)))
            .collect();
        let addresses = ask_each(&mut self.cluster.members, |survivor| {
            let paths = paths[&survivor.name].iter();
            paths
                .map(|path| engine.idle_address(path))
                .collect::<Vec<_>>()
        })?;
        for (survivor, addresses) in self.cluster.members.iter_mut().zip(addresses) {
            for (path, address) in paths[&survivor.name].iter().zip(addresses) {
                let Some(address) = address.into_iter().next() else {
                    continue;
                };
                let why = match engine.probe(&address).last() {
                    None => continue,
                    Some(probe) => match probe.run(survivor) {
                        Ok(rows) => match rows.first() {
                            Some(row) if DatabaseId::read(row)? != identity => {
                                "another database answers there".to_owned()
                            }
                            // It is there, and its worker on the way.
                            _ => continue,
                        },
                        Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => {
                            return Err(error);
                        }
                        Err(error) => scrub(&error.to_string()),
                    },
                };
                self.deaf.insert(survivor.name.clone());
                let address = Dsn::parse(&address).map_or("?".into(), |dsn| dsn.redacted());
                let (subscription, target) = (&path.subscription, &self.target);
                findings.push(
                    Finding::new(
                        &survivor.name,
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        format!("it is not connected to node \"{target}\", so what that one wrote may be missing there: subscription {subscription} leads to {address}: {why}"),
                        format!("ALTER SUBSCRIPTION {subscription} CONNECTION '...' there, with an address that leads to \"{target}\", or give up what is missing with force := true."),
                    ),
                );
            }
        }
        Ok(findings)
    }

    /// Members whose commits wait for somebody who reads by a path that is to be dropped: they would wait for ever.
    pub fn waited_for_by_commits(&mut self) -> Result<Vec<Finding>> {
        let names = |paths: Vec<Path>| paths.into_iter().map(|path| path.subscription);
        let outbound: Vec<String> = names(self.outbound_paths()).collect();
        let mut findings = vec![];
        let is_there = self.cluster.subject.is_ok();
        let nodes = self
            .cluster
            .members
            .iter_mut()
            .chain(&mut self.cluster.subject);
        let mut nodes: Vec<&mut Node> = nodes.collect();
        let (engine, target) = (&*self.cluster.engine, &self.target);
        let asked = nodes.iter_mut().map(|node| &mut **node);
        let answers = ask_each(asked, |node| {
            let paths: Vec<String> = match node.name == *target {
                true => outbound.clone(),
                false => names(engine.paths(&node.name, target)).collect(),
            };
            server::waited_for(&paths)
        })?;
        for (node, waited_for) in nodes.iter().zip(answers) {
            for name in waited_for {
                let what = format!(
                    "synchronous_standby_names names {name}, by which \"{}\" is read or reads: once it has left, commits wait for it for ever",
                    self.target
                );
                let hint = "Take it out there: ALTER SYSTEM SET synchronous_standby_names = ..., SELECT pg_reload_conf().";
                match is_there {
                    true => findings.push(Finding::new(
                        &node.name,
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        what,
                        hint,
                    )),
                    // They wait already.
                    false => self
                        .report
                        .warn(&format!("node \"{}\": {what}", node.name), hint),
                }
            }
        }
        Ok(findings)
    }

    /// Who can write on although the database of the leaving node is read-only.
    pub fn warn_of_writers(&mut self) -> Result<()> {
        let Ok(leaving) = &mut self.cluster.subject else {
            return Ok(());
        };
        for role in server::roles_that_write_on().on(leaving)? {
            let what = format!(
                "node \"{}\": role {} has default_transaction_read_only = off, so it can write on while the node leaves",
                self.target, role.whose
            );
            let hint = format!(
                "What it writes then stays on \"{}\" only. Keep it away, or run there: {};",
                self.target, role.reset
            );
            self.report.warn(&what, &hint);
        }
        Ok(())
    }
}
