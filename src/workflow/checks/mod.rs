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

pub use self::cluster::ObservedCluster;
pub use self::context::Known;
use super::cluster::JoinNodes;

use self::every_member::EveryMember;
use super::clocks;
use super::findings::{Check, Outcome, Severity, failures};
use crate::error::{Error, Result};
use crate::node::{Tasks, side_by_side};

/// A check as the table has it.
struct CheckDefinition {
    name: &'static str,
    /// In general: where it depends on the nodes, the health report has it exactly.
    wanted: &'static str,
    stage: Stage,
    severity: Severity,
    run: Run,
}

impl CheckDefinition {
    fn begin(&self) -> Check {
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
    Join(fn(&mut JoinNodes, &Known, &mut Check) -> Result<()>),
    EveryMember(fn(&mut EveryMember, &mut Check) -> Result<()>),
    Cluster(fn(&ObservedCluster, &mut Check) -> Result<()>),
}

/// A row of the table for tests, without the function.
#[cfg(test)]
struct Defined {
    name: &'static str,
    stage: Stage,
    severity: Severity,
    kind: &'static str,
}

/// Makes the table, and for tests, which are linked without a server, the same without the functions.
macro_rules! checks {
    ($($stage:ident $severity:ident $name:literal, $wanted:expr, $kind:ident $(($run:path))?;)+) => {
        /// Every check, in the order in which they are made. Those of the engine come behind the others of their stage:
        /// [`Checks::checks`](crate::engine::Checks::checks) before a join,
        /// [`Checks::member_checks`](crate::engine::Checks::member_checks) on every member.
        const CHECKS: &[CheckDefinition] = &[$(CheckDefinition {
            name: $name,
            wanted: $wanted,
            stage: Stage::$stage,
            severity: Severity::$severity,
            run: Run::$kind $(($run))?,
        }),+];

        #[cfg(test)]
        const DEFINED: &[Defined] = &[$(Defined {
            name: $name,
            stage: Stage::$stage,
            severity: Severity::$severity,
            kind: stringify!($kind),
        }),+];
    };
}

// Stage, severity, name, what is wanted, what makes the check.
checks! {
    Gathering Warning "interrupted runs", "none", Gathering;
    Gathering Failure "connection", "every node is reached, as a superuser, and nobody else changes the membership", Gathering;
    Membership Failure "membership", "every node a database of its own, the new one in no cluster", Join(nodes::membership);
    Requirements Failure "role", "primary", Join(servers::role);
    Requirements Failure "wal_level", "logical", Join(servers::wal_level);
    Requirements Failure "output_plugin_libraries", "lists the plugin of the engine, or *", Join(servers::output_plugins);
    Requirements Failure "version", "the major version of PostgreSQL that the source has, or a newer one", Join(servers::version);
    Requirements Failure "encoding", "that of the source", Join(servers::encoding);
    Requirements Failure "collation", "that of the source", Join(servers::collation);
    Requirements Failure "max_replication_slots", "as many more as the run needs; before PostgreSQL 18 for origins too", Join(capacity::slots);
    Requirements Failure "max_active_replication_origins", "as many more as the run needs", Join(capacity::origins);
    Requirements Failure "max_wal_senders", "as many more as the run needs", Join(capacity::wal_senders);
    Requirements Failure "max_logical_replication_workers", "as many more as the run needs", Join(capacity::logical_workers);
    Requirements Failure "max_worker_processes", "as many more as the run needs", Join(capacity::worker_processes);
    Requirements Failure "disk space", "as much as the source's database has", Join(capacity::disk_space);
    Requirements Failure "subscriptions", "one from every other member, which replicates", Join(mesh::subscriptions);
    Requirements Failure "names", "free: of the node, its subscriptions, their slots and origins", Join(names::free);
    Requirements Failure "sequence policy", "the cluster's, and a part for the new node", Join(nodes::sequence_policy);
    Requirements Failure "reachability", "reaches the new node by new_node_dsn", Join(reachability::from_members);
    Requirements Failure "readers", "can subscribe to the new node", Join(readers::fit);
    Requirements Failure "empty", "no tables, and nothing of the names that the source has", Join(structure::empty);
    Requirements Failure "row counters", "on for all sessions", Join(defaults::counters);
    Requirements Failure "structure", "what the structure of the source needs is there", Join(structure::requirements);
    Cluster Failure "connection", "the node answers", Cluster(cluster::connection);
    Cluster Failure "membership", "is a member of the cluster", Cluster(cluster::membership);
    Cluster Failure "registry", "as on the source", Cluster(cluster::registry);
    Cluster Warning "sequences", "no value that another member gives too", Cluster(cluster::sequences);
    Cluster Warning "clock", clocks::WANTED, Cluster(cluster::clock);
    Cluster Failure "subscriptions", "replicating", Cluster(paths::replicating);
    Cluster Failure "slots", "reserved: within max_wal_size", Cluster(paths::slots);
    Cluster Warning "lag", "less than 59 s, or 0 bytes", Cluster(paths::lag);
    Cluster Failure "positions", "within the WAL of the provider", Cluster(cluster::positions);
    EveryMember Failure "replica identity", "something to tell the rows of every table by", EveryMember(identities::check);
    EveryMember Failure "owners", "the owner of every table may do what applying its rows takes", EveryMember(owners::check);
    EveryMember Failure "tables", "the same tables, columns and types on every member", EveryMember(tables::check);
    EveryMember Failure "subscribed tables", "all that the provider has", EveryMember(subscribed::check);
    EveryMember Failure "publications", "none of others sends zodan's own records", EveryMember(outsiders::publications);
    EveryMember Warning "subscriptions of others", "none: what they bring is not sent on", EveryMember(outsiders::subscriptions);
    Warnings Warning "large objects", "none", Join(warnings::large_objects);
    Warnings Warning "database itself", "as that of the source", Join(structure::database_itself);
    Warnings Warning "other sessions", "none", Join(warnings::other_sessions);
    Warnings Warning "max_slot_wal_keep_size", "-1", Join(warnings::slot_wal);
    Warnings Warning "idle_replication_slot_timeout", "0", Join(warnings::idle_slots);
    Warnings Warning "parallel apply workers", "room for those of all subscriptions in max_logical_replication_workers", Join(capacity::parallel_workers);
    Warnings Warning "clock", clocks::WANTED, Join(warnings::clock);
    Warnings Warning "replication", "of all that the source has", Join(warnings::replication);
    Warnings Warning "event triggers", "none that fire for what zodan does", Join(defaults::event_triggers);
    Warnings Warning "login triggers", "none", Join(defaults::login_triggers);
    Warnings Warning "settings of apply workers", "as values are sent", Join(defaults::apply_settings);
}

/// Begins a check of whoever gathers the nodes.
pub fn begin(stage: Stage, name: &'static str) -> Check {
    let named = |check: &&CheckDefinition| check.stage == stage && check.name == name;
    match CHECKS.iter().find(named) {
        Some(check) => check.begin(),
        None => Check::new(name, "", Severity::Failure),
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

/// Before a join. What stands together is made side by side.
const STAGES: [&[Stage]; 3] = [
    &[Stage::Membership],
    &[Stage::Engine],
    &[Stage::Requirements, Stage::EveryMember, Stage::Warnings],
];

/// One of those that are made side by side.
#[derive(Clone, Copy)]
enum Task {
    Defined(&'static CheckDefinition),
    /// What the engine asks of every member, by its number.
    OfMembers(usize),
}

/// What the engine's own checks have found, until it is told.
type OfEngine = Option<Result<Vec<Outcome>>>;

impl JoinNodes<'_> {
    /// For a CALL: the first stage that finds something ends it. `warn` is told the rest.
    pub fn check(mut self, warn: impl FnMut(&Outcome)) -> Result<Known> {
        let (known, mut of_engine) = self.begin_checks()?;
        let mut outcomes = vec![];
        for stages in STAGES {
            let made = self.make(stages, &known, &mut of_engine, &mut outcomes);
            let findings = failures(&outcomes);
            match made {
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                _ if !findings.is_empty() => return Err(Error::Checks(findings)),
                made => made?,
            }
        }
        outcomes.iter().for_each(warn);
        Ok(known)
    }

    /// For a person: what all of them have found, as far as a CALL would come, and whether that is to the end.
    pub fn outcomes(mut self, outcomes: &mut Vec<Outcome>) -> Result<bool> {
        let (known, mut of_engine) = self.begin_checks()?;
        for stages in STAGES {
            if !failures(outcomes).is_empty() {
                return Ok(false);
            }
            self.make(stages, &known, &mut of_engine, outcomes)?;
        }
        Ok(true)
    }

    /// What all of them go by, and what the engine's own have found, to be told in their stage.
    fn begin_checks(&mut self) -> Result<(Known, OfEngine)> {
        let tasks = (Self::known, |nodes: &mut Self| Ok(nodes.of_the_engine()));
        let (known, of_engine) = tasks.make(self, Self::all_sessions)?;
        Ok((known, Some(of_engine)))
    }

    /// Adds what is found to `outcomes`, up to the first error.
    fn make(
        &mut self,
        stages: &[Stage],
        known: &Known,
        of_engine: &mut OfEngine,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        if stages.contains(&Stage::Engine) {
            outcomes.extend(of_engine.take().transpose()?.into_iter().flatten());
        }
        let mut tasks = vec![];
        for stage in stages {
            let defined = CHECKS.iter().filter(|check| check.stage == *stage);
            tasks.extend(defined.map(Task::Defined));
            if *stage == Stage::EveryMember {
                tasks.extend((0..self.engine.member_checks().len()).map(Task::OfMembers));
            }
        }
        let made = side_by_side(self, Self::all_sessions, tasks.len(), |number, nodes| {
            nodes.make_one(tasks[number], known)
        });
        for found in made {
            outcomes.extend(found?);
        }
        Ok(())
    }

    fn make_one(&mut self, task: Task, known: &Known) -> Result<Vec<Outcome>> {
        match task {
            Task::OfMembers(number) => self.every_member(known, |mut every| {
                let wanted = every.engine.member_checks().into_iter().nth(number);
                wanted.map_or(Ok(vec![]), |wanted| every.of_the_engine(wanted))
            }),
            Task::Defined(definition) => {
                let mut check = definition.begin();
                match definition.run {
                    Run::Join(run) => run(self, known, &mut check)?,
                    Run::EveryMember(run) => {
                        self.every_member(known, |mut every| run(&mut every, &mut check))?;
                    }
                    Run::Gathering | Run::Cluster(_) => {}
                }
                Ok(check.outcomes())
            }
        }
    }

    /// Under the names that the engine has for them.
    fn of_the_engine(&mut self) -> Result<Vec<Outcome>> {
        let (members, new) = (self.member_names(), self.new.name.clone());
        let engine = self.engine;
        let (mut nodes, new_node) = self.members_and_new();
        let mut found = engine.run_checks(&mut nodes, new_node)?;
        let mut outcomes = vec![];
        for made in engine.checks() {
            // One that needs what is not there is not made.
            let Some(place) = found.iter().position(|(name, _)| *name == made.name) else {
                continue;
            };
            let (_, findings) = found.swap_remove(place);
            let mut check = Check::new(made.name, made.wanted, Severity::Failure);
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

impl ObservedCluster {
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
    use crate::engine;
    use std::collections::BTreeSet;

    const BEFORE_A_JOIN: [Stage; 4] = [
        Stage::Gathering,
        Stage::Membership,
        Stage::Requirements,
        Stage::Warnings,
    ];
    const CLUSTER: [Stage; 2] = [Stage::Cluster, Stage::EveryMember];

    fn of_stages(stages: &[Stage]) -> impl Iterator<Item = &'static Defined> {
        let of_stages = |row: &&Defined| stages.contains(&row.stage);
        DEFINED.iter().filter(of_stages)
    }

    fn named(stages: &[Stage]) -> BTreeSet<(&'static str, &'static str)> {
        let rows = of_stages(stages).map(|row| match row.severity {
            Severity::Failure => (row.name, "failure"),
            Severity::Warning => (row.name, "warning"),
        });
        rows.collect()
    }

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
        let [before, of_cluster] = documented();
        let mut defined = named(&BEFORE_A_JOIN);
        let of_engines = engine::all_checks().into_iter().flatten();
        defined.extend(of_engines.map(|check| (check.name, "failure")));
        let differ: Vec<_> = before.symmetric_difference(&defined).collect();
        assert!(
            differ.is_empty(),
            "in one of docs/reference.md and checks!: {differ:?}"
        );
        let (defined, of_engines) = (named(&CLUSTER), engine::all_member_checks());
        let without = of_cluster.difference(&defined).map(|(name, _)| *name);
        let names: BTreeSet<&str> = of_engines.into_iter().map(|check| check.name).collect();
        assert_eq!(without.collect::<BTreeSet<_>>(), names);
        assert!(defined.is_subset(&of_cluster));
    }

    #[test]
    fn a_name_stands_for_one_check_at_a_time() {
        for stages in [&BEFORE_A_JOIN[..], &CLUSTER] {
            assert_eq!(named(stages).len(), of_stages(stages).count());
        }
    }
    /// One of another kind would never be made.
    #[test]
    fn every_check_is_of_the_kind_of_its_stage() {
        for row in DEFINED {
            let kind = match row.stage {
                Stage::Gathering => "Gathering",
                Stage::Membership | Stage::Requirements | Stage::Warnings => "Join",
                Stage::EveryMember => "EveryMember",
                Stage::Cluster => "Cluster",
                Stage::Engine => panic!("{}: the checks of an engine are its own", row.name),
            };
            assert_eq!(row.kind, kind, "{}", row.name);
        }
    }
}
