//! The checks before the first change. Everything found is reported together.

use super::members::each;
use super::report::Report;
use crate::copy;
use crate::engine::{Engine, Path, subscription_states};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Row, Rows, wait};
use crate::node::server::{self, Budget, Facts};
use crate::node::{Node, ask};
use crate::settings;
use std::time::{Duration, Instant};

/// What is looked at. Nothing in here changes anything.
pub struct Checks<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    pub peers: &'a mut [Node],
    pub new: &'a mut Node,
    pub founded: bool,
    pub registered_as: &'a [String],
    pub report: &'a Report,
}

/// What the checks learnt and the join needs.
pub struct Known {
    pub source: Facts,
    pub peers: Vec<Facts>,
    pub new: Facts,
}

impl Checks<'_> {
    pub fn run(mut self) -> Result<Known> {
        let mut findings = vec![];
        let known = self.facts()?;
        self.check_identity(&known, &mut findings)?;
        fail_on(std::mem::take(&mut findings))?;

        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        findings.extend(self.engine.checks(&mut members, self.new)?);
        fail_on(std::mem::take(&mut findings))?;

        self.check_servers(&known, &mut findings);
        self.check_budgets(&known, &mut findings);
        self.check_space(&known, &mut findings)?;
        self.check_identities(&mut findings)?;
        self.check_mesh(&mut findings)?;
        self.check_names(&mut findings)?;
        self.check_reachability(&known, &mut findings)?;
        self.check_empty(&mut findings)?;
        findings.extend(copy::requirements(self.source, self.new)?);
        fail_on(findings)?;
        self.warn(&known)?;
        Ok(known)
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

    fn check_identity(&mut self, known: &Known, findings: &mut Vec<Finding>) -> Result<()> {
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
        let registry = self.engine.registry().run(self.new)?;
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
        Ok(())
    }

    fn check_servers(&self, known: &Known, findings: &mut Vec<Finding>) {
        for (name, facts) in self.all(known) {
            if facts.in_recovery {
                findings.push(Finding::new(
                    name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    "the server is a standby",
                    "Give the connection string of the primary.",
                ));
            }
            if facts.wal_level != "logical" {
                findings.push(Finding::new(
                    name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("wal_level is {}, not logical", facts.wal_level),
                    "Set wal_level = logical in postgresql.conf and restart the server.",
                ));
            }
            let plugin = self.engine.plugin();
            if let Some(list) = &facts.output_plugins
                && !list
                    .split(',')
                    .map(str::trim)
                    .any(|p| p == plugin || p == "*")
            {
                findings.push(Finding::new(
                    name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("output_plugin_libraries does not list {plugin}"),
                    format!("Add {plugin} to output_plugin_libraries and reload."),
                ));
            }
        }
        if known.new.version / 10_000 < known.source.version / 10_000 {
            findings.push(Finding::new(
                &self.new.name,
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "the new node runs PostgreSQL {}, the source the newer {}",
                    known.new.version / 10_000,
                    known.source.version / 10_000
                ),
                "The new node needs the source's major version or a newer one.",
            ));
        }
        let mismatch = |what, new: &str, source: &str| {
            Finding::new(
                &self.new.name,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("the {what} of the database is {new}, the source's is {source}"),
                "Create the new node's database with the encoding and the locale of the source's.",
            )
        };
        if known.new.encoding != known.source.encoding {
            findings.push(mismatch(
                "encoding",
                &known.new.encoding,
                &known.source.encoding,
            ));
        }
        if known.new.collation != known.source.collation {
            findings.push(mismatch(
                "collation",
                &known.new.collation,
                &known.source.collation,
            ));
        }
    }

    fn check_budgets(&self, known: &Known, findings: &mut Vec<Finding>) {
        let members = 1 + self.peers.len() as i64;
        for (name, facts) in self.all(known) {
            let new = name == self.new.name;
            let paths = if new { members } else { 1 };
            let mut need = |setting: &str, budget: Budget, count: i64| {
                if budget.free() < count {
                    findings.push(Finding::new(
                        name,
                        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                        format!(
                            "{count} more needed of {setting}, {} of {} are in use",
                            budget.used, budget.limit
                        ),
                        format!(
                            "Set {setting} to at least {} on node \"{name}\" and restart it.",
                            budget.used + count
                        ),
                    ));
                }
            };
            // The new node marks copied rows with one origin more.
            let origins = paths + i64::from(new);
            let slots = facts.replication_slots;
            if facts.origins_setting != "max_replication_slots" {
                need("max_replication_slots", slots, paths);
                need(&facts.origins_setting, facts.origins, origins);
            } else if slots.used + paths > facts.origins.used + origins {
                need("max_replication_slots", slots, paths);
            } else {
                need("max_replication_slots", facts.origins, origins);
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
    }

    fn check_space(&self, known: &Known, findings: &mut Vec<Finding>) -> Result<()> {
        let free = server::free_disk_space()?;
        if free < known.source.database_size {
            findings.push(Finding::new(
                &self.new.name,
                SqlState::DISK_FULL,
                format!(
                    "{} MB are free for the data directory, the source's database has {} MB",
                    free >> 20,
                    known.source.database_size >> 20
                ),
                "Make room on the new node; the copy also writes WAL.",
            ));
        }
        Ok(())
    }

    /// Tables of the new node would be published to members that do not have them, and what has the
    /// name of something on the source would stop the copy half-way.
    fn check_empty(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
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
        Ok(())
    }

    /// A table of a source that becomes a node must have something to tell its rows by.
    fn check_identities(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
        if self.founded {
            return Ok(());
        }
        let Some(statement) = self.engine.tables_to_prepare() else {
            return Ok(());
        };
        for row in &statement.run(self.source)? {
            if let Some(column) = row.get(4) {
                findings.push(Finding::new(
                    &self.source.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "table {} has no key, and its rows cannot be told by all columns: {column} has no equality",
                        crate::quote::qualified(row.text(0), row.text(1))
                    ),
                    "Give the table a primary key, or a replica identity by a unique index.",
                ));
            }
        }
        Ok(())
    }

    /// Every subscription between the members is there, enabled and connected. A worker that has just
    /// been started, after our own pause for instance, gets the time that a connection may take.
    fn check_mesh(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
        if !self.founded {
            return Ok(());
        }
        let patience = settings::connect_timeout();
        let begun = Instant::now();
        let mut rest = Duration::from_millis(10);
        loop {
            let (found, may_pass) = self.mesh_troubles()?;
            if found.is_empty() || !may_pass || begun.elapsed() > patience {
                findings.extend(found);
                return Ok(());
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// What is wrong with the mesh, and whether all of that may pass by itself.
    fn mesh_troubles(&mut self) -> Result<(Vec<Finding>, bool)> {
        let (mut findings, mut may_pass) = (vec![], true);
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let names: Vec<String> = members.iter().map(|n| n.name.clone()).collect();
        let answers = each(members.iter_mut().map(|m| &mut **m), |_| {
            self.engine.subscriptions()
        })?;
        // A worker in a loop of errors is there most of the time; the provider knows whether one
        // streams.
        let streaming = each(members, |_| server::active_slots())?;
        let streams = |provider: &str, slot: &str| {
            names
                .iter()
                .position(|n| n == provider)
                .is_some_and(|i| streaming[i].iter().any(|row| row.text(0) == slot))
        };
        for (subscriber, rows) in names.iter().zip(&answers) {
            let states = subscription_states(rows)?;
            for provider in names.iter().filter(|p| *p != subscriber) {
                let path = self.engine.path(provider, subscriber);
                let state = states.iter().find(|s| s.name == path.subscription);
                let trouble = match state {
                    None => "does not exist",
                    Some(s) if !s.enabled => "is disabled",
                    Some(s) if !s.working || !streams(provider, &path.slot) => {
                        "has no connection to its provider"
                    }
                    Some(_) => continue,
                };
                may_pass &= state.is_some_and(|s| s.enabled);
                findings.push(Finding::new(
                    subscriber,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("subscription {} from node \"{provider}\" {trouble}", path.subscription),
                    "Make every subscription of the cluster replicate before a node is added; the log of the subscriber says why one does not.",
                ));
            }
        }
        Ok((findings, may_pass))
    }

    /// The names we are going to use are free. What has them is not ours, so it is not touched.
    fn check_names(&mut self, findings: &mut Vec<Finding>) -> Result<()> {
        let new = self.new.name.clone();
        for name in self.registered_as.iter().filter(|name| **name != new) {
            findings.push(Finding::new(
                &self.source.name,
                SqlState::DUPLICATE_OBJECT,
                format!("the cluster has the new node's database already, as node \"{name}\""),
                "Remove that node first.",
            ));
        }
        let registry = match self.founded {
            true => self.engine.registry().run(self.source)?,
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
        let inbound: Vec<Path> = members.iter().map(|m| engine.path(&m.name, &new)).collect();
        let outbound: Vec<Path> = members.iter().map(|m| engine.path(&new, &m.name)).collect();
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let taken = |node: &str, what: &str, name: &str| {
            Finding::new(
                node,
                SqlState::DUPLICATE_OBJECT,
                format!("{what} {name} exists already"),
                "It was not made by this run. If it is a leftover, drop it and run the CALL again.",
            )
        };
        let questions: Vec<_> = members
            .iter_mut()
            .zip(&inbound)
            .map(|(m, path)| server::slots_named(std::slice::from_ref(&path.slot)).on(m))
            .collect();
        for (name, rows) in names.iter().zip(ask(questions)) {
            findings.extend(
                rows?
                    .iter()
                    .map(|r| taken(name, "replication slot", r.text(0))),
            );
        }
        for ((name, rows), path) in names
            .iter()
            .zip(each(members, |_| engine.subscriptions())?)
            .zip(&outbound)
        {
            let states = subscription_states(&rows)?;
            if states.iter().any(|s| s.name == path.subscription) {
                findings.push(taken(name, "subscription", &path.subscription));
            }
        }
        let slots: Vec<String> = outbound.iter().map(|p| p.slot.clone()).collect();
        for row in &server::slots_named(&slots).run(self.new)? {
            findings.push(taken(&new, "replication slot", row.text(0)));
        }
        for state in subscription_states(&engine.subscriptions().run(self.new)?)? {
            findings.push(taken(&new, "subscription", &state.name));
        }
        Ok(())
    }

    /// Every member can connect to the new node by its connection string. That the new node can
    /// connect to every member is known: it did.
    fn check_reachability(&mut self, known: &Known, findings: &mut Vec<Finding>) -> Result<()> {
        let mut members: Vec<&mut Node> = vec![&mut *self.source];
        members.extend(self.peers.iter_mut());
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let mut answers: Vec<Result<Rows>> = names.iter().map(|_| Ok(Rows::default())).collect();
        for statement in self.engine.probe(&self.new.dsn.expose()) {
            let open: Vec<usize> = (0..names.len()).filter(|i| answers[*i].is_ok()).collect();
            let questions = members
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| open.contains(i))
                .map(|(_, member)| statement.clone().on(member))
                .collect();
            for (i, answer) in open.iter().zip(ask(questions)) {
                answers[*i] = answer;
            }
        }
        for (name, answer) in names.iter().zip(answers) {
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
                name,
                SqlState::UNABLE_TO_CONNECT,
                problem,
                "Give a new_node_dsn by which every member reaches the new node, and allow it in its pg_hba.conf.",
            ));
        }
        Ok(())
    }

    /// Settings that do no harm now and may do some during a long copy.
    fn warn(&mut self, known: &Known) -> Result<()> {
        let objects = server::large_objects().run(self.source)?;
        if objects.one()?.parse::<u64>(0)? > 0 {
            self.report.warn(
                &format!(
                    "node \"{}\" has large objects, which are not copied and do not replicate",
                    self.source.name
                ),
                "Keep such data in columns of type bytea.",
            );
        }
        let sessions = server::other_sessions().run(self.new)?;
        if !sessions.is_empty() {
            let pids: Vec<&str> = sessions.iter().map(|r| r.text(0)).collect();
            self.report.warn(
                &format!(
                    "node \"{}\" has other sessions in its database: pid {}",
                    self.new.name,
                    pids.join(", ")
                ),
                "If one of them writes before the CALL has ended, the join fails.",
            );
        }
        for (name, facts) in self.all(known) {
            if facts.max_slot_wal_keep_size >= 0 {
                self.report.warn(
                    &format!(
                        "node \"{name}\": max_slot_wal_keep_size is {} MB; if the copy takes so long that more WAL is written, the new node's slot is lost and the join fails",
                        facts.max_slot_wal_keep_size
                    ),
                    "Set it to -1 for the time of the join if the source is large.",
                );
            }
            if facts.idle_slot_timeout > 0 {
                self.report.warn(
                    &format!(
                        "node \"{name}\": idle_replication_slot_timeout is {} s; a copy that takes longer loses the new node's slot and the join fails",
                        facts.idle_slot_timeout
                    ),
                    "Set it to 0 for the time of the join if the source is large.",
                );
            }
        }
        Ok(())
    }
}

fn fail_on(findings: Vec<Finding>) -> Result<()> {
    if findings.is_empty() {
        Ok(())
    } else {
        Err(Error::Checks(findings))
    }
}
