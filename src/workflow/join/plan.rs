//! The steps of a join.

use super::Request;
use crate::copy::{InSnapshot, Indexes};
use crate::engine::{Engine, Path};
use crate::error::Result;
use crate::node::{Mode, Node, Reader};
use crate::run::action::{
    BlockWritesByEngine, BlockWritesOfNew, BootstrapCluster, CatchUp, CopyDatabase, CreateNode,
    CreateOrigin, CreateSlot, DivideSequences, LetApplyWrite, Marker, PauseApply,
    PauseApplyToHandOver, Register, ReplicaIdentity, Subscribe,
};
use crate::run::{Action, Plan};
use crate::settings;
use crate::workflow::checks::Known;
use crate::workflow::cluster::{Cluster, JoinNodes, Locking};
use crate::workflow::division::Division;
use crate::workflow::estimate::Estimate;
use crate::workflow::plan::{Planned, refuse_interrupted};
use crate::workflow::report::Report;

pub const PHASES: usize = 9;
const SLOTS: usize = 3;
const BARRIER: usize = 4;
const SNAPSHOT: usize = 5;
pub const COPY: usize = 6;
const ATTACH: usize = 7;
const REVERSE: usize = 8;

/// The steps, in the order of the journal.
pub fn steps(nodes: JoinNodes, known: &Known, division: Option<Division>) -> Result<Plan> {
    let engine = nodes.engine;
    let (source, new) = (nodes.source.name.clone(), nodes.new.name.clone());
    let is_member = nodes.source_is_member;
    let peers = || nodes.peers.iter().map(|peer| peer.name.as_str());
    let members = || std::iter::once(source.as_str()).chain(peers());
    let slots = |from: &str, to: &str| {
        let paths = engine.paths(from, to).into_iter();
        paths.map(|path| CreateSlot { slot: path.slot })
    };
    let mut plan = Plan::default();

    let published = engine.published_tables().filter(|_| !is_member);
    let unfit = match published {
        Some(tables) => tables.unfit_identities(known.unsent()).on(nodes.source)?,
        None => vec![],
    };
    for unfit in unfit {
        let Some(becomes) = unfit.becomes else {
            continue;
        };
        let identity = ReplicaIdentity {
            table: unfit.table,
            becomes,
            change: unfit.statement,
            restore: unfit.undo,
        };
        plan.add(SLOTS, &source, identity);
    }
    if !is_member {
        let node = source.clone();
        plan.add(SLOTS, &source, BootstrapCluster { node });
    }
    for member in members().filter(|_| division.is_some()) {
        plan.add(SLOTS, member, DivideSequences::default());
    }
    for peer in peers() {
        for slot in slots(peer, &new) {
            plan.add(SLOTS, peer, slot);
        }
    }
    // The first one comes with the snapshot.
    for slot in slots(&source, &new).skip(1) {
        plan.add(SLOTS, &source, slot);
    }
    for peer in peers() {
        plan.add(BARRIER, peer, Marker {});
    }
    for slot in slots(&source, &new).take(1) {
        plan.add(SNAPSHOT, &source, slot);
    }
    if !nodes.peers.is_empty() {
        plan.add(SNAPSHOT, &source, PauseApply {});
    }
    plan.add(COPY, &new, BlockWritesOfNew::default());
    if let Some([block, release]) = engine.block_writes(nodes.new, &known.new.id.database)? {
        let block = BlockWritesByEngine {
            block: block.sql,
            release: release.sql,
        };
        plan.add(COPY, &new, block);
    }
    plan.add(COPY, &new, CreateOrigin::default());
    plan.add(COPY, &new, CopyDatabase::default());
    plan.add(ATTACH, &new, CreateNode {});
    let readers = || nodes.readers.iter().map(|reader| reader.name.as_str());
    for subscriber in members().chain(readers()) {
        for slot in slots(&new, subscriber) {
            plan.add(ATTACH, &new, slot);
        }
    }
    // Subscriptions of the members give up a server that is read-only, if their connection string says so.
    let read_write = nodes.new.dsn.get("target_session_attrs") == Some("read-write");
    if read_write || engine.apply_runs_statements(nodes.source)? {
        plan.add(ATTACH, &new, LetApplyWrite::default());
    }
    for provider in members() {
        for path in engine.paths(provider, &new) {
            plan.add(ATTACH, &new, subscribe(engine, path, false));
        }
    }
    if catches_up_from_source(engine, nodes.peers) {
        let catch_up = CatchUp {
            source: source.clone(),
        };
        plan.add(ATTACH, &new, catch_up);
        plan.add(ATTACH, &source, PauseApplyToHandOver {});
    }
    for node in [&source, &new] {
        plan.add(ATTACH, node, Marker {});
    }
    for member in members() {
        let register = Register {
            member: new.clone(),
            divided_before: division.map(|division| division.before),
        };
        plan.add(REVERSE, member, register);
        for path in engine.paths(&new, member) {
            plan.add(REVERSE, member, subscribe(engine, path, false));
        }
    }
    for reader in readers() {
        for path in engine.paths(&new, reader) {
            plan.add(REVERSE, reader, subscribe(engine, path, true));
        }
    }
    Ok(plan)
}

/// Whether the new node gets from the source what all members wrote during the copy.
fn catches_up_from_source(engine: &dyn Engine, peers: &[Node]) -> bool {
    !peers.is_empty() && engine.source_sends_all() && settings::catch_up_from_source()
}

/// Makes the subscription of `path`.
fn subscribe(engine: &dyn Engine, path: Path, by_reader: bool) -> Subscribe {
    let paths = engine.paths(&path.provider, &path.subscriber);
    Subscribe {
        provider: path.provider,
        subscription: path.subscription,
        one_of_several: paths.len() > 1,
        by_reader,
    }
}

/// What `add_node` would do; nothing is changed. What it would refuse is refused here too.
pub fn plan(reader: &Reader, request: &Request) -> Result<Vec<Planned>> {
    let mode = Mode::DryRun(reader.clone());
    refuse_interrupted(&mode)?;
    let mut cluster =
        Cluster::of_join(request.nodes(&mode), &Locking::of_join(&mode, &request.new))?;
    let report = Report::silent();
    let known = cluster.nodes().check(|outcome| report.warn_of(outcome))?;
    let nodes = cluster.nodes();
    let copy = estimate(nodes.engine, nodes.source, &nodes.new.name)?;
    let division = Division::wanted(nodes.engine, nodes.source)?;
    let plan = steps(nodes, &known, division)?;
    let mut planned: Vec<Planned> = plan.into_iter().map(Planned::from).collect();
    let copies = |p: &&mut Planned| matches!(p.step.action(), Action::CopyDatabase(_));
    if let Some(step) = planned.iter_mut().find(copies) {
        step.estimate = Some(copy);
    }
    Ok(planned)
}

fn estimate(engine: &dyn Engine, source: &mut Node, new: &str) -> Result<Estimate> {
    let mut snapshot = InSnapshot::of_now(&source.name, &source.dsn)?;
    let copy = engine.copy_plan(source, &mut snapshot, new)?;
    let indexes = Indexes::of(&mut source.session)?;
    Ok(Estimate::of_copy(&copy.tables, &indexes))
}
