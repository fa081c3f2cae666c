//! A node that was half added: its join was interrupted, and nobody wants to run it again.

use super::Removal;
use crate::engine;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Dsn};
use crate::node::{Member, Mode, Node, Session, Statement, server};
use crate::run::revert::{drop_slot, run_all};
use crate::run::{Command, Interrupted, Journal, RunState};
use crate::workflow::cluster::{Cluster, Locking};
use crate::workflow::members::{self, present_slots};
use crate::workflow::membership::reach;
use crate::workflow::registries::{now, publish_registry};
use crate::workflow::report::Report;
use crate::workflow::undo::Undo;

/// The half-added node itself: its journal knows what there is to take back.
pub struct HalfAddedLocally {
    pub mode: Mode,
    pub run: Interrupted,
    pub report: Report,
}

impl HalfAddedLocally {
    pub fn take_back(self) -> Result<()> {
        let Self { mode, run, report } = self;
        let target = &run.node;
        let source_dsn = Dsn::parse(&run.source_dsn)
            .map_err(|bad| Error::internal(format!("zodan.run.source_dsn {}", bad.problem())))?;
        let elsewhere = format!(
            "Run CALL spock.remove_node({}, ...) on a node of the cluster, such as \"{}\", with the connection string of this one.",
            crate::quote::literal(target),
            run.source
        );
        let source = Member {
            name: run.source.clone(),
            dsn: source_dsn,
        };
        let mut source = members::connect(&[source])
            .map_err(|error| error.hinted(|_| elsewhere))?
            .pop()
            .ok_or_else(|| Error::internal("a node was not connected"))?;
        let mut new = members::local(target, &source.dsn.clone(), &mode);
        let engine = engine::detect(&mut source)?;
        let reached = reach(&*engine, &mut source, Some(target))?;
        reached.require_member(&source.name)?;
        let mut nodes = members::all(reached.answers)?;
        nodes.retain(|node| node.name != source.name);
        nodes.insert(0, source);
        let mut cluster = Cluster {
            engine,
            members: nodes,
            unreachable: vec![],
            registry: reached.registry,
            confirmed: reached.confirmed,
            subject: (),
        };
        let locking = Locking::of(&mode, format!("remove_node {target}"));
        locking.lock([&mut new])?;
        cluster.lock(None, &reached.own, &locking, &[])?;
        let mut all: Vec<&mut Node> = std::iter::once(&mut new)
            .chain(&mut cluster.members)
            .collect();
        take_back(&*cluster.engine, mode.session(), &run, &report, &mut all)?;
        report.notice(&format!(
            "the interrupted join of node \"{target}\" has been taken back"
        ));
        Ok(())
    }
}

/// A run about `target` that was interrupted, and that the journal of `session` has.
pub fn interrupted(
    session: &mut Session,
    command: Command,
    target: &str,
) -> Result<Option<Interrupted>> {
    Ok(Interrupted::of(session, command, target)?
        .into_iter()
        .next())
}

fn take_back(
    engine: &dyn engine::Engine,
    session: Session,
    run: &Interrupted,
    report: &Report,
    nodes: &mut [&mut Node],
) -> Result<()> {
    report.notice(&format!(
        "taking back the CALL {} for node \"{}\" that was interrupted (run {})",
        run.command, run.node, run.run
    ));
    let journal = Journal::reopen(session, run.run);
    let undo = Undo {
        engine,
        journal: &journal,
        subject: &run.node,
        name_taken: false,
    };
    undo.clean_up(run.run, RunState::Undone, nodes)
}

impl Removal {
    /// Whether there are traces of the target, which is no member.
    pub fn is_half_added(&mut self) -> Result<bool> {
        if !self.known_to.is_empty() || self.journal_there()?.is_some() {
            return Ok(true);
        }
        let states = self.inbound_states()?;
        if states
            .iter()
            .flatten()
            .any(|inbound| inbound.state.is_some())
        {
            return Ok(true);
        }
        for node in &mut self.cluster.members {
            let slot = self.cluster.engine.path(&node.name, &self.target).slot;
            if !present_slots(node, &[slot])?.is_empty() {
                return Ok(true);
            }
            let path = self.cluster.engine.path(&self.target, &node.name);
            if let Some(origin) = self.cluster.engine.origin_wanted(&path)
                && server::origins_there(&[origin.to_owned()])
                    .first(node)?
                    .is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The run on the target that its journal knows to be interrupted, if it can be asked.
    pub fn journal_there(&mut self) -> Result<Option<Interrupted>> {
        let Ok(node) = &mut self.cluster.subject else {
            return Ok(None);
        };
        match server::has_journal().one(node)? {
            true => interrupted(&mut node.session, Command::AddNode, &self.target),
            false => Ok(None),
        }
    }

    /// Takes the join back by the journal of the target, and then by name what no journal tells of.
    pub fn remove_half_added(&mut self) -> Result<()> {
        self.report.notice(&format!(
            "node \"{}\" is not a member: removing what is left of it",
            self.target
        ));
        if let Some((member, error)) = self.cluster.unreachable.first() {
            return Err(Error::refused(
                error.sqlstate(),
                format!(
                    "node \"{}\" may have traces of it too and cannot be reached: {error}",
                    member.name
                ),
                "Make it reachable and run the CALL again.",
            ));
        }
        if let Some(run) = self.journal_there()?
            && let Ok(leaving) = &mut self.cluster.subject
        {
            let session = Session::Remote(Conn::open(&leaving.name, &leaving.dsn)?);
            let mut all: Vec<&mut Node> = std::iter::once(leaving)
                .chain(&mut self.cluster.members)
                .collect();
            take_back(&*self.cluster.engine, session, &run, &self.report, &mut all)?;
        }
        if let Some(registry) = &self.cluster.registry {
            let next = registry.without_next_number(now());
            let standing = &self.cluster.confirmed;
            let members = self.cluster.members.iter_mut();
            let mut members: Vec<&mut Node> =
                members.filter(|n| standing.contains(&n.name)).collect();
            publish_registry(&*self.cluster.engine, &mut members, &next)?
                .into_iter()
                .collect::<Result<()>>()?;
        }
        for node in &mut self.cluster.members {
            let from = self.cluster.engine.path(&self.target, &node.name);
            let slot = self.cluster.engine.path(&node.name, &self.target).slot;
            if let Some((slot, true)) = present_slots(node, std::slice::from_ref(&slot))?.first() {
                return Err(Error::refused(
                    SqlState::OBJECT_IN_USE,
                    format!(
                        "somebody streams from slot {slot} of node \"{}\"",
                        node.name
                    ),
                    "It is not a leftover. See pg_stat_replication there for who reads it.",
                ));
            }
            run_all(node, &self.cluster.engine.unsubscribe(&from.subscription))?;
            if let Some(origin) = self.cluster.engine.origin_wanted(&from) {
                run_all(node, &[server::drop_origin(origin)])?;
            }
            drop_slot(node, &slot)?;
            run_all(node, &self.cluster.engine.forget_node(&self.target))?;
            Statement::run_in_turn(&self.cluster.engine.forget_markers(&node.name), node)?;
        }
        self.report
            .notice(&format!("nothing of node \"{}\" is left", self.target));
        Ok(())
    }
}
