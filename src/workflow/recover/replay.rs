//! One survivor gets what another has kept: decoded from the recovery slot there, applied here under the
//! failed node's origin with its positions and times, so that data and progress move together.

use super::{Gap, Recovery};
use crate::engine::Path;
use crate::error::{Error, Result, SqlState};
use crate::journal::{Effect, Journal};
use crate::libpq::{Conn, Rows};
use crate::lsn::Position;
use crate::node::{Node, Session, Statement, server};
use crate::replay::{Catalog, Origin, Rendering, Transaction, Transactions, pgoutput::Message};
use crate::workflow::members;
use crate::workflow::patience::{Seen, wait_until};
use crate::workflow::undo;
use std::collections::{BTreeMap, BTreeSet};

/// As many bytes of statements are sent at once.
const BATCH: usize = 64 * 1024;

/// The transaction under way at the source.
enum Under {
    /// One of the failed node that the target lacks.
    Missing,
    /// One of the failed node that it has, or is not to get.
    Unwanted,
    /// Somebody else's.
    Other { timestamp: i64 },
    /// Somebody else's, about rows that have just been brought. The target got it when it did not have
    /// them, and could do nothing with it; where it could, doing it again changes nothing.
    Later,
}

/// What a replay brought.
#[derive(Default)]
struct Brought {
    transactions: u64,
    changes: u64,
}

impl Recovery {
    pub fn fill(&mut self, gap: &Gap, journal: &mut Journal) -> Result<()> {
        match self.check_slot(gap) {
            Ok(_) => drop(self.bring(gap, journal)?),
            Err(why) if why.sqlstate() == SqlState::NOT_IN_PREREQUISITE_STATE => {
                self.report
                    .say(&format!("{gap}; their contents are compared: {why}"));
                self.compare(gap, journal)?;
            }
            Err(error) => return Err(error),
        }
        self.release(journal)
    }

    /// Brings over what the target lacks. The clone, whose name is the answer, and the subscription are
    /// still held then.
    pub fn bring(&mut self, gap: &Gap, journal: &mut Journal) -> Result<String> {
        self.report.say(&gap.to_string());
        let slot = self.check_slot(gap)?;
        let clone = self.clone_slot(gap, &slot, journal)?;
        let brought = self.replay(gap, &clone, journal)?;
        self.report.say(&format!(
            "node \"{}\" has got {} transactions with {} changes of \"{}\" from node \"{}\"",
            gap.target, brought.transactions, brought.changes, self.request.failed, gap.source
        ));
        Ok(clone)
    }

    /// The recovery slot of the source, if it has kept all that the target lacks.
    pub fn check_slot(&mut self, gap: &Gap) -> Result<String> {
        let failed = self.request.failed.clone();
        let source = self.survivor(&gap.source)?;
        let database = members::identity(source)?.1;
        let slot = server::recovery_slot(&database);
        let none = |why: String| {
            Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the recovery slot of node \"{}\" cannot help: {why}",
                    gap.source
                ),
                "Compare the nodes, and bring the rows over by hand; see docs/operations.md. For the next time: SELECT zodan.keep_recovery_slot() on every node.",
            )
        };
        let state = server::slot_state(&slot).run(source)?;
        let Some(row) = state.first() else {
            return Err(none(format!("there is no slot {slot}")));
        };
        if row.bool(3) {
            return Err(none(format!("slot {slot} has lost its WAL")));
        }
        let kept = server::protected_from(&failed).run(source)?;
        let Some(from) = kept.first().filter(|row| row.get(0).is_some()) else {
            return Err(none(format!(
                "it was made after node \"{failed}\" had died"
            )));
        };
        let from = Position::new(&failed, server::parse_lsn(from, 0)?);
        if !gap.from.reaches(&from)? {
            return Err(none(format!(
                "it has the transactions after {from}, and those after {} are missing on node \"{}\"",
                gap.from, gap.target
            )));
        }
        Ok(slot)
    }

    /// The slot goes on being advanced while its copy is read.
    fn clone_slot(&mut self, gap: &Gap, slot: &str, journal: &mut Journal) -> Result<String> {
        let mut clone = format!("{slot}_clone_{}", journal.run());
        if clone.len() > 63 {
            clone = format!("spk_recovery_clone_{}", journal.run());
        }
        let phase = self.report.current();
        let step = journal.intend(
            phase,
            &gap.source,
            &format!("clone slot {slot}"),
            &Effect::Slot {
                slot: clone.clone(),
            },
        )?;
        let source = self.survivor(&gap.source)?;
        wait_until(
            &gap.source,
            &format!("copying slot {slot}"),
            "See who uses it.",
            || match server::copy_slot(slot, &clone).run(source) {
                Ok(_) => Ok(Seen::Done(())),
                // Being advanced just now.
                Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                    Ok(Seen::Pending(error.to_string()))
                }
                Err(error) => Err(error),
            },
        )?;
        journal.done(step)?;
        Ok(clone)
    }

    fn replay(&mut self, gap: &Gap, clone: &str, journal: &mut Journal) -> Result<Brought> {
        let path = self.engine.path(&self.request.failed, &gap.target);
        let theirs = self.engine.path(&self.request.failed, &gap.source);
        let (publication, _) = self.engine.recovery_publication();
        let own_schemas = self.engine.own_schemas();
        let (ours, theirs) = (self.engine.origin(&path), self.engine.origin(&theirs));
        let request = self.request.clone();

        let source = self.survivor(&gap.source)?;
        let origin_there = theirs.run(source)?.one()?.text(0).to_owned();
        server::flush_wal().run(source)?;
        let mut reader = Conn::open(&gap.source, &source.dsn)?;
        reader.query("SET client_encoding = 'UTF8'", &[])?;

        let target = self.survivor(&gap.target)?;
        let origin = ours.run(target)?.one()?.text(0).to_owned();
        let catalog = Catalog::read(target)?;
        let mut applier = self.hold(gap, &path, &origin, journal)?;
        let mut brought = Brought::default();
        let mut rendering = Rendering::new(catalog, own_schemas);
        let listed = self.listed(gap, clone, &mut reader)?;
        // Where transactions have to be asked for, progress moves without them too.
        let exact = listed.is_none() && gap.whole && !request.force;
        let there = listed.unwrap_or(Origin::Named(origin_there));
        let mut transactions =
            Transactions::peek(&mut reader, &gap.source, clone, publication, there)?;
        let mut touched = BTreeSet::new();
        let mut at = gap.from.clone();
        let mut under = Under::Other { timestamp: 0 };
        while let Some(piece) = transactions.next()? {
            match (piece, &under) {
                (Transaction::Begin { timestamp }, _) => under = Under::Other { timestamp },
                (Transaction::OfOrigin { end, timestamp }, _) => {
                    let end = Position::new(&request.failed, end);
                    let wanted = !gap.from.reaches(&end)?
                        && gap.to.reaches(&end)?
                        && !request.is_too_late(timestamp);
                    under = Under::Unwanted;
                    if wanted {
                        rendering.begin(end.lsn(), timestamp);
                        brought.transactions += 1;
                        at = end;
                        under = Under::Missing;
                    }
                }
                (Transaction::Change(Message::Relation(relation)), _) => {
                    rendering.describe(relation);
                }
                (Transaction::Change(change), Under::Missing) => {
                    touched.extend(rendering.rows_of(&change));
                    rendering.change(&change)?;
                    brought.changes += 1;
                }
                (Transaction::Change(change), Under::Other { .. } | Under::Later) => {
                    let rows = rendering.rows_of(&change);
                    if !rendering.has_timestamps() || !rows.iter().any(|r| touched.contains(r)) {
                        continue;
                    }
                    if let Under::Other { timestamp } = under {
                        rendering.begin(at.lsn(), timestamp);
                        under = Under::Later;
                    }
                    touched.extend(rows);
                    rendering.change(&change)?;
                }
                (Transaction::Change(_), Under::Unwanted) => {}
                (Transaction::Commit, Under::Missing | Under::Later) => rendering.commit(),
                (Transaction::Commit, _) => {}
            }
            if rendering.len() >= BATCH {
                apply(&mut applier, &mut rendering)?;
            }
        }
        apply(&mut applier, &mut rendering)?;
        server::end_replay().run(&mut applier)?;
        if exact && at != gap.to {
            return Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "node \"{}\" has applied up to {}, but its slot has only what came up to {at}",
                    gap.source, gap.to
                ),
                "What the slot has was brought over. Compare the nodes; with force := true the rest counts as brought.",
            ));
        }
        if gap.whole || request.skip_lsn.is_some() {
            // What was skipped, or had nothing for these tables, is done with too.
            let done = if gap.whole { &gap.to } else { &gap.from };
            server::advance_origin_to(&origin, done.lsn()).run(&mut applier)?;
        }
        Ok(brought)
    }

    /// Holds the target's subscription to the failed node, and opens a session that writes as it would.
    pub fn hold(
        &mut self,
        gap: &Gap,
        path: &Path,
        origin: &str,
        journal: &mut Journal,
    ) -> Result<Node> {
        let states = self.engine.subscriptions();
        let (enable, disable) = (self.engine.enable(path), self.engine.disable(path));
        let commit_as = self.engine.commit_as(&self.request.failed);
        let phase = self.report.current();
        let target = self.survivor(&gap.target)?;
        let enabled = crate::engine::subscription_states(&states.run(target)?)?
            .iter()
            .any(|s| s.name == path.subscription && s.enabled);
        if enabled {
            // Its worker would hold the origin.
            let step = journal.intend(
                phase,
                &gap.target,
                &format!("hold subscription {}", path.subscription),
                &Effect::Statement {
                    undo: enable.inlined(),
                },
            )?;
            disable.run(target)?;
            journal.done(step)?;
        }
        // A session of its own: it ends with the replay, and the origin is free then.
        let mut applier = Node {
            name: target.name.clone(),
            dsn: target.dsn.clone(),
            session: Session::Remote(Conn::open(&target.name, &target.dsn)?),
        };
        wait_until(
            &gap.target,
            &format!("waiting for the worker of {} to end", path.subscription),
            "See its log.",
            || match server::begin_replay(origin).run(&mut applier) {
                Ok(_) => Ok(Seen::Done(())),
                Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                    Ok(Seen::Pending(error.to_string()))
                }
                Err(error) => Err(error),
            },
        )?;
        if let Some(commit_as) = commit_as {
            match commit_as.run(&mut applier) {
                Err(error) if error.is_undefined() => self.report.warn(
                    &format!("node \"{}\" does not have the extension zodan: what is brought over is not marked as of \"{}\"", gap.target, self.request.failed),
                    "Run CREATE EXTENSION zodan there before, if who wrote a row matters.",
                ),
                answer => drop(answer?),
            }
        }
        Ok(applier)
    }

    /// Which transactions are the failed node's, where the engine has to be asked.
    fn listed(&self, gap: &Gap, clone: &str, reader: &mut Conn) -> Result<Option<Origin>> {
        let copy = format!("{}_t", clone.get(..61).unwrap_or(clone));
        let asked = self
            .engine
            .transactions_of(&copy, &self.request.failed, gap.from.lsn());
        let Some((plugin, statement)) = asked else {
            return Ok(None);
        };
        ask(reader, &server::copy_slot_for_session(clone, &copy, plugin))?;
        let listed = ask(reader, &statement)?
            .iter()
            .map(|row| Ok((row.parse(0)?, server::parse_lsn(row, 1)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Some(Origin::Listed(listed)))
    }

    /// Lets go of what was held: the clone and the subscription.
    fn release(&mut self, journal: &Journal) -> Result<()> {
        for begun in journal.begun()? {
            let node = self
                .survivors
                .iter_mut()
                .find(|n| n.name == begun.node)
                .ok_or_else(|| Error::internal("a node was not connected"))?;
            undo::revert(&*self.engine, &begun.effect, node)?;
            journal.undone(begun.step)?;
        }
        Ok(())
    }
}

fn ask(conn: &mut Conn, statement: &Statement) -> Result<Rows> {
    let params: Vec<&str> = statement.params.iter().map(String::as_str).collect();
    conn.query(&statement.sql, &params)
}

pub fn apply(applier: &mut Node, rendering: &mut Rendering) -> Result<()> {
    let text = rendering.take();
    if text.is_empty() {
        return Ok(());
    }
    applier
        .query(&text, &[])
        .map(|_| ())
        .map_err(|error| match error {
            // The statement is the whole batch, with the rows in it.
            Error::Remote(mut remote) => {
                remote.statement = "a batch of replayed changes".into();
                Error::Remote(remote)
            }
            error => error,
        })
}
