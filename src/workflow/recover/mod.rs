//! Survivors are made equal after a node died: what one of them has of the dead node and another has not
//! is replayed, each transaction once, in its order.

mod authors;
mod connect;
mod content;
mod judge;
mod not_decoded;
pub mod open_runs;
mod replay;
mod spared;
mod streams;

use super::cluster::Cluster;
use super::estimate::Estimate;
use super::hold;
use super::members;
use super::plan::{Planned, refuse_interrupted};
use super::report::{self, Report};
use super::undo::Undo;
use super::verify;
use crate::engine::Path;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::lsn::{Lsn, Position};
use crate::node::{Local, Member, Mode, Node, Reader, ask_each, server};
use crate::progress::Work;
use crate::run::action::{CloneSlot, Compare, Marker, RecordRecovery, Replay};
use crate::run::{Command, Journal, Plan, RunHeader};
use connect::Failed;
use open_runs::Open;
use std::time::Instant;
use streams::Stream;

const COMMAND: Command = Command::RecoverRun;
const PHASES: usize = 3;
/// Keys that are told of rows that differ.
const MAX_KEYS_SHOWN: usize = 5;

/// The arguments of the CALL.
#[derive(Clone, Default)]
pub struct Request {
    pub failed: String,
    /// `None` for the survivor that has most.
    pub source: Option<String>,
    /// `None` for what the registry says.
    pub source_dsn: Option<Dsn>,
    /// `None` for every survivor that lacks something.
    pub target: Option<String>,
    pub target_dsn: Option<Dsn>,
    /// The last position of the failed node that is replayed.
    pub stop_lsn: Option<Lsn>,
    /// What the failed node committed up to there is given up.
    pub skip_lsn: Option<Lsn>,
    /// What it committed after that, in microseconds since 2000, is not replayed.
    pub stop_timestamp: Option<i64>,
    pub verbose: bool,
    pub force: bool,
    /// Compare the contents of all survivors at the end.
    pub verify: bool,
}

fn of(command: &str, phases: usize, request: &Request) -> Report {
    let subject = report::ReportHeader {
        command,
        node: &request.failed,
        phases,
        // To replay what is missing is the last.
        long_phase: phases,
    };
    Report::new(&subject, request.verbose)
}

/// Brings over what the targets lack of the failed node.
pub fn recover_run(local: Local, request: Request) -> Result<()> {
    let begun = Instant::now();
    let mut report = of(COMMAND.name(), PHASES, &request);
    report.phase(&format!(
        "lock the membership of the cluster that \"{}\" was in",
        request.failed
    ));
    let mode = Mode::Execute(local.clone());
    let mut recovery = Recovery::connect_for(mode, request, report, Failed::Member)?;
    recovery.clean_up_interrupted()?;
    recovery.forget_finished()?;
    recovery.refuse_living()?;
    recovery.report.phase("compare what the survivors have");
    let plan = recovery.plan()?;
    if recovery.request.force {
        recovery.warn_of_lost_wal()?;
    }
    if plan.is_empty() {
        recovery.report.notice(&format!(
            "nothing to do: every survivor has the same of \"{}\"",
            recovery.request.failed
        ));
        return Ok(());
    }
    let plan = recovery.methods(plan)?;
    let mut journal = recovery.begin(&local, &plan)?;
    for repair in &plan {
        if let Err(first) = recovery.fill(repair, &mut journal) {
            let first = recovery.take_back(&journal, first);
            return Err(recovery.not_to_return(repair, first));
        }
    }
    journal.passed("all is done")?;
    journal.finish()?;
    if recovery.request.verify {
        recovery.verify()?;
    }
    recovery.report.finished();
    recovery.report.notice(&format!(
        "recovered from the loss of \"{}\", {:.1} s",
        recovery.request.failed,
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Brings over what one target lacks, and leaves the cloned slot and the held subscription as they are
/// until [`finalize`]. The name of the clone.
pub fn phase_clone(local: Local, request: Request) -> Result<String> {
    let mut report = of("spock.recover_phase_clone", PHASES, &request);
    report.phase("lock the membership");
    let mut recovery = Recovery::connect(Mode::Execute(local.clone()), request, report)?;
    recovery.clean_up_interrupted()?;
    recovery.report.phase("compare what the survivors have");
    let plan = recovery.plan()?;
    let Some(missing) = plan.into_iter().next() else {
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "nothing is missing",
            "Ask CALL spock.recover_precheck(...) first.",
        ));
    };
    let slot = recovery.check_slot(&missing)?;
    let repair = recovery.repair(missing, Method::Slot(slot.clone()))?;
    let mut journal = recovery.begin(&local, std::slice::from_ref(&repair))?;
    match recovery.replay_slot(&repair, &slot, &mut journal) {
        Ok(clone) => Ok(clone),
        Err(first) => Err(recovery.take_back(&journal, first)),
    }
}

/// What [`recover_run`] would do; nothing is changed.
pub fn plan(reader: &Reader, request: Request) -> Result<Vec<Planned>> {
    let mode = Mode::DryRun(reader.clone());
    refuse_interrupted(&mode)?;
    let mut recovery = Recovery::connect(mode, request, Report::silent())?;
    let missing_ranges = recovery.plan()?;
    let repairs = recovery.methods(missing_ranges)?;
    let mut planned: Vec<Planned> = vec![];
    for repair in &repairs {
        let steps = recovery.steps(std::slice::from_ref(repair));
        planned.extend(steps.into_iter().map(Planned::from));
        if let (Some(last), Method::Slot(_)) = (planned.last_mut(), &repair.method) {
            let bytes = repair.missing.bytes_to(&repair.missing.to);
            last.estimate = Some(Estimate::of_replay(bytes));
        }
    }
    Ok(planned)
}

/// Lets go of what [`phase_clone`] left.
pub fn finalize(local: Local, request: Request, clone: &str) -> Result<()> {
    let report = of("spock.recover_finalize", 1, &request);
    let mode = Mode::Execute(local.clone());
    let mut recovery = Recovery::connect_for(mode, request, report, Failed::Anybody)?;
    let exists = server::slots_named(&[clone.to_owned()]);
    let slots = ask_each(&mut recovery.cluster.members, |_| exists.clone())?;
    if !slots.iter().flatten().any(|slot| slot.is_own) {
        return Err(Error::Argument {
            argument: "cloned_slot_name",
            problem: format!("is \"{clone}\", which is not a slot of a survivor"),
            hint: "Give the name that recover_phase_clone returned.".into(),
            state: SqlState::UNDEFINED_OBJECT,
        });
    }
    recovery.clean_up(Open::Finalized)?;
    recovery.report.notice("recovery finalized");
    Ok(())
}

/// Whether `target` lacks something of the failed node that `source` has; changes nothing.
pub fn recovery_needed(local: Local, request: Request) -> Result<bool> {
    let report = of("spock.recover_precheck", 1, &request);
    let mut recovery = Recovery::connect(Mode::Execute(local.clone()), request, report)?;
    let plan = recovery.plan()?;
    for missing in &plan {
        recovery.report.notice(&missing.to_string());
        recovery.check_slot(missing)?;
    }
    if plan.is_empty() {
        recovery.report.notice("no recovery is needed");
    }
    Ok(!plan.is_empty())
}

/// What a survivor lacks.
pub struct MissingRange {
    source: String,
    target: String,
    /// From where on what belongs to the failed node's transactions may be missing.
    since: Position,
    /// What it has, or is to give up.
    from: Position,
    /// What the source has, or less.
    to: Position,
    /// All that the source has, so that the two are equal then.
    whole: bool,
    /// A comparison left rows of the target alone, while a member was away.
    undecided: bool,
    /// By which of several subscriptions; none where there is one.
    streams: Vec<Stream>,
    /// Whether the source has by no other one less than the target.
    all_streams: bool,
}

impl MissingRange {
    /// Bytes of the failed node's WAL from where the target lacks something.
    fn bytes_to(&self, position: &Position) -> u64 {
        position.lsn().0.saturating_sub(self.from.lsn().0)
    }
}

/// Where what is missing comes from.
pub enum Method {
    /// A recovery slot of the source, which has kept it all.
    Slot(String),
    /// Its contents, because of that.
    Comparison(Error),
}

/// How a missing range is repaired.
pub struct Repair {
    missing: MissingRange,
    method: Method,
    /// Whether the source gets what the target writes: it has to have all of it first.
    sends_to_source: bool,
    /// The subscriptions of the target that stand still meanwhile.
    held: Vec<Path>,
}

impl std::fmt::Display for MissingRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            source,
            target,
            from,
            to,
            ..
        } = self;
        if self.undecided && from == to {
            return write!(
                f,
                "rows of node \"{target}\" were left alone while a member was away"
            );
        }
        write!(
            f,
            "node \"{target}\" lacks what node \"{source}\" has between {from} and {to}"
        )
    }
}

/// How a comparison that was interrupted comes to a good end.
fn stay_away(failed: &str, target: &str) -> String {
    format!(
        "Node \"{target}\" may have rows of node \"{failed}\" already that \"{failed}\" would send again: keep its server stopped until CALL spock.recover_run({}) has come to its end.",
        crate::quote::literal(failed)
    )
}

pub struct Recovery {
    /// The members but the failed one.
    cluster: Cluster<Member>,
    /// How far their clocks can be apart, in microseconds.
    clocks_apart: i64,
    session: Mode,
    /// The node that the CALL runs on.
    local_name: String,
    report: Report,
    request: Request,
    /// What has been replayed, of what there is to replay.
    done: Work,
}

impl Recovery {
    fn survivor(&mut self, name: &str) -> Result<&mut Node> {
        let known: Vec<String> = self
            .cluster
            .members
            .iter()
            .map(|n| format!("\"{}\"", n.name))
            .collect();
        self.cluster
            .members
            .iter_mut()
            .find(|node| node.name == name)
            .ok_or_else(|| {
                Error::refused(
                    SqlState::UNDEFINED_OBJECT,
                    format!("node \"{name}\" is not a survivor that can be reached"),
                    format!("The survivors are {}.", known.join(", ")),
                )
            })
    }

    /// How each missing range is repaired.
    fn methods(&mut self, missing_ranges: Vec<MissingRange>) -> Result<Vec<Repair>> {
        let mut all = vec![];
        for missing in missing_ranges {
            let way = match self.check_slot(&missing) {
                Ok(slot) => Method::Slot(slot),
                Err(why) if why.sqlstate() == SqlState::NOT_IN_PREREQUISITE_STATE => {
                    self.require_whole(&missing)?;
                    self.streams(&missing)?;
                    Method::Comparison(why)
                }
                Err(error) => return Err(error),
            };
            all.push(self.repair(missing, way)?);
        }
        Ok(all)
    }

    /// What is going to be done, in the order of the journal.
    fn steps(&self, repairs: &[Repair]) -> Plan {
        let mut plan = Plan::default();
        for repair in repairs {
            let missing = &repair.missing;
            let (failed, source) = (self.request.failed.clone(), missing.source.clone());
            if let Method::Slot(slot) = &repair.method {
                plan.add(PHASES, &missing.source, CloneSlot::new(slot.clone()));
            }
            if repair.sends_to_source {
                plan.add(PHASES, &missing.target, Marker {});
            }
            for path in &repair.held {
                let hold = hold::action(&*self.cluster.engine, path);
                plan.add(PHASES, &missing.target, hold);
            }
            match repair.method {
                Method::Slot(_) => {
                    plan.add(PHASES, &missing.target, RecordRecovery {});
                    plan.add(PHASES, &missing.target, Replay { failed, source });
                }
                Method::Comparison(_) => {
                    plan.add(PHASES, &missing.target, Compare { failed, source });
                }
            }
        }
        plan
    }

    /// Begins the journal, and the phase that changes something.
    fn begin(&mut self, local: &Local, repairs: &[Repair]) -> Result<Journal> {
        let replays = repairs
            .iter()
            .filter(|f| matches!(f.method, Method::Slot(_)));
        self.done.bytes_total = replays.map(|f| f.missing.bytes_to(&f.missing.to)).sum();
        let source = repairs.first().map_or("", |f| &f.missing.source);
        let journal = Journal::open(
            local,
            &RunHeader {
                command: COMMAND,
                engine: self.cluster.engine.label(),
                source,
                source_dsn: "",
                node: &self.request.failed,
            },
            self.steps(repairs),
        )?;
        self.report
            .phase("replay what is missing, transaction by transaction");
        Ok(journal)
    }

    /// Says where the survivors are not the same.
    fn verify(&mut self) -> Result<()> {
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        let all = nodes.len();
        let found = verify::mismatches(
            &*self.cluster.engine,
            &mut nodes,
            all,
            MAX_KEYS_SHOWN,
            verify::Of::Sent,
        )?;
        for mismatch in &found {
            let hint = "SELECT * FROM spock.verify_nodes() tells more.";
            self.report.warn(&mismatch.to_string(), hint);
        }
        if found.is_empty() {
            self.report.notice("the survivors have the same content");
        }
        Ok(())
    }

    fn clean_up_interrupted(&mut self) -> Result<()> {
        self.clean_up(Open::Interrupted)
    }

    /// Lets go of what runs that have no end hold, whichever survivor they ran on.
    fn clean_up(&mut self, open: Open) -> Result<()> {
        let (session, local_name) = (self.session.clone(), self.local_name.clone());
        let engine = &*self.cluster.engine;
        open_runs::let_go(
            engine,
            &session,
            &local_name,
            &mut self.cluster.members,
            &self.report,
            open,
            None,
        )
    }

    /// What a comparison has brought the failed node would send again, and apply would stop at that: its place in what
    /// that one sends moves at the end only.
    fn not_to_return(&mut self, repair: &Repair, first: Error) -> Error {
        let Method::Comparison(_) = repair.method else {
            return first;
        };
        let (failed, target) = (self.request.failed.clone(), &repair.missing.target);
        let node = self.cluster.members.iter_mut().find(|n| n.name == *target);
        let begun = node.is_none_or(|node| {
            let notes = server::unfinished_comparison(&failed).first(node);
            notes.map_or(true, |note| note.is_some())
        });
        match begun {
            false => first,
            true => Error::Unfinished {
                hint: stay_away(&failed, target),
                first: Box::new(first),
            },
        }
    }

    fn take_back(&mut self, journal: &Journal, first: Error) -> Error {
        let undo = Undo {
            engine: &*self.cluster.engine,
            journal,
            subject: &self.request.failed,
            name_taken: false,
        };
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        undo.give_up(first, &mut nodes)
    }
}
