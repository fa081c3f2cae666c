//! PostgreSQL's own logical replication, `origin = none`, as the cluster's engine.

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

#[cfg(test)]
pub(super) use checks::CHECKS;

use super::{Engine, LocalMember, PublishedTables};
use std::collections::BTreeMap;
use std::ffi::CStr;

pub(super) const LOCAL_MEMBER: LocalMember = LocalMember {
    table: "zodan.local_node",
    question: "SELECT n.name, n.dsn FROM zodan.node n JOIN zodan.local_node USING (name)",
};

pub(super) const NODE_TABLE: (&CStr, &CStr) = (c"zodan", c"node");

pub(super) const APPLY_WORKERS: [&str; 3] = [
    "ApplyWorkerMain",
    "ParallelApplyWorkerMain",
    "TablesyncWorkerMain",
];

#[derive(Default)]
pub struct Native {
    /// The database of each node.
    databases: BTreeMap<String, String>,
    /// Which one it is, by its newest registry; made up for one that is to be is_member.
    cluster: String,
    /// The number of each node in that registry.
    numbers: BTreeMap<String, i32>,
    /// That of the next one to join.
    next_number: i32,
    /// Whether triggers fire on the source for what it applies.
    source_has_triggers: bool,
    /// By subscriber and subscription, the slots that existing subscriptions read. They keep their names, also where a
    /// database has got another name since. Of a node that cannot be asked, those that its providers have.
    slots: BTreeMap<(String, String), String>,
}

impl Engine for Native {
    fn label(&self) -> &'static str {
        "native"
    }

    fn published_tables(&self) -> Option<&dyn PublishedTables> {
        Some(self)
    }

    fn plugin(&self) -> &'static str {
        "pgoutput"
    }

    fn uses_logical_workers(&self) -> bool {
        true
    }

    fn own_schemas(&self) -> &'static [&'static str] {
        &["zodan"]
    }
}
