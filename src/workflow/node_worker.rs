//! Keeps the recovery slot of a node: it holds what some other member may still lack of a third, and
//! no more. It has sessions on all members anyway, so it also sees when the membership changed while the
//! node was away, and lets it catch up.

use super::lost_wal::LostWal;
use super::members::{connect_each, lock_if_free, recovery_slot};
use super::membership::{catch_up, forget_done};
use super::name_conflicts;
use super::node_copy;
use super::registries::registries;
use super::removed::{by_members, end_replication, ended_on, removal_message};
use super::unfinished::unfinished;
use crate::engine::{Engine, Registry};
use crate::error::{Error, Finding, Result};
use crate::lsn::{Lsn, Position};
use crate::node::{Member, Node, server};
use crate::settings;
use std::collections::{BTreeMap, BTreeSet};
use zodan_core::samples::{Progress, Sample, Samples};

/// What the servers show of its sessions.
const SESSION: &str = "zodan node worker";

/// At one of so many looks it asks the members whether they still know the node, where no registry tells.
const LOOKS_AT_MEMBERS: u64 = 10;

/// What a look found.
pub enum Outcome {
    Yes,
    /// The database is no node any more.
    NoNode,
    /// What had to be given up because the slot held too much WAL.
    GivenUp(String),
    /// The node was away when the membership changed.
    CaughtUp(String),
    /// A member lacks what this node has of it. It may not be seen any more when that one has written enough.
    WentBack(String),
    /// The cluster goes on without the node, which has ended what it has of it.
    Removed(String),
    /// Apply had been paused by a CALL that is gone.
    Resumed(String),
}

pub struct NodeWorker {
    engine: Box<dyn Engine>,
    local: Node,
    peers: BTreeMap<String, Node>,
    /// Peers that may still have records of a pending cleanup of this node.
    untold: BTreeSet<String>,
    samples: Samples,
    /// A position, and the transaction id from which on none had begun when it was noted.
    open: Option<(Lsn, u64)>,
    /// The slot was moved since it held too much, and still does.
    bounded: bool,
    /// Members that lack what this node has of them, which has been told.
    went_back: BTreeSet<String>,
    looks: u64,
}

impl NodeWorker {
    /// `local` is a session on the node itself.
    pub fn new(engine: Box<dyn Engine>, mut local: Node) -> Result<Self> {
        server::name_session(SESSION).run(&mut local)?;
        Ok(Self {
            engine,
            local,
            peers: BTreeMap::new(),
            untold: BTreeSet::new(),
            samples: Samples::default(),
            open: None,
            bounded: false,
            went_back: BTreeSet::new(),
            looks: 0,
        })
    }

    /// One look: make the slot if it is not there, take a sample, move the slot.
    pub fn look(&mut self) -> Result<Outcome> {
        self.looks += 1;
        if self.engine.local_name(&mut self.local)?.as_ref() != Some(&self.local.name) {
            self.forget()?;
            return Ok(Outcome::NoNode);
        }
        if let Some(resumed) = self.engine.resume_orphaned().first(&mut self.local)? {
            return Ok(Outcome::Resumed(format!(
                "node \"{}\" applies again from {resumed} of its peers: the CALL that had paused it is gone",
                self.local.name
            )));
        }
        let members = self.engine.survey(&mut self.local)?.members;
        self.connect_peers(&members)?;
        if let Some(outcome) = self.catch_up()? {
            return Ok(outcome);
        }
        if let Some(outcome) = self.end_if_forgotten(members.len() - 1)? {
            return Ok(outcome);
        }
        if let Some(what) = self.look_for_lost_wal()? {
            return Ok(Outcome::WentBack(what));
        }
        let slot = self.slot()?;
        match server::slot_state(&slot).first(&mut self.local)? {
            None => {
                self.create(&slot)?;
                // It may have left meanwhile: to make a slot takes as long as the oldest transaction.
                if self.engine.local_name(&mut self.local)?.is_none() {
                    self.forget()?;
                    return Ok(Outcome::NoNode);
                }
            }
            // Its WAL is gone: a new one protects at least from here on.
            Some(state) if state.is_lost => {
                server::drop_slot(&slot).run(&mut self.local)?;
                self.create(&slot)?;
                return Ok(Outcome::GivenUp(format!(
                    "slot {slot} had lost its WAL and has been made anew: a node that lacks transactions from before cannot be recovered from node \"{}\"",
                    self.local.name
                )));
            }
            Some(_) => {}
        }
        self.sample()?;
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        server::keep_recovery_of(&names).run(&mut self.local)?;
        if let Some(oldest) = self.samples.oldest() {
            // Behind the slot's start, whatever the others have.
            server::protect(&oldest.progress, false).run(&mut self.local)?;
        }
        let applied = self.applied_by_others(&members)?;
        let others = names.iter().filter(|n| **n != self.local.name);
        let others: Vec<&str> = others.map(String::as_str).collect();
        if let Some(sample) = self.samples.release(&others, &applied) {
            self.advance(&slot, &sample)?;
            if self.samples.len() == 1 {
                server::clear_gap().run(&mut self.local)?;
            }
        }
        self.bound(&slot)
    }

    fn slot(&mut self) -> Result<String> {
        recovery_slot(&mut self.local)
    }

    fn create(&mut self, slot: &str) -> Result<()> {
        self.samples.clear();
        self.open = None;
        server::forget_recovery().run(&mut self.local)?;
        let plugin = self.engine.decoding().plugin;
        let made = server::create_slot(slot, plugin, false).one(&mut self.local);
        made.map(|_| ())
            .map_err(|error| name_conflicts::whose_slot(error, &mut self.local, slot))
    }

    /// The database is no node: nobody will ask for the slot.
    fn forget(&mut self) -> Result<()> {
        let slot = self.slot()?;
        server::drop_slot(&slot).run(&mut self.local)?;
        server::forget_recovery().run(&mut self.local)?;
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        match self.open {
            // Two statements: the position first.
            None => {
                let position = server::wal_position().one(&mut self.local)?;
                let next = server::next_transaction().one(&mut self.local)?;
                self.open = Some((position, next));
            }
            Some((position, next)) => {
                if server::oldest_transaction().one(&mut self.local)? < next {
                    return Ok(());
                }
                self.open = None;
                let states = self.engine.subscriptions().on(&mut self.local)?;
                let survey = self.engine.survey(&mut self.local)?;
                let mut progress = Progress::new();
                for member in survey.members {
                    let path = self.engine.path(&member.name, &self.local.name);
                    let state = states.iter().find(|s| s.name == path.subscription);
                    if let Some(applied) = state.and_then(|s| s.applied) {
                        progress.insert(member.name, applied);
                    }
                }
                self.samples.add(Sample { position, progress });
            }
        }
        Ok(())
    }

    /// Sessions on the other members; one that does not answer has none.
    fn connect_peers(&mut self, members: &[Member]) -> Result<()> {
        let missing: Vec<Member> = members
            .iter()
            .filter(|m| m.name != self.local.name)
            .filter(|m| {
                let known = self.peers.get(&m.name);
                known.is_none_or(|node| !node.session.is_usable() || node.dsn != m.dsn)
            })
            .cloned()
            .collect();
        self.peers
            .retain(|name, _| members.iter().any(|m| m.name == *name));
        for (member, answer) in missing.iter().zip(connect_each(&missing)) {
            match answer {
                Ok(mut node) => {
                    server::name_session(SESSION).run(&mut node)?;
                    self.peers.insert(member.name.clone(), node);
                    self.untold.insert(member.name.clone());
                }
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(_) => drop(self.peers.remove(&member.name)),
            }
        }
        Ok(())
    }

    /// What is to be told of a member that was put back to an earlier state, once.
    fn look_for_lost_wal(&mut self) -> Result<Option<String>> {
        // In this order: what has been applied had been flushed before.
        let states = self.engine.subscriptions().on(&mut self.local)?;
        for (name, peer) in &mut self.peers {
            // One that does not answer any more is connected to at the next look.
            let Ok(end) = server::wal_flushed().one(peer) else {
                continue;
            };
            let path = self.engine.path(name, &self.local.name);
            let state = states.iter().find(|s| s.name == path.subscription);
            match LostWal::find(&path, state, end) {
                None => drop(self.went_back.remove(name)),
                Some(lost) if self.went_back.insert(name.clone()) => {
                    let Finding {
                        node,
                        message,
                        hint,
                        ..
                    } = lost.finding();
                    return Ok(Some(format!("node \"{node}\": {message}. {hint}")));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Takes over a newer registry of another member, with all that belongs to it, or ends where that is without this
    /// node.
    fn catch_up(&mut self) -> Result<Option<Outcome>> {
        let mut nodes: Vec<&mut Node> = std::iter::once(&mut self.local)
            .chain(self.peers.values_mut())
            .collect();
        let mut registries = registries(&*self.engine, &mut nodes).into_iter();
        let Some(own) = registries.next().transpose()?.flatten() else {
            return Ok(None);
        };
        let mut newest = own.clone();
        for theirs in registries.flatten().flatten() {
            if theirs.is_newer_than(&newest) {
                newest = theirs;
            }
        }
        if !newest.is_newer_than(&own) {
            return self.tell_paid(&own).map(|()| None);
        }
        // Somebody who changes the membership at this moment sees to it.
        if !lock_if_free(nodes[0], SESSION)? {
            return Ok(None);
        }
        let name = nodes[0].name.clone();
        let member = newest.has_same(&name, &own);
        let done = match member {
            true => {
                catch_up(&mut *self.engine, &mut nodes, 0, &own, &newest).map(|done| done.ended)
            }
            false => end_replication(&*self.engine, nodes[0], &own).map(|()| vec![]),
        };
        server::membership_unlock().run(nodes[0])?;
        let ended = done?;
        if !member {
            return Ok(Some(Outcome::Removed(removal_message(
                &name, &own, &newest,
            ))));
        }
        self.untold = self.peers.keys().cloned().collect();
        let mut what = format!(
            "node \"{name}\" has caught up with the membership of generation {}",
            newest.generation
        );
        for removed in ended {
            what += &format!("; {}", ended_on(&removed));
        }
        Ok(Some(Outcome::CaughtUp(what)))
    }

    /// The same where there is no registry.
    fn end_if_forgotten(&mut self, known: usize) -> Result<Option<Outcome>> {
        if self.looks % LOOKS_AT_MEMBERS != 1 || self.ended_by_members(known)?.is_none() {
            return Ok(None);
        }
        // Somebody who changes the membership at this moment sees to it.
        if !lock_if_free(&mut self.local, SESSION)? {
            return Ok(None);
        }
        // Once more, now that nobody changes it.
        let ended = self.ended_by_members(known);
        let done = match &ended {
            Ok(Some(_)) => node_copy::end_replication(&*self.engine, &mut self.local),
            _ => Ok(()),
        };
        server::membership_unlock().run(&mut self.local)?;
        done?;
        Ok(ended?.map(Outcome::Removed))
    }

    fn ended_by_members(&mut self, known: usize) -> Result<Option<String>> {
        let mut peers: Vec<&mut Node> = self.peers.values_mut().collect();
        match by_members(&*self.engine, &mut self.local, &mut peers, known) {
            Err(error) if !matches!(error, Error::Interrupted { .. }) => Ok(None), // they are asked again
            ended => ended,
        }
    }

    /// Peers that may have records of a pending cleanup of this node hear that it is done.
    fn tell_paid(&mut self, own: &Registry) -> Result<()> {
        let me = [self.local.name.clone()];
        while let Some(name) = self.untold.first().cloned() {
            if let Some(peer) = self.peers.get_mut(&name) {
                forget_done(&*self.engine, &mut [peer], &me, own)?;
            }
            self.untold.remove(&name);
        }
        Ok(())
    }

    /// What the other members have applied; one that does not answer is not in it.
    fn applied_by_others(&mut self, members: &[Member]) -> Result<BTreeMap<String, Progress>> {
        let mut asked: Vec<&mut Node> = self.peers.values_mut().collect();
        asked.push(&mut self.local);
        self.engine.load_paths(&mut asked, &[])?;
        let mut applied = BTreeMap::new();
        for (name, node) in &mut self.peers {
            let Ok(states) = self.engine.subscriptions().on(node) else {
                continue;
            };
            let mut progress = Progress::new();
            for member in members {
                let path = self.engine.path(&member.name, name);
                let state = states.iter().find(|s| s.name == path.subscription);
                if let Some(lsn) = state.and_then(|s| s.applied) {
                    progress.insert(member.name.clone(), lsn);
                }
            }
            let Ok(unfinished) = unfinished(node) else {
                continue;
            };
            // It needs what it had already too, to know what others did to that later.
            for (failed, from) in unfinished {
                progress
                    .entry(failed)
                    .and_modify(|has| *has = from.min(*has));
            }
            applied.insert(name.clone(), progress);
        }
        Ok(applied)
    }

    fn advance(&mut self, slot: &str, sample: &Sample) -> Result<()> {
        let state = server::slot_state(slot).one(&mut self.local)?;
        if state.is_active || state.confirmed.is_some_and(|c| sample.position <= c) {
            return Ok(()); // being copied, or there already
        }
        // Said before it is done: to promise less than there is does no harm.
        server::protect(&sample.progress, true).run(&mut self.local)?;
        let position = Position::new(&self.local.name, sample.position);
        server::advance_slot(&self.local.name, slot, &position)?.run(&mut self.local)?;
        Ok(())
    }

    /// No more WAL than is allowed, whoever may still need it.
    fn bound(&mut self, slot: &str) -> Result<Outcome> {
        let Some(limit) = settings::recovery_slot_max_wal() else {
            return Ok(Outcome::Yes);
        };
        let state = server::slot_state(slot).one(&mut self.local)?;
        if self.samples.is_empty() {
            return Ok(Outcome::Yes);
        }
        let (kept, Some(confirmed)) = (state.retained_bytes.unwrap_or_default(), state.confirmed)
        else {
            return Ok(Outcome::Yes);
        };
        let too_much = kept > limit as f64;
        self.bounded &= too_much;
        if !too_much {
            return Ok(Outcome::Yes);
        }
        let Some(sample) = self.samples.give_up(confirmed) else {
            return Ok(Outcome::Yes);
        };
        let why = format!(
            "slot {slot} held {} MB of WAL, more than zodan.recovery_slot_max_wal: it has been moved, and a node that lacks transactions from before {} cannot be recovered from node \"{}\"",
            kept as u64 >> 20,
            sample.position,
            self.local.name
        );
        server::record_gap(&why).run(&mut self.local)?;
        self.advance(slot, &sample)?;
        // What it holds goes down with a later record of running transactions only.
        Ok(match std::mem::replace(&mut self.bounded, true) {
            true => Outcome::Yes,
            false => Outcome::GivenUp(why),
        })
    }
}
