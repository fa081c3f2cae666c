//! Who has what of the failed node, and who can give it to whom.

use super::{MissingRange, Recovery, Request, members};
use crate::engine::{Path, SubscriptionState};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, wait};
use crate::lsn::{Lsn, Position};
use crate::node::{Member, Mode, Node, ask_each, server};
use crate::settings;
use crate::workflow::clocks;
use crate::workflow::cluster::{Cluster, Locking};
use crate::workflow::liveness::{SlotReader, still_reads};
use crate::workflow::lost_wal::LostWal;
use crate::workflow::membership::reach;
use crate::workflow::report::Report;
use crate::workflow::unfinished::{undecided, unfinished};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A worker that has been connected for this long is.
const CONNECTED: Duration = Duration::from_secs(2);

/// What the node has to be that a call is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    Dead,
    /// It may have come back.
    Member,
    /// It may have been removed, too.
    Anybody,
}

impl Recovery {
    pub fn connect(session: Mode, request: Request, report: Report) -> Result<Self> {
        Self::connect_for(session, request, report, Failed::Dead)
    }

    pub fn connect_for(
        session: Mode,
        request: Request,
        report: Report,
        whose: Failed,
    ) -> Result<Self> {
        let (engine, mut me) =
            members::own_node(&session, "Run it in the database of a survivor.")?;
        let local_name = me.name.clone();
        let mut reached = reach(&*engine, &mut me, Some(&request.failed))?;
        reached.require_own(&*engine, &mut me, session.changes())?;
        reached.set_apart(&*engine, &mut me, false)?;
        let (failed, others): (Vec<Member>, Vec<Member>) = reached
            .survey
            .members
            .into_iter()
            .partition(|m| m.name == request.failed);
        let removed = (whose == Failed::Anybody).then(|| Member {
            name: request.failed.clone(),
            dsn: Dsn::nowhere(),
        });
        let Some(failed) = failed.into_iter().next().or(removed) else {
            let names: Vec<&str> = others.iter().map(|m| m.name.as_str()).collect();
            return Err(Error::Argument {
                argument: "failed_node_name",
                problem: format!(
                    "is \"{}\", which is not a node of this cluster",
                    request.failed
                ),
                hint: format!("The nodes are: {}.", names.join(", ")),
                state: SqlState::UNDEFINED_OBJECT,
            });
        };
        if local_name == request.failed {
            return Err(Error::Argument {
                argument: "failed_node_name",
                problem: "is the node that the CALL runs on".into(),
                hint: "Run it on a survivor.".into(),
                state: SqlState::INVALID_PARAMETER_VALUE,
            });
        }
        let given = |name: &str| {
            let named = [
                (&request.source, &request.source_dsn),
                (&request.target, &request.target_dsn),
            ];
            let found = named
                .into_iter()
                .find(|(n, _)| n.as_deref() == Some(name))?;
            Some(found.1.clone())
        };
        let (mut survivors, mut unreachable) = (vec![], vec![]);
        for (member, answer) in reached.answers {
            let named = given(&member.name);
            let answer = match named.clone().flatten() {
                Some(dsn) => members::own_session(&Member {
                    name: member.name.clone(),
                    dsn,
                }),
                None => answer,
            };
            match answer {
                Ok(node) => survivors.push(node),
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(error) if named.is_some() || member.name == local_name => return Err(error),
                Err(error) => {
                    report.warn(
                        &format!("node \"{}\" is left out: {error}", member.name),
                        "Run the CALL again when it can be reached.",
                    );
                    unreachable.push((member, error));
                }
            }
        }
        for node in &mut survivors {
            if engine.local_name(node)?.as_ref() != Some(&node.name) {
                return Err(Error::refused(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!(
                        "the connection string of node \"{}\" does not lead to that node",
                        node.name
                    ),
                    "Correct source_dsn or target_dsn, or leave them null.",
                ));
            }
        }
        let mut cluster = Cluster {
            engine,
            members: survivors,
            unreachable,
            registry: reached.registry,
            confirmed: reached.confirmed,
            subject: failed.clone(),
        };
        let locking = Locking::of(&session, format!("recover_run {}", failed.name));
        cluster.lock(Some(&mut me), &reached.own, &locking, &[failed])?;
        let clocks = clocks::read(&mut cluster.members)?;
        let mut recovery = Self {
            clocks_apart: clocks::spread(&clocks),
            cluster,
            session,
            local_name,
            report,
            request,
            done: Default::default(),
        };
        let mut check = clocks::begin_check();
        clocks::check(&clocks, &mut check);
        for outcome in check.outcomes() {
            recovery.report.warn_of(&outcome);
        }
        if whose == Failed::Dead {
            recovery.refuse_living()?;
        }
        Ok(recovery)
    }

    /// A node that lives has sent what it has to send, or will: bringing it over too would race it.
    pub fn refuse_living(&mut self) -> Result<()> {
        if self.request.force {
            return Ok(());
        }
        let failed = self.cluster.subject.clone();
        let mut hint = "Stop its server, or mend its subscriptions instead. With force := true it is treated as dead.".to_owned();
        for node in &mut self.cluster.members {
            let comparison = server::unfinished_comparison(&failed.name);
            if comparison.first(node)?.is_some() {
                hint = super::stay_away(&failed.name, &node.name);
            } else if unfinished(node)?.contains_key(&failed.name) {
                hint = format!(
                    "An interrupted recovery of it holds the recovery slots: CALL spock.recover_run({}, force := true) comes to its end, also beside the node.",
                    crate::quote::literal(&failed.name)
                );
            }
        }
        let refused = |why: String| {
            Err(Error::refused(
                SqlState::OBJECT_IN_USE,
                format!("node \"{}\" is alive: {why}", failed.name),
                hint.as_str(),
            ))
        };
        match members::connect_each(std::slice::from_ref(&failed)).pop() {
            Some(Ok(mut node)) => {
                return match self.lost_wal(&mut node)? {
                    Some(lost) => Err(Error::refused(
                        SqlState::OBJECT_IN_USE,
                        format!(
                            "node \"{}\" is alive, but not what it was: node \"{}\": {}",
                            failed.name, lost.node, lost.message
                        ),
                        lost.hint,
                    )),
                    None => refused("it answers".into()),
                };
            }
            Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
            Some(Err(error)) if error.is_of_a_server() => {
                return refused(format!("it answers: {error}"));
            }
            _ => {}
        }
        if let Some(name) = self.still_connected(&failed.name, true)?.first() {
            return refused(format!("node \"{name}\" is connected to it"));
        }
        match still_reads(
            &*self.cluster.engine,
            &mut self.cluster.members,
            &failed.name,
        )? {
            Some(SlotReader { provider, slot }) => refused(format!(
                "it streams from slot {slot} of node \"{provider}\""
            )),
            None => Ok(()),
        }
    }

    /// What a survivor has of the failed node, and that one has not any more.
    fn lost_wal(&mut self, failed: &mut Node) -> Result<Option<Finding>> {
        // In this order: what has been applied had been flushed before.
        let states = self.inbound(&failed.name)?;
        let end = server::wal_flushed().one(failed)?;
        let mut inbound = states.iter().flatten();
        let lost = inbound.find_map(|i| LostWal::find(&i.path, Some(&i.state), end));
        Ok(lost.map(|lost| lost.finding()))
    }

    /// To make the survivors equal does not help a node that was put back to an earlier state.
    pub fn warn_of_lost_wal(&mut self) -> Result<()> {
        let failed = self.cluster.subject.clone();
        match members::connect_each(std::slice::from_ref(&failed)).pop() {
            Some(Ok(mut node)) => {
                if let Some(lost) = self.lost_wal(&mut node)? {
                    let what = format!("node \"{}\": {}", lost.node, lost.message);
                    self.report.warn(&what, &lost.hint);
                }
                Ok(())
            }
            Some(Err(error @ Error::Interrupted { .. })) => Err(error),
            // It is as dead as it is said to be.
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// A comparison that came to its end but for the note of it: the node has as much as any other. What has a note of
    /// a replay is looked at by [`Self::plan`].
    pub fn forget_finished(&mut self) -> Result<()> {
        let failed = self.request.failed.clone();
        let states = self.inbound(&failed)?;
        // Nobody can be said to have all then.
        if unknown_progress(&states, &failed).is_some() {
            return Ok(());
        }
        let mut most: BTreeMap<&str, Lsn> = BTreeMap::new();
        for inbound in states.iter().flatten() {
            let most = most.entry(&inbound.part).or_insert(Lsn::ZERO);
            *most = (*most).max(inbound.applied());
        }
        for (node, states) in self.cluster.members.iter_mut().zip(&states) {
            let has_all = |i: &Inbound| most.get(i.part.as_str()) == Some(&i.applied());
            if !states.is_empty()
                && states.iter().all(has_all)
                && !unfinished(node)?.contains_key(&failed)
            {
                server::forget_unfinished(&failed).run(node)?;
            }
        }
        Ok(())
    }

    /// Each survivor's subscriptions to `provider`.
    pub fn inbound(&mut self, provider: &str) -> Result<Vec<Vec<Inbound>>> {
        let engine = &*self.cluster.engine;
        let answers = ask_each(&mut self.cluster.members, |_| engine.subscriptions())?;
        self.cluster
            .members
            .iter()
            .zip(&answers)
            .map(|(node, states)| {
                let paths = engine.paths(provider, &node.name);
                let several = paths.len() > 1;
                let of = |path: Path| {
                    let state = states.iter().find(|s| s.name == path.subscription)?.clone();
                    let part = match several {
                        true => engine.part(&path),
                        false => String::new(),
                    };
                    Some(Inbound { path, part, state })
                };
                Ok(paths.into_iter().filter_map(of).collect())
            })
            .collect()
    }

    /// Waits until no survivor is applying what had arrived from `provider`: its worker was seen to be gone, if
    /// only between two tries to connect. Those that stay connected are the answer. `to_the_end` waits as long
    /// as they get on with it.
    pub fn still_connected(&mut self, provider: &str, to_the_end: bool) -> Result<Vec<String>> {
        let limit = match to_the_end {
            true => settings::connect_timeout(),
            false => settings::connect_timeout().min(CONNECTED),
        };
        let mut rest = Duration::from_millis(1);
        let (mut last, mut since) = (vec![], Instant::now());
        // By subscriber and subscription.
        let mut seen_gone = BTreeSet::new();
        loop {
            let states = self.inbound(provider)?;
            let ended = states.iter().flatten().filter(|s| !s.state.working);
            seen_gone.extend(ended.map(|s| (s.path.subscriber.clone(), s.state.name.clone())));
            let gone = states.iter().map(|states| {
                states
                    .iter()
                    .all(|s| seen_gone.contains(&(s.path.subscriber.clone(), s.state.name.clone())))
            });
            let gone: Vec<bool> = gone.collect();
            let now: Vec<_> = states.iter().flatten().map(|s| s.state.applied).collect();
            if now != last && to_the_end {
                last = now;
                since = Instant::now();
            }
            if gone.iter().all(|gone| *gone) || since.elapsed() > limit {
                let connected = self
                    .cluster
                    .members
                    .iter()
                    .zip(&gone)
                    .filter(|(_, gone)| !**gone);
                return Ok(connected.map(|(node, _)| node.name.clone()).collect());
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// What is to be repaired, from whom to whom.
    pub fn plan(&mut self) -> Result<Vec<MissingRange>> {
        let failed = self.request.failed.clone();
        let states = self.inbound(&failed)?;
        if let Some(unknown) = unknown_progress(&states, &failed) {
            return Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                unknown,
                format!(
                    "SELECT * FROM spock.verify_nodes() tells where the survivors differ. Make them equal by hand, then CALL spock.remove_node({}, force := true).",
                    crate::quote::literal(&failed)
                ),
            ));
        }
        if states.iter().any(|states| states.len() > 1) {
            return self.plan_of_several(states);
        }
        let undecided = undecided(&mut self.cluster.members, &failed)?;
        let mut have = vec![];
        let mut unfinished_from = BTreeMap::new();
        for (node, states) in self.cluster.members.iter_mut().zip(states) {
            let Some(inbound) = states.into_iter().next() else {
                continue;
            };
            let lsn = inbound.applied();
            let from = unfinished(node)?.remove(&self.request.failed);
            unfinished_from.extend(from.map(|from| (node.name.clone(), from)));
            let position = Position::new(&self.request.failed, lsn);
            self.report.step(&format!(
                "node \"{}\" has applied it up to {position}",
                node.name
            ));
            have.push((node.name.clone(), lsn));
        }
        let of = |name: &str| have.iter().find(|(n, _)| n == name).map(|(_, lsn)| *lsn);
        let unsubscribed = |name: &str| {
            Error::refused(
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "node \"{name}\" has no subscription from \"{}\", so it is unknown what it has of it",
                    self.request.failed
                ),
                "Name another node.",
            )
        };
        let (source, has) = match &self.request.source {
            Some(name) => {
                self.cluster
                    .members
                    .iter()
                    .find(|n| n.name == *name)
                    .ok_or_else(|| unknown("source_node_name", name))?;
                (name.clone(), of(name).ok_or_else(|| unsubscribed(name))?)
            }
            // Of those that have most rather one that has all that belongs to it.
            None => have
                .iter()
                .max_by_key(|(name, lsn)| {
                    let whole = !unfinished_from.contains_key(name) && !undecided.contains(name);
                    (*lsn, whole)
                })
                .cloned()
                .ok_or_else(|| unsubscribed(&self.request.failed))?,
        };
        let mut targets: Vec<(String, Lsn)> = match &self.request.target {
            Some(name) if *name == source => {
                return Err(Error::Argument {
                    argument: "target_node_name",
                    problem: format!("is the source, \"{name}\""),
                    hint: "Name the node that lacks something.".into(),
                    state: SqlState::INVALID_PARAMETER_VALUE,
                });
            }
            Some(name) => {
                if !self.cluster.members.iter().any(|n| n.name == *name) {
                    return Err(unknown("target_node_name", name));
                }
                vec![(name.clone(), of(name).ok_or_else(|| unsubscribed(name))?)]
            }
            None => have.clone(),
        };
        targets.retain(|(name, lsn)| {
            let again = || unfinished_from.contains_key(name) || undecided.contains(name);
            *name != source && (*lsn < has || *lsn == has && again())
        });
        let mut missing_ranges = vec![];
        for (target, lsn) in targets {
            let unfinished = unfinished_from.get(&target).copied();
            let undecided = undecided.contains(&target);
            missing_ranges.push(self.missing(&source, has, target, lsn, unfinished, undecided)?);
        }
        Ok(missing_ranges)
    }

    /// What `target` lacks, which has got it up to `lsn`, and may not have all that belongs to what it got in
    /// a recovery that began at `unfinished`, or in one that has left something `undecided`.
    fn missing(
        &self,
        source: &str,
        has: Lsn,
        target: String,
        lsn: Lsn,
        unfinished: Option<Lsn>,
        undecided: bool,
    ) -> Result<MissingRange> {
        let position = |lsn| Position::new(&self.request.failed, lsn);
        let wrong = |argument, problem: String, hint: &str| {
            Err(Error::Argument {
                argument,
                problem,
                hint: hint.into(),
                state: SqlState::INVALID_PARAMETER_VALUE,
            })
        };
        if let Some(skip) = self.request.skip_lsn
            && skip < lsn
        {
            return wrong(
                "skip_lsn",
                format!(
                    "is {skip}, but node \"{target}\" has applied up to {lsn} already, and would get it twice"
                ),
                "Leave it null, or give a later position of the failed node.",
            );
        }
        let from = self.request.skip_lsn.unwrap_or(lsn);
        let to = self.request.stop_lsn.unwrap_or(has);
        if to > has {
            return wrong(
                "stop_lsn",
                format!("is {to}, but node \"{source}\" has only up to {has}"),
                "Leave it null for all that the source has.",
            );
        }
        let again = unfinished.is_some() || undecided;
        if to <= from && !(to == from && again) {
            return wrong(
                "stop_lsn",
                format!("is {to}, which is not after {from}, from where on something is missing"),
                "Leave it null for all that the source has.",
            );
        }
        Ok(MissingRange {
            source: source.to_owned(),
            target,
            since: position(unfinished.map_or(from, |since| since.min(from))),
            from: position(from),
            to: position(to),
            whole: to == has && self.request.stop_timestamp.is_none(),
            undecided,
            streams: vec![],
            all_streams: true,
        })
    }
}

/// A subscription of a survivor.
pub struct Inbound {
    pub path: Path,
    /// What it takes, where there are several.
    pub part: String,
    pub state: SubscriptionState,
}

impl Inbound {
    pub fn applied(&self) -> Lsn {
        self.state.progress()
    }
}

pub fn unknown(argument: &'static str, name: &str) -> Error {
    Error::Argument {
        argument,
        problem: format!("is \"{name}\", which is not a survivor that can be reached"),
        hint: "See spock.node or zodan.node.".into(),
        state: SqlState::UNDEFINED_OBJECT,
    }
}

/// Why it is not known what some survivor has applied of `provider`, if it is not.
fn unknown_progress(states: &[Vec<Inbound>], provider: &str) -> Option<String> {
    states.iter().flatten().find_map(|inbound| {
        let subscriber = &inbound.path.subscriber;
        inbound.state.unknown_progress(subscriber, provider)
    })
}
