//! Whether the names that a join is going to use are free. What has them is not ours, so it is not touched.

use super::Known;
use crate::engine::{Path, subscription_states};
use crate::error::{Finding, Result, SqlState};
use crate::libpq::Rows;
use crate::node::{Node, ask, server};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;
use crate::workflow::members::each;
use crate::workflow::taken;

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
            true => self.engine.members().run(self.source)?,
            false => Default::default(),
        };
        if registry.iter().any(|r| r.text(0) == new) {
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
        let mut members = self.members();
        let paths = |of: &dyn Fn(&Node) -> Vec<Path>| -> Vec<Vec<Path>> {
            members.iter().map(|m| of(m)).collect()
        };
        let inbound = paths(&|m| engine.paths(&m.name, &new));
        let outbound = paths(&|m| engine.paths(&new, &m.name));
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let slots = |paths: &[Path]| paths.iter().map(|p| p.slot.clone()).collect::<Vec<_>>();
        let questions: Vec<_> = members
            .iter_mut()
            .zip(&inbound)
            .map(|(m, paths)| server::slots_named(&slots(paths)).on(m))
            .collect();
        for (name, rows) in names.iter().zip(ask(questions)) {
            findings.extend(rows?.iter().map(|row| taken::slot(name, row)));
        }
        let origins = |paths: &[Path]| -> Vec<String> {
            let wanted = paths.iter().filter_map(|p| engine.origin_wanted(p));
            wanted.map(str::to_owned).collect()
        };
        let with_origin = |paths: &[Path], origin: &str| {
            let mut paths = paths.iter();
            let path = paths.find(|path| engine.origin_wanted(path) == Some(origin));
            path.map_or(String::new(), |path| path.subscription.clone())
        };
        let questions: Vec<_> = members
            .iter_mut()
            .zip(&outbound)
            .map(|(m, paths)| server::origins_there(&origins(paths)).on(m))
            .collect();
        let there: Vec<Rows> = ask(questions).into_iter().collect::<Result<_>>()?;
        for (((name, rows), paths), there) in names
            .iter()
            .zip(each(members, |_| engine.subscriptions())?)
            .zip(&outbound)
            .zip(&there)
        {
            let mut states = subscription_states(&rows)?;
            states.retain(|state| paths.iter().any(|p| p.subscription == state.name));
            for state in &states {
                findings.push(taken::subscription(name, &state.name, state.working));
            }
            for row in there {
                let subscription = with_origin(paths, row.text(0));
                if !states.iter().any(|state| state.name == subscription) {
                    findings.push(taken::origin(name, &subscription, row));
                }
            }
        }
        let (inbound, outbound) = (inbound.concat(), outbound.concat());
        for row in &server::slots_named(&slots(&outbound)).run(self.new)? {
            findings.push(taken::slot(&new, row));
        }
        let states = subscription_states(&engine.subscriptions().run(self.new)?)?;
        for state in &states {
            findings.push(taken::subscription(&new, &state.name, state.working));
        }
        for row in &server::origins_there(&origins(&inbound)).run(self.new)? {
            let subscription = with_origin(&inbound, row.text(0));
            if !states.iter().any(|state| state.name == subscription) {
                findings.push(taken::origin(&new, &subscription, row));
            }
        }
        Ok(())
    }
}
