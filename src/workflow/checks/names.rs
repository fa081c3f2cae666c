//! Whether the names that a join is going to use are free. What has them is not ours, so it is not touched.

use super::Known;
use crate::engine::Path;
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, ask_each, server};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;
use crate::workflow::name_conflicts;

pub fn free(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let mut findings = vec![];
    nodes.names_taken(&mut findings)?;
    check.record_all(nodes.names().iter().map(String::as_str), findings);
    Ok(())
}

impl JoinNodes<'_> {
    fn names_taken(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
        let new = self.new.name.clone();
        for name in self.registered_as.iter().filter(|name| **name != new) {
            findings.push(Finding::new(
                &self.source.name,
                SqlState::DUPLICATE_OBJECT,
                format!("the cluster has the new node's database already, as node \"{name}\""),
                "Remove that node first.",
            ));
        }
        let registry = match self.source_is_member {
            true => self.engine.members().on(self.source)?,
            false => vec![],
        };
        if registry.iter().any(|member| member.name == new) {
            findings.push(Finding::new(
                &self.source.name,
                SqlState::DUPLICATE_OBJECT,
                format!("the cluster has a node named \"{new}\" already"),
                "Choose another name, or remove that node first.",
            ));
            // What goes by that name is that node's.
            return Ok(());
        }
        let engine = self.engine;
        let members = self.members();
        let paths = |of: &dyn Fn(&Node) -> Vec<Path>| -> Vec<Vec<Path>> {
            members.iter().map(|m| of(m)).collect()
        };
        let inbound = paths(&|m| engine.paths(&m.name, &new));
        let outbound = paths(&|m| engine.paths(&new, &m.name));
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let slots = |paths: &[Path]| paths.iter().map(|p| p.slot.clone()).collect::<Vec<_>>();
        let origins = |paths: &[Path]| -> Vec<String> {
            let wanted = paths.iter().filter_map(|p| engine.origin_wanted(p));
            wanted.map(str::to_owned).collect()
        };
        let with_origin = |paths: &[Path], origin: &str| {
            let mut paths = paths.iter();
            let path = paths.find(|path| engine.origin_wanted(path) == Some(origin));
            path.map_or(String::new(), |path| path.subscription.clone())
        };
        let present = ask_each(members, |m| {
            (
                server::slots_named(&slots(&engine.paths(&m.name, &new))),
                server::origins_there(&origins(&engine.paths(&new, &m.name))),
                engine.subscriptions(),
            )
        })?;
        for (name, (present, _, _)) in names.iter().zip(&present) {
            findings.extend(present.iter().map(|slot| name_conflicts::slot(name, slot)));
        }
        for ((name, paths), (_, present, mut states)) in names.iter().zip(&outbound).zip(present) {
            states.retain(|state| paths.iter().any(|p| p.subscription == state.name));
            for state in &states {
                findings.push(name_conflicts::subscription(
                    name,
                    &state.name,
                    state.working,
                ));
            }
            for origin in &present {
                let subscription = with_origin(paths, &origin.origin);
                if !states.iter().any(|state| state.name == subscription) {
                    findings.push(name_conflicts::origin(name, &subscription, origin));
                }
            }
        }
        let (inbound, outbound) = (inbound.concat(), outbound.concat());
        for slot in &server::slots_named(&slots(&outbound)).on(self.new)? {
            findings.push(name_conflicts::slot(&new, slot));
        }
        let states = engine.subscriptions().on(self.new)?;
        for state in &states {
            findings.push(name_conflicts::subscription(
                &new,
                &state.name,
                state.working,
            ));
        }
        for origin in &server::origins_there(&origins(&inbound)).on(self.new)? {
            let subscription = with_origin(&inbound, &origin.origin);
            if !states.iter().any(|state| state.name == subscription) {
                findings.push(name_conflicts::origin(&new, &subscription, origin));
            }
        }
        Ok(())
    }
}
