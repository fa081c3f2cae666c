//! A node joins: every change of every member is applied on it exactly once, from a snapshot on.

mod attach;
mod copying;
mod forwarding;
mod own_times;
pub mod plan;
mod snapshot;
mod starts;
mod waiting_slots;

use crate::copy;
use crate::engine::{Engine, Identity, Path, Registry};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::libpq::poll::{Poll, wait_until};
use crate::lsn::Position;
use crate::node::server::OtherSession;
use crate::node::{
    Local, Member, Mode, Node, Session, Statement, ask, ask_in_turn, ask_within, own_database,
    server,
};
use crate::place;
use crate::quote;
use crate::replay::content::Compared;
use crate::run::action::{
    self, BootstrapCluster, CreateNode, CreateSlot, LetApplyWrite, Register, ReplicaIdentity,
    Subscribe,
};
use crate::run::{Announced, Command, Interrupted, Journal, Plan, RunHeader, RunState, Running};
use crate::settings;
use crate::workflow::checks::Known;
use crate::workflow::cluster::{Cluster, JoinNodes, JoinRequest, Locking, NewNode};
use crate::workflow::division::Division;
use crate::workflow::markers::{self, Awaited, Marker, Workers};
use crate::workflow::members::{self, planned_path};
use crate::workflow::membership;
use crate::workflow::name_conflicts;
use crate::workflow::registries::{now, publish_registry, registry_of};
use crate::workflow::report::{self, Report};
use crate::workflow::summary;
use crate::workflow::undo::Undo;
use crate::workflow::verify;
use attach::Attaching;
use copying::{Copying, Held};
use own_times::Kept;
use snapshot::{Snapshot, Taking, wait_for_writers};
use starts::{Positions, Starts};
use std::collections::BTreeMap;
use std::time::Instant;

const COMMAND: Command = Command::AddNode;
/// Keys that are told of rows that differ.
const MAX_KEYS_SHOWN: usize = 5;

/// The arguments of the CALL.
pub struct Request {
    pub source: String,
    pub source_dsn: Dsn,
    pub new: String,
    pub new_dsn: Dsn,
    pub verbose: bool,
    pub location: String,
    pub country: String,
    pub info: String,
    /// Compare the content of the new node with the source's at the end.
    pub verify: bool,
    /// Nodes that only read, and are to read from the new node too.
    pub readers: Vec<Dsn>,
}

impl Request {
    /// The nodes that it names.
    pub fn nodes(&self, mode: &Mode) -> JoinRequest {
        JoinRequest {
            source: Member {
                name: self.source.clone(),
                dsn: self.source_dsn.clone(),
            },
            new: members::local(&self.new, &self.new_dsn, mode),
            readers: self.readers.clone(),
        }
    }
}

/// Adds the database of this session to the cluster of `request.source`.
pub fn add_node(local: Local, request: Request) -> Result<()> {
    let begun = Instant::now();
    let subject = report::ReportHeader {
        command: COMMAND.name(),
        node: &request.new,
        phases: plan::PHASES,
        long_phase: plan::COPY,
    };
    let mut report = Report::new(&subject, request.verbose);
    report.phase(&format!(
        "lock the membership of the cluster of \"{}\" and of the new node \"{}\"",
        request.source, request.new
    ));
    let mut join = Join::connect(local, request, report)?;
    join.clean_up_interrupted()?;
    join.report
        .phase("check every node before the first change");
    let known = join.check()?;
    let plan = join.plan(&known)?;
    let mut journal = Journal::open(
        &join.local,
        &RunHeader {
            command: COMMAND,
            engine: join.cluster.engine.label(),
            source: &join.cluster.source().name,
            source_dsn: &join.request.source_dsn.without_secrets(),
            node: join.cluster.new_name(),
        },
        plan,
    )?;
    let outcome = join
        .run(&known, &mut journal)
        .and_then(|()| journal.finish_with(&join.opening(&known)));
    match outcome {
        Ok(()) => {
            join.report.finished();
            join.report.notice(&format!(
                "node \"{}\" has joined: {} nodes, {:.1} s",
                join.cluster.new_name(),
                join.cluster.members.len() + 1,
                begun.elapsed().as_secs_f64()
            ));
            Ok(())
        }
        Err(first) => Err(join.take_back(&journal, first)),
    }
}

struct Join {
    local: Local,
    report: Report,
    request: Request,
    cluster: Cluster<NewNode>,
    /// What was committed before that is on all members when the join has ended; the same in every registry, and not
    /// known before the new node is attached.
    joined_at: String,
    held: Held,
    /// How sequences are divided; `None` if every member has copies.
    division: Option<Division>,
    /// Which copied rows keep their times.
    kept: Option<Kept>,
}

impl Join {
    fn connect(local: Local, request: Request, report: Report) -> Result<Self> {
        let mode = Mode::Execute(local.clone());
        let locking = Locking::of_join(&mode, &request.new);
        let cluster = Cluster::of_join(request.nodes(&mode), &locking)?;
        Ok(Self {
            local,
            report,
            request,
            cluster,
            joined_at: String::new(),
            held: Held::default(),
            division: None,
            kept: None,
        })
    }

    /// An earlier CALL that was killed left a journal without an end. It is undone before anything
    /// is checked, since what it left is what the checks would find.
    fn clean_up_interrupted(&mut self) -> Result<()> {
        let cluster = &mut self.cluster;
        let interrupted = Interrupted::undone_by(&mut cluster.subject.local.session, COMMAND)?;
        if interrupted.is_empty() {
            return Ok(());
        }
        for dead in interrupted {
            self.report.notice(&format!(
                "cleaning up after the CALL {} for node \"{}\" that was interrupted (run {})",
                dead.command, dead.node, dead.run
            ));
            let journal = Journal::reopen(Session::Local(self.local.clone()), dead.run);
            let name_taken = cluster.peers().iter().any(|p| p.name == dead.node);
            let own_name = std::mem::replace(&mut cluster.subject.local.name, dead.node.clone());
            let (engine, mut nodes) = cluster.all_and_readers();
            let undo = Undo {
                engine,
                journal: &journal,
                subject: &dead.node,
                name_taken,
            };
            let cleaned = undo.clean_up(dead.run, RunState::Undone, &mut nodes);
            cluster.subject.local.name = own_name;
            cleaned?;
        }
        cluster.forget_undone()?;
        if cluster.engine.registry().is_none() {
            return Ok(());
        }
        // It may have taken a number.
        let (members, new) = (&mut cluster.members, &mut cluster.subject.local);
        let mut members: Vec<&mut Node> = members.iter_mut().collect();
        cluster.engine.load_paths_with(&mut members, new)
    }

    fn check(&mut self) -> Result<Known> {
        let report = &self.report;
        let known = self
            .cluster
            .nodes()
            .check(|outcome| report.warn_of(outcome))?;
        let nodes = self.cluster.nodes();
        self.division = Division::wanted(nodes.engine, nodes.source)?;
        Ok(known)
    }

    fn plan(&mut self, known: &Known) -> Result<Plan> {
        plan::steps(self.cluster.nodes(), known, self.division)
    }

    fn run(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        journal.passed("the run is written down")?;
        self.report.phase("create a replication slot on every peer");
        self.bootstrap_cluster(known, journal)?;
        if let Some(division) = self.division {
            division.divide_members(self.cluster.nodes(), journal, &self.report)?;
        }
        let starts = self.create_slots(journal)?;

        self.report
            .phase("wait until the source has applied what its peers committed before");
        self.barrier(journal)?;

        self.report.phase("take the snapshot of the source");
        let nodes = self.cluster.nodes();
        let inbound = nodes.inbound_of_source();
        let snapshot = Taking {
            engine: nodes.engine,
            source: nodes.source,
            inbound: &inbound,
            journal: &mut *journal,
            report: &self.report,
            tried: false,
        }
        .take()?;
        let starts = Starts {
            slots: starts,
            snapshot: snapshot.start.clone(),
        };
        let positions = self.positions(&starts, &snapshot)?;

        self.report.phase("copy structure and data");
        self.copy(known, journal, snapshot)?;

        self.report.phase("subscribe the new node to every member");
        self.provide(known, journal)?;
        self.let_apply_write(known, journal)?;
        let attached = Attaching {
            nodes: self.cluster.nodes(),
            inbound: &inbound,
            journal: &mut *journal,
            report: &self.report,
        }
        .run(&starts, &positions)?;
        let markers = attached.markers;
        self.joined_at = attached.at;

        self.report.phase("subscribe every member to the new node");
        self.attach_reverse(known, journal)?;

        self.report.phase("verify replication between all nodes");
        self.prove(&markers)?;
        self.prove_contents()?;
        journal.passed("it is proved")?;
        if self.request.verify {
            self.verify()?;
        }
        self.finish(&markers)?;
        journal.passed("the markers are removed")?;
        let (engine, mut all) = self.cluster.all();
        summary::show(engine, &mut all, &[], &self.report)?;
        journal.passed("all is done")
    }

    /// A source that is not a node yet becomes a cluster of one.
    fn bootstrap_cluster(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        if self.cluster.subject.source_is_member {
            return Ok(());
        }
        let name = self.cluster.source().name.clone();
        self.report.notice(&format!(
            "node \"{name}\" becomes the first node of a cluster"
        ));
        let phase = self.report.current();
        while let Some(step) = journal.take_if::<ReplicaIdentity>(phase) {
            let ReplicaIdentity {
                table,
                becomes,
                change,
                ..
            } = step.action().clone();
            self.report.notice(&format!(
                "table {table} of node \"{name}\" has no replica identity: it becomes {becomes}, or updates and deletes would fail"
            ));
            let step = journal.begin(step)?;
            if let Err(error) = self.prepare_table(&change) {
                // What the server has refused did nothing that an undo could take back.
                let unknown = matches!(error, Error::Interrupted { .. } | Error::Lost { .. });
                if !unknown && self.cluster.source().session.is_usable() {
                    journal.ended(step)?;
                }
                return Err(error);
            }
            journal.done(step)?;
        }
        let step = journal.take::<BootstrapCluster>(phase, &name)?;
        let step = journal.announce(step)?;
        let identity = Identity {
            member: self.cluster.source().member(),
            system_identifier: known.source.system_identifier.clone(),
            database: known.source.id.database.clone(),
            location: String::new(),
            country: String::new(),
            info: "{}".into(),
            joined_at: self.now()?,
        };
        let nodes = self.cluster.nodes();
        let step = create_node(nodes.engine, &identity, nodes.source, journal, step)?;
        membership::bootstrap(nodes.engine, nodes.source, &identity)?;
        server::keep_place().run(nodes.source)?;
        self.cluster.subject.source_is_member = true;
        journal.done(step)
    }

    fn new_identity(&self, known: &Known) -> Identity {
        Identity {
            member: self.cluster.subject.local.member(),
            system_identifier: known.new.system_identifier.clone(),
            database: known.new.id.database.clone(),
            location: self.request.location.clone(),
            country: self.request.country.clone(),
            info: self.request.info.clone(),
            joined_at: self.joined_at.clone(),
        }
    }

    fn now(&mut self) -> Result<String> {
        server::now().one(&mut self.cluster.subject.local)
    }

    /// The statement locks a table that is in use, so it must not queue: whoever comes after it
    /// would queue behind it. It gives way at once and is tried again.
    fn prepare_table(&mut self, statement: &str) -> Result<()> {
        let source = self.cluster.nodes().source;
        let name = source.name.clone();
        let hint =
            "End the transactions that hold locks on the table, or run the CALL at a quieter time.";
        wait_until(&name, statement, hint, || {
            match server::without_queueing(statement).run(source) {
                Ok(_) => Ok(Poll::Ready(())),
                Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
                    Ok(Poll::Pending("the table is locked".into()))
                }
                Err(error) => Err(error),
            }
        })
    }

    /// On every peer the slots that the new node will subscribe with, before anything else: what is
    /// committed there from now on waits for the new node. On the source all but the first, which is made with
    /// the snapshot. Returns where they start, by subscription.
    fn create_slots(&mut self, journal: &mut Journal) -> Result<BTreeMap<String, Position>> {
        let JoinNodes {
            engine,
            source,
            peers,
            new,
            ..
        } = self.cluster.nodes();
        let to_new = |provider: &Node| engine.paths(&provider.name, &new.name);
        let mut wanted: Vec<Path> = peers.iter().flat_map(to_new).collect();
        wanted.extend(to_new(source).into_iter().skip(1));
        let (mut announced, mut paths) = (vec![], vec![]);
        for step in journal.take_all::<CreateSlot>(self.report.current()) {
            let (node, slot) = (step.node(), &step.action().slot);
            let path = planned_path(&wanted, |p| p.provider == node && p.slot == *slot)?;
            paths.push(path);
            announced.push(journal.announce(step)?);
        }
        let mut providers: Vec<&mut Node> = peers.iter_mut().chain([source]).collect();
        name_conflicts::refuse_slots(&mut providers, |provider| {
            let own = paths.iter().filter(|path| path.provider == provider.name);
            own.map(|path| path.slot.clone()).collect()
        })?;
        let made = announced.into_iter().map(|step| journal.makes(step));
        let steps = made.collect::<Result<Vec<Running>>>()?;
        let mut starts = BTreeMap::new();
        loop {
            // One on each node at a time.
            let mut round = vec![];
            for provider in &mut providers {
                let left = steps.iter().zip(&paths).find(|(_, path)| {
                    path.provider == provider.name && !starts.contains_key(&path.subscription)
                });
                if let Some((step, path)) = left {
                    round.push((step, path, provider));
                }
            }
            if round.is_empty() {
                break;
            }
            let questions = round
                .iter_mut()
                .map(|(_, path, node)| {
                    server::create_slot(&path.slot, engine.plugin(), engine.failover()).ask(node)
                })
                .collect();
            // Not for the applications' sake, nothing is paused here: to name who is in the way.
            let answers = ask_within(questions, settings::slot_timeout());
            let mut failed = None;
            for ((step, path, node), answer) in round.into_iter().zip(answers) {
                let (slot, name) = (&path.slot, &path.provider);
                match answer {
                    Ok(rows) => {
                        let start = Position::new(name, rows.one()?.only()?);
                        self.report
                            .step(&format!("slot on \"{name}\" starts at {start}"));
                        starts.insert(path.subscription.clone(), start);
                    }
                    Err(Error::Deadline { .. }) if failed.is_none() => {
                        // It may have been made a moment before.
                        server::drop_slot(slot).run(node)?;
                        wait_for_writers(node, &self.report)?;
                    }
                    Err(error) => {
                        if error.sqlstate() == SqlState::DUPLICATE_OBJECT {
                            journal.refused(step)?;
                        }
                        failed = failed.or(Some(name_conflicts::whose_slot(error, node, slot)));
                    }
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        journal.all_done(steps)?;
        Ok(starts)
    }

    /// A real commit on every peer, seen on the source: everything the peers committed before their
    /// slots were made has been applied there. Received would not do: keepalives move that.
    fn barrier(&mut self, journal: &mut Journal) -> Result<()> {
        let nodes = self.cluster.nodes();
        if nodes.peers.is_empty() {
            return Ok(());
        }
        let steps = journal.begin_all::<action::Marker>(self.report.current())?;
        let paths = nodes.inbound_of_source();
        let JoinNodes {
            engine,
            source,
            peers,
            new,
            ..
        } = nodes;
        self.kept = own_times::from_now_on(engine, source, peers)?;
        let markers = markers::emit(engine, &mut *peers)?;
        journal.all_done(steps)?;
        let mut others: Vec<&mut Node> = peers.iter_mut().collect();
        markers::wait(engine, source, &mut others, &markers, &paths, &new.name)?;
        markers::forget(engine, others, &markers)
    }

    /// From where each subscription of the new node applies: behind the snapshot, and not before the slot.
    fn positions(&self, starts: &Starts, snapshot: &Snapshot) -> Result<Positions> {
        let (cluster, progress) = (&self.cluster, &snapshot.progress);
        let (engine, source, new) = (&*cluster.engine, &cluster.source().name, cluster.new_name());
        let mut positions = starts.behind(engine, progress, source, cluster.peers(), new)?;
        positions.extend(starts.of_source(engine, source, new)?);
        Ok(positions)
    }

    fn copy(&mut self, known: &Known, journal: &mut Journal, mut snapshot: Snapshot) -> Result<()> {
        self.held = Copying {
            local: &self.local,
            nodes: self.cluster.nodes(),
            database: &known.new.id.database,
            snapshot: &snapshot.name,
            reader: snapshot.reader.take(),
            journal,
            report: &self.report,
            kept: self.kept.take(),
        }
        .run()?;
        drop(snapshot);
        journal.passed("the snapshot is given back")?;
        let mut nodes = self.cluster.nodes();
        let (engine, new) = (nodes.engine, nodes.new.name.clone());
        waiting_slots::check(engine, nodes.members(), &new)
    }

    /// The new node provides from here on: slots for all before anything can be written on it.
    fn provide(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        let phase = self.report.current();
        let new = self.cluster.new_name().to_owned();
        let step = journal.take::<CreateNode>(phase, &new)?;
        let step = journal.announce(step)?;
        let identity = self.new_identity(known);
        let nodes = self.cluster.nodes();
        let step = create_node(nodes.engine, &identity, nodes.new, journal, step)?;
        place::keep(own_database().into())?;
        journal.passed("the new node provides")?;
        for line in nodes
            .engine
            .copy_replication_sets(nodes.source, nodes.new)?
        {
            self.report.step(&line);
        }
        if let Some(division) = self.division {
            division.divide_new(nodes)?;
        }
        journal.done(step)?;
        for step in journal.take_all::<CreateSlot>(phase) {
            let slot = step.action().slot.clone();
            let step = journal.announce(step)?;
            name_conflicts::refuse_slot(&mut self.cluster.subject.loopback, &slot)?;
            let step = journal.makes(step)?;
            if let Err(error) = self.create_own_slot(&slot) {
                if error.sqlstate() == SqlState::DUPLICATE_OBJECT {
                    journal.refused(&step)?;
                }
                return Err(name_conflicts::whose_slot(
                    error,
                    &mut self.cluster.subject.loopback,
                    &slot,
                ));
            }
            journal.done(step)?;
        }
        self.look_for_writes()?;
        journal.passed("nobody else has written")
    }

    /// The statements that apply workers run beside the changes of rows must not be held off with those of the
    /// applications.
    fn let_apply_write(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        let phase = self.report.current();
        let Some(step) = journal.take_if::<LetApplyWrite>(phase) else {
            return Ok(());
        };
        let nodes = self.cluster.nodes();
        let role = nodes.engine.apply_role().one(nodes.loopback)?;
        let before = server::role_read_only(&role).first(nodes.new)?;
        let database = &known.new.id.database;
        let close = server::set_role_read_only(&role, database, before.as_deref());
        let step = journal.begin_with(step, close.sql.clone())?;
        server::set_role_read_only(&role, database, Some("off")).run(nodes.new)?;
        self.held.apply = Some(close);
        journal.done(step)
    }

    /// A slot on the new node itself, over the loopback session so that it can be given up.
    fn create_own_slot(&mut self, slot: &str) -> Result<()> {
        let JoinNodes {
            engine, loopback, ..
        } = self.cluster.nodes();
        loop {
            let statement = server::create_slot(slot, engine.plugin(), engine.failover());
            let question = vec![statement.ask(loopback)];
            match ask_within(question, settings::slot_timeout()).pop() {
                Some(Err(Error::Deadline { .. })) => {
                    // It may have been made a moment before.
                    server::drop_slot(slot).run(loopback)?;
                    wait_for_writers(loopback, &self.report)?;
                }
                Some(answer) => return answer.map(|_| ()),
                None => return Err(Error::internal("a node was not asked")),
            }
        }
    }

    /// Lets applications write on the new node. Only together with the end of the run: what they write must
    /// not be undone with it.
    fn opening(&self, known: &Known) -> Vec<Statement> {
        let before = self.held.read_only.as_deref();
        let database = server::set_database_read_only(&known.new.id.database, before);
        let engines = [&self.held.engines, &self.held.apply];
        let engines = engines.into_iter().flatten().cloned();
        engines.chain([database]).collect()
    }

    /// What applications have written before the slots of the new node were there, in sessions that do not heed
    /// the setting, would be missing on the other nodes, so it ends the join.
    fn look_for_writes(&mut self) -> Result<()> {
        let since = self.now()?;
        let hint = "End these sessions, or their transactions, and keep applications away from the new node until the CALL has ended.";
        let (new, held) = (&mut self.cluster.subject.local, &self.held);
        let name = new.name.clone();
        let written = wait_until(
            &name,
            "knowing what other sessions have written",
            hint,
            || {
                // In this order: who is not counted now may be by the time the counters are read.
                let uncounted = server::sessions_uncounted(&since).on(new)?;
                Ok(match (held.written_by_others(new)?, uncounted.first()) {
                    (false, Some(_)) => Poll::Pending(sessions_told(&uncounted)),
                    (written, _) => Poll::Ready(written),
                })
            },
        )?;
        if !written {
            return Ok(());
        }
        let sessions = server::other_sessions().on(&mut self.cluster.subject.local)?;
        Err(Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message: "the new node was written to before it joined".into(),
            detail: sessions
                .first()
                .map(|_| format!("Sessions in its database: {}.", sessions_told(&sessions))),
            hint: "Keep applications away from the new node until the CALL has ended, then run it again.".into(),
        })
    }

    fn attach_reverse(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        let phase = self.report.current();
        let new = self.cluster.subject.local.member();
        let engine = &*self.cluster.engine;
        let (mut registering, mut announced) = (vec![], vec![]);
        let members = self.cluster.members.iter();
        for node in members.chain(&self.cluster.subject.readers) {
            if let Some(step) = journal.take_on::<Register>(phase, &node.name) {
                registering.push(journal.begin(step)?);
            }
            let paths = engine.paths(&new.name, &node.name);
            while let Some(step) = journal.take_on::<Subscribe>(phase, &node.name) {
                let subscription = &step.action().subscription;
                let path = planned_path(&paths, |path| path.subscription == *subscription)?;
                announced.push((journal.announce(step)?, path.clone()));
            }
        }
        self.register(known, journal)?;
        let cluster = &mut self.cluster;
        let published = cluster.engine.subscribed_tables();
        let published = published.on(&mut cluster.subject.loopback)?;
        let engine = &*cluster.engine;
        let members = cluster.members.iter_mut();
        let mut members: Vec<&mut Node> = members.chain(&mut cluster.subject.readers).collect();
        let made = announced
            .into_iter()
            .map(|(step, path)| Ok((journal.makes(step)?, path)));
        let subscribing = made.collect::<Result<Vec<(Running, Path)>>>()?;
        let mut left: Vec<&(Running, Path)> = subscribing.iter().collect();
        while !left.is_empty() {
            // One on each node at a time.
            let mut questions = vec![];
            let mut round = vec![];
            for member in &mut members {
                if let Some(i) = left.iter().position(|(_, p)| p.subscriber == member.name) {
                    let (step, path) = left.remove(i);
                    questions.push(engine.subscribe(path, &new, &published)?.on(member));
                    round.push(step);
                }
            }
            let mut made = Ok(());
            for (step, answer) in round.into_iter().zip(ask(questions)) {
                if answer.as_ref().is_err_and(Error::is_answer) {
                    journal.refused(step)?;
                }
                made = made.and(answer.map(|_| ()));
            }
            made?;
        }
        journal.passed("every member has a subscription")?;
        let enabling: Vec<_> = members
            .iter()
            .map(|m| engine.enable_all(&engine.paths(&new.name, &m.name)))
            .collect();
        ask_in_turn(&mut members, &enabling)?;
        let subscribed = subscribing.into_iter().map(|(step, _)| step);
        journal.all_done(registering.into_iter().chain(subscribed))
    }

    /// One change of the membership, the same on the new node and on every member, by the sessions that hold the
    /// membership lock.
    fn register(&mut self, known: &Known, journal: &Journal) -> Result<()> {
        let next = self.next_registry(known)?;
        let cluster = &mut self.cluster;
        let engine = &*cluster.engine;
        let tell = |nodes: &mut [&mut Node]| match &next {
            Some(next) => publish_registry(engine, nodes, next)?.into_iter().collect(),
            None => Ok(()),
        };
        tell(&mut [&mut cluster.subject.loopback])?;
        journal.passed("the new node has the registry")?;
        tell(&mut cluster.members.iter_mut().collect::<Vec<_>>())?;
        journal.passed("every registry has the new node")
    }

    /// With the new node; `None` where the engine makes it known by itself.
    fn next_registry(&mut self, known: &Known) -> Result<Option<Registry>> {
        if self.cluster.engine.registry().is_none() {
            return Ok(None);
        }
        let identity = self.new_identity(known);
        let nodes = self.cluster.nodes();
        let registry = registry_of(nodes.engine, nodes.source)?;
        let registry = registry.ok_or_else(|| Error::internal("the source has no registry"))?;
        let mut next = registry.with(&identity, now());
        if let Some(division) = self.division {
            next.sequence_policy = division.policy;
            next.sequence_parts = division.parts;
        }
        Ok(Some(next))
    }

    /// The marker of each node has arrived on every other, and every subscription is connected.
    fn prove(&mut self, markers: &[Marker]) -> Result<()> {
        let new = self.cluster.new_name().to_owned();
        let JoinNodes {
            engine,
            source,
            peers,
            new: joined,
            readers,
            ..
        } = self.cluster.nodes();
        let mut all: Vec<&mut Node> = [joined, source].into_iter().chain(peers).collect();
        let mut awaited = markers::all_of_each(engine, &all);
        for reader in &mut *readers {
            awaited.push(Awaited {
                node: all.len(),
                inbound: engine.paths(&new, &reader.name),
            });
            all.push(reader);
        }
        let connected = Workers::Connected(&[]);
        markers::wait_on_all(engine, &mut all, &awaited, markers, &new, connected)?;
        for reader in readers {
            self.report.step(&format!(
                "node \"{}\" reads from \"{new}\" too",
                reader.name
            ));
        }
        Ok(())
    }

    /// Of tables that got another file on the source while they were copied, nothing but their contents
    /// tells that all of it has come.
    fn prove_contents(&mut self) -> Result<()> {
        let nodes = self.cluster.nodes();
        self.held.check_structure(nodes.source)?;
        let passed_over = nodes.engine.passed_over().on(nodes.new)?.into_iter();
        let named = |(schema, name): (String, String)| quote::qualified(&schema, &name);
        self.held
            .doubt(passed_over.map(|passed| passed.table.map(named)));
        if self.held.unproved.is_empty() && self.held.doubted.is_empty() {
            return Ok(());
        }
        let (engine, mut all) = self.cluster.all();
        let (new, source) = (0, 1); // the others take part in the barriers
        let tables: Vec<_> = verify::comparable(engine, &mut all, source, new)?
            .tables
            .into_iter()
            .filter(|t| {
                let name = t.name();
                self.held.unproved.contains(&name) || self.held.doubted.contains(&name)
            })
            .map(verify::Table::sent)
            .collect();
        let unproved = |t: &&Compared| self.held.unproved.contains(&t.name());
        let replicated = tables.iter().filter(unproved).count();
        let mut differ = vec![];
        for table in &tables {
            if verify::differ(engine, &mut all, table, source, new)? {
                differ.push(table.name());
            }
        }
        if differ.is_empty() && replicated == self.held.unproved.len() {
            return Ok(());
        }
        if differ.is_empty() {
            differ.clone_from(&self.held.unproved);
        }
        Err(Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message: format!(
                "rows of {} on node \"{}\" have not come to node \"{}\"",
                differ.join(", "),
                self.cluster.source().name,
                self.cluster.new_name()
            ),
            detail: Some("The table got the file of another one while it was copied, as by pg_repack or by an ALTER TABLE that rewrites it; or rows that one member had inserted were changed on another one meanwhile, and the change came first.".into()),
            hint: "Run the same CALL again, at a time when members do not change the rows of each other, and do not rewrite tables while a node joins.".into(),
        })
    }

    fn verify(&mut self) -> Result<()> {
        // What the peers have committed has to be on both, too.
        let JoinNodes {
            engine,
            source,
            peers,
            new,
            ..
        } = self.cluster.nodes();
        let (source_name, new_name) = (source.name.clone(), new.name.clone());
        let mut nodes: Vec<&mut Node> = [source, new].into_iter().chain(peers).collect();
        let found = verify::mismatches(engine, &mut nodes, 2, MAX_KEYS_SHOWN, verify::Of::Copy)?;
        if found.is_empty() {
            let left_out = verify::left_out(engine, &mut nodes, 0, 1)?;
            self.report.notice(&format!(
                "node \"{new_name}\" has the same content as node \"{source_name}\"{left_out}"
            ));
            return Ok(());
        }
        let lines: Vec<String> = found.iter().map(|m| m.to_string()).collect();
        Err(Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message: format!(
                "node \"{new_name}\" does not have the content of node \"{source_name}\""
            ),
            detail: Some(lines.join("\n")),
            hint: "See whether the members of the cluster are the same: SELECT * FROM spock.verify_nodes() on one of them.".into(),
        })
    }

    fn finish(&mut self, markers: &[Marker]) -> Result<()> {
        let cluster = &mut self.cluster;
        if self.division.is_none() {
            copy::sequences::catch_up(&mut cluster.members, &mut cluster.subject.local)?;
        }
        let nodes = cluster.nodes();
        for drift in nodes
            .engine
            .replication_set_differences(nodes.source, nodes.new)?
        {
            self.report.warn(&drift.what, &drift.remedy);
        }
        nodes.engine.inherit_removed(nodes.new)?;
        let (engine, all) = cluster.all();
        markers::forget(engine, all, markers)
    }

    /// Undoes the run and returns the error to raise, which is the first one.
    fn take_back(&mut self, journal: &Journal, first: Error) -> Error {
        let first = self.cluster.engine.map_error(first);
        let (engine, mut nodes) = self.cluster.all_and_readers();
        let undo = Undo {
            engine,
            journal,
            subject: &self.request.new,
            name_taken: false,
        };
        undo.give_up(first, &mut nodes)
    }
}

fn sessions_told(sessions: &[OtherSession]) -> String {
    let lines: Vec<String> = sessions
        .iter()
        .map(|s| {
            format!(
                "pid {} (user \"{}\", application \"{}\")",
                s.pid, s.user, s.application
            )
        })
        .collect();
    lines.join(", ")
}

/// Makes the node a provider. If the server refuses the first statement, nothing is there that is the run's.
fn create_node(
    engine: &dyn Engine,
    identity: &Identity,
    node: &mut Node,
    journal: &Journal,
    announced: Announced,
) -> Result<Running> {
    let mut statements = engine.create_node(identity).into_iter();
    let step = journal.make(announced, || match statements.next() {
        Some(first) => first.run(node).map(|_| ()),
        None => Ok(()),
    })?;
    statements.try_for_each(|statement| statement.run(node).map(|_| ()))?;
    Ok(step)
}
