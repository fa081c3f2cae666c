//! A node leaves: what it wrote is on every other node first, then nothing of it remains on them.

mod detach;
mod drain;
mod former_member;
mod half_added;
mod obstacles;
mod pending_cleanup;
mod target;

use super::cluster::{Cluster, Leaving};
use super::hold;
use super::liveness::{SlotReader, still_reads};
use super::membership::{Quorum, no_majority};
use super::plan::{Planned, refuse_interrupted_join};
use super::recover::open_runs::{self, Open};
use super::report::{self, Report};
use super::summary;
use super::undo::Undo;
use crate::engine::{Path, SubscriptionState};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, wait};
use crate::node::{Local, Mode, Node, Reader, ask_each, server};
use crate::run::action::{BlockWrites, Detach, DropNode, HoldSubscription, Marker, ReadOnlyBefore};
use crate::run::{Act, Action, Command, Interrupted, Journal, Plan, RunHeader, RunState};
use crate::settings;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use target::Target;

const COMMAND: Command = Command::RemoveNode;
const PHASES: usize = 5;
/// The phase that waits for the others to have all.
const DRAIN_PHASE: usize = 3;
/// The phase from which on a removal is gone on with, not taken back.
const DETACH_PHASE: usize = 4;

/// The arguments of the CALL.
pub struct Request {
    pub target: String,
    pub target_dsn: Option<Dsn>,
    pub verbose: bool,
    pub force: bool,
}

/// Removes `request.target` from the cluster that the database of this session is in.
pub fn remove_node(local: Local, request: Request) -> Result<()> {
    let begun = Instant::now();
    let subject = report::ReportHeader {
        command: COMMAND.name(),
        node: &request.target,
        phases: PHASES,
        long_phase: DRAIN_PHASE,
    };
    let mut report = Report::new(&subject, request.verbose);
    report.phase(&format!(
        "lock the membership of the cluster that \"{}\" leaves",
        request.target
    ));
    match Target::classify(Mode::Execute(local.clone()), &request, report)? {
        Target::Member(mut removal) => removal.run(&local, begun),
        Target::HalfAdded(mut removal) => removal.remove_half_added(),
        Target::HalfAddedLocally(half_added) => half_added.take_back(),
        Target::FormerMember(former_member) => former_member.end_membership(),
        Target::PendingCleanup(mut removal) => removal.clean_up_pending(),
        Target::Gone(removal) => removal.end_gone(),
        Target::GoneHere(former_node) => former_node.end_removal(),
    }
}

/// What [`remove_node`] would do; nothing is changed.
pub fn plan(reader: &Reader, request: &Request) -> Result<Vec<Planned>> {
    let mode = Mode::DryRun(reader.clone());
    refuse_interrupted_join(&mode)?;
    let what = match Target::classify(mode, request, Report::silent())? {
        Target::Member(mut removal) => {
            let earlier = removal.earlier_runs()?;
            let resumed = earlier.iter().any(|e| e.detached);
            removal.check(&earlier)?;
            if removal.cluster.subject.is_err() && !resumed {
                removal.compare_survivors()?;
            }
            let times = removal.times_removed(&earlier);
            let steps = removal.steps(times)?;
            return Ok(steps.into_iter().map(Planned::from).collect());
        }
        Target::FormerMember(former_member) => return Err(former_member.refuse_plan()),
        Target::HalfAdded(_) | Target::HalfAddedLocally(_) => {
            "was half added: the CALL takes back what its join did"
        }
        Target::PendingCleanup(_) => "has left: the CALL has those forget it that were down then",
        Target::Gone(_) | Target::GoneHere(_) => "has left already",
    };
    Err(Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!("node \"{}\" {what}", request.target),
        "That is not planned: run CALL spock.remove_node.",
    ))
}

struct Removal {
    /// The other members, and the leaving node. The member that the CALL runs on comes first, if it stays.
    cluster: Cluster<Leaving>,
    session: Mode,
    report: Report,
    target: String,
    force: bool,
    /// The member that the CALL runs on.
    local_name: String,
    /// The survivors that have it in their registry.
    known_to: Vec<String>,
    /// A member that had been away has done the pending cleanup of the target.
    forgotten_late: bool,
    /// The leaving node lacks what survivors have of it.
    went_back: bool,
    /// Survivors that do not get what the leaving node writes, which has been told.
    deaf: BTreeSet<String>,
}

impl Removal {
    fn run(&mut self, local: &Local, begun: Instant) -> Result<()> {
        let earlier = self.earlier_runs()?;
        self.let_go_again(&earlier)?;
        self.let_go_of_recoveries()?;
        self.report
            .phase(&format!("check that \"{}\" can leave", self.target));
        let resumed = earlier.iter().any(|e| e.detached);
        self.check(&earlier)?;
        let times = self.times_removed(&earlier);
        let steps = self.steps(times)?;
        let mut journal = Journal::open(
            local,
            &RunHeader {
                command: COMMAND,
                engine: self.cluster.engine.label(),
                source: &self.local_name,
                source_dsn: "",
                node: &self.target,
            },
            steps,
        )?;
        let held = earlier.into_iter().find_map(|e| e.hold);
        let hold = match self.before_detaching(&mut journal, held, resumed) {
            Ok(hold) => hold,
            Err(first) => return Err(self.take_back(&journal, first)),
        };
        let ended = self
            .detach(&mut journal, hold.as_ref(), times)
            .and_then(|()| journal.passed("the node is detached"))
            .and_then(|()| journal.finish())
            .and_then(|()| self.end_earlier_runs());
        if let Err(first) = ended {
            // If that cannot be written either, the run stays without an end, which is the same.
            let _ = journal.end(RunState::Failed, Some(&first));
            return Err(Error::Unfinished {
                first: Box::new(first),
                hint: "Run the same CALL again: it goes on where this one ended.".into(),
            });
        }
        self.report.finished();
        // It has left, whatever can be told of the others.
        let away = self.cluster.unreachable_names();
        let mut all: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        if let Err(error) = summary::show(&*self.cluster.engine, &mut all, &away, &self.report) {
            let what = format!("the other nodes could not be listed: {error}");
            self.report.warn(&what, "Look after them.");
        }
        let left = self.cluster.members.len() + self.cluster.unreachable.len();
        if self.cluster.subject.is_ok() {
            self.report.notice(&format!(
                "node \"{}\" is now standalone: its data is kept, and new writes are not replicated",
                self.target
            ));
        }
        self.report.notice(&format!(
            "node \"{}\" has left: {left} node{} remain{}, {:.1} s",
            self.target,
            if left == 1 { "" } else { "s" },
            if left == 1 { "s" } else { "" },
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Nobody could end them when the node that they are about is gone.
    fn let_go_of_recoveries(&mut self) -> Result<()> {
        let (session, local_name) = (self.session.clone(), self.local_name.clone());
        open_runs::let_go(
            &*self.cluster.engine,
            &session,
            &local_name,
            &mut self.cluster.members,
            &self.report,
            Open::Finalized,
            Some(&self.target),
        )
    }

    fn check(&mut self, earlier: &[Earlier]) -> Result<()> {
        let resumed = earlier.iter().any(|e| e.detached);
        // It is here to cease to be a node, or did so in an earlier run.
        let ceased = earlier.iter().any(|e| e.detached && e.hold.is_some());
        let torn = self.quorum(self.cluster.subject.is_ok() || ceased)?;
        if !resumed {
            self.refuse_reader()?;
            self.refuse_strangers()?;
        }
        let mut findings = self.findings(resumed)?;
        findings.extend(torn);
        if !self.force && !findings.is_empty() {
            return Err(Error::Checks(findings));
        }
        for finding in &findings {
            let what = format!("node \"{}\": {}", finding.node, finding.message);
            self.report.warn(&what, "Continuing because force is true.");
        }
        self.warn_of_writers()
    }

    /// What `force` does not help against: the node could not cease to be one, or takes away what others wait for.
    fn refuse_strangers(&mut self) -> Result<()> {
        let mut members: Vec<String> = self
            .cluster
            .members
            .iter()
            .map(|n| n.name.clone())
            .collect();
        members.extend(self.cluster.unreachable_names());
        let Ok(leaving) = &mut self.cluster.subject else {
            return Ok(());
        };
        if server::is_standby().one(leaving)? {
            return Err(Error::Checks(vec![Finding::new(
                &self.target,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                "the server is a standby",
                "Wait for the end of its promotion, or give a target_node_dsn that leads to the primary.",
            )]));
        }
        if self.cluster.engine.local_name(leaving)?.is_none() {
            return Ok(());
        }
        match self
            .cluster
            .engine
            .links_to_non_members(leaving, &members)?
        {
            found if found.is_empty() => Ok(()),
            found => Err(Error::Checks(found)),
        }
    }

    /// What an interrupted run held and did not detach is as it was before.
    fn let_go_again(&mut self, earlier: &[Earlier]) -> Result<()> {
        for (node, hold) in earlier
            .iter()
            .filter(|e| !e.detached)
            .flat_map(|e| &e.held_back)
        {
            if let Some(survivor) = self.cluster.members.iter_mut().find(|n| n.name == *node) {
                match hold.undo(&*self.cluster.engine, survivor) {
                    Err(error) if error.is_undefined() => {}
                    answer => answer?,
                }
            }
        }
        Ok(())
    }

    /// What is going to be done, in the order of the journal.
    fn steps(&mut self, times_removed: Option<u32>) -> Result<Plan> {
        let mut plan = Plan::default();
        if self.cluster.subject.is_ok() {
            plan.add(DRAIN_PHASE, &self.target, BlockWrites::default());
            plan.add(DRAIN_PHASE, &self.target, Marker {});
        } else {
            let states = self.inbound_states()?;
            let enabled = states
                .iter()
                .flatten()
                .filter(|inbound| inbound.is_enabled());
            for Inbound { path, .. } in enabled {
                let hold = hold::action(&*self.cluster.engine, path);
                plan.add(DRAIN_PHASE, &path.subscriber, hold);
            }
        }
        for survivor in &self.cluster.members {
            let detach = Detach {
                node: self.target.clone(),
                times_removed,
            };
            plan.add(DETACH_PHASE, &survivor.name, detach);
        }
        if self.cluster.subject.is_ok() {
            plan.add(DETACH_PHASE, &self.target, DropNode {});
        }
        Ok(plan)
    }

    /// How often nodes of the name have been removed then, where the engine counts that.
    fn times_removed(&self, earlier: &[Earlier]) -> Option<u32> {
        let counted = earlier.iter().filter_map(|e| e.times_removed).max();
        self.cluster.engine.times_removed(&self.target, counted)
    }

    fn before_detaching(
        &mut self,
        journal: &mut Journal,
        held: Option<ReadOnlyBefore>,
        resumed: bool,
    ) -> Result<Option<ReadOnlyBefore>> {
        journal.passed("the run is written down")?;
        if self.cluster.subject.is_ok() {
            self.report.phase(&format!(
                "block writes on \"{}\" and wait until every other node has them",
                self.target
            ));
            let hold = self.drain(journal, held)?;
            if self.went_back {
                self.compare_survivors()?;
            }
            return Ok(Some(hold));
        }
        self.report.phase(&format!(
            "compare what the other nodes have of \"{}\"",
            self.target
        ));
        // One that is still applying what had arrived gets the time for it first.
        if !resumed {
            self.compare_survivors()?;
            journal.passed("the survivors are compared")?;
        }
        self.hold_inbound(journal)?;
        if !resumed {
            self.compare_survivors()?;
        }
        Ok(None)
    }

    /// Undoes what was done before the first detaching and returns the error to raise.
    fn take_back(&mut self, journal: &Journal, first: Error) -> Error {
        let undo = Undo {
            engine: &*self.cluster.engine,
            journal,
            subject: &self.target,
            name_taken: false,
        };
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        nodes.extend(&mut self.cluster.subject);
        undo.give_up(first, &mut nodes)
    }

    /// Whether enough members are here to take one out. With half of them there may be two halves that each take
    /// the other for dead: only who knows better goes on.
    fn quorum(&self, target_knows: bool) -> Result<Option<Finding>> {
        let Some(registry) = self
            .cluster
            .registry
            .as_ref()
            .filter(|r| r.has(&self.target))
        else {
            return Ok(None);
        };
        let members = registry.size();
        let reached = self.cluster.confirmed.len() + usize::from(target_knows);
        let away = self
            .cluster
            .unreachable
            .iter()
            .map(|(member, error)| (&member.name, error));
        let target = self.cluster.subject.as_ref().err();
        let target = target.map(|error| (&self.target, error));
        let quorum = Quorum::of(reached, members);
        if quorum == Quorum::Majority {
            return Ok(None);
        }
        let torn = no_majority(reached, members, away.chain(target));
        if !settings::require_majority() {
            self.report.warn(
                &torn.to_string(),
                "zodan.require_majority is off. If the unreachable nodes are alive, the cluster is now split.",
            );
            return Ok(None);
        }
        if quorum == Quorum::Half && !target_knows {
            return Ok(Some(Finding::new(
                &self.local_name,
                torn.sqlstate(),
                torn.to_string(),
                "Make the others reachable and run the CALL again. Only if they are dead: with force := true half of the members are enough.",
            )));
        }
        Err(torn)
    }

    /// What stands in the way of an exact removal.
    fn findings(&mut self, resumed: bool) -> Result<Vec<Finding>> {
        let mut findings = vec![];
        let later = match self.cluster.engine.registry() {
            Some(_) => "its cleanup is kept for later",
            None => "the statements that it needs later are told",
        };
        for (member, error) in &self.cluster.unreachable {
            findings.push(Finding::new(
                &member.name,
                error.sqlstate(),
                format!("it cannot be reached, so it is unknown whether it has all changes of \"{}\": {error}", self.target),
                format!("Make it reachable and run the CALL again. With force := true it is left out, and {later}."),
            ));
        }
        let unreachable = self.cluster.subject.as_ref().err().cloned();
        if let Some(error) = &unreachable
            && error.is_of_a_server()
            && !resumed
        {
            findings.push(Finding::new(
                &self.target,
                SqlState::OBJECT_IN_USE,
                format!("it answers, so it is not dead, and what the others have not had of it yet would be lost: {error}"),
                "Make it reachable, or stop its server if it is to be given up. With force := true it is removed as it is.",
            ));
        }
        if let Some(unreachable) = &unreachable
            && !resumed
            && let Some(reader) = still_reads(
                &*self.cluster.engine,
                &mut self.cluster.members,
                &self.target,
            )?
        {
            findings.push(Finding::new(
                &reader.provider,
                SqlState::OBJECT_IN_USE,
                format!(
                    "node \"{}\" streams from slot {} of it, so it is not dead, and cannot be reached from here: {}",
                    self.target,
                    reader.slot,
                    unreachable
                ),
                format!("{} With force := true it is removed as it is.", SlotReader::HINT),
            ));
        }
        let connected = self.still_connected()?;
        let states = self.inbound_states()?;
        for (survivor, states) in self.cluster.members.iter().zip(&states) {
            if !self.known_to.contains(&survivor.name) || resumed {
                continue;
            }
            if let Some(unreachable) = &unreachable
                && connected.contains(&survivor.name)
            {
                findings.push(Finding::new(
                    &survivor.name,
                    SqlState::OBJECT_IN_USE,
                    format!(
                        "it is connected to node \"{}\", which cannot be reached from here: {}",
                        self.target,
                        unreachable
                    ),
                    "Give a target_node_dsn by which it can be reached from here. If it is dead, wait until the others have noticed.",
                ));
                continue;
            }
            for Inbound { path, state } in states {
                let trouble = match (state, &self.cluster.subject) {
                    (None, _) => "does not exist",
                    (Some(s), Ok(_)) if !s.enabled => "is disabled",
                    _ => continue,
                };
                findings.push(Finding::new(
                    &survivor.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("subscription {} {trouble}, so what \"{}\" wrote may be missing there", path.subscription, self.target),
                    "Make the subscription replicate and run the CALL again, or give up what is missing with force := true.",
                ));
            }
        }
        if !resumed {
            findings.extend(self.lost_wal(&states)?);
            findings.extend(self.not_connected(&states)?);
            findings.extend(self.waited_for_by_commits()?);
        }
        if let Ok(leaving) = &mut self.cluster.subject {
            for gid in server::prepared_transactions().on(leaving)? {
                findings.push(Finding::new(
                    &self.target,
                    SqlState::OBJECT_IN_USE,
                    format!("prepared transaction {gid} is open"),
                    "COMMIT PREPARED or ROLLBACK PREPARED it there.",
                ));
            }
        }
        Ok(findings)
    }

    /// The survivors that have a connection to a leaving node that cannot be reached from here. A worker that
    /// was seen to be gone has none: it only tries again and again.
    fn still_connected(&mut self) -> Result<Vec<String>> {
        let mut connected: Vec<String> = match self.cluster.subject {
            Ok(_) => vec![],
            Err(_) => self.cluster.names(),
        };
        let limit = settings::connect_timeout();
        let begun = Instant::now();
        let mut rest = Duration::from_millis(1);
        while !connected.is_empty() && begun.elapsed() < limit {
            let states = self.inbound_states()?;
            for (node, states) in self.cluster.members.iter().zip(&states) {
                if !states.iter().any(Inbound::is_working) {
                    connected.retain(|name| *name != node.name);
                }
            }
            wait::on_latch(rest)?;
            rest = (rest * 3 / 2).min(Duration::from_millis(100));
        }
        Ok(connected)
    }

    /// How each survivor subscribes to the leaving node.
    fn inbound_states(&mut self) -> Result<Vec<Vec<Inbound>>> {
        let engine = &*self.cluster.engine;
        let answers = ask_each(&mut self.cluster.members, |_| engine.subscriptions())?;
        self.cluster
            .members
            .iter()
            .zip(&answers)
            .map(|(survivor, states)| {
                let inbound = |path: Path| {
                    let state = states.iter().find(|s| s.name == path.subscription);
                    let state = state.cloned();
                    Inbound { path, state }
                };
                let paths = engine.paths(&self.target, &survivor.name);
                Ok(paths.into_iter().map(inbound).collect())
            })
            .collect()
    }

    /// Every other member.
    fn others(&self) -> impl Iterator<Item = &String> {
        let away = self.cluster.unreachable.iter();
        let away = away.map(|(member, _)| &member.name);
        self.cluster.members.iter().map(|n| &n.name).chain(away)
    }

    /// Every path from the leaving node to another member.
    fn outbound_paths(&self) -> Vec<Path> {
        let paths = |name: &String| self.cluster.engine.paths(&self.target, name);
        self.others().flat_map(paths).collect()
    }

    /// Every path from another member to the leaving node.
    fn paths_to_target(&self) -> Vec<Path> {
        let paths = |name: &String| self.cluster.engine.paths(name, &self.target);
        self.others().flat_map(paths).collect()
    }

    /// Removals of the same node that were begun here and did not come to their end.
    fn earlier_runs(&self) -> Result<Vec<Earlier>> {
        let mut found = vec![];
        for run in interrupted_removals(&self.session, &self.target)? {
            let journal = Journal::reopen(self.session.session(), run.run);
            let (mut hold, mut held_back, mut times_removed) = (None, vec![], None);
            for begun in journal.begun()? {
                match begun.action {
                    Action::BlockWrites(block) => hold = hold.or(block.before),
                    Action::HoldSubscription(hold) => held_back.push((begun.node, hold)),
                    Action::Detach(detach) => {
                        times_removed = times_removed.max(detach.times_removed);
                    }
                    _ => {}
                }
            }
            found.push(Earlier {
                hold,
                held_back,
                times_removed,
                detached: journal.furthest_phase()? >= DETACH_PHASE,
            });
            if self.session.changes() {
                self.report.notice(&format!(
                    "going on with the removal that was interrupted (run {})",
                    run.run
                ));
            }
        }
        Ok(found)
    }

    /// The removals that were begun here have come to their end, and the node is gone.
    fn end_gone(&self) -> Result<()> {
        self.end_earlier_runs()?;
        let text = format!("node \"{}\" has left already", self.target);
        self.report.notice(&text);
        Ok(())
    }

    fn end_earlier_runs(&self) -> Result<()> {
        for run in interrupted_removals(&self.session, &self.target)? {
            Journal::reopen(self.session.session(), run.run).end(RunState::Done, None)?;
        }
        Ok(())
    }
}

/// A subscription of a survivor to the leaving node.
struct Inbound {
    path: Path,
    /// `None` where it is not there.
    state: Option<SubscriptionState>,
}

impl Inbound {
    fn is_working(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.working)
    }

    fn is_enabled(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.enabled)
    }

    fn enabled_paths(all: &[Self]) -> Vec<Path> {
        let enabled = all.iter().filter(|inbound| inbound.is_enabled());
        enabled.map(|inbound| inbound.path.clone()).collect()
    }
}

/// Removals of `target` that were begun on this node and have no end.
fn interrupted_removals(mode: &Mode, target: &str) -> Result<Vec<Interrupted>> {
    Interrupted::of(&mut mode.session(), COMMAND, target)
}

/// A removal of the same node that was interrupted.
struct Earlier {
    hold: Option<ReadOnlyBefore>,
    /// Subscriptions of survivors that it held, by node.
    held_back: Vec<(String, HoldSubscription)>,
    /// How often nodes of the name have been removed, as it counted.
    times_removed: Option<u32>,
    /// It had begun to detach the node.
    detached: bool,
}
