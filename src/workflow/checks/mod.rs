//! The checks before the first change. Everything found is reported together.

mod defaults;
pub mod everybody;
mod identities;
mod outsiders;
mod owners;
mod readers;
mod subscribed;
mod tables;

use self::everybody::{Answers, Everybody, REFUSES_UNSENT};
use super::clocks;
use super::division::Division;
use super::findings::{Check, Outcome, failures};
use super::lost_wal::{LostWal, end_of_wal};
use super::members::{self, each};
use super::refusal;
use super::taken;
use super::topology::Shape;
use crate::copy;
use crate::engine::{Engine, Path, Provider, subscription_states};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, Row, Rows, wait};
use crate::lsn::Lsn;
use crate::node::server::{self, Budget, Facts};
use crate::node::{Node, Statement, ask};
use crate::settings;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What is looked at. Nothing in here changes anything.
pub struct Checks<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    pub peers: &'a mut [Node],
    pub new: &'a mut Node,
    /// Nodes that only read, and are to read from the new node too.
    pub readers: &'a mut [Node],
    pub is_member: bool,
    pub registered_as: &'a [String],
}

/// What the checks learnt and the join needs.
pub struct Known {
    pub source: Facts,
    pub peers: Vec<Facts>,
    pub new: Facts,
}

/// A finding about a path, and the path itself if that has no connection.
type Trouble = (Finding, Option<Path>);

impl Known {
    /// Major versions of the members, then of the new node.
    pub fn versions(&self) -> Vec<u32> {
        let members = std::iter::once(&self.source).chain(&self.peers);
        members
            .chain(std::iter::once(&self.new))
            .map(|facts| facts.version / 10_000)
            .collect()
    }

    /// Whether some node refuses updates that are told by columns which it does not send.
    pub fn unsent(&self) -> bool {
        self.versions().iter().any(|v| *v >= REFUSES_UNSENT)
    }
}

/// The checks come in stages: what one stage has found would make those after it fall over.
const STAGES: usize = 3;

impl Checks<'_> {
    /// For a CALL: the first stage that finds something ends it. `warn` is told the rest.
    pub fn run(mut self, mut warn: impl FnMut(&Outcome)) -> Result<Known> {
        let known = self.facts()?;
        let mut outcomes = vec![];
        for stage in 0..STAGES {
            outcomes.extend(self.stage(stage, &known)?);
            let findings = failures(&outcomes);
            if !findings.is_empty() {
                return Err(Error::Checks(findings));
            }
        }
        outcomes.extend(self.warnings(&known)?);
        outcomes.iter().for_each(&mut warn);
        Ok(known)
    }

    /// For a person: what all of them have found, as far as a CALL would come, and whether that is to the
    /// end.
    pub fn outcomes(mut self, outcomes: &mut Vec<Outcome>) -> Result<bool> {
        let known = self.facts()?;
        for stage in 0..STAGES {
            outcomes.extend(self.stage(stage, &known)?);
            if !failures(outcomes).is_empty() && stage + 1 < STAGES {
                return Ok(false);
            }
        }
        outcomes.extend(self.warnings(&known)?);
        Ok(true)
    }

    fn stage(&mut self, stage: usize, known: &Known) -> Result<Vec<Outcome>> {
        let checks = match stage {
            0 => vec![self.check_identity(known)?],
            1 => vec![self.check_engine()?],
            _ => {
                let mut checks = self.check_servers(known);
                checks.extend(self.check_budgets(known));
                checks.push(self.check_space(known)?);
                checks.push(self.check_mesh()?);
                checks.push(self.check_names()?);
                checks.push(self.check_division()?);
                checks.push(self.check_reachability(known)?);
                if !self.readers.is_empty() {
                    checks.push(self.check_readers(known)?);
                }
                checks.push(self.check_empty()?);
                checks.push(self.check_counters()?);
                let check = Check::new(
                    "structure",
                    "what the structure of the source needs is there",
                );
                let findings = copy::requirements(self.source, self.new)?;
                checks.push(check.all([self.new.name.as_str()], findings));
                let mut outcomes: Vec<Outcome> =
                    checks.into_iter().flat_map(Check::outcomes).collect();
                outcomes.extend(self.everybody(known)?);
                return Ok(outcomes);
            }
        };
        Ok(checks.into_iter().flat_map(Check::outcomes).collect())
    }

    /// What is checked on every member, as it is afterwards.
    fn everybody(&mut self, known: &Known) -> Result<Vec<Outcome>> {
        let names = self.member_names();
        let mut paths = vec![];
        for subscriber in names.iter().filter(|_| self.is_member) {
            for provider in names.iter().filter(|p| *p != subscriber) {
                paths.extend(self.engine.paths(provider, subscriber));
            }
        }
        let (engine, bootstrapping) = (self.engine, !self.is_member);
        let mut ask_them = |question: &Statement, with_new: bool| -> Result<Answers> {
            let mut nodes: Vec<&mut Node> = vec![&mut *self.source];
            nodes.extend(self.peers.iter_mut());
            if with_new {
                nodes.push(&mut *self.new);
            }
            let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
            let questions = nodes.into_iter().map(|n| question.clone().on(n)).collect();
            let answers = ask(questions).into_iter().map(|rows| rows.map(Ok));
            let answers: Result<Vec<Result<Rows>>> = answers.collect();
            Ok(names.into_iter().zip(answers?).collect())
        };
        Everybody {
            engine,
            ask: &mut ask_them,
            paths,
            bootstrapping,
            versions: known.versions(),
        }
        .outcomes()
    }

    fn member_names(&self) -> Vec<String> {
        let names = std::iter::once(&*self.source).chain(self.peers.iter());
        names.map(|n| n.name.clone()).collect()
    }

    fn facts(&mut self) -> Result<Known> {
        let mut nodes: Vec<&mut Node> = vec![&mut *self.source, &mut *self.new];
        nodes.extend(self.peers.iter_mut());
        let mut facts = each(nodes, |_| server::facts())?
            .iter()
            .map(|rows| Facts::parse(rows.one()?))
            .collect::<Result<Vec<_>>>()?
            .into_iter();
        let mut next = || {
            facts
                .next()
                .ok_or_else(|| Error::internal("a node gave no facts"))
        };
        Ok(Known {
            source: next()?,
            new: next()?,
            peers: facts.collect(),
        })
    }

    /// Every node with its facts, the new one last.
    fn all<'k>(&'k self, known: &'k Known) -> impl Iterator<Item = (&'k str, &'k Facts)> {
        std::iter::once((self.source.name.as_str(), &known.source))
            .chain(self.peers.iter().map(|n| n.name.as_str()).zip(&known.peers))
            .chain(std::iter::once((self.new.name.as_str(), &known.new)))
    }

    fn check_identity(&mut self, known: &Known) -> Result<Check> {
        let mut findings = vec![];
        let new = self.new.name.clone();
        for (name, facts) in self.all(known).filter(|(name, _)| *name != new) {
            if (&facts.server, &facts.database) == (&known.new.server, &known.new.database) {
                findings.push(Finding::new(
                    name,
                    SqlState::INVALID_PARAMETER_VALUE,
                    "this member is the database that the CALL runs in",
                    "Run the CALL in the database of the new node, with the connection string of another node as src_dsn.",
                ));
            }
        }
        let registry = self.engine.members().run(self.new)?;
        if !registry.is_empty() {
            findings.push(Finding::new(
                &new,
                SqlState::OBJECT_IN_USE,
                format!(
                    "this database is a member of a cluster already: {}",
                    registry
                        .iter()
                        .map(|r| r.text(0))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                "Remove it from that cluster first.",
            ));
        }
        let mut names = self.member_names();
        names.push(new);
        let check = Check::new(
            "membership",
            "every node a database of its own, the new one in no cluster",
        );
        Ok(check.all(names.iter().map(String::as_str), findings))
    }

    fn check_engine(&mut self) -> Result<Check> {
        let mut names = self.member_names();
        names.push(self.new.name.clone());
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let findings = self.engine.checks(&mut members, self.new)?;
        let check = Check::new(
            "engine",
            format!("ready for the engine {}", self.engine.label()),
        );
        Ok(check.all(names.iter().map(String::as_str), findings))
    }

    fn check_division(&mut self) -> Result<Check> {
        let check = Check::new(
            "sequence policy",
            "the cluster's, and a part for the new node",
        );
        let findings = match Division::wanted(self.engine, self.source) {
            Ok(_) => vec![],
            Err(Error::Checks(findings)) => findings,
            Err(error) => return Err(error),
        };
        Ok(check.all([self.source.name.as_str()], findings))
    }

    fn check_servers(&self, known: &Known) -> Vec<Check> {
        let plugin = self.engine.plugin();
        let mut role = Check::new("role", "primary");
        let mut wal_level = Check::new("wal_level", "logical");
        let mut plugins = Check::new("output_plugin_libraries", format!("lists {plugin} or *"));
        let unfit = |node: &str, message: String, hint: String| {
            Finding::new(node, SqlState::NOT_IN_PREREQUISITE_STATE, message, hint)
        };
        for (name, facts) in self.all(known) {
            let standby = facts.in_recovery.then(|| {
                let hint = "Give the connection string of the primary.";
                unfit(name, "the server is a standby".into(), hint.into())
            });
            role.look(name, "primary", standby);
            let wrong = (facts.wal_level != "logical").then(|| {
                let hint = "Set wal_level = logical in postgresql.conf and restart the server.";
                let message = format!("wal_level is {}, not logical", facts.wal_level);
                unfit(name, message, hint.into()).fixed_by(set("wal_level", "logical"))
            });
            wal_level.look(name, facts.wal_level.as_str(), wrong);
            let lists = |list: &String| {
                let mut listed = list.split(',').map(str::trim);
                listed.any(|p| p == plugin || p == "*")
            };
            let missing = facts.output_plugins.as_ref().filter(|list| !lists(list));
            let missing = missing.map(|list| {
                let message = format!("output_plugin_libraries does not list {plugin}");
                let hint = format!("Add {plugin} to output_plugin_libraries and reload.");
                let mut listed: Vec<&str> = list.split(',').map(str::trim).collect();
                listed.retain(|library| !library.is_empty());
                listed.push(plugin);
                unfit(name, message, hint)
                    .fixed_by(set("output_plugin_libraries", &listed.join(", ")))
            });
            let found = match &facts.output_plugins {
                Some(list) => list.as_str(),
                None => "the server has no such setting",
            };
            plugins.look(name, found, missing);
        }
        let new = &self.new.name;
        let (ours, theirs) = (known.new.version / 10_000, known.source.version / 10_000);
        let mut version = Check::new("version", format!("PostgreSQL {theirs} or newer"));
        let older = (ours < theirs).then(|| {
            Finding::new(
                new,
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("the new node runs PostgreSQL {ours}, the source the newer {theirs}"),
                "The new node needs the source's major version or a newer one.",
            )
        });
        version.look(new, format!("PostgreSQL {ours}"), older);
        let same = |what: &'static str, here: &str, there: &str| {
            let mut check = Check::new(what, there);
            let other = (here != there).then(|| {
                let message = format!("the {what} of the database is {here}, the source's is {there}");
                let hint = "Create the new node's database with the encoding and the locale of the source's.";
                unfit(new, message, hint.into())
            });
            check.look(new, here, other);
            check
        };
        let encoding = same("encoding", &known.new.encoding, &known.source.encoding);
        let collation = same("collation", &known.new.collation, &known.source.collation);
        vec![role, wal_level, plugins, version, encoding, collation]
    }

    fn check_budgets(&self, known: &Known) -> Vec<Check> {
        let members = 1 + self.peers.len() as i64;
        let mut checks: Vec<Check> = vec![];
        for (name, facts) in self.all(known) {
            let new = name == self.new.name;
            let paths = if new { members } else { 1 };
            let mut need = |setting: &'static str, budget: Budget, count: i64| {
                let mut check = Check::new(setting, format!("{count} more"));
                let found = format!("{} of {} are in use", budget.used, budget.limit);
                let short = too_few(name, setting, budget, count);
                check.look(name, found.as_str(), short);
                checks.push(check);
            };
            // The new node marks copied rows with one origin more.
            let origins = paths + i64::from(new);
            let slots = facts.replication_slots;
            if facts.origins_setting != SLOTS {
                need(SLOTS, slots, paths);
                need("max_active_replication_origins", facts.origins, origins);
            } else if slots.used + paths > facts.origins.used + origins {
                need(SLOTS, slots, paths);
            } else {
                need(SLOTS, facts.origins, origins);
            }
            need("max_wal_senders", facts.wal_senders, paths);
            if self.engine.uses_logical_workers() {
                need(
                    "max_logical_replication_workers",
                    facts.logical_workers,
                    paths,
                );
            }
            // The source also runs the watchdog of the pause, the new node the copy's workers.
            let workers = if new {
                paths.max(1)
            } else {
                1 + i64::from(name == self.source.name)
            };
            need("max_worker_processes", facts.worker_processes, workers);
        }
        checks
    }

    fn check_space(&self, known: &Known) -> Result<Check> {
        let (free, needed) = (
            server::free_disk_space()? >> 20,
            known.source.database_size >> 20,
        );
        let mut check = Check::new(
            "disk space",
            format!("{needed} MB, which the source's database has"),
        );
        let short = (free < needed).then(|| {
            Finding::new(
                &self.new.name,
                SqlState::DISK_FULL,
                format!(
                    "{free} MB are free for the data directory, the source's database has {needed} MB"
                ),
                "Make room on the new node; the copy also writes WAL.",
            )
        });
        check.look(&self.new.name, format!("{free} MB are free"), short);
        Ok(check)
    }

    /// Tables of the new node would be published to members that do not have them, and what has the
    /// name of something on the source would stop the copy half-way.
    fn check_empty(&mut self) -> Result<Check> {
        let mut findings = vec![];
        let new = self.new.name.clone();
        let mut named = |what: &str, names: Vec<String>, hint: &str| {
            let (shown, more) = names.split_at(names.len().min(10));
            if !shown.is_empty() {
                let more = match more.len() {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                findings.push(Finding::new(
                    &new,
                    SqlState::DUPLICATE_OBJECT,
                    format!("{what}: {}{more}", shown.join(", ")),
                    hint,
                ));
            }
        };
        let tables = server::user_tables().run(self.new)?;
        let tables: Vec<String> = tables.iter().map(|r| r.text(0).to_owned()).collect();
        let collisions: Vec<String> =
            copy::collisions(&mut self.source.session, &mut self.new.session)?
                .into_iter()
                // A table of the same name is told as a table.
                .filter(|c| !tables.iter().any(|t| c.ends_with(t.as_str())))
                .collect();
        named(
            "the database is not empty, it has tables",
            tables,
            "Drop them, or use an empty database.",
        );
        named(
            "objects of the source exist here already",
            collisions,
            "Drop them on the new node.",
        );
        Ok(Check::new(
            "empty",
            "no tables, and nothing of the names that the source has",
        )
        .all([new.as_str()], findings))
    }

    /// Every subscription between the members is there, enabled and connected. A worker that has just
    /// been started, after our own pause for instance, gets the time that a connection may take.
    fn check_mesh(&mut self) -> Result<Check> {
        let check = Check::new(
            "subscriptions",
            "one from every other member, which replicates",
        );
        let names = self.member_names();
        let names = names.iter().map(String::as_str);
        if !self.is_member {
            return Ok(check.all(names, vec![]));
        }
        let beyond = self.beyond_the_source()?;
        if !beyond.is_empty() {
            return Ok(check.all(names, beyond));
        }
        let limit = settings::connect_timeout();
        let begun = Instant::now();
        let mut rest = Duration::from_millis(10);
        loop {
            let (mut found, may_pass) = self.mesh_troubles()?;
            if found.is_empty() || !may_pass || begun.elapsed() > limit {
                for (finding, path) in &mut found {
                    let reason = path.as_ref().map(|path| self.refusal(path));
                    if let Some(reason) = reason.transpose()?.flatten() {
                        finding.message.push_str(&format!(": {reason}"));
                    }
                }
                let findings = found.into_iter().map(|(finding, _)| finding).collect();
                return Ok(check.all(names, findings));
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// What the provider of a path without a connection says about it.
    fn refusal(&mut self, path: &Path) -> Result<Option<String>> {
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let provider = members.iter().find(|m| m.name == path.provider);
        let Some(provider) = provider.map(|p| p.member()) else {
            return Ok(None);
        };
        match members.iter_mut().find(|m| m.name == path.subscriber) {
            Some(node) => refusal::reason(self.engine, node, &provider, path),
            None => Ok(None),
        }
    }

    /// By provider and subscriber, which of the members take changes of each other.
    fn takes(&self, names: &[String], states: &[Rows]) -> Result<BTreeSet<(String, String)>> {
        let mut takes = BTreeSet::new();
        for (subscriber, rows) in names.iter().zip(states) {
            let states = subscription_states(rows)?;
            let there = |path: &Path| states.iter().any(|s| s.name == path.subscription);
            for provider in names.iter().filter(|p| *p != subscriber) {
                if self.engine.paths(provider, subscriber).iter().any(there) {
                    takes.insert((provider.clone(), subscriber.clone()));
                }
            }
        }
        Ok(takes)
    }

    /// Nodes that a member exchanges changes with and the source does not know. Of one that cannot be asked a slot
    /// of the member tells whether it may take something.
    fn beyond_the_source(&mut self) -> Result<Vec<Finding>> {
        let names = self.member_names();
        let mut both_ways: Vec<(String, String)> = vec![];
        let mut findings = vec![];
        for peer in self.peers.iter_mut() {
            let providers = self.engine.providers(peer)?.into_iter().flatten();
            for Provider { node, .. } in providers.filter(|p| !names.contains(&p.node.name)) {
                let asked = members::own_session(&node);
                let takes = asked.and_then(|mut node| self.engine.providers(&mut node));
                match takes {
                    Ok(takes) => {
                        let mut takes = takes.into_iter().flatten();
                        if takes.any(|p| names.contains(&p.node.name)) {
                            both_ways.push((node.name, peer.name.clone()));
                        }
                    }
                    Err(error @ Error::Interrupted { .. }) => return Err(error),
                    Err(error) => {
                        if let Some((slot, _)) = self.engine.unclaimed_slots(peer)?.first() {
                            findings.push(Finding::new(
                                &peer.name,
                                error.sqlstate(),
                                format!(
                                    "it takes changes of node \"{}\", which cannot be asked whether slot {slot} is its own, and so whether it is a member: {error}",
                                    node.name
                                ),
                                "Make it reachable from the new node, or drop the slot if nobody needs it.",
                            ));
                        }
                    }
                }
            }
        }
        if both_ways.is_empty() {
            return Ok(findings);
        }
        let mut all: Vec<&mut Node> = vec![&mut *self.source];
        all.extend(self.peers.iter_mut());
        let states = each(all, |_| self.engine.subscriptions())?;
        let mut takes = self.takes(&names, &states)?;
        let mut nodes = names.clone();
        for (beyond, peer) in &both_ways {
            if !nodes.contains(beyond) {
                nodes.push(beyond.clone());
            }
            takes.insert((beyond.clone(), peer.clone()));
            takes.insert((peer.clone(), beyond.clone()));
        }
        let shape = Shape::of(&nodes, &takes);
        findings.extend(both_ways.into_iter().map(|(beyond, peer)| {
            Finding::new(
                &peer,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "it exchanges changes with node \"{beyond}\", which node \"{}\" does not know: they form {shape}",
                    self.source.name
                ),
                format!("{FULL_MESH} Have \"{beyond}\" and every other node subscribe to each other when all have the same rows, and run the CALL again."),
            )
        }));
        Ok(findings)
    }

    /// What is wrong with the mesh, and whether all of it may pass by itself.
    fn mesh_troubles(&mut self) -> Result<(Vec<Trouble>, bool)> {
        let (mut findings, mut may_pass) = (vec![], true);
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let names: Vec<String> = members.iter().map(|n| n.name.clone()).collect();
        let answers = each(members.iter_mut().map(|m| &mut **m), |_| {
            self.engine.subscriptions()
        })?;
        // A worker in a loop of errors is there most of the time; the provider knows whether one
        // streams.
        let streaming = each(members.iter_mut().map(|m| &mut **m), |_| {
            server::active_slots()
        })?;
        let flushed = each(members, |_| server::wal_flushed())?;
        let end = |provider: &str| -> Result<Option<Lsn>> {
            let Some(i) = names.iter().position(|n| n == provider) else {
                return Ok(None);
            };
            end_of_wal(&flushed[i])
        };
        let streams = |provider: &str, slot: &str| {
            names
                .iter()
                .position(|n| n == provider)
                .is_some_and(|i| streaming[i].iter().any(|row| row.text(0) == slot))
        };
        let shape = Shape::of(&names, &self.takes(&names, &answers)?);
        for (subscriber, rows) in names.iter().zip(&answers) {
            let states = subscription_states(rows)?;
            let providers = names.iter().filter(|p| *p != subscriber);
            let engine = self.engine;
            for path in providers.flat_map(|provider| engine.paths(provider, subscriber)) {
                let provider = path.provider.as_str();
                let state = states.iter().find(|s| s.name == path.subscription);
                if let Some(lost) = LostWal::find(&path, state, end(provider)?) {
                    may_pass = false;
                    findings.push((lost.finding(), None));
                    continue;
                }
                let trouble = match state {
                    None => "does not exist",
                    Some(s) if !s.enabled => "is disabled",
                    Some(s) if !s.working || !streams(provider, &path.slot) => {
                        "has no connection to its provider"
                    }
                    Some(_) => continue,
                };
                may_pass &= state.is_some_and(|s| s.enabled);
                let finding = Finding::new(
                    subscriber,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} from node \"{provider}\" {trouble}",
                        path.subscription
                    ),
                    match state {
                        Some(_) => "Make every subscription of the cluster replicate before a node is added; the log of the subscriber says why one does not.".to_owned(),
                        None => format!("{FULL_MESH} The members form {shape}, and \"{subscriber}\" gets nothing of what \"{provider}\" writes. Make the two equal and have \"{subscriber}\" subscribe to it, or add the new node by a node that is in a mesh with all that it subscribes to."),
                    },
                );
                findings.push(match state {
                    Some(s) if !s.enabled => {
                        let enable = self.engine.enable(&path).inlined();
                        (finding.fixed_by(enable), None)
                    }
                    Some(_) => (finding, Some(path)),
                    None => (finding, None),
                });
            }
        }
        Ok((findings, may_pass))
    }

    /// The names we are going to use are free. What has them is not ours, so it is not touched.
    fn check_names(&mut self) -> Result<Check> {
        let mut nodes = self.member_names();
        nodes.push(self.new.name.clone());
        let check = Check::new(
            "names",
            "free: of the node, its subscriptions, their slots and origins",
        );
        let mut findings = vec![];
        self.names_taken(&mut findings)?;
        Ok(check.all(nodes.iter().map(String::as_str), findings))
    }

    fn names_taken(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
        let new = self.new.name.clone();
        for name in self.registered_as.iter().filter(|name| **name != new) {
            findings.push(Finding::new(
                &self.source.name,
                SqlState::DUPLICATE_OBJECT,
                format!("the cluster has the new node's database already, as node \"{name}\""),
                "Remove that node first.",
            ));
        }
        let registry = match self.is_member {
            true => self.engine.members().run(self.source)?,
            false => Default::default(),
        };
        if registry.iter().any(|r| r.text(0) == new) {
            findings.push(Finding::new(
                &self.source.name,
                SqlState::DUPLICATE_OBJECT,
                format!("the cluster has a node named \"{new}\" already"),
                "Choose another name, or remove that node first.",
            ));
            // What goes by that name is that node's.
            return Ok(());
        }
        let engine = self.engine;
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let paths = |of: &dyn Fn(&Node) -> Vec<Path>| -> Vec<Vec<Path>> {
            members.iter().map(|m| of(m)).collect()
        };
        let inbound = paths(&|m| engine.paths(&m.name, &new));
        let outbound = paths(&|m| engine.paths(&new, &m.name));
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let slots = |paths: &[Path]| paths.iter().map(|p| p.slot.clone()).collect::<Vec<_>>();
        let questions: Vec<_> = members
            .iter_mut()
            .zip(&inbound)
            .map(|(m, paths)| server::slots_named(&slots(paths)).on(m))
            .collect();
        for (name, rows) in names.iter().zip(ask(questions)) {
            findings.extend(rows?.iter().map(|row| taken::slot(name, row)));
        }
        let origins = |paths: &[Path]| -> Vec<String> {
            let wanted = paths.iter().filter_map(|p| engine.origin_wanted(p));
            wanted.map(str::to_owned).collect()
        };
        let with_origin = |paths: &[Path], origin: &str| {
            let mut paths = paths.iter();
            let path = paths.find(|path| engine.origin_wanted(path) == Some(origin));
            path.map_or(String::new(), |path| path.subscription.clone())
        };
        let questions: Vec<_> = members
            .iter_mut()
            .zip(&outbound)
            .map(|(m, paths)| server::origins_there(&origins(paths)).on(m))
            .collect();
        let there: Vec<Rows> = ask(questions).into_iter().collect::<Result<_>>()?;
        for (((name, rows), paths), there) in names
            .iter()
            .zip(each(members, |_| engine.subscriptions())?)
            .zip(&outbound)
            .zip(&there)
        {
            let mut states = subscription_states(&rows)?;
            states.retain(|state| paths.iter().any(|p| p.subscription == state.name));
            for state in &states {
                findings.push(taken::subscription(name, &state.name, state.working));
            }
            for row in there {
                let subscription = with_origin(paths, row.text(0));
                if !states.iter().any(|state| state.name == subscription) {
                    findings.push(taken::origin(name, &subscription, row));
                }
            }
        }
        let (inbound, outbound) = (inbound.concat(), outbound.concat());
        for row in &server::slots_named(&slots(&outbound)).run(self.new)? {
            findings.push(taken::slot(&new, row));
        }
        let states = subscription_states(&engine.subscriptions().run(self.new)?)?;
        for state in &states {
            findings.push(taken::subscription(&new, &state.name, state.working));
        }
        for row in &server::origins_there(&origins(&inbound)).run(self.new)? {
            let subscription = with_origin(&inbound, row.text(0));
            if !states.iter().any(|state| state.name == subscription) {
                findings.push(taken::origin(&new, &subscription, row));
            }
        }
        Ok(())
    }

    /// Every member can connect to the new node by its connection string. That the new node can
    /// connect to every member is known: it did.
    fn check_reachability(&mut self, known: &Known) -> Result<Check> {
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let dsn = &self.new.dsn;
        let findings = cannot_reach(self.engine, &mut members, dsn, known, "every member")?;
        let check = Check::new("reachability", "reaches the new node by new_node_dsn");
        Ok(check.all(names.iter().map(String::as_str), findings))
    }

    /// What the database of the new node has otherwise than that of the source, and no copy of its structure brings.
    fn database_itself(&mut self) -> Result<Check> {
        let mut check = Check::new("database itself", "as that of the source");
        let there = server::database_itself().run(self.source)?;
        let here = server::database_itself().run(self.new)?;
        let (there, here) = (there.one()?, here.one()?);
        let what = ["privileges", "limit of connections", "comment"];
        let others: Vec<String> = (0..what.len())
            .filter(|column| there.text(*column) != here.text(*column))
            .map(|column| {
                format!(
                    "{} \"{}\", not \"{}\"",
                    what[column],
                    here.text(column),
                    there.text(column)
                )
            })
            .collect();
        match others.is_empty() {
            true => check.passed(&self.new.name, ""),
            false => check.warned(
                &self.new.name,
                format!(
                    "the database has other attributes than that of node \"{}\": {}",
                    self.source.name,
                    others.join(", ")
                ),
                "They are not copied: GRANT and REVOKE ON DATABASE, ALTER DATABASE, COMMENT ON DATABASE.",
            ),
        }
        Ok(check)
    }

    /// What does no harm now and may do some during a long copy, or afterwards.
    fn warnings(&mut self, known: &Known) -> Result<Vec<Outcome>> {
        let mut objects = Check::new("large objects", "none");
        let count = server::large_objects().run(self.source)?;
        match count.one()?.parse::<u64>(0)? {
            0 => objects.passed(&self.source.name, "none"),
            _ => objects.warned(
                &self.source.name,
                "large objects exist, which are not copied and do not replicate",
                "Keep such data in columns of type bytea.",
            ),
        }
        let database = self.database_itself()?;
        let mut sessions = Check::new("other sessions", "none");
        let others = server::other_sessions().run(self.new)?;
        let pids: Vec<&str> = others.iter().map(|r| r.text(0)).collect();
        match pids.is_empty() {
            true => sessions.passed(&self.new.name, "none"),
            false => sessions.warned_of(
                Finding::new(
                    &self.new.name,
                    SqlState::OK,
                    format!(
                        "other sessions are in its database: pid {}",
                        pids.join(", ")
                    ),
                    "If one of them writes before the CALL has ended, the join fails.",
                )
                .fixed_by(server::end_sessions(&pids).inlined()),
            ),
        }
        let mut wal = Check::new("max_slot_wal_keep_size", "-1");
        let mut idle = Check::new("idle_replication_slot_timeout", "0");
        for (name, facts) in self.all(known) {
            match facts.max_slot_wal_keep_size {
                ..0 => wal.passed(name, "-1"),
                size => wal.warned_of(
                    Finding::new(
                        name,
                        SqlState::OK,
                        format!(
                            "max_slot_wal_keep_size is {size} MB; if the copy takes so long that more WAL is written, the new node's slot is lost and the join fails"
                        ),
                        "Set it to -1 for the time of the join if the source is large.",
                    )
                    .fixed_by(set("max_slot_wal_keep_size", "-1")),
                ),
            }
            match facts.idle_slot_timeout {
                ..=0 => idle.passed(name, "0"),
                seconds => idle.warned_of(
                    Finding::new(
                        name,
                        SqlState::OK,
                        format!(
                            "idle_replication_slot_timeout is {seconds} s; a copy that takes longer loses the new node's slot and the join fails"
                        ),
                        "Set it to 0 for the time of the join if the source is large.",
                    )
                    .fixed_by(set("idle_replication_slot_timeout", "0")),
                ),
            }
        }
        let mut engine = Check::new("replication", "of all that the source has");
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let found = self.engine.warnings(&mut members)?;
        match found.is_empty() {
            true => engine.passed(&self.source.name, ""),
            false => found.into_iter().for_each(|f| engine.warned_of(f)),
        }
        let triggers = self.check_event_triggers()?;
        let login = self.check_login_triggers()?;
        let apply = self.check_apply_settings()?;
        let all = [&mut *self.source].into_iter().chain(&mut *self.peers);
        let clocks = clocks::check(&clocks::read(all.chain([&mut *self.new]))?);
        let checks = [
            objects, database, sessions, wal, idle, clocks, engine, triggers, login, apply,
        ];
        Ok(checks.into_iter().flat_map(Check::outcomes).collect())
    }
}

/// What sets a setting of the whole server; whether it takes a reload or a restart, the hint says.
fn set(setting: &str, value: &str) -> String {
    server::set_server_setting(setting, value).inlined()
}

/// That the node has not `count` more of what `setting` limits.
fn too_few(name: &str, setting: &str, budget: Budget, count: i64) -> Option<Finding> {
    let wanted = (budget.used + count).to_string();
    let what = match setting {
        "max_replication_slots" => "replication slots",
        "max_wal_senders" => "WAL senders",
        "max_active_replication_origins" => "replication origins",
        "max_logical_replication_workers" => "logical replication workers",
        _ => "background workers",
    };
    let finding = || {
        Finding::new(
            name,
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            format!(
                "not enough {what}: {count} needed, {} free ({setting} = {})",
                budget.free().max(0),
                budget.limit
            ),
            format!("Set {setting} to at least {wanted} on node \"{name}\" and restart it."),
        )
        .fixed_by(set(setting, &wanted))
    };
    (budget.free() < count).then(finding)
}

/// Those of `nodes` from which `dsn` does not lead to the new node. It has to from `whom`.
fn cannot_reach(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    dsn: &Dsn,
    known: &Known,
    whom: &str,
) -> Result<Vec<Finding>> {
    let mut answers: Vec<Result<Rows>> = nodes.iter().map(|_| Ok(Rows::default())).collect();
    for statement in engine.probe(&dsn.reveal()) {
        let open: Vec<usize> = (0..nodes.len()).filter(|i| answers[*i].is_ok()).collect();
        let questions = nodes
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| open.contains(i))
            .map(|(_, node)| statement.clone().on(node))
            .collect();
        for (i, answer) in open.iter().zip(ask(questions)) {
            answers[*i] = answer;
        }
    }
    let mut findings = vec![];
    for (node, answer) in nodes.iter().zip(answers) {
        let problem = match answer {
            Ok(rows) => {
                let same = |row: &Row| {
                    (row.text(0), row.text(1)) == (&known.new.server, &known.new.database)
                };
                if rows.first().is_none_or(same) {
                    continue;
                }
                "new_node_dsn leads from here to another database than from the new node".into()
            }
            Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => return Err(error),
            Err(Error::Remote(remote)) => {
                format!(
                    "the new node cannot be reached from here: {}",
                    remote.message
                )
            }
            Err(error) => format!("the new node cannot be reached from here: {error}"),
        };
        findings.push(Finding::new(
            &node.name,
            SqlState::UNABLE_TO_CONNECT,
            problem,
            format!("Give a new_node_dsn by which {whom} reaches the new node, and allow it in its pg_hba.conf."),
        ));
    }
    Ok(findings)
}

const FULL_MESH: &str = "Nodes join a full mesh, in which each subscribes to each other one.";

/// It limits the origins too, before PostgreSQL 18.
const SLOTS: &str = "max_replication_slots";
