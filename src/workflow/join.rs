//! A node joins: every change of every member is applied on it exactly once, from a snapshot on.

use super::attach::{Attaching, Positions, Starts};
use super::checks::{Checks, Known};
use super::copying::{Copying, Held};
use super::division::Division;
use super::findings::Status;
use super::gather::{Party, Wanted, gather};
use super::join_plan::{self, Nodes};
use super::markers::{self, Marker};
use super::members::{self, each_beside_others};
use super::membership::{self, publish_registry};
use super::own_times::{self, Kept};
use super::report::{self, Report};
use super::snapshot::{Snapshot, Taking, wait_for_writers};
use super::summary;
use super::taken;
use super::undo::Undo;
use super::verify;
use super::waiting_slots;
use crate::copy;
use crate::engine::{Engine, Identity, Path, Registry};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::libpq::{Dsn, Row, Rows};
use crate::lsn::Position;
use crate::node::{
    Local, Member, Mode, Node, Session, Statement, ask, ask_in_turn, ask_within, own_database,
    server,
};
use crate::place;
use crate::quote;
use crate::replay::content::Compared;
use crate::run::{Action, Command, Effect, Interrupted, Journal, RunHeader, RunState, Step};
use crate::settings;
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

/// Adds the database of this session to the cluster of `request.source`.
pub fn add_node(local: Local, request: Request) -> Result<()> {
    let begun = Instant::now();
    let subject = report::ReportHeader {
        command: COMMAND.name(),
        node: &request.new,
        phases: join_plan::PHASES,
        long_phase: join_plan::COPY,
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
    let mut plan = join.plan(&known)?;
    let mut journal = Journal::begin(
        &join.local,
        &RunHeader {
            command: COMMAND,
            engine: join.engine.label(),
            source: &join.source.name,
            source_dsn: &join.request.source_dsn.without_secrets(),
            node: &join.new.name,
        },
        std::mem::take(&mut plan.steps),
    )?;
    let outcome = join
        .run(&known, &plan, &mut journal)
        .and_then(|()| journal.finish_with(&join.opening(&known)));
    match outcome {
        Ok(()) => {
            join.report.finished();
            join.report.notice(&format!(
                "node \"{}\" has joined: {} nodes, {:.1} s",
                join.new.name,
                join.peers.len() + 2,
                begun.elapsed().as_secs_f64()
            ));
            Ok(())
        }
        Err(first) => Err(join.take_back(&journal, first)),
    }
}

struct Join {
    engine: Box<dyn Engine>,
    local: Local,
    report: Report,
    request: Request,
    source: Node,
    peers: Vec<Node>,
    new: Node,
    /// Nodes that only read, and are to read from the new node too.
    readers: Vec<Node>,
    /// A session on this server by the new node's connection string: proof that it leads here, and
    /// holder of the membership lock, which so vanishes with the run however it ends.
    loopback: Node,
    is_member: bool,
    /// Names under which the cluster has the new node's database already.
    registered_as: Vec<String>,
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
        let wanted = Wanted {
            source: Member {
                name: request.source.clone(),
                dsn: request.source_dsn.clone(),
            },
            new: members::local(
                &request.new,
                &request.new_dsn,
                &Mode::Execute(local.clone()),
            ),
            readers: request.readers.clone(),
            change: true,
        };
        let Party {
            engine,
            source,
            peers,
            new,
            readers,
            loopback,
            is_member,
            registered_as,
        } = gather(wanted)?;
        Ok(Self {
            engine,
            local,
            report,
            request,
            source,
            peers,
            new,
            readers,
            loopback,
            is_member,
            registered_as,
            joined_at: String::new(),
            held: Held::default(),
            division: None,
            kept: None,
        })
    }

    /// An earlier CALL that was killed left a journal without an end. It is undone before anything
    /// is checked, since what it left is what the checks would find.
    fn clean_up_interrupted(&mut self) -> Result<()> {
        let interrupted = Interrupted::undone_by(&mut self.new.session, COMMAND)?;
        let cleaned = !interrupted.is_empty() && self.engine.registry().is_some();
        for dead in interrupted {
            self.report.notice(&format!(
                "cleaning up after the CALL {} for node \"{}\" that was interrupted (run {})",
                dead.command, dead.node, dead.run
            ));
            let journal = Journal::reopen(Session::Local(self.local.clone()), dead.run);
            let undo = Undo {
                engine: &*self.engine,
                journal: &journal,
                subject: &dead.node,
                name_taken: self.peers.iter().any(|p| p.name == dead.node),
            };
            let own_name = std::mem::replace(&mut self.new.name, dead.node.clone());
            let cleaned = undo.clean_up(
                dead.run,
                RunState::Undone,
                &mut all(
                    &mut self.source,
                    &mut self.peers,
                    &mut self.new,
                    &mut self.readers,
                ),
            );
            self.new.name = own_name;
            cleaned?;
        }
        // It may have been the first member of the cluster that was taken back.
        let survey = self.engine.survey(&mut self.source)?;
        self.is_member = survey.is_member;
        let known = |name: &String| survey.members.iter().any(|m| m.name == *name);
        self.peers.retain(|p| known(&p.name));
        self.registered_as.retain(known);
        if !cleaned {
            return Ok(());
        }
        // It may have taken a number.
        let mut members: Vec<&mut Node> = std::iter::once(&mut self.source)
            .chain(&mut self.peers)
            .collect();
        self.engine.load_paths_with(&mut members, &mut self.new)
    }

    fn check(&mut self) -> Result<Known> {
        let known = Checks {
            engine: &*self.engine,
            source: &mut self.source,
            peers: &mut self.peers,
            new: &mut self.new,
            readers: &mut self.readers,
            is_member: self.is_member,
            registered_as: &self.registered_as,
        }
        .run(|o| {
            if o.status == Status::Warning {
                let what = format!("node \"{}\": {}", o.node, o.found);
                self.report.warn(&what, &o.remedy);
            }
        })?;
        self.division = Division::wanted(&*self.engine, &mut self.source)?;
        Ok(known)
    }

    fn plan(&mut self, known: &Known) -> Result<join_plan::Plan> {
        Nodes {
            engine: &*self.engine,
            source: &mut self.source,
            peers: &self.peers,
            new: &mut self.new,
            readers: &self.readers,
            is_member: self.is_member,
            divides: self.division.is_some(),
        }
        .plan(known)
    }

    fn run(&mut self, known: &Known, plan: &join_plan::Plan, journal: &mut Journal) -> Result<()> {
        journal.passed("the run is written down")?;
        self.report.phase("create a replication slot on every peer");
        self.bootstrap_cluster(known, plan, journal)?;
        if let Some(division) = self.division {
            let (source, peers) = (&mut self.source, &mut self.peers);
            division.divide_members(&*self.engine, source, peers, journal, &self.report)?;
        }
        let starts = self.create_slots(journal)?;

        self.report
            .phase("wait until the source has applied what its peers committed before");
        self.barrier(journal)?;

        self.report.phase("take the snapshot of the source");
        let inbound = self.inbound_of_source();
        let own = self.engine.path(&self.source.name, &self.new.name);
        let snapshot = Taking {
            engine: &*self.engine,
            source: &mut self.source,
            inbound: &inbound,
            slot: &own.slot,
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
        self.copy(known, plan, journal, snapshot)?;

        self.report.phase("subscribe the new node to every member");
        self.provide(known, journal)?;
        if plan.apply_writes {
            self.let_apply_write(known, journal)?;
        }
        let attached = Attaching {
            engine: &*self.engine,
            source: &mut self.source,
            peers: &mut self.peers,
            new: &mut self.new,
            loopback: &mut self.loopback,
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
        let mut all = nodes(&mut self.source, &mut self.peers, &mut self.new);
        summary::show(&*self.engine, &mut all, &[], &self.report)?;
        journal.passed("all is done")
    }

    /// A source that is not a node yet becomes a cluster of one.
    fn bootstrap_cluster(
        &mut self,
        known: &Known,
        plan: &join_plan::Plan,
        journal: &mut Journal,
    ) -> Result<()> {
        if self.is_member {
            return Ok(());
        }
        self.report.notice(&format!(
            "node \"{}\" becomes the first node of a cluster",
            self.source.name
        ));
        let phase = self.report.current();
        for unfit in &plan.to_prepare {
            let table = unfit.table.clone();
            self.report.notice(&format!(
                "table {table} of node \"{}\" has no replica identity: it becomes {}, or updates and deletes would fail",
                self.source.name,
                unfit.becomes.as_deref().unwrap_or_default()
            ));
            let step = journal.intend(
                &Step::new(phase, &self.source.name, Action::ReplicaIdentity { table }),
                &Effect::ReplicaIdentity {
                    undo: unfit.undo.clone(),
                },
            )?;
            if let Err(error) = self.prepare_table(&unfit.statement) {
                // What the server has refused did nothing that an undo could take back.
                let unknown = matches!(error, Error::Interrupted { .. } | Error::Lost { .. });
                if !unknown && self.source.session.is_usable() {
                    journal.undone(step)?;
                }
                return Err(error);
            }
            journal.done(step)?;
        }
        let node = self.source.name.clone();
        let step = Step::new(phase, &self.source.name, Action::BootstrapCluster { node });
        let step = journal.announce(&step)?;
        let identity = Identity {
            member: self.source.member(),
            system_identifier: known.source.system_identifier.clone(),
            database: known.source.database.clone(),
            location: String::new(),
            country: String::new(),
            info: "{}".into(),
            joined_at: self.now()?,
        };
        let effect = (step, &Effect::FirstNode);
        create_node(&*self.engine, &identity, &mut self.source, journal, effect)?;
        membership::bootstrap(&*self.engine, &mut self.source, &identity)?;
        server::keep_place().run(&mut self.source)?;
        self.is_member = true;
        journal.done(step)
    }

    fn new_identity(&self, known: &Known) -> Identity {
        Identity {
            member: self.new.member(),
            system_identifier: known.new.system_identifier.clone(),
            database: known.new.database.clone(),
            location: self.request.location.clone(),
            country: self.request.country.clone(),
            info: self.request.info.clone(),
            joined_at: self.joined_at.clone(),
        }
    }

    fn now(&mut self) -> Result<String> {
        let rows = server::now().run(&mut self.new)?;
        Ok(rows.one()?.text(0).to_owned())
    }

    /// The statement locks a table that is in use, so it must not queue: whoever comes after it
    /// would queue behind it. It gives way at once and is tried again.
    fn prepare_table(&mut self, statement: &str) -> Result<()> {
        let source = &mut self.source;
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

    /// The subscriptions by which the source applies its peers.
    fn inbound_of_source(&self) -> Vec<Path> {
        let source = self.source.name.as_str();
        let paths = self
            .peers
            .iter()
            .map(|p| self.engine.paths(&p.name, source));
        paths.flatten().collect()
    }

    /// On every peer the slots that the new node will subscribe with, before anything else: what is
    /// committed there from now on waits for the new node. On the source all but the first, which is made with
    /// the snapshot. Returns where they start, by subscription.
    fn create_slots(&mut self, journal: &mut Journal) -> Result<BTreeMap<String, Position>> {
        let (engine, new) = (&*self.engine, self.new.name.as_str());
        let peers = self.peers.iter();
        let mut wanted: Vec<Path> = peers.flat_map(|p| engine.paths(&p.name, new)).collect();
        wanted.extend(engine.paths(&self.source.name, new).into_iter().skip(1));
        let mut steps = vec![];
        for path in &wanted {
            let slot = path.slot.clone();
            let action = Action::CreateSlot { slot };
            let step = Step::new(self.report.current(), &path.provider, action);
            steps.push(journal.announce(&step)?);
        }
        let mut providers: Vec<&mut Node> = self.peers.iter_mut().collect();
        providers.push(&mut self.source);
        for path in &wanted {
            if let Some(provider) = providers.iter_mut().find(|n| n.name == path.provider) {
                taken::refuse_slot(provider, &path.slot)?;
            }
        }
        for (step, path) in steps.iter().zip(&wanted) {
            let slot = path.slot.clone();
            journal.makes(*step, &Effect::Slot { slot })?;
        }
        let mut starts = BTreeMap::new();
        loop {
            // One on each node at a time.
            let mut round = vec![];
            for provider in &mut providers {
                let left = steps.iter().zip(&wanted).find(|(_, path)| {
                    path.provider == provider.name && !starts.contains_key(&path.subscription)
                });
                if let Some((step, path)) = left {
                    round.push((*step, path, provider));
                }
            }
            if round.is_empty() {
                break;
            }
            let questions = round
                .iter_mut()
                .map(|(_, path, node)| {
                    server::create_slot(&path.slot, engine.plugin(), engine.failover()).on(node)
                })
                .collect();
            // Not for the applications' sake, nothing is paused here: to name who is in the way.
            let answers = ask_within(questions, Some(settings::slot_timeout()));
            let mut failed = None;
            for ((step, path, node), answer) in round.into_iter().zip(answers) {
                let (slot, name) = (&path.slot, &path.provider);
                match answer {
                    Ok(rows) => {
                        let start = Position::new(name, server::parse_lsn(rows.one()?, 0)?);
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
                        failed = failed.or(Some(taken::whose_slot(error, node, slot)));
                    }
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        for step in steps {
            journal.done(step)?;
        }
        Ok(starts)
    }

    /// A real commit on every peer, seen on the source: everything the peers committed before their
    /// slots were made has been applied there. Received would not do: keepalives move that.
    fn barrier(&mut self, journal: &mut Journal) -> Result<()> {
        if self.peers.is_empty() {
            return Ok(());
        }
        let mut steps = vec![];
        for peer in &self.peers {
            let step = Step::new(self.report.current(), &peer.name, Action::Marker);
            steps.push(journal.intend(&step, &Effect::Marker)?);
        }
        self.kept = own_times::from_now_on(&*self.engine, &mut self.source, &mut self.peers)?;
        let markers = markers::emit(&*self.engine, &mut self.peers)?;
        for step in steps {
            journal.done(step)?;
        }
        let paths = self.inbound_of_source();
        markers::wait(
            &*self.engine,
            &mut self.source,
            &mut self.peers.iter_mut().collect::<Vec<_>>(),
            &markers,
            &paths,
            &self.new.name,
        )?;
        markers::forget(&*self.engine, &mut self.peers, &markers)
    }

    /// From where each subscription of the new node applies: behind the snapshot, and not before the slot.
    fn positions(&self, starts: &Starts, snapshot: &Snapshot) -> Result<Positions> {
        let (engine, progress) = (&*self.engine, &snapshot.progress);
        let (source, new) = (self.source.name.as_str(), self.new.name.as_str());
        let mut positions = starts.behind(engine, progress, source, &self.peers, new)?;
        positions.extend(starts.of_source(engine, source, new)?);
        Ok(positions)
    }

    fn copy(
        &mut self,
        known: &Known,
        plan: &join_plan::Plan,
        journal: &mut Journal,
        snapshot: Snapshot,
    ) -> Result<()> {
        self.held = Copying {
            local: &self.local,
            source: &mut self.source,
            peers: &mut self.peers,
            new: &mut self.new,
            database: &known.new.database,
            snapshot: &snapshot.name,
            engines: plan.engines.clone(),
            journal,
            engine: &*self.engine,
            report: &self.report,
            kept: self.kept.take(),
        }
        .run()?;
        drop(snapshot);
        journal.passed("the snapshot is given back")?;
        let members = std::iter::once(&mut self.source).chain(&mut self.peers);
        waiting_slots::check(&*self.engine, members, &self.new.name)
    }

    /// The new node provides from here on: slots for all before anything can be written on it.
    fn provide(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        let phase = self.report.current();
        let new = self.new.name.clone();
        let step = journal.announce(&Step::new(phase, &new, Action::CreateNode))?;
        let identity = self.new_identity(known);
        let effect = (step, &Effect::Node);
        create_node(&*self.engine, &identity, &mut self.new, journal, effect)?;
        place::keep(own_database().into())?;
        journal.passed("the new node provides")?;
        for told in self
            .engine
            .copy_replication_sets(&mut self.source, &mut self.new)?
        {
            self.report.step(&told);
        }
        if let Some(division) = self.division {
            division.divide_new(&mut self.source, &mut self.peers, &mut self.new)?;
        }
        journal.done(step)?;
        let members = self.members().into_iter();
        let subscribers = members.chain(self.readers.iter().map(Node::member));
        let paths: Vec<Path> = subscribers
            .flat_map(|m| self.engine.paths(&new, &m.name))
            .collect();
        for Path { slot, .. } in paths {
            let step = Step::new(phase, &new, Action::CreateSlot { slot: slot.clone() });
            let step = journal.announce(&step)?;
            taken::refuse_slot(&mut self.loopback, &slot)?;
            journal.makes(step, &Effect::Slot { slot: slot.clone() })?;
            if let Err(error) = self.create_own_slot(&slot) {
                if error.sqlstate() == SqlState::DUPLICATE_OBJECT {
                    journal.refused(step)?;
                }
                return Err(taken::whose_slot(error, &mut self.loopback, &slot));
            }
            journal.done(step)?;
        }
        self.look_for_writes()?;
        journal.passed("nobody else has written")
    }

    /// The statements that apply workers run beside the changes of rows must not be held off with those of the
    /// applications.
    fn let_apply_write(&mut self, known: &Known, journal: &mut Journal) -> Result<()> {
        let rows = self.engine.apply_role().run(&mut self.loopback)?;
        let role = rows.one()?.text(0).to_owned();
        let before = server::role_read_only(&role).run(&mut self.new)?;
        let before = before.first().map(|row| row.text(0).to_owned());
        let database = &known.new.database;
        let close = server::set_role_read_only(&role, database, before.as_deref());
        let step = Step::new(self.report.current(), &self.new.name, Action::LetApplyWrite);
        let effect = Effect::Statement {
            undo: close.sql.clone(),
        };
        let step = journal.intend(&step, &effect)?;
        server::set_role_read_only(&role, database, Some("off")).run(&mut self.new)?;
        self.held.apply = Some(close);
        journal.done(step)
    }

    fn members(&self) -> Vec<Member> {
        let members = std::iter::once(&self.source).chain(&self.peers);
        members.map(Node::member).collect()
    }

    /// A slot on the new node itself, over the loopback session so that it can be given up.
    fn create_own_slot(&mut self, slot: &str) -> Result<()> {
        loop {
            let statement = server::create_slot(slot, self.engine.plugin(), self.engine.failover());
            let question = vec![statement.on(&mut self.loopback)];
            match ask_within(question, Some(settings::slot_timeout())).pop() {
                Some(Err(Error::Deadline { .. })) => {
                    // It may have been made a moment before.
                    server::drop_slot(slot).run(&mut self.loopback)?;
                    wait_for_writers(&mut self.loopback, &self.report)?;
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
        let database = server::set_database_read_only(&known.new.database, before);
        let engines = [&self.held.engines, &self.held.apply];
        let engines = engines.into_iter().flatten().cloned();
        engines.chain([database]).collect()
    }

    /// What applications have written before the slots of the new node were there, in sessions that do not heed
    /// the setting, would be missing on the other nodes, so it ends the join.
    fn look_for_writes(&mut self) -> Result<()> {
        let since = self.now()?;
        let hint = "End these sessions, or their transactions, and keep applications away from the new node until the CALL has ended.";
        let name = self.new.name.clone();
        let (new, held) = (&mut self.new, &self.held);
        let written = wait_until(
            &name,
            "knowing what other sessions have written",
            hint,
            || {
                // In this order: who is not counted now may be by the time the counters are read.
                let uncounted = server::sessions_uncounted(&since).run(new)?;
                Ok(match (held.written_by_others(new)?, uncounted.first()) {
                    (false, Some(_)) => Poll::Pending(sessions_told(&uncounted)),
                    (written, _) => Poll::Ready(written),
                })
            },
        )?;
        if !written {
            return Ok(());
        }
        let sessions = server::other_sessions().run(&mut self.new)?;
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
        let new = self.new.member();
        let (mut steps, mut subscribing) = (vec![], vec![]);
        for member in std::iter::once(&self.source).chain(&self.peers) {
            steps.push(journal.intend(
                &Step::new(phase, &member.name, Action::Register),
                &Effect::Registration {
                    member: new.name.clone(),
                    divided_before: self.division.map(|d| d.before),
                },
            )?);
            for path in self.engine.paths(&new.name, &member.name) {
                let action = join_plan::subscribe(&*self.engine, &path);
                let step = journal.announce(&Step::new(phase, &member.name, action))?;
                let subscription = path.subscription.clone();
                subscribing.push((step, path, Effect::Subscription { subscription }));
                steps.push(step);
            }
        }
        for reader in &self.readers {
            for path in self.engine.paths(&new.name, &reader.name) {
                let action = join_plan::subscribe(&*self.engine, &path);
                let step = journal.announce(&Step::new(phase, &reader.name, action))?;
                let subscription = path.subscription.clone();
                subscribing.push((step, path, Effect::OfReader { subscription }));
                steps.push(step);
            }
        }
        self.register(known, journal)?;
        let engine = &*self.engine;
        let mut members: Vec<&mut Node> = std::iter::once(&mut self.source)
            .chain(&mut self.peers)
            .chain(&mut self.readers)
            .collect();
        for (step, _, effect) in &subscribing {
            journal.makes(*step, effect)?;
        }
        let mut left = subscribing.clone();
        while !left.is_empty() {
            // One on each node at a time.
            let mut questions = vec![];
            let mut round = vec![];
            for member in &mut members {
                if let Some(i) = left
                    .iter()
                    .position(|(_, p, _)| p.subscriber == member.name)
                {
                    let (step, path, _) = left.remove(i);
                    questions.push(engine.subscribe(&path, &new).on(member));
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
        for step in steps {
            journal.done(step)?;
        }
        Ok(())
    }

    /// One change of the membership, the same on the new node and on every member, by the sessions that hold the
    /// membership lock.
    fn register(&mut self, known: &Known, journal: &Journal) -> Result<()> {
        let next = self.next_registry(known)?;
        let engine = &*self.engine;
        let tell = |nodes: &mut [&mut Node]| match &next {
            Some(next) => publish_registry(engine, nodes, next)?.into_iter().collect(),
            None => Ok(()),
        };
        tell(&mut [&mut self.loopback])?;
        journal.passed("the new node has the registry")?;
        let mut members: Vec<&mut Node> = std::iter::once(&mut self.source)
            .chain(&mut self.peers)
            .collect();
        tell(&mut members)?;
        journal.passed("every registry has the new node")
    }

    /// With the new node; `None` where the engine makes it known by itself.
    fn next_registry(&mut self, known: &Known) -> Result<Option<Registry>> {
        if self.engine.registry().is_none() {
            return Ok(None);
        }
        let identity = self.new_identity(known);
        let registry = membership::registry_of(&*self.engine, &mut self.source)?;
        let registry = registry.ok_or_else(|| Error::internal("the source has no registry"))?;
        let mut next = registry.with(&identity, membership::now());
        if let Some(division) = self.division {
            next.sequence_policy = division.policy;
            next.sequence_parts = division.parts;
        }
        Ok(Some(next))
    }

    /// The marker of each node has arrived on every other, and every subscription is connected.
    fn prove(&mut self, markers: &[Marker]) -> Result<()> {
        let engine = &*self.engine;
        let new = self.new.name.clone();
        let mut all = nodes(&mut self.source, &mut self.peers, &mut self.new);
        let names: Vec<String> = all.iter().map(|n| n.name.clone()).collect();
        each_beside_others(&mut all, |node, others| {
            let inbound: Vec<Path> = names
                .iter()
                .filter(|p| **p != node.name)
                .flat_map(|p| engine.paths(p, &node.name))
                .collect();
            markers::wait(engine, node, others, markers, &inbound, &new)?;
            markers::wait_for_workers(engine, node, others, &inbound, &new, None)
        })?;
        for reader in &mut self.readers {
            let inbound = engine.paths(&new, &reader.name);
            markers::wait(engine, reader, &mut all, markers, &inbound, &new)?;
            markers::wait_for_workers(engine, reader, &mut all, &inbound, &new, None)?;
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
        self.held.check_structure(&mut self.source)?;
        if let Some(passed_over) = self.engine.passed_over() {
            let rows = passed_over.run(&mut self.new)?;
            let table = |row: &Row| Some(quote::qualified(row.get(0)?, row.get(1)?));
            self.held.doubt(rows.iter().map(table));
        }
        if self.held.unproved.is_empty() && self.held.doubted.is_empty() {
            return Ok(());
        }
        let mut all = nodes(&mut self.source, &mut self.peers, &mut self.new);
        let (new, source) = (0, 1); // the others take part in the barriers
        let tables: Vec<_> = verify::tables(&*self.engine, &mut all, source, new)?
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
            if verify::differ(&*self.engine, &mut all, table, source, new)? {
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
                self.source.name,
                self.new.name
            ),
            detail: Some("The table got the file of another one while it was copied, as by pg_repack or by an ALTER TABLE that rewrites it; or rows that one member had inserted were changed on another one meanwhile, and the change came first.".into()),
            hint: "Run the same CALL again, at a time when members do not change the rows of each other, and do not rewrite tables while a node joins.".into(),
        })
    }

    fn verify(&mut self) -> Result<()> {
        // What the peers have committed has to be on both, too.
        let mut nodes: Vec<&mut Node> = vec![&mut self.source, &mut self.new];
        nodes.extend(&mut self.peers);
        let found = verify::mismatches(
            &*self.engine,
            &mut nodes,
            2,
            MAX_KEYS_SHOWN,
            verify::Of::Copy,
        )?;
        if found.is_empty() {
            let left_out = verify::left_out(&*self.engine, &mut nodes, 0, 1)?;
            self.report.notice(&format!(
                "node \"{}\" has the same content as node \"{}\"{left_out}",
                self.new.name, self.source.name
            ));
            return Ok(());
        }
        let told: Vec<String> = found.iter().map(|m| m.to_string()).collect();
        Err(Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message: format!(
                "node \"{}\" does not have the content of node \"{}\"",
                self.new.name, self.source.name
            ),
            detail: Some(told.join("\n")),
            hint: "See whether the members of the cluster are the same: SELECT * FROM spock.verify_nodes() on one of them.".into(),
        })
    }

    fn finish(&mut self, markers: &[Marker]) -> Result<()> {
        if self.division.is_none() {
            let members = std::iter::once(&mut self.source).chain(&mut self.peers);
            let sessions = members.map(|member| &mut member.session);
            copy::sequences::catch_up(sessions, &mut self.new.session)?;
        }
        let engine = &*self.engine;
        for drift in engine.replication_set_differences(&mut self.source, &mut self.new)? {
            self.report.warn(&drift.what, &drift.remedy);
        }
        engine.inherit_removed(&mut self.new)?;
        let all = nodes(&mut self.source, &mut self.peers, &mut self.new);
        markers::forget(engine, all, markers)
    }

    /// Undoes the run and returns the error to raise, which is the first one.
    fn take_back(&mut self, journal: &Journal, first: Error) -> Error {
        let first = self.engine.map_error(first);
        self.report.notice(&format!("failed, undoing: {first}"));
        let undo = Undo {
            engine: &*self.engine,
            journal,
            subject: &self.request.new,
            name_taken: false,
        };
        undo.give_up(
            first,
            &mut all(
                &mut self.source,
                &mut self.peers,
                &mut self.new,
                &mut self.readers,
            ),
        )
    }
}

/// Sessions as `pid, user, application`.
fn sessions_told(rows: &Rows) -> String {
    let told: Vec<String> = rows
        .iter()
        .map(|r| {
            let (pid, user, application) = (r.text(0), r.text(1), r.text(2));
            format!("pid {pid} (user \"{user}\", application \"{application}\")")
        })
        .collect();
    told.join(", ")
}

/// Makes the node a provider. If the server refuses the first statement, nothing is there that is the run's.
fn create_node(
    engine: &dyn Engine,
    identity: &Identity,
    node: &mut Node,
    journal: &Journal,
    (step, effect): (i32, &Effect),
) -> Result<()> {
    let mut statements = engine.create_node(identity).into_iter();
    journal.make(step, effect, || match statements.next() {
        Some(first) => first.run(node).map(|_| ()),
        None => Ok(()),
    })?;
    statements.try_for_each(|statement| statement.run(node).map(|_| ()))
}

/// Every node of the cluster to be, the new one first.
fn nodes<'a>(source: &'a mut Node, peers: &'a mut [Node], new: &'a mut Node) -> Vec<&'a mut Node> {
    std::iter::once(new)
        .chain(std::iter::once(source))
        .chain(peers)
        .collect()
}

/// The same, and those that only read.
fn all<'a>(
    source: &'a mut Node,
    peers: &'a mut [Node],
    new: &'a mut Node,
    readers: &'a mut [Node],
) -> Vec<&'a mut Node> {
    let mut all = nodes(source, peers, new);
    all.extend(readers);
    all
}
