//! How a database becomes a node, and ceases to be one.

use crate::engine::Registry;
use crate::error::Result;
use crate::node::{Member, Node, Statement};

/// Who a node is, for the registry and for the people who look at it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub member: Member,
    pub system_identifier: String,
    pub database: String,
    pub location: String,
    pub country: String,
    pub info: String,
    pub joined_at: String,
}

/// What a member that could not be reached when a node was removed still has to drop.
#[derive(Clone, Debug)]
pub struct PendingCleanup {
    pub member: Member,
    pub removed: String,
    /// What is to be taken back there, as in the journal.
    pub action: String,
}

/// How a database becomes a node, and ceases to be one; what is remembered of nodes that were removed. Whoever changes
/// something here holds the membership lock on every member.
pub trait Membership {
    /// Makes the database a node of the cluster, able to provide changes; it subscribes to nobody yet. One after the
    /// other, in a database that is no node.
    fn create_node(&self, identity: &Identity) -> Vec<Statement>;

    /// Makes it a database like any other. Its subscriptions are gone by then, and nobody reads from it. No error where
    /// it is no node any more.
    fn drop_node(&self) -> Vec<Statement>;

    /// Makes the node forget what `name` left there, and with Spock who it was. The paths between the two are gone. No
    /// error where it does not know the name.
    fn forget_node(&self, name: &str) -> Vec<Statement>;

    /// Whether a node forgets a member together with its subscription to it.
    fn drops_node_with_last_subscription(&self) -> bool {
        false
    }

    /// How often nodes of the name have been removed, this one included, of which a removal that was interrupted has
    /// written `begun`. `None` where names of slots tell memberships by something else. The paths are loaded.
    fn times_removed(&self, _name: &str, _begun: Option<u32>) -> Option<u32> {
        None
    }

    /// Writes that number down on the node, if it has a place for it; never a lower one over a higher one.
    fn remember_removed(&self, _node: &mut Node, _name: &str, _times: u32) -> Result<()> {
        Ok(())
    }

    /// The new node remembers what the members do, of which the paths were loaded.
    fn inherit_removed(&self, _new: &mut Node) -> Result<()> {
        Ok(())
    }

    /// `name, registry`: which member the node is, and its registry as one value; no row where it is none.
    /// `None` where the engine makes nodes known to each other by itself.
    fn registry(&self) -> Option<Statement> {
        None
    }

    /// Makes `registry` that of the node, unless it has a newer one; whether it is then.
    fn apply_registry(&self, _registry: &Registry) -> Result<Option<Statement>> {
        Ok(None)
    }

    /// Records a pending cleanup on a node. `None` where the engine has no place for it.
    fn record_cleanup(&self, _cleanup: &PendingCleanup) -> Option<Statement> {
        None
    }

    /// The pending cleanups that are recorded on the node.
    fn pending_cleanups(&self, _node: &mut Node) -> Result<Vec<PendingCleanup>> {
        Ok(vec![])
    }

    /// Deletes the record of what `member` had to drop after the removal of `removed`.
    fn cleaned_up(&self, _removed: &str, _member: &str) -> Option<Statement> {
        None
    }
}
