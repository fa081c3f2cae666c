//! Whether the members are the mesh that a node joins.

use super::Known;
use crate::engine::{Path, Provider, SubscriptionState};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::wait;
use crate::node::{alone, ask_all, ask_each, server};
use crate::settings;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;
use crate::workflow::lost_wal::LostWal;
use crate::workflow::members;
use crate::workflow::refusal;
use crate::workflow::topology::Shape;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const FULL_MESH: &str = "Nodes join a full mesh, in which each subscribes to each other one.";

/// A finding about a path, and the path itself if that has no connection.
type Trouble = (Finding, Option<Path>);

pub fn subscriptions(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    nodes.check_mesh(check)
}

impl JoinNodes<'_> {
    /// Every subscription between the members is there, enabled and connected. A worker that has just
    /// been started, after our own pause for instance, gets the time that a connection may take.
    pub(super) fn check_mesh(&mut self, check: &mut Check) -> Result<()> {
        let names = self.member_names();
        let names = names.iter().map(String::as_str);
        if !self.source_is_member {
            check.record_all(names, vec![]);
            return Ok(());
        }
        let beyond = self.beyond_the_source()?;
        if !beyond.is_empty() {
            check.record_all(names, beyond);
            return Ok(());
        }
        let limit = settings::connect_timeout();
        let begun = Instant::now();
        let mut rest = Duration::from_millis(10);
        loop {
            let (mut found, may_pass) = self.mesh_troubles()?;
            if !found.is_empty() {
                alone()?;
            }
            if found.is_empty() || !may_pass || begun.elapsed() > limit {
                for (finding, path) in &mut found {
                    let reason = path.as_ref().map(|path| self.refusal(path));
                    if let Some(reason) = reason.transpose()?.flatten() {
                        finding.message.push_str(&format!(": {reason}"));
                    }
                }
                let findings = found.into_iter().map(|(finding, _)| finding).collect();
                check.record_all(names, findings);
                return Ok(());
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// What the provider of a path without a connection says about it.
    fn refusal(&mut self, path: &Path) -> Result<Option<String>> {
        let engine = self.engine;
        let mut members = self.members();
        let provider = members.iter().find(|m| m.name == path.provider);
        let Some(provider) = provider.map(|p| p.member()) else {
            return Ok(None);
        };
        match members.iter_mut().find(|m| m.name == path.subscriber) {
            Some(node) => refusal::reason(engine, node, &provider, path),
            None => Ok(None),
        }
    }

    /// By provider and subscriber, which of the members take changes of each other.
    fn takes(
        &self,
        names: &[String],
        states: &[Vec<SubscriptionState>],
    ) -> Result<BTreeSet<(String, String)>> {
        let mut takes = BTreeSet::new();
        for (subscriber, states) in names.iter().zip(states) {
            let exists = |path: &Path| states.iter().any(|s| s.name == path.subscription);
            for provider in names.iter().filter(|p| *p != subscriber) {
                if self.engine.paths(provider, subscriber).iter().any(exists) {
                    takes.insert((provider.clone(), subscriber.clone()));
                }
            }
        }
        Ok(takes)
    }

    /// Nodes that a member exchanges changes with and the source does not know. Of one that cannot be asked a slot
    /// of the member tells whether it may take something.
    fn beyond_the_source(&mut self) -> Result<Vec<Finding>> {
        let names = self.member_names();
        let mut both_ways: Vec<(String, String)> = vec![];
        let mut findings = vec![];
        for peer in self.peers.iter_mut() {
            let providers = self.engine.providers(peer)?.into_iter().flatten();
            for Provider { node, .. } in providers.filter(|p| !names.contains(&p.node.name)) {
                alone()?;
                let asked = members::own_session(&node);
                let takes = asked.and_then(|mut node| self.engine.providers(&mut node));
                match takes {
                    Ok(takes) => {
                        let mut takes = takes.into_iter().flatten();
                        if takes.any(|p| names.contains(&p.node.name)) {
                            both_ways.push((node.name, peer.name.clone()));
                        }
                    }
                    Err(error @ Error::Interrupted { .. }) => return Err(error),
                    Err(error) => {
                        if let Some((slot, _)) = self.engine.unclaimed_slots(peer)?.first() {
                            findings.push(Finding::new(
                                &peer.name,
                                error.sqlstate(),
                                format!(
                                    "it takes changes of node \"{}\", which cannot be asked whether slot {slot} is its own, and so whether it is a member: {error}",
                                    node.name
                                ),
                                "Make it reachable from the new node, or drop the slot if nobody needs it.",
                            ));
                        }
                    }
                }
            }
        }
        if both_ways.is_empty() {
            return Ok(findings);
        }
        let engine = self.engine;
        let states = ask_each(self.members(), |_| engine.subscriptions())?;
        let mut takes = self.takes(&names, &states)?;
        let mut nodes = names.clone();
        for (beyond, peer) in &both_ways {
            if !nodes.contains(beyond) {
                nodes.push(beyond.clone());
            }
            takes.insert((beyond.clone(), peer.clone()));
            takes.insert((peer.clone(), beyond.clone()));
        }
        let shape = Shape::of(&nodes, &takes);
        findings.extend(both_ways.into_iter().map(|(beyond, peer)| {
            Finding::new(
                &peer,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "it exchanges changes with node \"{beyond}\", which node \"{}\" does not know: they form {shape}",
                    self.source.name
                ),
                format!("{FULL_MESH} Have \"{beyond}\" and every other node subscribe to each other when all have the same rows, and run the CALL again."),
            )
        }));
        Ok(findings)
    }

    /// What is wrong with the mesh, and whether all of it may pass by itself.
    fn mesh_troubles(&mut self) -> Result<(Vec<Trouble>, bool)> {
        let (mut findings, mut may_pass) = (vec![], true);
        let engine = self.engine;
        let mut members = self.members();
        let names: Vec<String> = members.iter().map(|n| n.name.clone()).collect();
        let answers = ask_each(members.iter_mut().map(|m| &mut **m), |_| {
            engine.subscriptions()
        })?;
        // A worker in a loop of errors is there most of the time; the provider knows whether one
        // streams.
        let of_providers = (server::active_slots(), server::wal_flushed());
        let of_providers = ask_all(members, &of_providers)?;
        let of = |provider: &str| {
            let i = names.iter().position(|n| n == provider)?;
            Some(&of_providers[i])
        };
        let end = |provider: &str| of(provider)?.1.iter().copied().flatten().next();
        let streams = |provider: &str, slot: &str| {
            of(provider).is_some_and(|(streaming, _)| streaming.iter().any(|s| s == slot))
        };
        let shape = Shape::of(&names, &self.takes(&names, &answers)?);
        for (subscriber, states) in names.iter().zip(&answers) {
            let providers = names.iter().filter(|p| *p != subscriber);
            for path in providers.flat_map(|provider| engine.paths(provider, subscriber)) {
                let provider = path.provider.as_str();
                let state = states.iter().find(|s| s.name == path.subscription);
                if let Some(lost) = LostWal::find(&path, state, end(provider)) {
                    may_pass = false;
                    findings.push((lost.finding(), None));
                    continue;
                }
                let trouble = match state {
                    None => "does not exist",
                    Some(s) if !s.enabled => "is disabled",
                    Some(s) if !s.working || !streams(provider, &path.slot) => {
                        "has no connection to its provider"
                    }
                    Some(_) => continue,
                };
                may_pass &= state.is_some_and(|s| s.enabled);
                let finding = Finding::new(
                    subscriber,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} from node \"{provider}\" {trouble}",
                        path.subscription
                    ),
                    match state {
                        Some(_) => "Make every subscription of the cluster replicate before a node is added; the log of the subscriber says why one does not.".to_owned(),
                        None => format!("{FULL_MESH} The members form {shape}, and \"{subscriber}\" gets nothing of what \"{provider}\" writes. Make the two equal and have \"{subscriber}\" subscribe to it, or add the new node by a node that is in a mesh with all that it subscribes to."),
                    },
                );
                findings.push(match state {
                    Some(s) if !s.enabled => {
                        let enable = self.engine.enable(&path).inlined();
                        (finding.fixed_by(enable), None)
                    }
                    Some(_) => (finding, Some(path)),
                    None => (finding, None),
                });
            }
        }
        Ok((findings, may_pass))
    }
}
