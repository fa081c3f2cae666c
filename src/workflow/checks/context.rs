//! What the checks before a join look at.

use super::every_member::{Answers, EveryMember, REFUSES_UNSENT};
use crate::error::{Error, Result};
use crate::node::server::{self, Facts};
use crate::node::{Node, Statement, ask_each};
use crate::workflow::cluster::JoinNodes;

/// What the checks learnt and the join needs.
pub struct Known {
    pub source: Facts,
    pub peers: Vec<Facts>,
    pub new: Facts,
}

impl Known {
    /// Major versions of the members, then of the new node.
    pub fn versions(&self) -> Vec<u32> {
        let members = std::iter::once(&self.source).chain(&self.peers);
        members
            .chain(std::iter::once(&self.new))
            .map(|facts| facts.version / 10_000)
            .collect()
    }

    /// Whether some node refuses updates that are told by columns which it does not send.
    pub fn unsent(&self) -> bool {
        self.versions().iter().any(|v| *v >= REFUSES_UNSENT)
    }
}

impl JoinNodes<'_> {
    pub(super) fn known(&mut self) -> Result<Known> {
        let mut nodes: Vec<&mut Node> = vec![&mut *self.source, &mut *self.new];
        nodes.extend(self.peers.iter_mut());
        let mut facts = ask_each(nodes, |_| server::facts())?.into_iter().flatten();
        let mut next = || {
            facts
                .next()
                .ok_or_else(|| Error::internal("a node gave no facts"))
        };
        Ok(Known {
            source: next()?,
            new: next()?,
            peers: facts.collect(),
        })
    }

    /// Every node with its facts, the new one last.
    pub(super) fn all<'k>(
        &'k self,
        known: &'k Known,
    ) -> impl Iterator<Item = (&'k str, &'k Facts)> {
        std::iter::once((self.source.name.as_str(), &known.source))
            .chain(self.peers.iter().map(|n| n.name.as_str()).zip(&known.peers))
            .chain(std::iter::once((self.new.name.as_str(), &known.new)))
    }

    /// Has every member looked at, as it is afterwards too.
    pub(super) fn every_member<T>(
        &mut self,
        known: &Known,
        look: impl FnOnce(EveryMember) -> Result<T>,
    ) -> Result<T> {
        let names = self.member_names();
        let mut paths = vec![];
        for subscriber in names.iter().filter(|_| self.source_is_member) {
            for provider in names.iter().filter(|p| *p != subscriber) {
                paths.extend(self.engine.paths(provider, subscriber));
            }
        }
        let (engine, bootstrapping) = (self.engine, !self.source_is_member);
        let mut ask_them = |questions: &[&Statement], with_new: bool| -> Result<Answers> {
            let nodes = match with_new {
                true => self.everyone(),
                false => self.members(),
            };
            let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
            let answers = ask_each(nodes, |_| questions.to_vec())?.into_iter().map(Ok);
            Ok(names.into_iter().zip(answers).collect())
        };
        look(EveryMember {
            engine,
            ask: &mut ask_them,
            paths,
            bootstrapping,
            versions: known.versions(),
        })
    }
}
