//! Who the members are.

use super::Path;
use crate::error::{Finding, Result};
use crate::libpq::Row;
use crate::node::{Member, Node, Query, Statement};

/// What the source knows of its cluster.
pub struct Survey {
    /// Every member, the source too. Just the source where it is not a node yet.
    pub members: Vec<Member>,
    /// Whether the source is a node already.
    pub is_member: bool,
}

impl Survey {
    /// Whether it names the same members.
    pub fn is_as(&self, other: &Self) -> bool {
        let names = |survey: &Self| -> Vec<String> {
            survey.members.iter().map(|m| m.name.clone()).collect()
        };
        self.is_member == other.is_member && names(self) == names(other)
    }
}

/// A member as a node knows it. What the engine does not keep is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct RegisteredNode {
    pub name: String,
    pub location: String,
    pub country: String,
    /// As it is kept: it may be none.
    pub dsn: String,
    pub system_identifier: String,
    pub database: String,
    pub info: String,
    pub joined_at: String,
    /// As the engine itself tells nodes apart.
    pub id: Option<i32>,
    /// Of the registry.
    pub number: Option<i32>,
    /// Which cluster it is of.
    pub cluster: String,
}

impl RegisteredNode {
    /// From columns that are named like the fields.
    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            name: row.get("name")?,
            location: row.get("location")?,
            country: row.get("country")?,
            dsn: row.get("dsn")?,
            system_identifier: row.get("system_identifier")?,
            database: row.get("database")?,
            info: row.get("info")?,
            joined_at: row.get("joined_at")?,
            id: row.get("id")?,
            number: row.get("number")?,
            cluster: row.get("cluster")?,
        })
    }
}

/// What a node takes of another one.
pub struct Provider {
    pub node: Member,
    pub subscription: String,
    pub enabled: bool,
    /// Whether it takes what the other has from others too.
    pub forwarded: bool,
}

/// Who the members are, and what a node takes of others. Everything here only reads, and may be asked before any path is
/// loaded unless it is said otherwise.
pub trait Topology {
    /// The name of the node that the database of the session is in its cluster; `None` where it is in none, also where
    /// the engine is not installed.
    fn local_name(&self, node: &mut Node) -> Result<Option<String>>;

    /// The members as the source knows them. An error where the source is a node of another name than `source.name`,
    /// and where a connection string of a member cannot be read.
    fn survey(&self, source: &mut Node) -> Result<Survey>;

    /// Every member, as the node that is asked knows them; no row where it is no node. Without parameters.
    fn members(&self) -> Query<RegisteredNode>;

    /// What the node takes of others; `None` where it is no node, or where a registry says who the members are.
    fn providers(&self, _node: &mut Node) -> Result<Option<Vec<Provider>>> {
        Ok(None)
    }

    /// What others than `members` have on a node that is leaving, and it has of others, so that it cannot cease to be a
    /// node, or they would lose what they have not had yet. Empty where nothing is in the way. The paths are loaded.
    fn links_to_non_members(
        &self,
        _leaving: &mut Node,
        _members: &[String],
    ) -> Result<Vec<Finding>> {
        Ok(vec![])
    }

    /// Slots of the node that are of no path that is loaded, and whether somebody streams from them: those of a node
    /// that has died may be among them, under names that it chose.
    fn unclaimed_slots(&self, _node: &mut Node) -> Result<Vec<(String, bool)>> {
        Ok(vec![])
    }

    /// Which cluster it is, or will be when it has been bootstrapped, where names of slots tell it. The paths are
    /// loaded.
    fn cluster(&self) -> Option<&str> {
        None
    }

    /// Connects from the node to `dsn` and leaves nothing there; run one after the other. The last answer is the
    /// `server, database` of the other end as `server::identity` has them, or no row where only the connection can be
    /// tried. An error is that of the connection, without the password.
    fn probe(&self, dsn: &str) -> Vec<Statement>;

    /// How another of `nodes`, between which the paths are loaded, subscribes to the successor of one of them: a node
    /// that was removed and still takes itself for the one of its name. `None` where there is no such.
    fn path_to_successor(&self, _nodes: &mut [&mut Node]) -> Result<Option<Path>> {
        Ok(None)
    }

    /// Whether `other` knows that a node of the name of `me` was removed, has none, and has no slot that `me` reads. Only
    /// asked where nodes keep no registry.
    fn has_removed(&self, _other: &mut Node, _me: &mut Node) -> Result<bool> {
        Ok(false)
    }
}
