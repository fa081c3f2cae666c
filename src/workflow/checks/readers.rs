//! Nodes that only read: what the subscription to the new node needs there.

use super::Known;
use super::capacity::{SLOTS, too_few};
use super::reachability::cannot_reach;
use crate::engine::Path;
use crate::error::{Finding, Result, SqlState};
use crate::node::Node;
use crate::node::server;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;
use crate::workflow::name_conflicts;

pub fn fit(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    if nodes.readers.is_empty() {
        return Ok(());
    }
    let (engine, new) = (nodes.engine, nodes.new.name.clone());
    let members = nodes.member_names();
    let mut findings = vec![];
    let names: Vec<String> = nodes.readers.iter().map(|r| r.name.clone()).collect();
    for reader in nodes.readers.iter_mut() {
        let name = reader.name.clone();
        let paths = engine.paths(&new, &name);
        let states = engine.subscriptions().on(reader)?;
        for path in members.iter().flat_map(|m| engine.paths(m, &name)) {
            if let Some(state) = states.iter().find(|s| s.name == path.subscription)
                && !state.working
            {
                findings.push(Finding::new(
                    &name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} from node \"{}\" does not replicate",
                        path.subscription, path.provider
                    ),
                    "Make it replicate first; the log of that server says why it does not.",
                ));
            }
        }
        let existing = |path: &&Path| states.iter().find(|s| s.name == path.subscription);
        let taken_names = paths.iter().filter_map(|p| existing(&p));
        findings
            .extend(taken_names.map(|s| name_conflicts::subscription(&name, &s.name, s.working)));
        let slots: Vec<String> = paths.iter().map(|p| p.slot.clone()).collect();
        for origin in &server::origins_there(&slots).on(reader)? {
            let path = paths.iter().find(|p| p.slot == origin.origin);
            if let Some(path) = path.filter(|p| existing(p).is_none()) {
                findings.push(name_conflicts::origin(&name, &path.subscription, origin));
            }
        }
        for slot in &server::slots_named(&slots).on(nodes.new)? {
            findings.push(name_conflicts::slot(&new, slot));
        }
        let facts = server::facts().one(reader)?;
        let count = paths.len() as i64;
        findings.extend(
            [
                (facts.origins_setting.as_str(), facts.origins),
                ("max_worker_processes", facts.worker_processes),
            ]
            .into_iter()
            .filter_map(|(setting, budget)| too_few(&name, setting, budget, count)),
        );
    }
    let mut readers: Vec<&mut Node> = nodes.readers.iter_mut().collect();
    let unreached = cannot_reach(engine, &mut readers, &nodes.new.dsn, known, "every node")?;
    findings.extend(unreached);
    let more: i64 = names
        .iter()
        .map(|n| engine.paths(&new, n).len() as i64)
        .sum();
    let members = members.len() as i64;
    for (setting, budget) in [
        (SLOTS, known.new.replication_slots),
        ("max_wal_senders", known.new.wal_senders),
    ] {
        // Without them it is told with what the members need.
        if more > 0 && budget.free() >= members {
            findings.extend(too_few(&new, setting, budget, members + more));
        }
    }
    let all = names.iter().map(String::as_str).chain([new.as_str()]);
    check.record_all(all, findings);
    Ok(())
}
