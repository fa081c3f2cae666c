//! How subscriptions are made, started, stopped and dropped.

use super::Path;
use crate::error::Result;
use crate::lsn::Position;
use crate::node::{Member, Query, Statement};

/// How a subscription is disabled without tearing a transaction that its worker is in.
pub enum Disabling {
    /// A worker that is told to end ends between two transactions.
    AtOnce(Statement),
    /// It has to be gone first. The statement does nothing, and has no row, while it is there.
    OnceIdle(Statement),
}

/// How subscriptions are made, started, stopped and dropped. Statements are run on the subscriber; the paths are loaded.
pub trait Subscriptions {
    /// What has to be known of a provider before somebody subscribes to it: the tables that it publishes, qualified.
    fn subscribed_tables(&self) -> Query<String> {
        Query::none()
    }

    /// Creates the subscription of `path` to `provider`, disabled and without copying rows. Its slot is there, and it
    /// makes none. `tables` is what [`Self::subscribed_tables`] has told of the provider. An error where a subscription of
    /// the name is there, or a table is not.
    fn subscribe(&self, path: &Path, provider: &Member, tables: &[String]) -> Result<Statement>;

    /// Sets the position from which the subscription applies. It is disabled, and no worker of it is alive. An error where
    /// the position is not of the provider of `path`.
    fn start_at(&self, path: &Path, position: &Position) -> Result<Statement>;

    fn enable(&self, path: &Path) -> Statement;

    /// Enables several of one subscriber, one statement after the other.
    fn enable_all(&self, paths: &[Path]) -> Vec<Statement> {
        paths.iter().map(|path| self.enable(path)).collect()
    }

    /// Makes the subscriber of `idle`, a subscription that is not enabled, start the next of its other workers at once.
    /// Nothing is to be run where it starts them at its own pace.
    fn wake_launcher(&self, _idle: &Path) -> Vec<Statement> {
        vec![]
    }

    /// Disables the subscription and does not wait for its worker.
    fn disable(&self, path: &Path) -> Statement;

    /// The same without tearing a transaction that its worker is in.
    fn disable_between_transactions(&self, path: &Path) -> Disabling {
        Disabling::AtOnce(self.disable(path))
    }

    /// How many workers of subscriptions that have been disabled have not ended yet.
    fn stopping_workers(&self) -> Query<u64>;

    /// Ends those of them that have had nothing from their provider yet: they may try to connect for long. Nothing is to
    /// be run where they are ended when a subscription is disabled.
    fn end_connecting_workers(&self) -> Vec<Statement> {
        vec![]
    }

    /// Drops the subscription of the name, and leaves the slot on its provider alone; one after the other. The last is
    /// the one that a DBA would run. No error where it is gone.
    fn unsubscribe(&self, subscription: &str) -> Vec<Statement>;

    /// Drops every subscription of the node to members of a cluster, without a word to them.
    fn end_subscriptions(&self) -> Vec<Statement>;

    /// Disables them.
    fn stop_subscriptions(&self) -> Statement;

    /// Makes the subscription of `path` know the tables that its provider sends by now, without copying any of their
    /// rows. An error, with what to do instead, where the engine has other ways to say what is replicated.
    fn refresh(&self, path: &Path) -> Result<Statement>;

    /// Makes the provider of `path`, a subscription that is not enabled, send on what it has of others too, or its own
    /// changes only.
    fn forward(&self, path: &Path, others_too: bool) -> Statement;

    /// Whether a node that joins can take what the members wrote meanwhile from the source alone: it sends on whatever
    /// any of them would send. After [`Paths::load_paths_with`](super::Paths::load_paths_with).
    fn source_sends_all(&self) -> bool;
}
