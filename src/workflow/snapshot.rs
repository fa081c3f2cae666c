//! The snapshot with progress (the fifth move): the source's slot for the new node, the snapshot of
//! its start, and how far the source had applied each peer at exactly that moment.
//!
//! PostgreSQL moves an origin's progress a moment before the commit becomes visible, so progress read
//! beside a live apply worker may cover a transaction that the snapshot does not show: lost for good.
//! Therefore apply on the source is paused, and an attempt counts only if no apply worker was alive
//! from before the first reading until after the second, and both readings are the same.
//!
//! Creating a slot waits for every write transaction that is open on the source. Those are waited
//! for before the pause, and an attempt that meets a new one is given up, so that the pause never
//! grows with somebody's transaction.

use super::patience::{Seen, wait_until};
use super::report::Report;
use super::taken;
use crate::engine::{Engine, Path, subscription_states};
use crate::error::{Error, Result, SqlState};
use crate::journal::{Effect, Journal};
use crate::libpq::{Conn, wait};
use crate::lsn::{Lsn, Position};
use crate::node::{Node, server};
use crate::settings;
use crate::step::{Action, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A transaction younger than this is not waited for before an attempt: it will be over.
const YOUNG: Duration = Duration::from_millis(300);

/// The exported snapshot, for as long as the session that exported it stays as it is.
pub struct Snapshot {
    /// Keeps the snapshot. Any further command on it would end it.
    _exporter: Conn,
    pub name: String,
    /// Where the source's slot starts: everything before it is in the snapshot.
    pub start: Position,
    /// By subscription of the source, up to where the snapshot holds the changes of its provider.
    pub progress: BTreeMap<String, Position>,
}

/// Why an attempt did not count.
enum Attempt {
    Valid(Snapshot),
    /// A write transaction was in the way.
    Blocked(Conn),
    /// A worker was alive or progress moved: the pause was not one.
    Moved(Conn, String),
}

pub struct Taking<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    /// The subscriptions of the source, by which it applies its peers.
    pub inbound: &'a [Path],
    /// The slot to make.
    pub slot: &'a str,
    pub journal: &'a mut Journal,
    pub report: &'a Report,
    /// The attempt has come to the slot, which may be there.
    pub tried: bool,
}

impl Taking<'_> {
    pub fn take(mut self) -> Result<Snapshot> {
        let mut exporter = Conn::open_replication(&self.source.name, &self.source.dsn)?;
        let slot = self.slot.to_owned();
        let action = Action::CreateSlot { slot: slot.clone() };
        let step = Step::new(self.report.current(), &self.source.name, action);
        let slot_step = self.journal.announce(&step)?;
        let pause_step = match self.inbound.is_empty() {
            true => None,
            false => Some(self.journal.intend(
                &Step::new(self.report.current(), &self.source.name, Action::PauseApply),
                &Effect::Pause,
            )?),
        };
        taken::refuse_slot(self.source, self.slot)?;
        self.journal.makes(slot_step, &Effect::Slot { slot })?;
        let mut since = Instant::now();
        let mut last = String::new();
        loop {
            wait_for_writers(self.source, self.report)?;
            let attempt = match self.attempt(exporter) {
                Err(error) if error.sqlstate() == SqlState::DUPLICATE_OBJECT => {
                    self.journal.refused(slot_step)?;
                    return Err(taken::whose_slot(error, self.source, self.slot));
                }
                attempt => attempt?,
            };
            let why = match attempt {
                Attempt::Valid(snapshot) => {
                    if let Some(step) = pause_step {
                        self.journal.undone(step)?;
                    }
                    self.journal.done(slot_step)?;
                    return Ok(snapshot);
                }
                Attempt::Blocked(conn) => {
                    exporter = conn;
                    // Named by the next wait_for_writers: it is old enough by now.
                    "a transaction was in the way of the slot".to_owned()
                }
                Attempt::Moved(conn, why) => {
                    exporter = conn;
                    why
                }
            };
            self.report
                .step(&format!("snapshot attempt given up, apply resumed: {why}"));
            if std::mem::take(&mut self.tried) {
                server::drop_slot(self.slot).run(self.source)?;
            }
            if why != last {
                last = why;
                since = Instant::now();
            } else if settings::no_progress_timeout().is_some_and(|limit| since.elapsed() > limit) {
                return Err(Error::Stalled {
                    node: self.source.name.clone(),
                    what: "taking the snapshot".into(),
                    seconds: since.elapsed().as_secs(),
                    detail: last,
                    hint: "Raise zodan.slot_timeout, or run the CALL when less is written on the source.".into(),
                });
            }
        }
    }

    fn attempt(&mut self, mut exporter: Conn) -> Result<Attempt> {
        if self.inbound.is_empty() {
            return Ok(match self.create_slot(&mut exporter)? {
                Some((start, name)) => Attempt::Valid(Snapshot {
                    _exporter: exporter,
                    name,
                    start,
                    progress: BTreeMap::new(),
                }),
                None => Attempt::Blocked(exporter),
            });
        }
        let limit = settings::slot_timeout();
        // The watchdog outlives an honest attempt: workers going, slot made or cancelled.
        if let Some(statement) = self.engine.start_watchdog((limit * 3).as_millis()) {
            statement.run(self.source)?;
        }
        self.journal.passed("the watchdog waits")?;
        let begun = Instant::now();
        let outcome = self.paused_attempt(exporter, limit);
        // Whatever came out of it, an interrupt too: resume first.
        let resumed = self.engine.resume().run(self.source);
        let pause = begun.elapsed();
        let stopped = match self.engine.stop_watchdog() {
            Some(statement) => statement.run(self.source).map(|_| ()),
            None => Ok(()),
        };
        let outcome = outcome?;
        resumed?;
        stopped?;
        self.journal.passed("apply has resumed")?;
        self.journal.note_pause(pause.as_secs_f64() * 1000.0)?;
        self.report.step(&format!(
            "apply on \"{}\" was paused for {:.0} ms",
            self.source.name,
            pause.as_secs_f64() * 1000.0
        ));
        Ok(outcome)
    }

    fn paused_attempt(&mut self, mut exporter: Conn, limit: Duration) -> Result<Attempt> {
        let names: Vec<String> = self
            .inbound
            .iter()
            .map(|p| p.subscription.clone())
            .collect();
        self.engine.pause(&names).run(self.source)?;
        self.journal.passed("apply is told to pause")?;
        if !self.workers_gone(limit)? {
            return Ok(Attempt::Moved(
                exporter,
                format!("apply did not stop within {} ms", limit.as_millis()),
            ));
        }
        let before = self.progress()?;
        let Some((start, name)) = self.create_slot(&mut exporter)? else {
            return Ok(Attempt::Blocked(exporter));
        };
        self.journal.passed("the slot is made under the pause")?;
        let after = self.progress()?;
        let (paused, alive) = self.pause_state()?;
        if alive > 0 || paused < self.inbound.len() as i64 {
            return Ok(Attempt::Moved(exporter, "apply resumed by itself".into()));
        }
        if before != after {
            return Ok(Attempt::Moved(
                exporter,
                "progress moved during the pause".into(),
            ));
        }
        Ok(Attempt::Valid(Snapshot {
            _exporter: exporter,
            name,
            start,
            progress: after,
        }))
    }

    /// The slot's start and the name of the snapshot; `None` if a transaction was in the way.
    fn create_slot(&mut self, exporter: &mut Conn) -> Result<Option<(Position, String)>> {
        let command = server::create_slot_with_snapshot(
            self.slot,
            self.engine.plugin(),
            self.engine.failover(),
        );
        self.tried = true;
        match exporter.query_within(&command, &[], Some(settings::slot_timeout())) {
            Ok(rows) => {
                let row = rows.one()?;
                let start = Position::new(&self.source.name, server::parse_lsn(row, 1)?);
                Ok(Some((start, row.text(2).to_owned())))
            }
            Err(Error::Deadline { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn workers_gone(&mut self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut rest = Duration::from_millis(1);
        loop {
            let (paused, alive) = self.pause_state()?;
            if paused < self.inbound.len() as i64 {
                return Err(Error::refused(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "{paused} of {} subscriptions of node \"{}\" could be paused",
                        self.inbound.len(),
                        self.source.name
                    ),
                    "A subscription was disabled or dropped meanwhile. Enable it and run the CALL again.",
                ));
            }
            if alive == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            wait::on_latch(rest)?;
            rest = (rest * 2).min(Duration::from_millis(10));
        }
    }

    fn pause_state(&mut self) -> Result<(i64, i64)> {
        let rows = self.engine.pause_state().run(self.source)?;
        let row = rows.one()?;
        Ok((row.parse(0)?, row.parse(1)?))
    }

    /// How far the source has applied its peers, by subscription. No value is an error: there is no position that
    /// could stand in for it.
    fn progress(&mut self) -> Result<BTreeMap<String, Position>> {
        let states = subscription_states(&self.engine.subscriptions().run(self.source)?)?;
        self.inbound
            .iter()
            .map(|path| {
                let applied: Option<Lsn> = states
                    .iter()
                    .find(|s| s.name == path.subscription)
                    .and_then(|s| s.applied);
                let lsn = applied.ok_or_else(|| {
                    Error::refused(
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "node \"{}\" has no progress for its subscription {}",
                            self.source.name, path.subscription
                        ),
                        "See whether the subscription replicates, then run the CALL again.",
                    )
                })?;
                let position = Position::new(&path.provider, lsn);
                Ok((path.subscription.clone(), position))
            })
            .collect()
    }
}

/// Waits until the write transactions that are open on the node now and are not young have ended.
/// Each is named once.
pub fn wait_for_writers(node: &mut Node, report: &Report) -> Result<()> {
    let mut named = BTreeSet::new();
    let mut awaited: Option<BTreeSet<String>> = None;
    let name = node.name.clone();
    let hint = "End the transactions that the detail names, or raise zodan.no_progress_timeout.";
    wait_until(&name, "waiting for open write transactions", hint, || {
        let open = server::old_writers(node, YOUNG)?;
        let first = awaited.get_or_insert_with(|| open.iter().map(|w| w.xid.clone()).collect());
        let left: Vec<_> = open.iter().filter(|w| first.contains(&w.xid)).collect();
        for writer in &left {
            if named.insert(writer.xid.clone()) {
                report.say(&format!(
                    "waiting for a write transaction on node \"{name}\": {writer}"
                ));
            }
        }
        Ok(match left.is_empty() {
            true => Seen::Done(()),
            // The age grows by itself; a transaction that ends is progress.
            false => Seen::Pending(
                left.iter()
                    .map(|w| format!("{} of user \"{}\"", w.who, w.user))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        })
    })
}
