//! What a recovery reads, and how it writes.

use super::{ByTable, Path};
use crate::error::Result;
use crate::node::{Node, Query, Statement};
use crate::replay::Decoding;
use crate::replay::share::Share;

/// What tells of which node a commit is.
pub enum CommitOrigin {
    /// The replication origin of the session, as with PostgreSQL's own workers.
    OfSession,
    /// A mark of its own, which the statement sets for the session.
    Marked(Statement),
}

/// What a recovery reads, and how it writes: transactions of a failed node from the recovery slot of a survivor, and rows
/// of two survivors side by side. The paths between the survivors are loaded.
pub trait Recovery {
    /// How a recovery slot is made and read. It gives the transactions of all nodes, with the origin of each.
    fn decoding(&self) -> Decoding;

    /// By schema and name, the tables of which a recovery slot of the node gives the changes, and what a row has to meet
    /// for that; `None` for all.
    fn decoded_tables(&self, _node: &mut Node) -> Result<Option<ByTable<Option<String>>>> {
        Ok(None)
    }

    /// The replication origin of the subscription of `path`, on its subscriber; no row where there is no such.
    fn origin(&self, path: &Path) -> Query<String>;

    /// The origin that rows of the provider of `path` bear on its subscriber: a name, or a number that has none.
    fn row_origin(&self, path: &Path) -> Query<String> {
        self.origin(path)
    }

    /// By schema and name, what two of `nodes` are to have alike of their tables; `None` where that is all of all.
    /// The others are those that may have sent it to the two.
    fn shares(
        &self,
        _nodes: &mut [&mut Node],
        _here: usize,
        _there: usize,
    ) -> Result<Option<ByTable<Share>>> {
        Ok(None)
    }

    /// How what a replaying session commits is marked as the engine marks what it applies of the node `origin`.
    fn commit_origin(&self, _origin: &str) -> CommitOrigin {
        CommitOrigin::OfSession
    }
}
