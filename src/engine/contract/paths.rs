//! How the paths between nodes are called.

use crate::engine::names::{self, Numbered};
use crate::error::{Error, Result, SqlState};
use crate::node::{Member, Node};
use std::collections::BTreeSet;

/// How one path of the mesh is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub provider: String,
    pub subscriber: String,
    /// The subscription, on the subscriber.
    pub subscription: String,
    /// The slot, on the provider.
    pub slot: String,
}

impl Path {
    /// The path as zodan names it where the engine has no rule of its own for slots.
    pub fn by_rule(provider: &str, subscriber: &str) -> Self {
        let name = names::subscription(provider, subscriber);
        Self {
            provider: provider.to_owned(),
            subscriber: subscriber.to_owned(),
            slot: name.clone(),
            subscription: name,
        }
    }
}

/// The tables that a path brings.
#[derive(Default)]
pub struct PathTables {
    /// By schema and name.
    pub tables: BTreeSet<(String, String)>,
    /// Whether these are all.
    pub known: bool,
}

/// What is wrong with one of the nodes that are to read from the new node.
pub fn no_reader(leads_to: String, hint: impl Into<String>) -> Error {
    Error::Argument {
        argument: "readers",
        problem: format!("leads to {leads_to}"),
        hint: hint.into(),
        state: SqlState::INVALID_PARAMETER_VALUE,
    }
}

/// How the paths between nodes are called. An engine knows nothing of a cluster until its paths are loaded, and keeps
/// what it has learned then: names, numbers, replication sets.
pub trait Paths {
    /// Learns the paths between `members`, which have sessions, and of those between them and `absent`, which cannot be
    /// asked. Afterwards [`Self::path`] tells all of them, those of which only one end is left too.
    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()>;

    /// The same, the source being the first of `members`, and the paths between them and the new node, which are to be
    /// made. An error where the engine is not installed on `new`.
    fn load_paths_with(&mut self, members: &mut [&mut Node], new: &mut Node) -> Result<()>;

    /// Learns the paths from `members`, the source first, to a node that only reads from them, and those from the new
    /// node to it. After [`Self::load_paths_with`]. [`no_reader`] where it cannot read from the new node.
    fn load_reader_paths(
        &mut self,
        _members: &mut [&mut Node],
        _new: &mut Node,
        _reader: &mut Node,
    ) -> Result<()> {
        Ok(())
    }

    /// Forgets the paths: the membership has changed.
    fn unload_paths(&mut self) {}

    /// The first path from one node to the other; by rule where none was loaded.
    fn path(&self, provider: &str, subscriber: &str) -> Path;

    /// Every path from one to the other: somebody may have made several subscriptions. Never empty.
    fn paths(&self, provider: &str, subscriber: &str) -> Vec<Path> {
        vec![self.path(provider, subscriber)]
    }

    /// What the slot of a path is called where that is given by what the registry knows, for whoever has not loaded the
    /// path. `database` is that of the provider. `None` where the registry does not tell.
    fn slot_by_rule(
        &self,
        _cluster: &str,
        _provider: Numbered,
        _subscriber: Numbered,
        _database: &str,
    ) -> Option<String> {
        None
    }

    /// Whether a slot of the provider may be that of `path`, of which only the subscription is known, by a name that this
    /// engine has given it.
    fn may_be_slot_of(&self, _path: &Path, _slot: &str) -> bool {
        false
    }

    /// The replication origin that the subscription of `path` is going to have; `None` where it gets a name that is
    /// free.
    fn origin_wanted<'p>(&self, _path: &'p Path) -> Option<&'p str> {
        None
    }

    /// What the subscription of `path` takes of all that its provider sends, as one value: what two subscribers have of
    /// a provider is compared where that is the same.
    fn part(&self, _path: &Path) -> String {
        String::new()
    }

    /// The tables that each of several paths between the same two nodes brings, as far as `nodes` know: their provider
    /// cannot be asked. One for each of `paths`.
    fn tables_of(&self, _nodes: &mut [&mut Node], paths: &[Path]) -> Result<Vec<PathTables>> {
        Ok(paths.iter().map(|_| PathTables::default()).collect())
    }
}
