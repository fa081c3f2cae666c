//! How a database becomes a node, and ceases to be one.

use crate::engine::Registry;
use crate::error::Result;
use crate::node::{Member, Node, Query, Statement};

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

    /// The registry, where nodes keep one; `None` where the engine makes nodes known to each other by itself.
    fn registry(&self) -> Option<&dyn KeepsRegistry> {
        None
    }
}

/// What a node has as its registry.
pub struct LocalRegistry {
    /// The member that it takes itself for.
    pub name: String,
    pub registry: Registry,
}

/// Engines whose nodes keep the list of members, with a generation, as one value that is the same on all of them, and with
/// it what has been left to do.
pub trait KeepsRegistry {
    /// The registry of the node that is asked; no row where it is no member, and an error of an undefined object where
    /// the extension is gone. Without parameters.
    fn read(&self) -> Query<LocalRegistry>;

    /// Makes `registry` that of the node, unless it has a newer one; whether it is then.
    fn apply(&self, registry: &Registry) -> Result<Query<bool>>;

    /// Records a pending cleanup on the node. No error where it is recorded already.
    fn record_cleanup(&self, cleanup: &PendingCleanup) -> Statement;

    /// The pending cleanups that are recorded on the node, in the order in which they were.
    fn pending_cleanups(&self) -> Query<PendingCleanup>;

    /// Deletes the record of what `member` had to drop after the removal of `removed`.
    fn cleaned_up(&self, removed: &str, member: &str) -> Statement;
}
