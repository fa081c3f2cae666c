//! Who takes changes from whom. The members of a mesh take those of each other; what is none is told as what it is.

use super::membership::ReachableMembers;
use crate::engine::{Engine, Provider};
use crate::error::Result;
use crate::node::Node;
use std::collections::{BTreeMap, BTreeSet};

pub use zodan_core::topology::Shape;

/// A node from which others take changes, and which takes none of theirs.
pub struct Outsider {
    pub node: Node,
    /// By which the node that was asked takes its changes.
    pub subscription: String,
}

impl ReachableMembers {
    /// Takes those out that `start` subscribes to and that take nothing from it or any member: they are of no mesh
    /// with it. Who cannot be asked, or whose subscription is not enabled, stays. All stay where `start` is `leaving` and
    /// none of them takes anything: it only reads, or was removed while it was away.
    pub fn set_apart(
        &mut self,
        engine: &dyn Engine,
        start: &mut Node,
        leaving: bool,
    ) -> Result<Vec<Outsider>> {
        let Some(own) = engine.providers(start)? else {
            return Ok(vec![]);
        };
        let mut of_others: BTreeMap<String, Vec<Provider>> = BTreeMap::new();
        for (member, answer) in &mut self.answers {
            let enabled = own.iter().find(|p| p.node.name == member.name && p.enabled);
            if let (Some(_), Ok(node)) = (enabled, answer)
                && member.name != start.name
                && let Some(providers) = engine.providers(node)?
            {
                of_others.insert(member.name.clone(), providers);
            }
        }
        let names = self.survey.members.iter().map(|m| m.name.clone());
        let mut members: BTreeSet<String> = names.filter(|n| !of_others.contains_key(n)).collect();
        let asked = of_others.len();
        loop {
            let takes = |providers: &Vec<Provider>| {
                let mut names = providers.iter().map(|p| &p.node.name);
                names.any(|name| members.contains(name))
            };
            let found = of_others.iter().find(|(_, providers)| takes(providers));
            let Some(name) = found.map(|(name, _)| name.clone()) else {
                break;
            };
            of_others.remove(&name);
            members.insert(name);
        }
        if leaving && of_others.len() == asked {
            return Ok(vec![]);
        }
        let answers = std::mem::take(&mut self.answers).into_iter();
        let (apart, answers) = answers.partition(|(m, _)| of_others.contains_key(&m.name));
        self.answers = answers;
        self.survey.members.retain(|m| members.contains(&m.name));
        let outsider = |(_, answer): (_, Result<Node>)| {
            let node = answer.ok()?;
            let by = own.iter().find(|p| p.node.name == node.name)?;
            let subscription = by.subscription.clone();
            Some(Outsider { node, subscription })
        };
        Ok(Vec::into_iter(apart).filter_map(outsider).collect())
    }
}
