//! What has to hold before a join, and on every member.

use super::copy_rules::extension_tables;
use super::sets::SetTable;
use super::{Spock, conditions, is_node, naming, non_members, set_tables};
use crate::engine::{Checks, EngineCheck, EngineFindings, MemberCheck, Monitoring};
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, Query, Statement, ask_all, server};
use std::collections::BTreeSet;

impl Checks for Spock {
    fn checks(&self) -> &'static [EngineCheck] {
        &conditions::BEFORE_A_JOIN
    }

    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings> {
        let (mut installed, mut timestamps) = (vec![], vec![]);
        let mut nodes: Vec<&mut Node> = members.iter_mut().map(|n| &mut **n).collect();
        nodes.push(new);
        let question = Statement::new(
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'spock') AS version,
                    current_setting('track_commit_timestamp') AS timestamps,
                    current_setting('shared_preload_libraries') ~ '\\yspock\\y' AS preloaded,
                    to_regprocedure('spock.pause_apply_workers()') IS NOT NULL AS pauses",
            &[],
        );
        let answers = ask_all(nodes.iter_mut().map(|n| &mut **n), &question)?;
        let mut versions: Vec<(String, Version)> = vec![];
        for (node, rows) in nodes.iter().zip(&answers) {
            let row = rows.one()?;
            let Some(version) = row.get::<Option<&str>>("version")? else {
                installed.push(not_installed(&node.name));
                continue;
            };
            let finding =
                |state, message: String, hint: &str| Finding::new(&node.name, state, message, hint);
            if row.get::<&str>("timestamps")? != "on" {
                timestamps.push(finding(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    "track_commit_timestamp is off".into(),
                    "Set track_commit_timestamp = on and restart the server.",
                ));
            }
            if !row.get::<bool>("preloaded")? {
                installed.push(finding(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    "spock is not in shared_preload_libraries".into(),
                    "Add it and restart the server.",
                ));
            }
            if !row.get::<bool>("pauses")? {
                installed.push(finding(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!("Spock {version} cannot pause its apply workers"),
                    "Upgrade Spock to 5.0.7 or newer on every node.",
                ));
            }
            versions.push((node.name.clone(), Version::parse(version)));
        }
        let ours = versions.last().map(|(_, v)| v.clone());
        if let Some(ours) = ours
            && versions.iter().any(|(_, v)| !v.fits(&ours))
        {
            let list: Vec<String> = versions
                .iter()
                .map(|(n, v)| format!("\"{n}\" {}", v.text))
                .collect();
            installed.push(Finding::new(
                nodes.last().map_or("", |n| &n.name),
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("Spock versions are not compatible: {}", list.join(", ")),
                "Install the same major and minor version of Spock everywhere.",
            ));
        }
        let mut found = vec![
            (conditions::INSTALLED, installed),
            (conditions::TIMESTAMPS, timestamps),
        ];
        if let Some((new, members)) = nodes.split_last_mut() {
            let [mut groups, mut slots, mut extensions, mut ids] = [(); 4].map(|()| vec![]);
            self.check_groups(&mut groups);
            found.push((conditions::GROUPS, groups));
            if versions.len() == members.len() + 1 {
                found.extend(conditions::before_the_first_change(self, members, new)?);
            }
            self.check_slots(members, &mut slots)?;
            found.push((conditions::SLOTS, slots));
            if let Some(source) = members.first_mut() {
                self.check_extensions(source, new, &mut extensions)?;
                found.push((conditions::EXTENSIONS, extensions));
            }
            check_node_ids(members, new, &mut ids)?;
            if is_node(new)? {
                ids.push(Finding::new(
                    &new.name,
                    SqlState::OBJECT_IN_USE,
                    "the database is a Spock node already",
                    "Remove it from its cluster first.",
                ));
            }
            found.push((conditions::NODE, ids));
        }
        Ok(found)
    }

    fn member_checks(&self) -> Vec<MemberCheck> {
        conditions::of_members()
    }

    fn warnings(&self, members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        let Some(source) = members.first_mut() else {
            return Ok(vec![]);
        };
        let untaken = self.sets.untaken_of(&source.name);
        let tables = set_tables(source)?;
        let named = |t: &SetTable| crate::quote::qualified(&t.schema, &t.name);
        let taken: BTreeSet<String> = tables
            .iter()
            .filter(|t| !untaken.contains(&t.set))
            .chain(self.peers_tables(&source.name))
            .map(named)
            .collect();
        let mut findings = vec![];
        for set in &untaken {
            let alone = tables.iter().filter(|t| t.set == *set).map(named);
            let alone: Vec<String> = alone.filter(|t| !taken.contains(t)).collect();
            if alone.is_empty() {
                continue;
            }
            let (shown, more) = alone.split_at(alone.len().min(10));
            let more = match more.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            findings.push(Finding::new(
                &source.name,
                SqlState::OK,
                format!(
                    "no member subscribes to replication set {set}, so the new node does not either, and gets no rows of {}{more}",
                    shown.join(", ")
                ),
                "Where the rows are wanted, make every member subscribe to the set first: spock.sub_add_repset.",
            ));
        }
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        for member in members.iter_mut() {
            findings.extend(non_members::sources(member, &names)?);
            findings.extend(non_members::readers(&self.paths, member)?);
        }
        Ok(findings)
    }
}

impl Spock {
    /// Tables that the source gets from its peers.
    pub(super) fn peers_tables(&self, source: &str) -> impl Iterator<Item = &SetTable> {
        self.of_peers.iter().flat_map(move |(peer, tables)| {
            let taken = self.sets.subscriptions(peer, source);
            let taken = move |t: &&SetTable| taken.iter().any(|s| s.sets.contains(&t.set));
            tables.iter().filter(taken)
        })
    }

    /// A subscription beside another one whose worker would wait for ever.
    fn check_groups(&self, findings: &mut Vec<Finding>) {
        let several = self
            .paths
            .iter()
            .filter(|(ends, paths)| paths.len() > 1 && !self.to_make.contains_key(*ends));
        for path in several.flat_map(|(_, paths)| paths) {
            if naming::is_of_a_group(&path.slot) {
                findings.push(Finding::new(
                    &path.subscriber,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} is one of several to node \"{}\", and its name ends in an underscore and a digit: Spock lets its worker wait for transactions that the others bring",
                        path.subscription, path.provider
                    ),
                    "Give it another name: drop it and make it anew when both nodes have the same rows of its tables.",
                ));
            }
        }
    }

    /// Somebody streams from the slot of every subscription between the members. The subscriber alone
    /// cannot tell: a worker that fails and starts again every few seconds looks well from there.
    fn check_slots(&self, members: &mut [&mut Node], findings: &mut Vec<Finding>) -> Result<()> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let streamed = ask_all(
            members.iter_mut().map(|n| &mut **n),
            &server::active_slots(),
        )?;
        let subscribed = ask_all(members.iter_mut().map(|n| &mut **n), &self.subscriptions())?;
        for (provider, streamed) in names.iter().zip(&streamed) {
            for (subscriber, states) in names.iter().zip(&subscribed) {
                let key = (provider.clone(), subscriber.clone());
                let working = states.iter().filter(|s| s.working);
                let working: Vec<&String> = working.map(|s| &s.name).collect();
                for path in self.paths.get(&key).into_iter().flatten() {
                    if !working.contains(&&path.subscription) || streamed.contains(&path.slot) {
                        continue;
                    }
                    findings.push(Finding::new(
                        provider,
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "replication slot {} is inactive, but node \"{subscriber}\" subscribes through it",
                            path.slot
                        ),
                        "Make every subscription of the cluster replicate before a node is added; the log of the subscriber says why one does not.",
                    ));
                }
            }
        }
        Ok(())
    }

    /// What the structure leaves out must be there already. So must an extension whose own tables are
    /// replicated, as those of lolor: their rows come, and nobody knows what its script stores itself.
    fn check_extensions(
        &self,
        source: &mut Node,
        new: &mut Node,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let installed = "SELECT extname FROM pg_extension WHERE extname <> 'spock'";
        let installed = Query::<String>::new(installed, &[], |row| row.only());
        let present = installed.on(new)?;
        for name in &installed.on(source)? {
            let left_out = self.excluded.extensions.contains(name);
            if left_out && !present.contains(name) {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::UNDEFINED_OBJECT,
                    format!(
                        "extension {name} is not installed, which node \"{}\" has and which Spock reserves to each node",
                        source.name
                    ),
                    format!("Run CREATE EXTENSION {} there.", crate::quote::ident(name)),
                )
                .fixed_by(format!("CREATE EXTENSION {}", crate::quote::ident(name))));
            }
        }
        for (table, extension) in extension_tables(source)? {
            let quoted = crate::quote::ident(&extension);
            let exists = "SELECT to_regclass($1) IS NOT NULL";
            if !new.query(exists, &[&table])?.one()?.only::<bool>()? {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::UNDEFINED_TABLE,
                    format!("table {table} does not exist, which is replicated and belongs to extension {extension}"),
                    format!("Run CREATE EXTENSION {quoted} there, in the version of node \"{}\".", source.name),
                ));
                continue;
            }
            let has_rows = format!("SELECT EXISTS (SELECT FROM {table})");
            if new.query(&has_rows, &[])?.one()?.only()? {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("table {table} of extension {extension} has rows"),
                    format!(
                        "Run TRUNCATE {table} there: its rows come from node \"{}\".",
                        source.name
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Spock numbers a node by 16 bits of a hash of its name, and marks the rows that come from it with that number.
/// Two of these numbers mean something else to PostgreSQL: no origin, and not to be sent on.
fn check_node_ids(
    members: &mut [&mut Node],
    new: &mut Node,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let id = "hashtext($1::name::text COLLATE \"C\") & 65535";
    let question = format!(
        "SELECT {id} AS id, (SELECT node_name FROM spock.node
                        WHERE node_id = ({id})::oid AND node_name <> $1::name LIMIT 1) AS other"
    );
    let name = new.name.clone();
    for node in members.iter_mut().map(|m| &mut **m).chain([&mut *new]) {
        let answer = node.query(&question, &[&name])?;
        let row = answer.one()?;
        let message = match (row.get::<&str>("id")?, row.get::<Option<&str>>("other")?) {
            (id, Some(other)) => format!(
                "Spock gives the name \"{name}\" the number {id}, which node \"{other}\" has"
            ),
            (id @ ("0" | "65535"), None) => format!(
                "Spock gives the name \"{name}\" the number {id}, which PostgreSQL keeps for itself"
            ),
            _ => continue,
        };
        findings.push(Finding::new(
            &node.name,
            SqlState::DUPLICATE_OBJECT,
            message,
            "Choose another name for the new node.",
        ));
        // The others know the same.
        break;
    }
    Ok(())
}

pub(super) fn not_installed(node: &str) -> Finding {
    Finding::new(
        node,
        SqlState::UNDEFINED_OBJECT,
        "the extension spock is not installed in the database",
        "Run CREATE EXTENSION spock there.",
    )
    .fixed_by("CREATE EXTENSION spock")
}

/// A version of Spock, compared by number: '5.0.10' is newer than '5.0.4'.
#[derive(Clone, Debug)]
struct Version {
    text: String,
    numbers: (u32, u32),
}

impl Version {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(['.', '-']).map(|p| p.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self {
            text: text.to_owned(),
            numbers: (next(), next()),
        }
    }

    /// Nodes work together where major and minor are the same.
    fn fits(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::Version;
    use proptest::prelude::*;

    #[test]
    fn versions_fit_by_major_and_minor() {
        let fits = |a, b| Version::parse(a).fits(&Version::parse(b));
        assert!(fits("5.0.10", "5.0.7"));
        assert!(fits("6.0.0-devel", "6.0.1"));
        assert!(!fits("5.0.11", "6.0.0"));
        assert!(!fits("5.1.0", "5.0.9"));
    }

    proptest! {
        #[test]
        fn every_version_is_compared_by_number(major in any::<u32>(), minor in any::<u32>(), rest in "(\\.\\PC{0,8}|-\\PC{0,8})?") {
            let version = Version::parse(&format!("{major}.{minor}{rest}"));
            prop_assert_eq!(version.numbers, (major, minor));
        }

        #[test]
        fn no_text_makes_the_version_fall_over(text in any::<String>()) {
            let version = Version::parse(&text);
            prop_assert!(version.fits(&version));
        }
    }
}
