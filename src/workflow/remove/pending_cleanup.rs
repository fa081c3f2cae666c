//! The cleanup of members that could not be reached in a removal: recorded on those that could,
//! or told as the statements to run.

use super::Removal;
use crate::engine::PendingCleanup;
use crate::error::{Error, Result};
use crate::node::{Member, ask_each};
use crate::run::{Act, Action};
use crate::workflow::members;
use crate::workflow::membership::{cleanup_of, pending_cleanups};
use std::collections::BTreeMap;

impl Removal {
    /// Before anything is detached, so that it is known however the run ends.
    pub fn record_cleanup(&mut self) -> Result<()> {
        for (member, _) in &self.cluster.unreachable {
            let actions = cleanup_of(&*self.cluster.engine, &self.target, &member.name);
            let mut statements = vec![];
            for action in &actions {
                let cleanup = PendingCleanup {
                    member: member.clone(),
                    removed: self.target.clone(),
                    action: action.to_text()?,
                };
                match self.cluster.engine.registry() {
                    Some(registry) => {
                        let record = registry.record_cleanup(&cleanup);
                        ask_each(&mut self.cluster.members, |_| record.clone())?;
                    }
                    None => statements.extend(action.statements(&*self.cluster.engine)),
                }
            }
            let what = format!(
                "cleanup of \"{}\" on node \"{}\" is pending",
                self.target, member.name
            );
            let hint = match statements.is_empty() {
                true => "Run the same CALL again when it can be reached.".to_owned(),
                false => {
                    let statements: Vec<String> = statements
                        .iter()
                        .map(|s| format!("{};", s.inlined()))
                        .collect();
                    format!("Run there when it can be reached: {}", statements.join(" "))
                }
            };
            self.report.warn(&what, &hint);
        }
        Ok(())
    }

    /// What is still recorded of earlier removals of the target.
    pub fn pending_cleanups(&mut self) -> Result<Vec<PendingCleanup>> {
        let Some(local) = self.cluster.members.first_mut() else {
            return Ok(vec![]);
        };
        let mut cleanups = pending_cleanups(&*self.cluster.engine, &mut [local])?;
        let mut cleanups = cleanups.pop().unwrap_or_default();
        cleanups.retain(|cleanup| cleanup.removed == self.target);
        Ok(cleanups)
    }

    /// Does what is still recorded of earlier removals of the target.
    pub fn clean_up_pending(&mut self) -> Result<()> {
        let mut by_member: BTreeMap<String, (Member, Vec<Action>)> = BTreeMap::new();
        for cleanup in self.pending_cleanups()? {
            let entry = by_member
                .entry(cleanup.member.name.clone())
                .or_insert_with(|| (cleanup.member.clone(), vec![]));
            entry.1.push(Action::parse(&cleanup.action)?);
        }
        for (name, (member, actions)) in by_member {
            let known = self.cluster.members.iter().any(|n| n.name == name);
            if !known {
                let mut opened = members::connect(&[member])?;
                members::lock(&mut opened, &format!("remove_node {}", self.target))?;
                self.cluster.members.append(&mut opened);
            }
            let node = self.cluster.members.iter_mut().find(|n| n.name == name);
            let node = node.ok_or_else(|| Error::internal("a node was not connected"))?;
            for action in &actions {
                action.undo(&*self.cluster.engine, node)?;
            }
            if let Some(registry) = self.cluster.engine.registry() {
                let done = registry.cleaned_up(&self.target, &name);
                ask_each(&mut self.cluster.members, |_| done.clone())?;
            }
            self.report.notice(&format!(
                "cleaned up \"{}\" on node \"{name}\"",
                self.target
            ));
        }
        Ok(())
    }
}
