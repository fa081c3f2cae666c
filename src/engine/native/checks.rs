//! What has to hold before a join, and on every member.

use super::Native;
use crate::engine::{Checks, EngineCheck, EngineFindings, On, Topology};
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, Statement, ask_all};

const SERVER: &str = "server of the engine";

const PUBLICATION: &str = "publication zodan";

const EXTENSION: &str = "extension zodan";

pub(in crate::engine) const CHECKS: [EngineCheck; 3] = [
    EngineCheck {
        name: SERVER,
        wanted: "PostgreSQL 16 or newer",
        on: On::Every,
    },
    EngineCheck {
        name: PUBLICATION,
        wanted: "zodan's own, or none",
        on: On::Every,
    },
    EngineCheck {
        name: EXTENSION,
        wanted: "installed, in the version of the new node",
        on: On::Every,
    },
];

/// `origin = none`, without which changes would go round in circles, came with PostgreSQL 16.
const OLDEST_SERVER: u32 = 160_000;

impl Checks for Native {
    fn checks(&self) -> &'static [EngineCheck] {
        &CHECKS
    }

    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings> {
        let (mut servers, mut publications, mut extensions) = (vec![], vec![], vec![]);
        let mut nodes: Vec<&mut Node> = members.iter_mut().map(|n| &mut **n).collect();
        nodes.push(new);
        let question = Statement::new(
            "SELECT current_setting('server_version_num') AS version,
                    (SELECT extversion FROM pg_extension WHERE extname = 'zodan') AS extension,
                    EXISTS (SELECT FROM pg_publication WHERE pubname = 'zodan') AS publishes",
            &[],
        );
        let answers = ask_all(nodes.iter_mut().map(|n| &mut **n), &question)?;
        let mut versions = vec![];
        let mut published = vec![];
        for (node, rows) in nodes.iter_mut().zip(&answers) {
            let row = rows.one()?;
            let server: u32 = row.get("version")?;
            let extension: Option<String> = row.get("extension")?;
            if server < OLDEST_SERVER {
                servers.push(Finding::new(
                    &node.name,
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!(
                        "the native engine needs PostgreSQL 16 or newer, the server is {}",
                        server / 10_000
                    ),
                    "Upgrade the server, or use Spock, which replicates older versions.",
                ));
            }
            let publishes: bool = row.get("publishes")?;
            match extension {
                None => extensions.push(extension_missing(&node.name)),
                Some(version) => {
                    versions.push(version);
                    published.extend(publishes.then_some(&mut **node));
                }
            }
        }
        let registries = ask_all(published.iter_mut().map(|n| &mut **n), &self.members())?;
        for (node, registry) in published.iter().zip(registries) {
            if registry.is_empty() {
                publications.push(Finding::new(
                    &node.name,
                    SqlState::DUPLICATE_OBJECT,
                    "publication zodan exists already, and the database is not a cluster node",
                    "It was not made by zodan. ALTER PUBLICATION zodan RENAME TO another name, and have the subscriptions that name it follow.",
                ));
            }
        }
        let ours = versions.last().cloned().unwrap_or_default();
        for (node, version) in nodes.iter().zip(&versions) {
            if *version != ours {
                extensions.push(Finding::new(
                    &node.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("the extension zodan is {version} here and {ours} on the new node"),
                    "Run ALTER EXTENSION zodan UPDATE where it is older.",
                ));
            }
        }
        Ok(vec![
            (SERVER, servers),
            (PUBLICATION, publications),
            (EXTENSION, extensions),
        ])
    }

    fn warnings(&self, members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let mut findings = vec![];
        let asked = members.iter_mut().map(|m| &mut **m);
        let streaming = ask_all(asked, &Self::streaming())?;
        for (member, streaming) in members.iter().zip(streaming) {
            let outsiders = self.outsiders(&member.name, &names, streaming);
            findings.extend(outsiders.into_iter().map(|(slot, who)| {
                Finding::new(
                    &member.name,
                    SqlState::OK,
                    format!("{who} reads from slot {slot} by publication zodan, is not a member of the cluster, and does not get what is written on the new node"),
                    "If it is to have all, add it with spock.add_node, or let it subscribe to the new node too when that has joined.",
                )
            }));
        }
        Ok(findings)
    }
}

pub(super) fn extension_missing(node: &str) -> Finding {
    Finding::new(
        node,
        SqlState::UNDEFINED_OBJECT,
        "the extension zodan is not installed in the database",
        "Run CREATE EXTENSION zodan in the database of every member and of the new node.",
    )
    .fixed_by("CREATE EXTENSION zodan")
}
