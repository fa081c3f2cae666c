//! Before a node leaves: everything that it has committed is on every other node.

use super::{Inbound, Removal};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::libpq::wait;
use crate::lsn::{Lsn, Position};
use crate::node::{Node, server};
use crate::run::Journal;
use crate::run::action::{BlockWrites, HoldSubscription, Marker, ReadOnlyBefore};
use crate::settings;
use crate::workflow::hold;
use crate::workflow::markers::{self, Awaited, Workers};
use crate::workflow::members;
use crate::workflow::unfinished::{undecided, unfinished};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What one subscription of a survivor has of a dead node.
#[derive(Clone, PartialEq)]
struct Has {
    node: String,
    part: String,
    applied: Lsn,
    working: bool,
}

impl Removal {
    /// A living node: nobody can write on it from here on, and a marker behind the last write has
    /// arrived everywhere. A session that was open before could write on, so it is ended; one that was
    /// on its way in meanwhile is found in the next round, and ended too. What such a session has prepared anybody
    /// can commit: it is waited for.
    pub fn drain(
        &mut self,
        journal: &mut Journal,
        held: Option<ReadOnlyBefore>,
    ) -> Result<ReadOnlyBefore> {
        let hold = self.block_writes(journal, held)?;
        self.wait_for_starting()?;
        let since = self.leaving_now()?;
        self.end_sessions(&since)?;
        self.wait_for_prepared()?;
        journal.passed("sessions of applications are ended")?;
        let marker = journal.take::<Marker>(self.report.current(), &self.target)?;
        let marker = journal.begin(marker)?;
        loop {
            self.barrier(journal)?;
            let came = self.end_sessions(&since)?;
            if !self.wait_for_prepared()? && came == 0 {
                journal.passed("every other node has all")?;
                journal.done(marker)?;
                return Ok(hold);
            }
        }
    }

    fn leaving(&mut self) -> Result<&mut Node> {
        self.cluster.subject.as_mut().map_err(|error| error.clone())
    }

    fn leaving_now(&mut self) -> Result<String> {
        server::now().one(self.leaving()?)
    }

    fn block_writes(
        &mut self,
        journal: &mut Journal,
        held: Option<ReadOnlyBefore>,
    ) -> Result<ReadOnlyBefore> {
        let phase = self.report.current();
        let target = self.target.clone();
        let leaving = self.leaving()?;
        let hold = match held {
            Some(hold) => hold,
            None => ReadOnlyBefore {
                database: members::identity(leaving)?.database,
                setting: server::database_read_only().first(leaving)?,
            },
        };
        let step = journal.take::<BlockWrites>(phase, &target)?;
        let step = journal.begin_with(step, hold.clone())?;
        server::set_database_read_only(&hold.database, Some("on")).run(leaving)?;
        journal.done(step)?;
        Ok(hold)
    }

    /// Sessions that were being started when the setting was made may not have read it. They have come into view then.
    fn wait_for_starting(&mut self) -> Result<()> {
        let target = self.target.clone();
        let leaving = self.leaving()?;
        let starting = server::starting_sessions();
        let first = starting.on(leaving)?;
        let hint = "See pg_locks on the node for what keeps them.";
        wait_until(&target, "waiting for sessions to start", hint, || {
            let mut left = starting.on(leaving)?;
            left.retain(|pid| first.contains(pid));
            Ok(match left.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending(format!("pid {}", left.join(", "))),
            })
        })
    }

    /// Nothing is prepared on the leaving node any more, since whoever commits it later writes what nobody gets.
    /// Whether something was: a marker from before does not lie behind it.
    fn wait_for_prepared(&mut self) -> Result<bool> {
        let target = self.target.clone();
        let force = self.force;
        let leaving = self.leaving()?;
        let prepared = server::prepared_transactions();
        let open = |gids: &[String]| format!("prepared transaction {}", gids.join(", "));
        let found = prepared.on(leaving)?;
        if found.is_empty() {
            return Ok(false);
        }
        let what = format!("node \"{target}\" has {}", open(&found));
        if force {
            let hint = "Continuing because force is true: what it wrote reaches nobody.";
            self.report.warn(&what, hint);
            return Ok(false);
        }
        let hint = "COMMIT PREPARED or ROLLBACK PREPARED it there.";
        self.report.notice(&format!("{what}: waiting for its end"));
        let leaving = self.leaving()?;
        wait_until(&target, "waiting for prepared transactions", hint, || {
            let left = prepared.on(leaving)?;
            Ok(match left.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending(open(&left)),
            })
        })?;
        Ok(true)
    }

    /// Ends the sessions that were there before `since`, and waits until they are gone. How many there
    /// were.
    fn end_sessions(&mut self, since: &str) -> Result<usize> {
        let own_pid = match self.local_name == self.target {
            true => server::backend_pid().first(&mut self.session.session())?,
            false => None,
        };
        let own_pid = own_pid.unwrap_or_else(|| "0".into());
        let target = self.target.clone();
        let leaving = self.leaving()?;
        let sessions = server::end_sessions_before(since, &own_pid).run(leaving)?;
        if sessions.is_empty() {
            return Ok(0);
        }
        let hint = "See pg_stat_activity on the node for what keeps them.";
        wait_until(&target, "ending the sessions of applications", hint, || {
            let left = server::end_sessions_before(since, &own_pid).run(leaving)?;
            Ok(match left.len() {
                0 => Poll::Ready(()),
                n => Poll::Pending(format!("{n} sessions")),
            })
        })?;
        self.report.notice(&format!(
            "ended {} sessions of applications on node \"{}\": new ones can only read",
            sessions.len(),
            self.target
        ));
        Ok(sessions.len())
    }

    /// A commit behind everything else, seen on every survivor.
    fn barrier(&mut self, journal: &Journal) -> Result<()> {
        let states = self.inbound_states()?;
        let target = self.target.clone();
        let engine = &*self.cluster.engine;
        let markers = markers::emit(engine, &mut self.cluster.subject)?;
        journal.passed("the leaving node's marker is committed")?;
        if !self.force {
            return self.wait_on_survivors(&markers, &states);
        }
        for (survivor, states) in self.cluster.members.iter_mut().zip(&states) {
            // Where there is none, `findings` has said so.
            let paths = Inbound::enabled_paths(states);
            if paths.is_empty() || self.deaf.contains(&survivor.name) {
                continue;
            }
            let mut leaving: Vec<&mut Node> = self.cluster.subject.iter_mut().collect();
            match markers::wait(engine, survivor, &mut leaving, &markers, &paths, &target) {
                Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => return Err(error),
                Err(error) => self.report.warn(
                    &format!(
                        "node \"{}\" may lack what \"{target}\" wrote: {error}",
                        survivor.name
                    ),
                    "Continuing because force is true.",
                ),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// On all at the same time.
    fn wait_on_survivors(
        &mut self,
        markers: &[markers::Marker],
        states: &[Vec<Inbound>],
    ) -> Result<()> {
        let survivors = self.cluster.members.iter().enumerate().zip(states);
        let awaited: Vec<Awaited> = survivors
            .filter(|((_, survivor), _)| !self.deaf.contains(&survivor.name))
            .map(|((node, _), states)| Awaited {
                node,
                inbound: Inbound::enabled_paths(states),
            })
            .collect();
        let leaving = self.cluster.subject.iter_mut();
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().chain(leaving).collect();
        markers::wait_on_all(
            &*self.cluster.engine,
            &mut nodes,
            &awaited,
            markers,
            &self.target,
            Workers::MayBeAway,
        )
    }

    /// A dead node: all survivors have the same of it. One that is still applying what has arrived gets
    /// the time for it.
    pub fn compare_survivors(&mut self) -> Result<()> {
        let limit = settings::connect_timeout();
        let mut rest = Duration::from_millis(1);
        let (mut last, mut since) = (vec![], Instant::now());
        let mut unfinished_from = BTreeMap::new();
        for node in &mut self.cluster.members {
            let from = unfinished(node)?.remove(&self.target);
            unfinished_from.extend(from.map(|lsn| (node.name.clone(), lsn)));
        }
        if self.goes_on_without_progress()? {
            return Ok(());
        }
        loop {
            let have = self.what_survivors_have(&unfinished_from)?;
            let parts: BTreeSet<&str> = have.iter().map(|has| has.part.as_str()).collect();
            let nodes: BTreeSet<&str> = have.iter().map(|has| has.node.as_str()).collect();
            let mut unequal = None;
            for part in parts {
                let have: Vec<&Has> = have.iter().filter(|has| has.part == part).collect();
                if have.len() < nodes.len() {
                    return self.incomparable(part, &have);
                }
                let most = have.iter().map(|has| has.applied).max();
                let behind = |has: &&Has| Some(has.applied) < most;
                if have.iter().any(behind) {
                    let may_move = have.iter().any(|has| behind(has) && has.working);
                    unequal = Some((have, may_move));
                    break;
                }
            }
            let Some((unequal, may_move)) = unequal else {
                return self.require_decided();
            };
            if have != last {
                last.clone_from(&have);
                since = Instant::now();
            }
            if !may_move || since.elapsed() > limit {
                return self.unequal(&unequal);
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// A node that is taken for dead may come back: from here on no survivor applies anything of it. What each has is
    /// compared after that.
    pub fn hold_inbound(&mut self, journal: &mut Journal) -> Result<()> {
        let phase = self.report.current();
        let engine = &*self.cluster.engine;
        for survivor in &mut self.cluster.members {
            let paths = engine.paths(&self.target, &survivor.name);
            while let Some(step) = journal.take_on::<HoldSubscription>(phase, &survivor.name) {
                let path = hold::path_of(&step, &paths)?;
                let step = journal.begin(step)?;
                engine.disable(path).run(survivor)?;
                journal.done(step)?;
            }
        }
        let ending = hold::Ending::of(engine);
        for inbound in self.inbound_states()?.iter().flatten() {
            if inbound.is_enabled() {
                let path = &inbound.path;
                return Err(Error::refused(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} of node \"{}\" was enabled meanwhile",
                        path.subscription, path.subscriber
                    ),
                    "Run the same CALL again.",
                ));
            }
        }
        for survivor in &mut self.cluster.members {
            ending.wait(survivor)?;
        }
        journal.passed("nobody applies anything of it any more")
    }

    /// Whether a survivor does not know what it has of the dead node, and the removal is forced in spite of it. An error
    /// where it is not forced.
    fn goes_on_without_progress(&mut self) -> Result<bool> {
        let states = self.inbound_states()?;
        let unknown = states.iter().flatten().find_map(|Inbound { path, state }| {
            let state = state.as_ref()?;
            state.unknown_progress(&path.subscriber, &self.target)
        });
        let Some(unknown) = unknown else {
            return Ok(false);
        };
        self.refuse_unless_forced(
            unknown,
            "SELECT * FROM spock.verify_nodes() tells where the survivors differ. Make them equal by hand, then go on with force := true.",
        )?;
        Ok(true)
    }

    /// How far each subscription of a survivor to the dead node has been applied.
    fn what_survivors_have(&mut self, unfinished_from: &BTreeMap<String, Lsn>) -> Result<Vec<Has>> {
        let states = self.inbound_states()?;
        // Where each has one, what it takes makes no difference to how far it is.
        let single = states.iter().all(|inbound| inbound.len() <= 1);
        let mut have = vec![];
        for (node, inbound) in self.cluster.members.iter().zip(&states) {
            for Inbound { path, state } in inbound {
                let Some(state) = state else { continue };
                let applied = state.progress();
                let from = unfinished_from.get(&node.name);
                have.push(Has {
                    node: node.name.clone(),
                    part: match single {
                        true => String::new(),
                        false => self.cluster.engine.part(path),
                    },
                    applied: from.map_or(applied, |from| applied.min(*from)),
                    working: state.working,
                });
            }
        }
        Ok(have)
    }

    /// Whether the run goes on although `message`, which is a WARNING then.
    fn is_forced(&self, message: &str) -> bool {
        if self.force {
            self.report
                .warn(message, "Continuing because force is true.");
        }
        self.force
    }

    /// An error, unless the run is forced.
    fn refuse_unless_forced(&self, message: String, hint: impl Into<String>) -> Result<()> {
        if self.is_forced(&message) {
            return Ok(());
        }
        let state = SqlState::NOT_IN_PREREQUISITE_STATE;
        Err(Error::refused(state, message, hint))
    }

    /// No survivor has rows that a recovery from the loss of the dead node left alone while another member was away.
    fn require_decided(&mut self) -> Result<()> {
        let undecided = undecided(&mut self.cluster.members, &self.target)?;
        let Some(name) = undecided.first() else {
            return Ok(());
        };
        self.refuse_unless_forced(
            format!(
                "a recovery from the loss of \"{}\" left rows of node \"{name}\" alone while a member was away",
                self.target
            ),
            format!(
                "When all members are there, CALL spock.recover_run({}) decides them. With force := true they stay as they are.",
                crate::quote::literal(&self.target)
            ),
        )
    }

    /// Some survivors take a part of what the dead node sent by itself, others among more.
    fn incomparable(&self, part: &str, have: &[&Has]) -> Result<()> {
        let names: Vec<String> = have.iter().map(|has| format!("\"{}\"", has.node)).collect();
        self.refuse_unless_forced(
            format!(
                "node {} has a subscription to \"{}\" that takes the replication sets {part}, and not every other node has one, so it is unknown whether all have the same of it",
                names.join(" and node "),
                self.target
            ),
            "Go on with force := true. Then SELECT * FROM spock.verify_nodes() tells whether the other nodes are the same.",
        )
    }

    fn unequal(&self, have: &[&Has]) -> Result<()> {
        let most = have.iter().map(|has| has.applied).max();
        let (ahead, behind): (Vec<&&Has>, Vec<&&Has>) =
            have.iter().partition(|has| Some(has.applied) == most);
        let source = ahead.first().map_or("", |has| &has.node);
        let lines: Vec<String> = have
            .iter()
            .map(|has| {
                let position = Position::new(&self.target, has.applied);
                format!("Node \"{}\" has applied it up to {position}.", has.node)
            })
            .collect();
        let names: Vec<String> = behind
            .iter()
            .map(|has| format!("\"{}\"", has.node))
            .collect();
        let message = format!(
            "node {} lacks transactions of \"{}\" that node \"{source}\" has",
            names.join(" and node "),
            self.target
        );
        if self.is_forced(&message) {
            return Ok(());
        }
        Err(Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message,
            detail: Some(lines.join("\n")),
            hint: format!(
                "Bring them over first: CALL spock.recover_run(failed_node_name := {}, source_node_name := {}, ...). Or give them up with force := true.",
                crate::quote::literal(&self.target),
                crate::quote::literal(source)
            ),
        })
    }
}
