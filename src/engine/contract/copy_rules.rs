//! What a copy of the source has to be like.

use crate::copy::{self, InSnapshot};
use crate::error::Result;
use crate::node::{Node, Query, Statement};

/// What the engine wants of the copy.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    /// The replication origin under which copied rows are written on the new node.
    pub origin: String,
    /// The tables whose rows are copied.
    pub tables: Vec<copy::Table>,
    /// Tables of which nobody would send any row to the new node.
    pub structure_only: Vec<String>,
    /// Those of `tables` that the new node has before the copy, empty. They keep their rows when what
    /// the copy made is dropped.
    pub preexisting: Vec<String>,
    /// DDL is replicated too, so that a table that is renamed is so everywhere.
    pub names_follow: bool,
    /// Settings of the sessions that restore the structure.
    pub settings: Vec<(&'static str, &'static str)>,
    /// What the structure leaves out beside zodan's and the engines' own.
    pub excluded: Excluded,
}

/// Schemas and extensions that are each node's own.
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    pub schemas: Vec<String>,
    pub extensions: Vec<String>,
}

/// Where the new node's role in replication is not the source's, and what makes it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDifference {
    pub what: String,
    pub remedy: String,
}

/// What decides which of two updates of a row stays.
pub enum ConflictRule {
    /// A trigger: it is installed or removed; true if that changed anything.
    Trigger(Query<bool>),
    /// The engine itself, and where it says more.
    OfTheEngine { hint: &'static str },
}

/// What a copy of the source has to be like, and how writes beside it are kept away. The paths to the new node are
/// loaded.
pub trait CopyRules {
    /// What keeps applications from writing in new sessions of the node's database, beyond what they can turn off
    /// themselves: the statement, and the one that takes it back. `None` where there is no such.
    fn block_writes(&self, _new: &mut Node, _database: &str) -> Result<Option<[Statement; 2]>> {
        Ok(None)
    }

    /// Whether apply workers run statements beside the changes of rows, so that they fail in a database whose
    /// sessions are read-only.
    fn apply_runs_statements(&self, source: &mut Node) -> Result<bool>;

    /// The role whose settings the sessions of apply workers begin with, where the subscriptions are made by the
    /// session that is asked.
    fn apply_role(&self) -> Query<String>;

    /// What is copied, as the exported snapshot of the source has it, and how. An error where the source has but a
    /// part of a table in that snapshot.
    fn copy_plan(
        &self,
        source: &mut Node,
        snapshot: &mut InSnapshot,
        new: &str,
    ) -> Result<CopyPlan>;

    /// Gives the copied structure the role it has in replication on the source; before the new node subscribes. Returns
    /// what to tell.
    fn copy_replication_sets(&self, source: &mut Node, new: &mut Node) -> Result<Vec<String>>;

    /// What somebody changed of that on the source during the join, so that it is not the same any more.
    fn replication_set_differences(
        &self,
        _source: &mut Node,
        _new: &mut Node,
    ) -> Result<Vec<SetDifference>> {
        Ok(vec![])
    }

    /// By the number of the origin that rows bear on the source, 0 for its own, what makes a replaying session on the new
    /// node commit as of the same node. `None` where which of two changes stays is not told from when they were committed.
    fn origins_of_copied_rows(&self, _source: &mut Node) -> Result<Option<Vec<(u32, Statement)>>> {
        Ok(None)
    }

    /// What makes the later of two updates of a row of the table stay, or not any more.
    fn last_update_wins(&self, table: &str, wanted: bool) -> ConflictRule;
}
