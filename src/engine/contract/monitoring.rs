//! What the subscriptions of a node are like.

use super::Path;
use crate::error::{Error, Result};
use crate::libpq::Rows;
use crate::lsn::Lsn;
use crate::node::Statement;

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
    /// Why the last change was not applied that its worker gave up for good, if it ever did.
    pub skipped_change: Option<String>,
}

/// Parses the answer of [`Monitoring::subscriptions`].
pub fn subscription_states(rows: &Rows) -> Result<Vec<SubscriptionState>> {
    rows.iter()
        .map(|row| {
            Ok(SubscriptionState {
                name: row.text(0).to_owned(),
                enabled: row.bool(1),
                working: row.bool(2),
                errors: row.parse(3)?,
                applied: row
                    .get(4)
                    .map(|lsn| lsn.parse().map_err(|()| Error::internal("not an LSN")))
                    .transpose()?,
                skipped_change: row.get(5).map(str::to_owned),
            })
        })
        .collect()
}

/// What the subscriptions of a node are like. Everything here only reads, on the subscriber unless it is said otherwise,
/// and needs no path loaded but the one that is given.
pub trait Monitoring {
    /// `name, enabled, working, errors, applied, gave up` of the subscriptions of a node to members of its cluster.
    fn subscriptions(&self) -> Statement;

    /// As [`Self::subscriptions`] for people, without parameters: `subscription, provider, slot, status, received,
    /// replication_sets, last_error, applied` of each, and `tables`, one value for those that it applies, to be compared
    /// with [`Self::sent_tables`]. The provider is null where its name follows from that of the subscription; received
    /// tells whether the worker that runs now has had anything from it, and is null where nobody knows.
    fn subscription_details(&self) -> Statement;

    /// An expression: one value for the tables that the node sends; `None` where subscriptions may differ in that.
    fn sent_tables(&self) -> Option<String> {
        None
    }

    /// One text: what the subscriber of `path` knows of why its worker makes no progress, and where it says more.
    /// `None` where [`Self::subscriptions`] tells it.
    fn worker_error(&self, _path: &Path) -> Option<Statement> {
        None
    }

    /// `schema, table` of changes that the node's apply workers have passed over since its subscriptions were made, for
    /// the row was not there; nulls where it is not known of which table. `None` where the engine does not count them.
    fn passed_over(&self) -> Option<Statement> {
        None
    }

    /// `origin, receiver, commit, bytes, time`: how far a node is behind its providers, in the engine's own view, if it
    /// has one.
    fn lag(&self) -> Option<Statement> {
        None
    }

    /// The address that the subscription of `path` leads to, where it is enabled and nothing has come from there; no row
    /// otherwise. `None` where nobody knows that.
    fn idle_address(&self, _path: &Path) -> Option<Statement> {
        None
    }

    /// The command by which the worker of `path` asks its provider for changes, from where the slot stands; no row where
    /// the subscription is gone.
    fn start_replication(&self, path: &Path) -> Statement;
}
