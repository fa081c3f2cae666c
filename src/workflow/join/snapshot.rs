//! The snapshot with progress (the fifth move): the source's slot for the new node, the snapshot of
//! its start, and how far the source had applied each peer at exactly that moment.
//!
//! Apply on the source is paused for it: progress read beside a live apply worker may cover a transaction that
//! the snapshot does not show, which would be lost for good.
//!
//! Creating a slot waits for every write transaction that is open on the source. Those are waited
//! for before the pause, and an attempt that meets a new one is given up, so that the pause never
//! grows with somebody's transaction.

use crate::engine::{Engine, Path};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Conn;
use crate::libpq::poll::{Attempts, Poll, wait_until};
use crate::lsn::Position;
use crate::node::{Node, server};
use crate::run::Journal;
use crate::run::action::{CreateSlot, PauseApply};
use crate::settings;
use crate::workflow::name_conflicts;
use crate::workflow::pause::{Pause, Paused, Progress};
use crate::workflow::report::Report;
use std::collections::BTreeSet;
use std::time::Duration;

/// A transaction younger than this is not waited for before an attempt: it will be over.
const YOUNG: Duration = Duration::from_millis(300);

/// The exported snapshot, for as long as the session that exported it stays as it is.
pub struct Snapshot {
    /// Keeps the snapshot. Any further command on it would end it.
    _exporter: Conn,
    /// Another session on the source, to read in it.
    pub reader: Option<Conn>,
    pub name: String,
    /// Where the source's slot starts: everything before it is in the snapshot.
    pub start: Position,
    /// Of the subscriptions of the source: up to where the snapshot holds the changes of their providers.
    pub progress: Progress,
}

/// Keeps row versions on the source that the exported snapshot needs, from before there is one.
///
/// The walsender that exports it does so itself, but for a moment: `ReplicationSlotRelease` lets go of the slot's
/// `effective_xmin` before the xmin of the process counts, which it does not while the process is marked as decoding
/// (`PROC_IN_LOGICAL_DECODING`). What another session finds removable in that moment it prunes, then or later, and rows
/// that were updated or deleted since the snapshot are in it in no version.
struct KeptVersions(Conn);

impl KeptVersions {
    /// Its own snapshot is older than any that is exported from here on.
    fn begin(&mut self) -> Result<()> {
        let (begin, look) = (server::begin_reading().sql, server::now().statement.sql);
        self.0.query(&format!("{begin}; {look}"), &[]).map(|_| ())
    }

    /// When there is no exporting session.
    fn end(&mut self) -> Result<()> {
        self.0.query(&server::rollback().sql, &[]).map(|_| ())
    }
}

enum Attempt {
    Valid(Snapshot),
    GivenUp(Conn, String),
}

/// Named by the next [`wait_for_writers`]: it is old enough by then.
const BLOCKED: &str = "a transaction was in the way of the slot";

pub struct Taking<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    /// The subscriptions of the source, by which it applies its peers.
    pub inbound: &'a [Path],
    pub journal: &'a mut Journal,
    pub report: &'a Report,
    /// The attempt has come to the slot, which may be there.
    pub tried: bool,
}

impl Taking<'_> {
    pub fn take(mut self) -> Result<Snapshot> {
        let (source, dsn) = (&self.source.name, &self.source.dsn);
        let (mut exporter, beside) = Conn::open_replication_and_another(source, dsn)?;
        let mut versions = KeptVersions(beside);
        let phase = self.report.current();
        let slot_step = self.journal.take::<CreateSlot>(phase, &self.source.name)?;
        let slot = slot_step.action().slot.clone();
        let slot_step = self.journal.announce(slot_step)?;
        let pause_step = self.journal.take_if::<PauseApply>(phase);
        let pause_step = pause_step
            .map(|step| self.journal.begin(step))
            .transpose()?;
        name_conflicts::refuse_slot(self.source, &slot)?;
        let slot_step = self.journal.makes(slot_step)?;
        let mut attempts = Attempts::new();
        loop {
            wait_for_writers(self.source, self.report)?;
            versions.begin()?;
            self.journal.passed("old row versions are kept")?;
            let attempt = match self.attempt(exporter, &slot) {
                Err(error) if error.sqlstate() == SqlState::DUPLICATE_OBJECT => {
                    self.journal.refused(&slot_step)?;
                    return Err(name_conflicts::whose_slot(error, self.source, &slot));
                }
                attempt => attempt?,
            };
            let why = match attempt {
                // The exporting session is idle in its transaction, and the versions need no other.
                Attempt::Valid(mut snapshot) => {
                    snapshot.reader = Some(versions.0);
                    if let Some(step) = pause_step {
                        self.journal.ended(step)?;
                    }
                    self.journal.done(slot_step)?;
                    return Ok(snapshot);
                }
                Attempt::GivenUp(conn, why) => {
                    versions.end()?;
                    exporter = conn;
                    why
                }
            };
            self.report
                .step(&format!("snapshot attempt given up, apply resumed: {why}"));
            if std::mem::take(&mut self.tried) {
                server::drop_slot(&slot).run(self.source)?;
            }
            if let Some(elapsed) = attempts.given_up(&why) {
                return Err(Error::Stalled {
                    node: self.source.name.clone(),
                    what: "taking the snapshot".into(),
                    seconds: elapsed.as_secs(),
                    detail: why,
                    hint: "Raise zodan.slot_timeout, or run the CALL when less is written on the source.".into(),
                });
            }
        }
    }

    fn attempt(&mut self, mut exporter: Conn, slot: &str) -> Result<Attempt> {
        let snapshot = |exporter, (start, name), progress| {
            Attempt::Valid(Snapshot {
                _exporter: exporter,
                reader: None,
                name,
                start,
                progress,
            })
        };
        let engine = self.engine;
        let tried = &mut self.tried;
        let mut make = |exporter: &mut Conn, source: &str| {
            *tried = true;
            create_slot(engine, slot, exporter, source)
        };
        if self.inbound.is_empty() {
            return Ok(match make(&mut exporter, &self.source.name)? {
                Some(made) => snapshot(exporter, made, Progress::new()),
                None => Attempt::GivenUp(exporter, BLOCKED.into()),
            });
        }
        let pause = Pause {
            engine,
            node: &mut *self.source,
            inbound: self.inbound,
            moment: "the snapshot",
        };
        let journal = &*self.journal;
        let within = |source: &mut Node| {
            let made = make(&mut exporter, &source.name)?;
            if made.is_some() {
                journal.passed("the slot is made under the pause")?;
            }
            Ok(made.ok_or_else(|| BLOCKED.to_owned()))
        };
        Ok(
            match pause.hold(journal, self.report, within, |_, _, _| Ok(()))? {
                Paused::Valid(made, progress) => snapshot(exporter, made, progress),
                Paused::GivenUp(why) => Attempt::GivenUp(exporter, why),
            },
        )
    }
}

/// The slot's start and the name of the snapshot; `None` if a transaction was in the way.
fn create_slot(
    engine: &dyn Engine,
    slot: &str,
    exporter: &mut Conn,
    source: &str,
) -> Result<Option<(Position, String)>> {
    let command = server::create_slot_with_snapshot(slot, engine.plugin(), engine.failover());
    match exporter.query_within(&command, &[], Some(settings::slot_timeout())) {
        Ok(rows) => {
            let row = rows.one()?;
            let start = Position::new(source, row.get("consistent_point")?);
            Ok(Some((start, row.get("snapshot_name")?)))
        }
        Err(Error::Deadline { .. }) => Ok(None),
        Err(error) => Err(error),
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
                report.notice(&format!(
                    "waiting for a write transaction on node \"{name}\": {writer}"
                ));
            }
        }
        Ok(match left.is_empty() {
            true => Poll::Ready(()),
            // The age grows by itself; a transaction that ends is progress.
            false => Poll::Pending(
                left.iter()
                    .map(|w| format!("{} of user \"{}\"", w.who, w.user))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        })
    })
}
