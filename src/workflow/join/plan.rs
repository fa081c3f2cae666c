//! The steps of a join.

use super::Request;
use crate::copy::Indexes;
use crate::engine::{Engine, Path, Unfit};
use crate::error::Result;
use crate::node::{Mode, Node, Reader, Statement, server};
use crate::run::{Action, Step};
use crate::settings;
use crate::workflow::checks::Known;
use crate::workflow::cluster::{Cluster, JoinNodes, Locking};
use crate::workflow::division::Division;
use crate::workflow::estimate::Estimate;
use crate::workflow::members;
use crate::workflow::plan::{Planned, refuse_interrupted};
use crate::workflow::report::Report;

pub const PHASES: usize = 9;
const SLOTS: usize = 3;
const BARRIER: usize = 4;
const SNAPSHOT: usize = 5;
pub const COPY: usize = 6;
const ATTACH: usize = 7;
const REVERSE: usize = 8;

/// What a join is going to do, and what it has found out for that.
pub struct Plan {
    pub steps: Vec<Step>,
    /// Tables of a source that becomes a node, whose replica identities have to be others then.
    pub to_prepare: Vec<Unfit>,
    /// As of [`CopyRules::block_writes`](crate::engine::CopyRules::block_writes).
    pub engines: Option<[Statement; 2]>,
    /// As of [`CopyRules::apply_runs_statements`](crate::engine::CopyRules::apply_runs_statements).
    pub apply_writes: bool,
}

impl Plan {
    /// The steps, in the order of the journal.
    pub fn of(nodes: JoinNodes, known: &Known, divides: bool) -> Result<Self> {
        let engine = nodes.engine;
        let (source, new) = (nodes.source.name.clone(), nodes.new.name.clone());
        let is_member = nodes.source_is_member;
        let peers = || nodes.peers.iter().map(|peer| peer.name.as_str());
        let members = || std::iter::once(source.as_str()).chain(peers());
        let slots = |from: &str, to: &str| {
            let paths = engine.paths(from, to).into_iter();
            paths.map(|path| Action::CreateSlot { slot: path.slot })
        };
        let mut steps = vec![];
        let mut add = |phase, node: &str, action| steps.push(Step::new(phase, node, action));

        let published = engine.published_tables().filter(|_| !is_member);
        let mut to_prepare = match published {
            Some(tables) => tables.unfit_identities(known.unsent()).on(nodes.source)?,
            None => vec![],
        };
        to_prepare.retain(|unfit| unfit.becomes.is_some());
        for unfit in &to_prepare {
            let table = unfit.table.clone();
            add(SLOTS, &source, Action::ReplicaIdentity { table });
        }
        if !is_member {
            let node = source.clone();
            add(SLOTS, &source, Action::BootstrapCluster { node });
        }
        for member in members().filter(|_| divides) {
            add(SLOTS, member, Action::DivideSequences);
        }
        for peer in peers() {
            for slot in slots(peer, &new) {
                add(SLOTS, peer, slot);
            }
        }
        // The first one comes with the snapshot.
        for slot in slots(&source, &new).skip(1) {
            add(SLOTS, &source, slot);
        }
        for peer in peers() {
            add(BARRIER, peer, Action::Marker);
        }
        for slot in slots(&source, &new).take(1) {
            add(SNAPSHOT, &source, slot);
        }
        if !nodes.peers.is_empty() {
            add(SNAPSHOT, &source, Action::PauseApply);
        }
        add(COPY, &new, Action::BlockWritesOfNew);
        let engines = engine.block_writes(nodes.new, &known.new.id.database)?;
        if engines.is_some() {
            add(COPY, &new, Action::BlockWritesByEngine);
        }
        add(COPY, &new, Action::CreateOrigin);
        add(COPY, &new, Action::Copy);
        add(ATTACH, &new, Action::CreateNode);
        let readers = || nodes.readers.iter().map(|reader| reader.name.as_str());
        for subscriber in members().chain(readers()) {
            for slot in slots(&new, subscriber) {
                add(ATTACH, &new, slot);
            }
        }
        // Subscriptions of the members give up a server that is read-only, if their connection string says so.
        let read_write = nodes.new.dsn.get("target_session_attrs") == Some("read-write");
        let apply_writes = read_write || engine.apply_runs_statements(nodes.source)?;
        if apply_writes {
            add(ATTACH, &new, Action::LetApplyWrite);
        }
        for provider in members() {
            for path in engine.paths(provider, &new) {
                add(ATTACH, &new, subscribe(engine, &path));
            }
        }
        if catches_up_from_source(engine, nodes.peers) {
            let action = Action::CatchUp {
                source: source.clone(),
            };
            add(ATTACH, &new, action);
            add(ATTACH, &source, Action::PauseApplyToHandOver);
        }
        for node in [&source, &new] {
            add(ATTACH, node, Action::Marker);
        }
        for member in members() {
            add(REVERSE, member, Action::Register);
            for path in engine.paths(&new, member) {
                add(REVERSE, member, subscribe(engine, &path));
            }
        }
        for reader in readers() {
            for path in engine.paths(&new, reader) {
                add(REVERSE, reader, subscribe(engine, &path));
            }
        }
        Ok(Self {
            steps,
            to_prepare,
            engines,
            apply_writes,
        })
    }
}

/// Whether the new node gets from the source what all members wrote during the copy.
pub fn catches_up_from_source(engine: &dyn Engine, peers: &[Node]) -> bool {
    !peers.is_empty() && engine.source_sends_all() && settings::catch_up_from_source()
}

/// Makes the subscription of `path`.
pub fn subscribe(engine: &dyn Engine, path: &Path) -> Action {
    let several = engine.paths(&path.provider, &path.subscriber).len() > 1;
    Action::Subscribe {
        provider: path.provider.clone(),
        subscription: several.then(|| path.subscription.clone()),
    }
}

/// What `add_node` would do; nothing is changed. What it would refuse is refused here too.
pub fn plan(reader: &Reader, request: &Request) -> Result<Vec<Planned>> {
    let mode = Mode::DryRun(reader.clone());
    refuse_interrupted(&mode)?;
    let mut cluster = Cluster::of_join(
        request.nodes(&mode),
        &Locking::for_join(&mode, &request.new),
    )?;
    let report = Report::silent();
    let known = cluster.nodes().check(|outcome| report.warn_of(outcome))?;
    let nodes = cluster.nodes();
    let copy = estimate(nodes.engine, nodes.source, &nodes.new.name)?;
    let divides = Division::wanted(nodes.engine, nodes.source)?.is_some();
    let plan = Plan::of(nodes, &known, divides)?;
    let mut planned: Vec<Planned> = plan.steps.into_iter().map(Planned::from).collect();
    if let Some(step) = planned.iter_mut().find(|p| p.step.action == Action::Copy) {
        step.estimate = Some(copy);
    }
    Ok(planned)
}

fn estimate(engine: &dyn Engine, source: &mut Node, new: &str) -> Result<Estimate> {
    // A snapshot to read the tables in; the session that has it ends here.
    let mut exporter = members::own_session(&source.member())?;
    server::begin_reading().run(&mut exporter)?;
    let snapshot = server::export_snapshot().one(&mut exporter)?;
    let copy = engine.copy_plan(source, new, &snapshot)?;
    let indexes = Indexes::of(&mut source.session)?;
    Ok(Estimate::of_copy(&copy.tables, &indexes))
}
