//! What the members wrote during the copy comes to the new node from the source alone.
//!
//! A change may need one of another node: a member inserts a row, and the source changes it as soon as it has it. By
//! a stream from each, the change may come before the row and is passed over. The source has the two in their order,
//! and what it sends on of others has that order too. So the new node first catches up with the source, which sends
//! on what it has applied. Then apply on the source is paused for a moment, the new node gets what is left and
//! stands still: it has of each peer what the source has. From there on every peer's own subscription goes on, and
//! only when they run does the source apply again.

use super::starts::{Positions, Starts};
use crate::engine::Path;
use crate::error::{Error, Result};
use crate::libpq::poll::{Attempts, holds_within};
use crate::node::{Node, ask, server};
use crate::run::Journal;
use crate::settings;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::hold;
use crate::workflow::markers;
use crate::workflow::pause::{self, Pause, Paused, Progress};
use crate::workflow::report::Report;
use std::time::{Duration, Instant};

pub struct Forwarding<'a> {
    pub nodes: JoinNodes<'a>,
    /// The subscriptions by which the source applies its peers.
    pub inbound: &'a [Path],
    /// The subscription of the new node to the source. It is there, and not enabled.
    pub path: &'a Path,
    pub starts: &'a Starts,
    pub journal: &'a Journal,
    pub report: &'a Report,
}

impl Forwarding<'_> {
    /// Ends with the new node at the progress of the source, and `hand_over` done before the source applies any more: its
    /// subscriptions to the peers begin at the positions that are given.
    pub fn run(
        mut self,
        mut hand_over: impl FnMut(&mut Node, &mut [Node], &mut Node, &Positions) -> Result<()>,
    ) -> Result<()> {
        let (engine, path) = (self.nodes.engine, self.path);
        engine.forward(path, true).run(self.nodes.new)?;
        engine.enable(path).run(self.nodes.new)?;
        self.journal
            .passed("the source sends on what it has of others")?;
        let mut attempts = Attempts::new();
        loop {
            self.catch_up()?;
            self.journal.passed("the new node has caught up")?;
            let Paused::GivenUp(why) = self.attempt(&mut hand_over)? else {
                return Ok(());
            };
            self.report
                .step(&format!("handover given up, apply resumed: {why}"));
            if let Some(elapsed) = attempts.given_up(&why) {
                return Err(self.stalled(elapsed, why));
            }
            engine.enable(path).run(self.nodes.new)?;
        }
    }

    /// Until the source has at once what its peers commit, the new node what the source commits, and the slots of the new
    /// node on the peers hold next to nothing that it has: what they hold is decoded before anything of it is sent.
    fn catch_up(&mut self) -> Result<()> {
        let mut least: Option<(Duration, Instant)> = None;
        loop {
            let took = [
                timed(|| self.source_catches_up())?,
                timed(|| self.advance_slots())?,
                timed(|| self.new_node_catches_up())?,
            ];
            let took = took.into_iter().max().unwrap_or_default();
            if took <= settings::slot_timeout() {
                return Ok(());
            }
            self.report.step(&format!(
                "the new node is {:.1} s behind",
                took.as_secs_f64()
            ));
            match (least, settings::no_progress_timeout()) {
                (Some((least, since)), Some(limit)) if took >= least && since.elapsed() > limit => {
                    let detail = format!(
                        "It is {:.1} s behind, and does not get nearer.",
                        took.as_secs_f64()
                    );
                    return Err(self.stalled(since.elapsed(), detail));
                }
                (Some((least, _)), _) if took >= least => {}
                _ => least = Some((took, Instant::now())),
            }
        }
    }

    fn stalled(&self, elapsed: Duration, detail: String) -> Error {
        Error::Stalled {
            node: self.nodes.new.name.clone(),
            what: "catching up with the source, which sends on what all members write".into(),
            seconds: elapsed.as_secs(),
            detail,
            hint: "Run the CALL when less is written, or raise zodan.slot_timeout for it. With zodan.catch_up_from_source = off each member sends its own, which is faster and not in the order in which the source had it.".into(),
        }
    }

    /// While a change of a peer is held up on the source, apply there would be paused for nothing.
    fn source_catches_up(&mut self) -> Result<()> {
        let markers = markers::emit(self.nodes.engine, &mut *self.nodes.peers)?;
        let mut peers: Vec<&mut Node> = self.nodes.peers.iter_mut().collect();
        markers::wait(
            self.nodes.engine,
            self.nodes.source,
            &mut peers,
            &markers,
            self.inbound,
            &self.nodes.new.name,
        )?;
        markers::forget(self.nodes.engine, peers, &markers)
    }

    /// What the source has of a peer comes from the source: the new node's slot there need not hold it.
    fn advance_slots(&mut self) -> Result<()> {
        let (engine, new) = (self.nodes.engine, self.nodes.new.name.as_str());
        let progress = pause::progress(engine, self.nodes.source, self.inbound)?;
        let positions = self.starts.behind(
            engine,
            &progress,
            &self.nodes.source.name,
            self.nodes.peers,
            new,
        )?;
        let questions = self.nodes.peers.iter_mut().filter_map(|peer| {
            let path = engine.path(&peer.name, new);
            let position = positions.get(&path.subscription)?;
            let advance = server::advance_slot(&peer.name, &path.slot, position);
            Some(advance.map(|statement| statement.on(peer)))
        });
        ask(questions.collect::<Result<_>>()?)
            .into_iter()
            .try_for_each(|answer| answer.map(|_| ()))
    }

    fn new_node_catches_up(&mut self) -> Result<()> {
        let markers = markers::emit(self.nodes.engine, [&mut *self.nodes.source])?;
        let inbound = std::slice::from_ref(self.path);
        let new = self.nodes.new.name.clone();
        let others = &mut [&mut *self.nodes.source];
        markers::wait(
            self.nodes.engine,
            self.nodes.new,
            others,
            &markers,
            inbound,
            &new,
        )?;
        markers::forget(self.nodes.engine, [&mut *self.nodes.source], &markers)
    }

    fn attempt(
        &mut self,
        hand_over: &mut impl FnMut(&mut Node, &mut [Node], &mut Node, &Positions) -> Result<()>,
    ) -> Result<Paused<()>> {
        let (engine, path, journal) = (self.nodes.engine, self.path, self.journal);
        let (new, loopback, peers) = (
            &mut *self.nodes.new,
            &mut *self.nodes.loopback,
            &mut *self.nodes.peers,
        );
        let starts = self.starts;
        let pause = Pause {
            engine,
            node: &mut *self.nodes.source,
            inbound: self.inbound,
            moment: "the handover",
        };
        let within = |source: &mut Node| {
            let limit = settings::slot_timeout();
            let markers = markers::emit(engine, [&mut *source])?;
            let come = || markers::have_come(engine, loopback, path, &markers);
            let arrived = holds_within(limit, come)?;
            markers::forget(engine, [&mut *source], &markers)?;
            if !arrived {
                return Ok(Err(format!(
                    "the new node had not caught up after {} ms",
                    limit.as_millis()
                )));
            }
            hold::stop(engine, path, source, loopback)?;
            journal.passed("the new node stands still")?;
            Ok(Ok(()))
        };
        let after = |source: &mut Node, (): &(), progress: &Progress| {
            engine.forward(path, false).run(new)?;
            let positions = starts.behind(engine, progress, &source.name, peers, &new.name)?;
            hand_over(source, peers, new, &positions)
        };
        pause.hold(journal, self.report, within, after)
    }
}

fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    what()?;
    Ok(begun.elapsed())
}
