//! pgEdge Spock as the cluster's engine: its public SQL only, and nothing of ours on the members but what those remember
//! that have our extension.

mod checks;
mod conditions;
mod copy_rules;
mod filled_twice;
mod former;
mod markers;
mod membership;
mod monitoring;
mod naming;
mod non_members;
mod paths;
mod pause;
mod recovery;
mod sets;
mod subscriptions;
mod topology;
mod ways;

#[cfg(test)]
pub(super) use self::conditions::{BEFORE_A_JOIN as CHECKS, of_members as member_checks};

use super::{Engine, Excluded, LocalMember, Path};
use crate::error::{Error, Result, SqlState};
use crate::node::Node;
use crate::settings;
use former::Former;
use sets::{SetTable, Sets, Subscription};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;

pub(super) const LOCAL_MEMBER: LocalMember = LocalMember {
    table: "spock.local_node",
    question: "SELECT n.node_name::text, i.if_dsn FROM spock.local_node l
                 JOIN spock.node n USING (node_id)
                 JOIN spock.node_interface i ON i.if_id = l.node_local_interface",
};

pub(super) const NODE_TABLE: (&CStr, &CStr) = (c"spock", c"local_node");

pub(super) const APPLY_WORKERS: [&str; 2] = ["spock_apply_main", "spock_sync_main"];

pub(super) const PLUGIN: &str = "spock_output";

#[derive(Default)]
pub struct Spock {
    /// By provider and subscriber.
    paths: BTreeMap<(String, String), Vec<Path>>,
    /// Those of them that are there, as far as their subscriber or their provider was asked.
    seen: BTreeSet<(String, String)>,
    former: Former,
    /// The replication sets that a (subscriber, subscription) names.
    parts: BTreeMap<(String, String), String>,
    /// The replication sets of the members, and who takes which.
    sets: Sets,
    /// The subscriptions of a (provider, subscriber) with the new node at one end, which are to be made, in the order of
    /// `paths`.
    to_make: BTreeMap<(String, String), Vec<Subscription>>,
    /// What is in the sets of the source's peers.
    of_peers: BTreeMap<String, Vec<SetTable>>,
    /// The tables in the source's sets, as the snapshot of the copy has them. What is added later has rows that
    /// are not copied.
    copied: RefCell<Option<Vec<SetTable>>>,
    /// Whether the cluster's slots have the flag.
    failover: bool,
    excluded: Excluded,
    /// As of [`Subscriptions::source_sends_all`](super::Subscriptions::source_sends_all).
    source_sends_all: bool,
    /// Whether what a subscription forwards can be changed by a function of Spock's.
    alters_options: bool,
}

/// Whether the database is a node of a Spock cluster.
pub fn is_node(node: &mut Node) -> Result<bool> {
    let installed = node.query(
        "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'spock')",
        &[],
    )?;
    if !installed.one()?.only::<bool>()? {
        return Ok(false);
    }
    let rows = node.query("SELECT EXISTS (SELECT FROM spock.local_node)", &[])?;
    rows.one()?.only()
}

impl Engine for Spock {
    fn label(&self) -> &'static str {
        "spock"
    }

    fn plugin(&self) -> &'static str {
        PLUGIN
    }

    fn failover(&self) -> bool {
        self.failover
    }

    fn uses_logical_workers(&self) -> bool {
        false
    }

    fn own_schemas(&self) -> &'static [&'static str] {
        &["zodan", "spock"]
    }

    fn addresses(&self, asked: &str) -> String {
        format!("spock.node_interface of node \"{asked}\"")
    }

    fn sync_timeout(&self) -> Option<(&'static str, u64)> {
        // Since 6.0; 0 leaves it to the procedure.
        let seconds = settings::integer(c"spock.sync_timeout")?;
        (seconds > 0).then_some(("spock.sync_timeout", seconds.unsigned_abs()))
    }

    fn map_error(&self, error: Error) -> Error {
        match error {
            // Spock itself connects to a provider that a node is to subscribe to.
            Error::Remote(mut remote)
                if remote.state == SqlState::INTERNAL_ERROR
                    && remote
                        .message
                        .starts_with("could not connect to the postgresql server") =>
            {
                remote.state = SqlState::UNABLE_TO_CONNECT;
                Error::Remote(remote)
            }
            other => other,
        }
    }
}

fn set_tables(node: &mut Node) -> Result<Vec<SetTable>> {
    sets::set_tables().on(node)
}
