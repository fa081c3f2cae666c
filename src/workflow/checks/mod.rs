//! The checks: what is wanted of the nodes before a join, and of a cluster at any time. Nothing in here changes
//! anything. A CALL, a plan and the health report walk the one table, and tell everything that a stage has found
//! together.

mod capacity;
mod cluster;
mod context;
mod defaults;
mod every_member;
mod identities;
mod mesh;
mod names;
mod nodes;
mod outsiders;
mod owners;
mod paths;
mod reachability;
mod readers;
mod servers;
mod structure;
mod subscribed;
mod tables;
mod warnings;

pub use self::cluster::Cluster;
pub use self::context::{Checks, Known};

use self::every_member::EveryMember;
use super::clocks;
use super::findings::{Check, Outcome, Severity, failures};
use crate::error::{Error, Result};

/// A check as the table has it.
pub struct CheckDefinition {
    pub name: &'static str,
    /// In general: where it depends on the nodes, the health report has it exactly.
    pub wanted: &'static str,
    pub stage: Stage,
    pub severity: Severity,
    run: Run,
}

impl CheckDefinition {
    pub fn begin(&self) -> Check {
        Check::new(self.name, self.wanted, self.severity)
    }
}

/// When a check is made. Before a join one stage comes after the other: what one has found would make those after it
/// fall over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// While the nodes are found and connected.
    Gathering,
    /// Before a join: which databases these are.
    Membership,
    /// Before a join: what the engine needs; all its own.
    Engine,
    /// Before a join: all that it needs.
    Requirements,
    /// With the requirements of a join, and of a cluster: what is asked of every member.
    EveryMember,
    /// Before a join: what does no harm now and may do some during a long copy, or afterwards.
    Warnings,
    /// Of a cluster.
    Cluster,
}

#[derive(Clone, Copy)]
enum Run {
    /// Who gathers the nodes tells.
    Gathering,
    Join(fn(&mut Checks, &Known, &mut Check) -> Result<()>),
    EveryMember(fn(&mut EveryMember, &mut Check) -> Result<()>),
    Cluster(fn(&Cluster, &mut Check) -> Result<()>),
}

use Severity::{Failure, Warning};
use Stage::{Membership, Requirements, Warnings};

/// The connection of each node, as far as it is needed before a join.
pub const CONNECTION: CheckDefinition = CheckDefinition {
    name: "connection",
    wanted: "every node is reached, as a superuser, and nobody else changes the membership",
    stage: Stage::Gathering,
    severity: Failure,
    run: Run::Gathering,
};

/// What an earlier CALL on the new node has left.
pub const INTERRUPTED: CheckDefinition = CheckDefinition {
    name: "interrupted runs",
    wanted: "none",
    stage: Stage::Gathering,
    severity: Warning,
    run: Run::Gathering,
};

/// The connection of each node of a cluster.
pub const ANSWERS: CheckDefinition = cluster(
    Failure,
    "connection",
    "the node answers",
    cluster::connection,
);

/// Every check, in the order in which they are made. Those of the engine come behind the others of their stage:
/// [`Engine::checks`](crate::engine::Engine::checks), [`Engine::member_checks`](crate::engine::Engine::member_checks).
#[rustfmt::skip] // a row for each
pub const CHECKS: &[CheckDefinition] = &[
    INTERRUPTED,
    CONNECTION,
    join(Membership, Failure, "membership", "every node a database of its own, the new one in no cluster", nodes::membership),
    join(Requirements, Failure, "role", "primary", servers::role),
    join(Requirements, Failure, "wal_level", "logical", servers::wal_level),
    join(Requirements, Failure, "output_plugin_libraries", "lists the plugin of the engine, or *", servers::output_plugins),
    join(Requirements, Failure, "version", "the major version of PostgreSQL that the source has, or a newer one", servers::version),
    join(Requirements, Failure, "encoding", "that of the source", servers::encoding),
    join(Requirements, Failure, "collation", "that of the source", servers::collation),
    join(Requirements, Failure, "max_replication_slots", "as many more as the run needs; before PostgreSQL 18 for origins too", capacity::slots),
    join(Requirements, Failure, "max_active_replication_origins", "as many more as the run needs", capacity::origins),
    join(Requirements, Failure, "max_wal_senders", "as many more as the run needs", capacity::wal_senders),
    join(Requirements, Failure, "max_logical_replication_workers", "as many more as the run needs", capacity::logical_workers),
    join(Requirements, Failure, "max_worker_processes", "as many more as the run needs", capacity::worker_processes),
    join(Requirements, Failure, "disk space", "as much as the source's database has", capacity::disk_space),
    join(Requirements, Failure, "subscriptions", "one from every other member, which replicates", mesh::subscriptions),
    join(Requirements, Failure, "names", "free: of the node, its subscriptions, their slots and origins", names::free),
    join(Requirements, Failure, "sequence policy", "the cluster's, and a part for the new node", nodes::sequence_policy),
    join(Requirements, Failure, "reachability", "reaches the new node by new_node_dsn", reachability::from_members),
    join(Requirements, Failure, "readers", "can subscribe to the new node", readers::fit),
    join(Requirements, Failure, "empty", "no tables, and nothing of the names that the source has", structure::empty),
    join(Requirements, Failure, "row counters", "on for all sessions", defaults::counters),
    join(Requirements, Failure, "structure", "what the structure of the source needs is there", structure::requirements),
    ANSWERS,
    cluster(Failure, "membership", "is a member of the cluster", cluster::membership),
    cluster(Failure, "registry", "as on the source", cluster::registry),
    cluster(Warning, "sequences", "no value that another member gives too", cluster::sequences),
    cluster(Warning, "clock", clocks::WANTED, cluster::clock),
    cluster(Failure, "subscriptions", "replicating", paths::replicating),
    cluster(Failure, "slots", "reserved: within max_wal_size", paths::slots),
    cluster(Warning, "lag", "less than 59 s, or 0 bytes", paths::lag),
    cluster(Failure, "positions", "within the WAL of the provider", cluster::positions),
    every_member(Failure, "replica identity", "something to tell the rows of every table by", identities::check),
    every_member(Failure, "owners", "the owner of every table may do what applying its rows takes", owners::check),
    every_member(Failure, "tables", "the same tables, columns and types on every member", tables::check),
    every_member(Failure, "subscribed tables", "all that the provider has", subscribed::check),
    every_member(Failure, "publications", "none of others sends zodan's own records", outsiders::publications),
    every_member(Warning, "subscriptions of others", "none: what they bring is not sent on", outsiders::subscriptions),
    join(Warnings, Warning, "large objects", "none", warnings::large_objects),
    join(Warnings, Warning, "database itself", "as that of the source", structure::database_itself),
    join(Warnings, Warning, "other sessions", "none", warnings::other_sessions),
    join(Warnings, Warning, "max_slot_wal_keep_size", "-1", warnings::slot_wal),
    join(Warnings, Warning, "idle_replication_slot_timeout", "0", warnings::idle_slots),
    join(Warnings, Warning, "clock", clocks::WANTED, warnings::clock),
    join(Warnings, Warning, "replication", "of all that the source has", warnings::replication),
    join(Warnings, Warning, "event triggers", "none that fire for what zodan does", defaults::event_triggers),
    join(Warnings, Warning, "login triggers", "none", defaults::login_triggers),
    join(Warnings, Warning, "settings of apply workers", "as values are sent", defaults::apply_settings),
];

const fn join(
    stage: Stage,
    severity: Severity,
    name: &'static str,
    wanted: &'static str,
    run: fn(&mut Checks, &Known, &mut Check) -> Result<()>,
) -> CheckDefinition {
    CheckDefinition {
        name,
        wanted,
        stage,
        severity,
        run: Run::Join(run),
    }
}

const fn every_member(
    severity: Severity,
    name: &'static str,
    wanted: &'static str,
    run: fn(&mut EveryMember, &mut Check) -> Result<()>,
) -> CheckDefinition {
    CheckDefinition {
        name,
        wanted,
        stage: Stage::EveryMember,
        severity,
        run: Run::EveryMember(run),
    }
}

const fn cluster(
    severity: Severity,
    name: &'static str,
    wanted: &'static str,
    run: fn(&Cluster, &mut Check) -> Result<()>,
) -> CheckDefinition {
    CheckDefinition {
        name,
        wanted,
        stage: Stage::Cluster,
        severity,
        run: Run::Cluster(run),
    }
}

/// Makes every check of `stage`, in the order of the table.
fn walk(stage: Stage, mut make: impl FnMut(Run, &mut Check) -> Result<()>) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![];
    for definition in CHECKS.iter().filter(|check| check.stage == stage) {
        let mut check = definition.begin();
        make(definition.run, &mut check)?;
        outcomes.extend(check.outcomes());
    }
    Ok(outcomes)
}

/// Before a join.
const STAGES: [&[Stage]; 4] = [
    &[Stage::Membership],
    &[Stage::Engine],
    &[Stage::Requirements, Stage::EveryMember],
    &[Stage::Warnings],
];

impl Checks<'_> {
    /// For a CALL: the first stage that finds something ends it. `warn` is told the rest.
    pub fn run(mut self, warn: impl FnMut(&Outcome)) -> Result<Known> {
        let known = self.known()?;
        let mut outcomes = vec![];
        for stages in STAGES {
            self.make(stages, &known, &mut outcomes)?;
            let findings = failures(&outcomes);
            if !findings.is_empty() {
                return Err(Error::Checks(findings));
            }
        }
        outcomes.iter().for_each(warn);
        Ok(known)
    }

    /// For a person: what all of them have found, as far as a CALL would come, and whether that is to the end.
    pub fn outcomes(mut self, outcomes: &mut Vec<Outcome>) -> Result<bool> {
        let known = self.known()?;
        for stages in STAGES {
            // What does no harm is told of nodes that cannot join as well.
            if !failures(outcomes).is_empty() && stages != [Stage::Warnings] {
                return Ok(false);
            }
            self.make(stages, &known, outcomes)?;
        }
        Ok(true)
    }

    fn make(&mut self, stages: &[Stage], known: &Known, outcomes: &mut Vec<Outcome>) -> Result<()> {
        for stage in stages {
            outcomes.extend(match stage {
                Stage::Engine => self.of_the_engine()?,
                Stage::EveryMember => self.every_member(known, asked_of_every_member)?,
                _ => walk(*stage, |run, check| match run {
                    Run::Join(run) => run(self, known, check),
                    _ => Ok(()),
                })?,
            });
        }
        Ok(())
    }

    /// Under the names that the engine has for them.
    fn of_the_engine(&mut self) -> Result<Vec<Outcome>> {
        let (members, new) = (self.member_names(), self.new.name.clone());
        let engine = self.engine;
        let (mut nodes, here) = self.members_and_new();
        let mut found = engine.run_checks(&mut nodes, here)?;
        let mut outcomes = vec![];
        for made in engine.checks() {
            // One that needs what is not there is not made.
            let Some(place) = found.iter().position(|(name, _)| *name == made.name) else {
                continue;
            };
            let (_, findings) = found.swap_remove(place);
            let mut check = Check::new(made.name, made.wanted, Failure);
            check.record_all(made.on.of(&members, &new), findings);
            outcomes.extend(check.outcomes());
        }
        match found.first() {
            Some((name, _)) => Err(Error::internal(format!(
                "no check of the engine is called {name}"
            ))),
            None => Ok(outcomes),
        }
    }
}

impl Cluster {
    /// Whether the mesh is whole.
    pub fn outcomes(&self) -> Result<Vec<Outcome>> {
        let mut outcomes = walk(Stage::Cluster, |run, check| match run {
            Run::Cluster(run) => run(self, check),
            _ => Ok(()),
        })?;
        outcomes.extend(self.every_member(asked_of_every_member)?);
        Ok(outcomes)
    }
}

/// What is asked of every member; what the engine asks comes last.
fn asked_of_every_member(mut every: EveryMember) -> Result<Vec<Outcome>> {
    let mut outcomes = walk(Stage::EveryMember, |run, check| match run {
        Run::EveryMember(run) => run(&mut every, check),
        _ => Ok(()),
    })?;
    for wanted in every.engine.member_checks() {
        outcomes.extend(every.of_the_engine(wanted)?);
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, Engine};
    use std::collections::BTreeSet;

    /// Names and severities in the tables of the reference about the health report: before a join, of a cluster.
    fn documented() -> [BTreeSet<(&'static str, &'static str)>; 2] {
        let reference = include_str!("../../../docs/reference.md");
        let section = reference
            .split("\n### spock.health_report(")
            .nth(1)
            .unwrap();
        let mut tables = section.split("\n| check | | wanted |\n").skip(1);
        [(); 2].map(|()| {
            let rows = tables.next().unwrap().lines().skip(1);
            rows.map_while(|row| {
                let mut cells = row.strip_prefix("| `")?.splitn(3, " | ");
                Some((cells.next()?.strip_suffix('`')?, cells.next()?))
            })
            .collect()
        })
    }

    #[test]
    fn the_reference_names_every_check_and_no_other() {
        let severity = |severity: Severity| match severity {
            Failure => "failure",
            Warning => "warning",
        };
        let in_table = |stages: &[Stage]| -> BTreeSet<(&str, &str)> {
            let checks = CHECKS.iter().filter(|check| stages.contains(&check.stage));
            checks.map(|c| (c.name, severity(c.severity))).collect()
        };
        let [mut before, mut cluster] = [
            in_table(&[Stage::Gathering, Membership, Requirements, Warnings]),
            in_table(&[Stage::Cluster, Stage::EveryMember]),
        ];
        for engine in engine::all() {
            before.extend(engine.checks().iter().map(|c| (c.name, "failure")));
            for check in engine.member_checks() {
                let told = documented()[1]
                    .iter()
                    .copied()
                    .find(|(name, _)| *name == check.name);
                cluster.insert(told.unwrap_or((check.name, "not in the reference")));
            }
        }
        assert_eq!(documented(), [before, cluster]);
    }

    #[test]
    fn a_name_stands_for_one_check_at_a_time() {
        for stages in [
            &[Stage::Cluster, Stage::EveryMember][..],
            &[
                Stage::Gathering,
                Membership,
                Requirements,
                Stage::EveryMember,
                Warnings,
            ],
        ] {
            let of_engine = |engine: &dyn Engine| -> Vec<&'static str> {
                let own = engine.checks().iter().map(|check| check.name);
                let of_members = engine.member_checks().into_iter().map(|check| check.name);
                own.chain(of_members).collect()
            };
            for engine in engine::all() {
                let checks = CHECKS.iter().filter(|check| stages.contains(&check.stage));
                let mut names: Vec<&str> = checks.map(|check| check.name).collect();
                names.extend(of_engine(&*engine));
                let several = names.len();
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), several, "{names:?}");
            }
        }
    }
}
