//! Taking back what a run did, in reverse, wherever a node can be reached.

use super::membership::remove_member;
use crate::engine::Engine;
use crate::ereport;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Conn;
use crate::node::{Node, Session, ask_within, server};
use crate::progress;
use crate::run::action::{LeftIf, Register, Subscribe};
use crate::run::{Act, Action, Begun, Journal, RunState};
use std::collections::BTreeMap;
use std::time::Duration;

/// A node that does not remove its markers within this time has other troubles.
const MARKERS_TIMEOUT: Duration = Duration::from_secs(1);

/// What is to be undone, and for whom.
pub struct Undo<'a> {
    pub engine: &'a dyn Engine,
    pub journal: &'a Journal,
    /// The node that the run is about.
    pub subject: &'a str,
    /// The name has become that of another server since the run was interrupted. What bears it on
    /// the other nodes is that server's.
    pub name_taken: bool,
}

impl Undo<'_> {
    /// Undoes every step that may have had an effect. Returns what could not be undone; it stays in
    /// the journal, so that the next CALL tries again.
    pub fn run(&self, nodes: &mut [&mut Node]) -> Result<Vec<String>> {
        let mut left = vec![];
        let mut unreachable = BTreeMap::new();
        // A marker's removal must not be on its way to a node while the way is taken down.
        let (markers, steps): (Vec<Begun>, Vec<Begun>) = self
            .journal
            .begun()?
            .into_iter()
            .partition(|begun| matches!(begun.action, Action::Marker(_)));
        for begun in steps.into_iter().chain(markers) {
            let what = format!("{} on {}", begun.description, begun.node);
            progress::step(&begun.node, &format!("undo: {}", begun.description));
            self.journal.passed(&format!("the undo, before {what}"))?;
            let answer = match unreachable.get(&begun.node) {
                _ if begun.announced => Ok(()),
                None => self.undo_one(&begun, nodes),
                // Every further try would wait as long.
                Some(error) => Err(Error::clone(error)),
            };
            self.journal.passed(&format!("the undo, after {what}"))?;
            match answer {
                Ok(()) => self.journal.undone(&begun)?,
                Err(error) => {
                    if matches!(error, Error::Connect { .. }) {
                        unreachable.insert(begun.node.clone(), error.clone());
                    }
                    self.journal.not_undone(&begun, &error.to_string())?;
                    left.push(format!(
                        "\"{}\" on node \"{}\" ({error})",
                        begun.description, begun.node
                    ));
                    // Ctrl-C during the undo: the rest stays in the journal.
                    if matches!(error, Error::Interrupted { .. }) {
                        return Ok(left);
                    }
                }
            }
        }
        self.forget_markers(nodes);
        Ok(left)
    }

    /// Undoes what the interrupted `run` left, and ends it as `state`; an error if something stays.
    pub fn clean_up(&self, run: i64, state: RunState, nodes: &mut [&mut Node]) -> Result<()> {
        let left = self.run(nodes)?;
        if left.is_empty() {
            return self.journal.end(state, None);
        }
        Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "could not clean up interrupted run {run}: {}",
                left.join("; ")
            ),
            "Make the nodes reachable and run the CALL again.",
        ))
    }

    /// Undoes the run and returns the error to raise: the first one, unchanged.
    pub fn give_up(&self, first: Error, nodes: &mut [&mut Node]) -> Error {
        let begun = self.journal.begun();
        if !begun.is_ok_and(|begun| begun.is_empty()) {
            ereport::notice(&format!("failed, undoing: {first}"));
        }
        let left = match self.run(nodes) {
            Ok(left) => left,
            // The journal itself could not be read or written: nothing more can be said for sure.
            Err(error) => vec![format!("the rest of the run, because {error}")],
        };
        let state = match left.is_empty() {
            true => RunState::Undone,
            false => RunState::Failed,
        };
        let ended = self.journal.end(state, Some(&first));
        if left.is_empty() && ended.is_ok() {
            return first;
        }
        Error::NotUndone {
            first: Box::new(first),
            left: left
                .into_iter()
                .chain(ended.err().map(|e| e.to_string()))
                .collect(),
            hint: "Run the same CALL again when the nodes are reachable: it cleans up first."
                .into(),
        }
    }

    /// Markers of any node, on every node that can be reached: those of the new node, and of one that is
    /// down, can only be removed where they have arrived. They do no harm, so what fails here is no failure
    /// of the undo.
    fn forget_markers(&self, nodes: &mut [&mut Node]) {
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        for name in names {
            for statement in self.engine.forget_markers(&name) {
                let usable = nodes.iter_mut().filter(|node| node.session.is_usable());
                let questions = usable.map(|node| statement.clone().on(node)).collect();
                ask_within(questions, MARKERS_TIMEOUT);
            }
        }
    }

    fn undo_one(&self, begun: &Begun, nodes: &mut [&mut Node]) -> Result<()> {
        if self.name_taken && begun.node != self.subject {
            return Ok(());
        }
        let unknown = || {
            Error::refused(
                SqlState::UNDEFINED_OBJECT,
                format!("node \"{}\" is not known here any more", begun.node),
                "",
            )
        };
        let at = nodes.iter().position(|n| n.name == begun.node);
        if let (None, Action::Subscribe(subscribe)) = (at, &begun.action)
            && subscribe.by_reader
        {
            let Subscribe { subscription, .. } = subscribe;
            // It gets nothing any more, and nobody waits for it.
            let drop = self.engine.unsubscribe(subscription).pop();
            ereport::warning(
                &format!(
                    "node \"{}\", which only reads, may keep subscription {subscription} to node \"{}\"",
                    begun.node, self.subject
                ),
                &format!(
                    "Run on it: {}",
                    drop.map_or(String::new(), |last| last.inlined())
                ),
            );
            return Ok(());
        }
        let at = at.ok_or_else(unknown)?;
        reconnect(nodes[at])?;
        match self.undo_on(begun, nodes, at) {
            // The session had been lost without anybody noticing.
            Err(_) if !nodes[at].session.is_usable() => {
                reconnect(nodes[at])?;
                self.undo_on(begun, nodes, at)
            }
            answer => answer,
        }
    }

    fn undo_on(&self, begun: &Begun, nodes: &mut [&mut Node], at: usize) -> Result<()> {
        if let Action::Register(Register {
            member,
            divided_before,
        }) = &begun.action
        {
            remove_member(self.engine, nodes, member, *divided_before, &begun.node)?;
        }
        let node = &mut *nodes[at];
        let left = match begun.action.left_if() {
            Some(LeftIf::OtherMembers) => self.has_other_members(node)?,
            // Nobody reads what a run was just about to make.
            Some(LeftIf::Read { slot }) => {
                !begun.done && server::slot_reader(slot).first(node)?.is_some()
            }
            None => false,
        };
        match left {
            true => Ok(()),
            false => begun.action.undo(self.engine, node),
        }
    }

    fn has_other_members(&self, node: &mut Node) -> Result<bool> {
        let members = self.engine.members().on(node)?;
        Ok(members.iter().any(|m| m.name != node.name))
    }
}

/// A session that broke is replaced once: the node may be back.
fn reconnect(node: &mut Node) -> Result<()> {
    if !node.session.is_usable() {
        node.session = Session::Remote(Conn::open(&node.name, &node.dsn)?);
    }
    Ok(())
}
