//! What an engine owes the workflow, in groups of about ten methods. The workflow is one; an engine says what
//! "subscription", "slot", "marker" and "progress" mean on its servers.
//!
//! A method that takes a `&mut Node` asks at once and waits for the answer; its errors are those of the session. One that
//! gives a statement leaves it to the workflow when it is run, and on how many nodes at the same time. Unless it is said
//! otherwise a statement is run in a transaction of its own, by a superuser, with an empty search_path, and is repeated by
//! the next CALL when this one is cut off: it must do no harm a second time.

mod checks;
mod copy_rules;
mod markers;
mod membership;
mod monitoring;
mod paths;
mod pause;
mod published;
mod recovery;
mod subscriptions;
mod topology;

pub use checks::{Checks, EngineCheck, EngineFindings, Judged, MemberCheck, On};
pub use copy_rules::{ConflictRule, CopyPlan, CopyRules, Excluded, SetDifference};
pub use markers::Markers;
pub use membership::{Identity, KeepsRegistry, LocalRegistry, Membership, PendingCleanup};
pub use monitoring::{Lag, Monitoring, PassedOver, SubscriptionState};
pub use paths::{Path, PathTables, Paths, no_reader};
pub use pause::{ApplyPause, PauseState};
pub use published::{
    Obstacle, Outlet, OwnersRights, PublishedTables, RoleAttributes, Structure, SubscribedTable,
    TablesDigest, Unfit,
};
pub use recovery::{CommitOrigin, Recovery};
pub use subscriptions::{Disabling, Subscriptions};
pub use topology::{Provider, RegisteredNode, Survey, Topology};

use crate::error::Error;
use std::collections::BTreeMap;

/// Something by schema and name of a table.
pub type ByTable<T> = BTreeMap<(String, String), T>;

/// What replicates a cluster, with all that it can do.
pub trait Engine:
    Topology
    + Paths
    + Membership
    + Checks
    + Markers
    + ApplyPause
    + CopyRules
    + Subscriptions
    + Monitoring
    + Recovery
{
    /// Its name, for the journal and for people.
    fn label(&self) -> &'static str;

    /// What there is to be asked of tables, where whole tables are sent and PostgreSQL's own workers apply them; `None`
    /// where the engine decides itself what it sends, and applies it.
    fn published_tables(&self) -> Option<&dyn PublishedTables> {
        None
    }

    /// The output plugin of the slots.
    fn plugin(&self) -> &'static str;

    /// Whether the slots have the flag `failover`. One decision for the whole cluster, known when the paths to the new
    /// node are loaded.
    fn failover(&self) -> bool {
        false
    }

    /// Whether its apply workers count against `max_logical_replication_workers`, as PostgreSQL's own do. All count
    /// against `max_worker_processes`.
    fn uses_logical_workers(&self) -> bool;

    /// Schemas whose tables are each node's own, whatever replicates them.
    fn own_schemas(&self) -> &'static [&'static str];

    /// Where the connection strings of the members are that the node `asked` names: a phrase for hints.
    fn addresses(&self, _asked: &str) -> String {
        "zodan.node of the members".into()
    }

    /// The setting of the engine that limits one wait for its subscriptions in the session of the CALL, and its value in
    /// seconds, where it is set.
    fn sync_timeout(&self) -> Option<(&'static str, u64)> {
        None
    }

    /// An error of the engine's own with the SQLSTATE that PostgreSQL has for such; any other as it is.
    fn map_error(&self, error: Error) -> Error {
        error
    }
}
