//! One survivor gets what another has kept: decoded from the recovery slot there, applied here under the
//! failed node's origin with its positions and times, so that data and progress move together.

use super::{Method, MissingRange, Recovery, Repair};
use crate::engine::{CommitOrigin, Disabling, Path, names};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Conn;
use crate::libpq::poll::{Poll, wait_until};
use crate::lsn::{Lsn, Position};
use crate::node::{Node, Query, Session, server};
use crate::progress::{self, Work};
use crate::replay::{Applier, Catalog, Rendering, Transactions};
use crate::run::action::{self, CloneSlot, HoldSubscription, RecordRecovery};
use crate::run::revert::drop_slot;
use crate::run::{Act, Journal};
use crate::workflow::hold;
use crate::workflow::markers;
use crate::workflow::members;
use std::collections::BTreeMap;
use std::time::Duration;
use zodan_core::decoding::Message;
use zodan_core::selection::{Decision, Origins, Selection, Wanted};

/// What tells a replay what there is to do.
struct Marks {
    origins: Origins,
    /// How far the target has applied the failed node.
    of_failed: Option<Lsn>,
    /// Whether progress is moved by commits alone.
    exact: bool,
}

/// What a replay brought.
#[derive(Default)]
struct Replayed {
    transactions: u64,
    changes: u64,
}

impl Recovery {
    pub fn fill(&mut self, repair: &Repair, journal: &mut Journal) -> Result<()> {
        match &repair.method {
            Method::Slot(slot) => drop(self.replay_slot(repair, slot, journal)?),
            Method::Comparison(why) => {
                self.report.notice(&format!(
                    "{}; their contents are compared: {why}",
                    repair.missing
                ));
                self.compare(repair, journal)?;
            }
        }
        self.release(journal)
    }

    /// Which subscriptions of the target have to stand still: with a slot all, since nothing may come in
    /// between; else the one to the failed node, whose origin is used. Those that do so already are left
    /// alone.
    pub fn repair(&mut self, missing: MissingRange, method: Method) -> Result<Repair> {
        let mut paths = self
            .cluster
            .engine
            .paths(&self.request.failed, &missing.target);
        if let Method::Slot(_) = method {
            let others = self
                .cluster
                .members
                .iter()
                .filter(|n| n.name != missing.target);
            paths.extend(others.flat_map(|n| self.cluster.engine.paths(&n.name, &missing.target)));
        }
        let back = self
            .cluster
            .engine
            .path(&missing.target, &missing.source)
            .subscription;
        let sends_to_source =
            matches!(method, Method::Slot(_)) && self.enabled(&missing.source)?.contains(&back);
        let enabled = self.enabled(&missing.target)?;
        let held = paths
            .into_iter()
            .filter(|path| enabled.contains(&path.subscription))
            .collect();
        Ok(Repair {
            missing,
            method,
            sends_to_source,
            held,
        })
    }

    /// The subscriptions of a survivor that are enabled.
    fn enabled(&mut self, survivor: &str) -> Result<Vec<String>> {
        let states = self.cluster.engine.subscriptions();
        let states = states.on(self.survivor(survivor)?)?.into_iter();
        Ok(states.filter(|s| s.enabled).map(|s| s.name).collect())
    }

    /// Brings over what the target lacks. The clone, whose name is the answer, and the subscription are
    /// still held then.
    pub fn replay_slot(
        &mut self,
        repair: &Repair,
        slot: &str,
        journal: &mut Journal,
    ) -> Result<String> {
        let missing = &repair.missing;
        self.report.notice(&missing.to_string());
        let clone = self.clone_slot(missing, slot, journal)?;
        let replayed = self.replay(repair, &clone, journal)?;
        self.report.notice(&format!(
            "replayed {} transactions ({} changes) of \"{}\" from node \"{}\" on node \"{}\"",
            replayed.transactions,
            replayed.changes,
            self.request.failed,
            missing.source,
            missing.target
        ));
        Ok(clone)
    }

    /// The recovery slot of the source, if it has kept all that the target lacks.
    pub fn check_slot(&mut self, missing: &MissingRange) -> Result<String> {
        let failed = self.request.failed.clone();
        if !server::has_commit_position().one(self.survivor(&missing.target)?)? {
            return Err(Error::refused(
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "node \"{}\" does not have the extension zodan, without which an interrupted recovery could lose a transaction there",
                    missing.target
                ),
                "Run CREATE EXTENSION zodan there.",
            ));
        }
        let source = self.survivor(&missing.source)?;
        let slot = members::recovery_slot(source)?;
        let none = |why: String| {
            Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "cannot recover from the slot of node \"{}\": {why}",
                    missing.source
                ),
                "See \"When a recovery slot cannot be used\" in docs/operations.md. For the next time: SELECT zodan.start_node_worker() on every node.",
            )
        };
        if missing.undecided {
            return Err(none(format!(
                "a comparison left rows of node \"{}\" alone while a member was away, and only another one can decide them",
                missing.target
            )));
        }
        if !missing.streams.is_empty() {
            return Err(none(format!(
                "node \"{}\" has several subscriptions to \"{failed}\", and it does not tell what came by which",
                missing.target
            )));
        }
        let Some(state) = server::slot_state(&slot).first(source)? else {
            return Err(none(format!("there is no slot {slot}")));
        };
        if state.is_lost {
            return Err(none(format!("slot {slot} has lost its WAL")));
        }
        let kept = server::retained_from(&failed).first(source)?;
        let Some(from) = kept.flatten() else {
            return Err(none(format!(
                "it was made after node \"{failed}\" had died"
            )));
        };
        let from = Position::new(&failed, from);
        if !missing.since.reaches(&from)? {
            return Err(none(format!(
                "it has the transactions after {from}, and those after {} are missing on node \"{}\"",
                missing.since, missing.target
            )));
        }
        if let Some(table) = self.not_decoded(missing)? {
            return Err(none(format!(
                "it gives nothing of rows of \"{failed}\" in table {table}, which no replication set of node \"{}\" lets through",
                missing.source
            )));
        }
        Ok(slot)
    }

    /// The slot goes on being advanced while its copy is read.
    fn clone_slot(
        &mut self,
        missing: &MissingRange,
        slot: &str,
        journal: &mut Journal,
    ) -> Result<String> {
        let clone = names::recovery_copy(slot, journal.run());
        let phase = self.report.current();
        let step = journal.take::<CloneSlot>(phase, &missing.source)?;
        let step = journal.begin_with(step, clone.clone())?;
        let source = self.survivor(&missing.source)?;
        // Left by a CALL on a node that is gone, with its journal.
        drop_slot(source, &clone)?;
        wait_until(
            &missing.source,
            &format!("copying slot {slot}"),
            "See who uses it.",
            || match server::copy_slot(slot, &clone).run(source) {
                Ok(_) => Ok(Poll::Ready(())),
                // Being advanced just now.
                Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                    Ok(Poll::Pending(error.to_string()))
                }
                Err(error) => Err(error),
            },
        )?;
        journal.done(step)?;
        Ok(clone)
    }

    fn replay(&mut self, repair: &Repair, clone: &str, journal: &mut Journal) -> Result<Replayed> {
        let missing = &repair.missing;
        let request = self.request.clone();
        let decoding = self.cluster.engine.decoding();
        let own_schemas = self.cluster.engine.own_schemas();
        // What the target has written is with the source first, and what the source has is on disk.
        self.send_to_source(repair, journal)?;
        let ours = self.origin_of_target(missing)?;
        let mut session = self.hold(repair, &ours, journal)?;
        let Marks {
            origins,
            of_failed,
            exact,
        } = self.marks(missing)?;
        // A session of a call that was killed may have gone on for a while.
        let from = match of_failed {
            Some(applied) => missing
                .from
                .clone()
                .max(&Position::new(&request.failed, applied))?,
            None => missing.from.clone(),
        };
        self.note_begin(missing, journal)?;
        let step = journal.take::<action::Replay>(self.report.current(), &missing.target)?;
        let step = journal.begin(step)?;
        let source = self.survivor(&missing.source)?;
        server::flush_wal().run(source)?;
        let mut reader = Conn::open(&missing.source, &source.dsn)?;

        let mut replayed = Replayed::default();
        let mut rendering = Rendering::new(Catalog::read(&mut session)?, own_schemas);
        let mut applier = Applier::begin(&mut session)?;
        let mut transactions = Transactions::peek(&mut reader, &missing.source, clone, &decoding)?;
        let wanted = Wanted {
            from,
            to: missing.to.clone(),
            until: request.stop_timestamp,
        };
        let mut selection = Selection::new(origins, wanted, rendering.has_timestamps());
        while let Some(message) = transactions.next()? {
            match selection.next(&message, |change| rendering.rows_of(change))? {
                Decision::Begin => {
                    rendering.begin_watched(selection.position().lsn(), selection.time());
                    replayed.transactions += 1;
                }
                Decision::Apply => {
                    rendering.change(&message)?;
                    replayed.changes += 1;
                }
                Decision::Repeat { first } => {
                    if first {
                        rendering.begin(selection.position().lsn(), selection.time());
                    }
                    rendering.change(&message)?;
                }
                Decision::Commit => {
                    rendering.commit()?;
                    self.tell(missing, selection.position(), &replayed);
                }
                Decision::Skip => {}
            }
            if let Message::Relation(relation) = message {
                rendering.describe(relation);
            }
            applier.send(&mut rendering)?;
        }
        journal.passed("the last change is sent")?;
        let idle = applier.finish()?;
        journal.passed("the last change is applied")?;
        server::end_replay().run(&mut session)?;
        // Where progress is moved by commits alone, the last of them has to be there.
        let at = selection.position();
        if exact && missing.whole && !request.force && *at != missing.to {
            return Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "node \"{}\" has applied up to {}, but its slot has only what came up to {at}",
                    missing.source, missing.to
                ),
                "What the slot has was brought over. Compare the nodes; with force := true the rest counts as brought.",
            ));
        }
        if missing.whole || request.skip_lsn.is_some() {
            // What was skipped, or had nothing for these tables, is done with too.
            let done = if missing.whole {
                &missing.to
            } else {
                &missing.from
            };
            server::advance_origin_to(&self.request.failed, &ours, done)?.run(&mut session)?;
        }
        journal.passed("the progress is moved")?;
        self.note_end(missing)?;
        journal.passed("the target has all")?;
        journal.done(step)?;
        self.tell_spared(missing, &rendering, &idle)?;
        self.done.bytes_done += missing.bytes_to(&missing.to);
        self.done.rows_done += replayed.changes;
        Ok(replayed)
    }

    /// As long as this stands the target counts as lacking what it is given, so that the next CALL, on
    /// whichever node, repeats what others did to it, and no recovery slot gives that up before.
    fn note_begin(&mut self, missing: &MissingRange, journal: &mut Journal) -> Result<()> {
        let failed = self.request.failed.clone();
        let step = journal.take::<RecordRecovery>(self.report.current(), &missing.target)?;
        let step = journal.begin(step)?;
        let target = self.survivor(&missing.target)?;
        server::note_recovery(&failed, &missing.since)?.run(target)?;
        journal.done(step)
    }

    /// The target has all that it was to get.
    pub fn note_end(&mut self, missing: &MissingRange) -> Result<()> {
        let failed = self.request.failed.clone();
        let target = self.survivor(&missing.target)?;
        server::forget_recoveries(Some(&failed)).run(target)?;
        Ok(())
    }

    /// What is done, in bytes of the failed node's WAL.
    fn tell(&self, missing: &MissingRange, at: &Position, replayed: &Replayed) {
        let work = Work {
            bytes_done: self.done.bytes_done + missing.bytes_to(at),
            rows_done: self.done.rows_done + replayed.changes,
            ..self.done
        };
        progress::work(work, (0, Duration::ZERO), vec![]);
    }

    /// A marker of the target is applied on the source, where the source subscribes to it.
    fn send_to_source(&mut self, repair: &Repair, journal: &mut Journal) -> Result<()> {
        let missing = &repair.missing;
        let phase = self.report.current();
        let Some(step) = journal.take_on::<action::Marker>(phase, &missing.target) else {
            return Ok(());
        };
        let path = self.cluster.engine.path(&missing.target, &missing.source);
        let step = journal.begin(step)?;
        let engine = &*self.cluster.engine;
        let (mut target, mut source) = (vec![], None);
        for node in &mut self.cluster.members {
            match &node.name {
                name if *name == missing.target => target.push(node),
                name if *name == missing.source => source = Some(node),
                _ => {}
            }
        }
        let source = source.ok_or_else(|| Error::internal("a node was not connected"))?;
        let markers = markers::emit(engine, target.iter_mut().map(|n| &mut **n))?;
        journal.done(step)?;
        markers::wait(engine, source, &mut target, &markers, &[path], "")
    }

    /// The origin of the target's subscription to the failed node, the first of several.
    pub fn origin_of_target(&mut self, missing: &MissingRange) -> Result<String> {
        let path = match missing.streams.first() {
            Some(stream) => stream.path.clone(),
            None => self
                .cluster
                .engine
                .path(&self.request.failed, &missing.target),
        };
        self.origin_of(missing, &path)
    }

    /// The origin of a subscription of the target.
    pub fn origin_of(&mut self, missing: &MissingRange, path: &Path) -> Result<String> {
        let origin = self.cluster.engine.origin(path);
        let target = self.survivor(&missing.target)?;
        origin.one(target)
    }

    /// How the source's transactions are told apart, and how far the target, whose subscriptions are
    /// held, has got those of each node.
    fn marks(&mut self, missing: &MissingRange) -> Result<Marks> {
        let engine = &*self.cluster.engine;
        let failed = self.request.failed.clone();
        // Also of those that are away both may have got something.
        let mut names = self.cluster.names();
        names.extend(self.cluster.unreachable_names());
        let subscriptions = engine.subscriptions();
        let mark = |name: &str| engine.row_origin(&engine.path(name, &missing.source));
        let marks: Vec<(String, Query<String>)> = names
            .iter()
            .filter(|name| **name != missing.source)
            .map(|name| (name.clone(), mark(name)))
            .collect();
        let failed_mark = mark(&failed);
        let own_mark = engine.row_origin(&engine.path(&missing.source, &missing.target));
        let inbound: Vec<(String, String)> = names
            .iter()
            .chain([&failed])
            .map(|name| {
                (
                    name.clone(),
                    engine.path(name, &missing.target).subscription,
                )
            })
            .collect();
        let exact = matches!(engine.commit_origin(&failed), CommitOrigin::OfSession);

        let target = self.survivor(&missing.target)?;
        let states = subscriptions.on(target)?;
        let applied = |name: &str| {
            let subscription = inbound.iter().find(|(n, _)| n == name)?;
            states.iter().find(|s| s.name == subscription.1)?.applied
        };
        let (of_failed, of_source) = (applied(&failed), applied(&missing.source));
        let mut others = BTreeMap::new();
        let source = self.survivor(&missing.source)?;
        let failed = failed_mark.one(source)?;
        let own = own_mark.first(source)?;
        for (name, mark) in marks {
            let Some(mark) = mark.first(source)? else {
                continue;
            };
            // Its own writes it has, however far.
            let has = match name == missing.target {
                true => Some(Lsn::MAX),
                false => applied(&name),
            };
            others.extend(has.map(|has| (mark, has)));
        }
        Ok(Marks {
            origins: Origins {
                failed,
                source: own,
                of_source,
                others,
            },
            of_failed,
            exact,
        })
    }

    /// Holds subscriptions of the target, and opens a session that writes as the one to the failed node
    /// would. What the held ones would have brought meanwhile comes when they are let go.
    pub fn hold(&mut self, repair: &Repair, origin: &str, journal: &mut Journal) -> Result<Node> {
        let phase = self.report.current();
        let missing = &repair.missing;
        let commit_origin = self.cluster.engine.commit_origin(&self.request.failed);
        while let Some(step) = journal.take_on::<HoldSubscription>(phase, &missing.target) {
            let path = hold::path_of(&step, &repair.held)?;
            let step = journal.begin(step)?;
            self.disable(path)?;
            journal.done(step)?;
        }
        let ending = hold::Ending::of(&*self.cluster.engine);
        let target = self.survivor(&missing.target)?;
        ending.wait(target)?;
        // A session of its own: it ends with the replay, and the origin is free then.
        let session = Session::Remote(Conn::open(&target.name, &target.dsn)?);
        let mut applier = Node::new(&target.name, target.dsn.clone(), session);
        wait_until(
            &missing.target,
            "waiting for the origin of the failed node",
            "See its log.",
            || match server::begin_replay(origin).run(&mut applier) {
                Ok(_) => Ok(Poll::Ready(())),
                Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                    Ok(Poll::Pending(error.to_string()))
                }
                Err(error) => Err(error),
            },
        )?;
        if let CommitOrigin::Marked(mark) = commit_origin {
            match mark.run(&mut applier) {
                Err(error) if error.is_undefined() => self.report.warn(
                    &format!("node \"{}\" does not have the extension zodan: what is brought over is not marked as of \"{}\"", missing.target, self.request.failed),
                    "Run CREATE EXTENSION zodan there before, if who wrote a row matters.",
                ),
                answer => drop(answer?),
            }
        }
        match server::replay_as_owners().run(&mut applier) {
            Err(error) if error.is_undefined() => self.report.warn(
                &format!("node \"{}\" does not have the extension zodan: code of the owners of its tables, and triggers that are enabled always or for replicas, run as the superuser of the connection", missing.target),
                "Run CREATE EXTENSION zodan there before, if you do not trust them.",
            ),
            answer => drop(answer?),
        }
        Ok(applier)
    }

    /// Disables a subscription of a survivor.
    fn disable(&mut self, path: &Path) -> Result<()> {
        let plain = self.cluster.engine.disable(path);
        let disabling = self.cluster.engine.disable_between_transactions(path);
        let at = |name: &str| self.cluster.members.iter().position(|n| n.name == name);
        let (provider, subscriber) = (at(&path.provider), at(&path.subscriber));
        // The failed node sends nothing that could be cut in two.
        let (Disabling::OnceIdle(idle), Some(provider)) = (disabling, provider) else {
            plain.run(self.survivor(&path.subscriber)?)?;
            return Ok(());
        };
        let nodes = subscriber.map(|subscriber| [provider, subscriber]);
        let nodes = nodes.and_then(|nodes| self.cluster.members.get_disjoint_mut(nodes).ok());
        let [provider, subscriber] =
            nodes.ok_or_else(|| Error::internal("a node was not connected"))?;
        hold::stop_idle(&idle, path, provider, subscriber)
    }

    /// Lets go of what was held: the clone and the subscription.
    fn release(&mut self, journal: &Journal) -> Result<()> {
        for begun in journal.begun()? {
            let node = self
                .cluster
                .members
                .iter_mut()
                .find(|n| n.name == begun.node)
                .ok_or_else(|| Error::internal("a node was not connected"))?;
            let what = format!("{} on {}", begun.description, begun.node);
            journal.passed(&format!("the release, before {what}"))?;
            begun.action.undo(&*self.cluster.engine, node)?;
            journal.passed(&format!("the release, after {what}"))?;
            journal.undone(&begun)?;
        }
        Ok(())
    }
}
