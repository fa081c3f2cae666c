//! What the members wrote during the copy comes to the new node from the source alone.
//!
//! A change may need one of another node: a member inserts a row, and the source changes it as soon as it has it. By
//! a stream from each, the change may come before the row and is passed over. The source has the two in their order,
//! and what it sends on of others has that order too. So the new node first catches up with the source, which sends
//! on what it has applied. Then apply on the source is paused for a moment, the new node gets what is left and
//! stands still: it has of each peer what the source has. From there on every peer's own subscription goes on, and
//! only when they run does the source apply again.

use super::hold;
use super::markers;
use super::pause::{Pause, Paused, Progress};
use super::report::Report;
use crate::engine::{Engine, Path};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::libpq::wait;
use crate::node::Node;
use crate::settings;
use std::time::{Duration, Instant};

pub struct Forwarding<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    pub new: &'a mut Node,
    /// A session of libpq on the new node: a worker is not stopped from within a transaction.
    pub loopback: &'a mut Node,
    /// The subscriptions by which the source applies its peers.
    pub inbound: &'a [Path],
    /// The subscription of the new node to the source. It is there, and not enabled.
    pub path: &'a Path,
    pub journal: &'a Journal,
    pub report: &'a Report,
}

impl Forwarding<'_> {
    /// Ends with the new node at the progress of the source, and `hand_over` done before the source applies any more.
    pub fn run(
        mut self,
        mut hand_over: impl FnMut(&mut Node, &mut Node, &Progress) -> Result<()>,
    ) -> Result<()> {
        let (engine, path) = (self.engine, self.path);
        engine.forward(path, true).run(self.new)?;
        engine.enable(path).run(self.new)?;
        self.journal
            .passed("the source sends on what it has of others")?;
        let mut behind = Behind::default();
        loop {
            self.catch_up(&mut behind)?;
            self.journal.passed("the new node has caught up")?;
            match self.attempt(&mut hand_over)? {
                Paused::Valid((), _) => return Ok(()),
                Paused::GivenUp(why) => {
                    self.report
                        .step(&format!("handover given up, apply resumed: {why}"));
                    behind.again(&self.new.name, &why)?;
                    engine.enable(path).run(self.new)?;
                }
            }
        }
    }

    /// Until a commit on the source is on the new node in less than half of what a pause may take.
    fn catch_up(&mut self, behind: &mut Behind) -> Result<()> {
        loop {
            let begun = Instant::now();
            let markers = markers::emit(self.engine, [&mut *self.source])?;
            let inbound = std::slice::from_ref(self.path);
            let new = self.new.name.clone();
            let others = &mut [&mut *self.source];
            markers::wait(self.engine, self.new, others, &markers, inbound, &new)?;
            let took = begun.elapsed();
            markers::forget(self.engine, [&mut *self.source], &markers)?;
            if took * 2 <= settings::slot_timeout() {
                return Ok(());
            }
            self.report.step(&format!(
                "the new node is {:.1} s behind \"{}\"",
                took.as_secs_f64(),
                self.source.name
            ));
            behind.now(&self.new.name, took)?;
        }
    }

    fn attempt(
        &mut self,
        hand_over: &mut impl FnMut(&mut Node, &mut Node, &Progress) -> Result<()>,
    ) -> Result<Paused<()>> {
        let (engine, path, journal) = (self.engine, self.path, self.journal);
        let loopback = &mut *self.loopback;
        let new = std::cell::RefCell::new(&mut *self.new);
        let pause = Pause {
            engine,
            node: &mut *self.source,
            inbound: self.inbound,
            moment: "the handover",
        };
        let within = |source: &mut Node| {
            let new = &mut **new.borrow_mut();
            let limit = settings::slot_timeout();
            let markers = markers::emit(engine, [&mut *source])?;
            let arrived = arrives(engine, new, path, &markers, limit)?;
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
            let new = &mut **new.borrow_mut();
            engine.forward(path, false).run(new)?;
            hand_over(source, new, progress)
        };
        pause.hold(journal, self.report, within, after)
    }
}

/// Whether the markers come within `limit`.
fn arrives(
    engine: &dyn Engine,
    new: &mut Node,
    path: &Path,
    markers: &[markers::Marker],
    limit: Duration,
) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let mut rest = Duration::from_millis(1);
    loop {
        if markers::have_come(engine, new, path, markers)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        wait::on_latch(rest)?;
        rest = (rest * 2).min(Duration::from_millis(10));
    }
}

/// How far the new node is behind: it has to become less.
#[derive(Default)]
struct Behind {
    least: Option<(Duration, Instant)>,
    given_up: Option<Instant>,
}

impl Behind {
    fn now(&mut self, new: &str, took: Duration) -> Result<()> {
        let (least, since) = *self.least.get_or_insert((took, Instant::now()));
        if took < least {
            self.least = Some((took, Instant::now()));
            return Ok(());
        }
        let detail = format!(
            "It is {:.1} s behind, and does not get nearer.",
            took.as_secs_f64()
        );
        stalled_since(since, new, detail)
    }

    /// The handover was given up.
    fn again(&mut self, new: &str, why: &str) -> Result<()> {
        let since = *self.given_up.get_or_insert_with(Instant::now);
        stalled_since(since, new, why.to_owned())
    }
}

fn stalled_since(since: Instant, new: &str, detail: String) -> Result<()> {
    match settings::no_progress_timeout() {
        Some(limit) if since.elapsed() > limit => Err(Error::Stalled {
            node: new.to_owned(),
            what: "catching up with the source, which sends on what all members write".into(),
            seconds: since.elapsed().as_secs(),
            detail,
            hint: "Run the CALL when less is written, or raise zodan.slot_timeout for it. With zodan.catch_up_from_source = off each member sends its own, which is faster and not in the order in which the source had it.".into(),
        }),
        _ => Ok(()),
    }
}
