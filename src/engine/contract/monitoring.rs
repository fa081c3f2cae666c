//! What the subscriptions of a node are like.

use super::Path;
use crate::error::Result;
use crate::libpq::Row;
use crate::lsn::{Lsn, Position};
use crate::node::{Query, Statement};

/// A subscription as its subscriber sees it.
#[derive(Clone, Debug)]
pub struct SubscriptionState {
    pub name: String,
    pub enabled: bool,
    /// A worker is connected to the provider's slot and applies.
    pub working: bool,
    /// Errors of its worker so far.
    pub errors: u64,
    /// The last position of the provider that has been applied.
    pub applied: Option<Lsn>,
    /// A later position that may be the right one, where a crash has left it open.
    pub perhaps_applied: Option<Lsn>,
    /// Why the last change was not applied that its worker gave up for good, if it ever did.
    pub skipped_change: Option<String>,
}

impl SubscriptionState {
    /// The progress, which is where all WAL begins if nothing has been applied.
    pub fn progress(&self) -> Lsn {
        self.applied.unwrap_or(Lsn::ZERO)
    }

    /// Why it is not known what `subscriber` has applied of `provider`, if it is not.
    pub fn unknown_progress(&self, subscriber: &str, provider: &str) -> Option<String> {
        let perhaps = Position::new(provider, self.perhaps_applied?);
        let certain = Position::new(provider, self.progress());
        Some(format!(
            "node \"{subscriber}\" has crashed and applied nothing of \"{provider}\" since, so it is unknown whether it has it up to {certain} or up to {perhaps}"
        ))
    }

    /// From columns that are named like the fields.
    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            name: row.get("name")?,
            enabled: row.get("enabled")?,
            working: row.get("working")?,
            errors: row.get("errors")?,
            applied: row.get("applied")?,
            perhaps_applied: row.get("perhaps_applied")?,
            skipped_change: row.get("skipped_change")?,
        })
    }
}

/// A table of which a node has passed over changes, for the row was not there.
pub struct PassedOver {
    /// Schema and name, where they are known.
    pub table: Option<(String, String)>,
}

/// How far a node is behind a provider, in the engine's own view and words.
pub struct Lag {
    pub origin: String,
    pub receiver: String,
    pub commit_timestamp: String,
    pub bytes: String,
    pub time: String,
}

/// What the subscriptions of a node are like. Everything here only reads, on the subscriber unless it is said otherwise,
/// and needs no path loaded but the one that is given.
pub trait Monitoring {
    /// The subscriptions of a node to members of its cluster. Without parameters.
    fn subscriptions(&self) -> Query<SubscriptionState>;

    /// As [`Self::subscriptions`] for people, without parameters: `subscription, provider, slot, status, received,
    /// replication_sets, last_error, applied` of each, and `tables`, one value for those that it applies, to be compared
    /// with [`Self::sent_tables`]. The provider is null where its name follows from that of the subscription; received
    /// tells whether the worker that runs now has had anything from it, and is null where nobody knows.
    fn subscription_details(&self) -> Statement;

    /// An expression: one value for the tables that the node sends; null where subscriptions may differ in that.
    fn sent_tables(&self) -> String {
        "NULL".into()
    }

    /// What the subscriber of `path` knows of why its worker makes no progress, and where it says more; no row where it
    /// knows nothing.
    fn worker_error(&self, path: &Path) -> Query<String>;

    /// The tables of changes that the node's apply workers have passed over since its subscriptions were made.
    fn passed_over(&self) -> Query<PassedOver>;

    /// How far a node is behind its providers; no row where the engine has no view of its own.
    fn lag(&self) -> Query<Lag> {
        Query::none()
    }

    /// The address that the subscription of `path` leads to, where it is enabled and nothing has come from there; no row
    /// otherwise, or where nobody knows that.
    fn idle_address(&self, _path: &Path) -> Query<String> {
        Query::none()
    }

    /// The command by which the worker of `path` asks its provider for changes, from where the slot stands; no row where
    /// the subscription is gone.
    fn start_replication(&self, path: &Path) -> Query<String>;
}
