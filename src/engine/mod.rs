//! What replicates the cluster. The workflow is one; an engine says what "subscription", "slot",
//! "marker" and "progress" mean on its servers.

pub mod names;
pub mod native;

use crate::error::{Finding, Result};
use crate::lsn::Lsn;
use crate::node::{Member, Node, Statement};

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

/// What the source knows of its cluster.
pub struct Survey {
    /// Every member, the source too. Just the source where it is not a node yet.
    pub members: Vec<Member>,
    /// Whether the source is a node already.
    pub founded: bool,
}

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
}

pub trait Engine {
    fn label(&self) -> &'static str;

    /// The output plugin of the slots.
    fn plugin(&self) -> &'static str;

    fn path(&self, provider: &str, subscriber: &str) -> Path;

    fn survey(&self, source: &mut Node) -> Result<Survey>;

    /// What this engine needs beyond what every engine needs.
    fn checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<Vec<Finding>>;

    /// Connects from the node to `dsn` and returns the `server, database` of `server::identity`.
    fn probe(&self, dsn: &str) -> Statement;

    /// Makes the node able to provide changes.
    fn become_provider(&self) -> Vec<Statement>;
    fn cease_provider(&self) -> Vec<Statement>;

    /// Tables of a source that is becoming a node on which updates and deletes would fail from
    /// then on, and what makes them go on working: schema, name, the statement, its undo.
    fn tables_to_prepare(&self) -> Statement;

    /// Makes the node know that it is `name`.
    fn call_itself(&self, name: &str) -> Statement;
    /// Writes `identity` into the registry of the node.
    fn register(&self, identity: &Identity) -> Statement;
    fn unregister(&self, name: &str) -> Statement;
    /// `name, location, country, dsn, system_identifier, database, info, joined_at` of every member,
    /// as the node knows them.
    fn registry(&self) -> Statement;

    /// Commits a marker on the node.
    fn emit_marker(&self, id: &str, provider: &str) -> Statement;
    /// Which of the markers have been applied on the node.
    fn markers_seen(&self, ids: &[String]) -> Statement;
    fn forget_markers(&self, provider: &str) -> Statement;

    /// `name, enabled, working, errors, applied` of the subscriptions of a node.
    fn subscriptions(&self) -> Statement;

    /// Makes apply of the named subscriptions stop, watched over by the node itself.
    fn start_watchdog(&self, limit_ms: u128) -> Statement;
    fn stop_watchdog(&self) -> Statement;
    fn pause(&self, subscriptions: &[String]) -> Statement;
    fn resume(&self) -> Statement;
    /// `paused, alive`: how many subscriptions are still paused by us, how many apply workers live.
    fn pause_state(&self) -> Statement;

    /// Creates the subscription of `path`, disabled and without copy.
    fn subscribe(&self, path: &Path, provider: &Member) -> Statement;
    /// Sets the position from which the subscription applies.
    fn start_at(&self, path: &Path, lsn: Lsn) -> Statement;
    fn enable(&self, path: &Path) -> Statement;
    fn unsubscribe(&self, subscription: &str) -> Statement;
}

/// Parses the answer of [`Engine::subscriptions`].
pub fn subscription_states(rows: &crate::libpq::Rows) -> Result<Vec<SubscriptionState>> {
    rows.iter()
        .map(|row| {
            Ok(SubscriptionState {
                name: row.text(0).to_owned(),
                enabled: row.bool(1),
                working: row.bool(2),
                errors: row.parse(3)?,
                applied: row
                    .get(4)
                    .map(|lsn| {
                        lsn.parse()
                            .map_err(|()| crate::error::Error::internal("not an LSN"))
                    })
                    .transpose()?,
            })
        })
        .collect()
}
