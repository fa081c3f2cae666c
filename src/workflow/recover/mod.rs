//! Survivors are made equal after a node died: what one of them has of the dead node and another has not
//! is brought over, each transaction once, in its order.

mod content;
mod replay;
mod standing;

use super::members;
use super::report::{self, Report};
use super::undo::Undo;
use super::verify;
use crate::engine::Engine;
use crate::error::{Error, Result, SqlState};
use crate::journal::{Journal, Subject};
use crate::libpq::{Conn, Dsn};
use crate::lsn::{Lsn, Position};
use crate::node::{Local, Node, Session, server};
use std::time::Instant;

const COMMAND: &str = "spock.recover_run";
const PHASES: usize = 3;
/// Keys that are told of rows that differ.
const TOLD_KEYS: usize = 5;

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
    /// The last position of the failed node that is brought over.
    pub stop_lsn: Option<Lsn>,
    /// What the failed node committed up to there is given up.
    pub skip_lsn: Option<Lsn>,
    /// What it committed after that, in microseconds since 2000, is not brought over.
    pub stop_timestamp: Option<i64>,
    pub verbose: bool,
    pub force: bool,
    /// Compare the contents of all survivors at the end.
    pub verify: bool,
}

fn of(command: &str, phases: usize, request: &Request) -> Report {
    let subject = report::Subject {
        command,
        node: &request.failed,
        phases,
        // To bring over what is missing is the last.
        long_phase: phases,
    };
    Report::new(&subject, request.verbose)
}

/// Brings over what the targets lack of the failed node.
pub fn recover_run(local: Local, request: Request) -> Result<()> {
    let begun = Instant::now();
    let mut report = of(COMMAND, PHASES, &request);
    report.phase(&format!(
        "lock the membership of the cluster that \"{}\" was in",
        request.failed
    ));
    let mut recovery = Recovery::connect(local, request, report)?;
    recovery.clean_up_interrupted()?;
    recovery.report.phase("compare what the survivors have");
    let plan = recovery.plan()?;
    if plan.is_empty() {
        recovery.report.say(&format!(
            "nothing to do: every survivor has the same of \"{}\"",
            recovery.request.failed
        ));
        return Ok(());
    }
    let mut journal = recovery.begin(&plan[0])?;
    for gap in &plan {
        if let Err(first) = recovery.fill(gap, &mut journal) {
            return Err(recovery.take_back(&journal, first));
        }
    }
    journal.passed("all is done")?;
    journal.end("done", None)?;
    if recovery.request.verify {
        recovery.verify()?;
    }
    recovery.report.finished();
    recovery.report.say(&format!(
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
    let mut recovery = Recovery::connect(local, request, report)?;
    recovery.clean_up_interrupted()?;
    recovery.report.phase("compare what the survivors have");
    let plan = recovery.plan()?;
    let Some(gap) = plan.first() else {
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "nothing is missing",
            "Ask CALL spock.recover_precheck(...) first.",
        ));
    };
    let slot = recovery.check_slot(gap)?;
    let mut journal = recovery.begin(gap)?;
    match recovery.bring(gap, &slot, &mut journal) {
        Ok(clone) => Ok(clone),
        Err(first) => Err(recovery.take_back(&journal, first)),
    }
}

/// Lets go of what [`phase_clone`] left.
pub fn finalize(local: Local, request: Request, clone: &str) -> Result<()> {
    let report = of("spock.recover_finalize", 1, &request);
    let mut recovery = Recovery::connect(local, request, report)?;
    let exists = server::slots_named(&[clone.to_owned()]);
    let slots = members::each(&mut recovery.survivors, |_| exists.clone())?;
    if slots.iter().all(|rows| rows.is_empty()) {
        return Err(Error::Argument {
            argument: "cloned_slot_name",
            problem: format!("is \"{clone}\", which is no slot of a survivor"),
            hint: "Give the name that recover_phase_clone returned.".into(),
            state: SqlState::UNDEFINED_OBJECT,
        });
    }
    recovery.clean_up("done")?;
    recovery.report.say("nothing is held any more");
    Ok(())
}

/// Whether `target` lacks something of the failed node that `source` has; changes nothing.
pub fn recovery_needed(local: Local, request: Request) -> Result<bool> {
    let report = of("spock.recover_precheck", 1, &request);
    let mut recovery = Recovery::connect(local, request, report)?;
    let plan = recovery.plan()?;
    for gap in &plan {
        recovery.report.say(&gap.to_string());
        recovery.check_slot(gap)?;
    }
    if plan.is_empty() {
        recovery.report.say("no recovery is needed");
    }
    Ok(!plan.is_empty())
}

/// What a survivor lacks.
pub struct Gap {
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
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "node \"{}\" lacks what node \"{}\" has between {} and {}",
            self.target, self.source, self.from, self.to
        )
    }
}

pub struct Recovery {
    engine: Box<dyn Engine>,
    local: Local,
    /// The node that the CALL runs on.
    here: String,
    report: Report,
    request: Request,
    /// The members that answer, the failed one not among them.
    survivors: Vec<Node>,
}

impl Recovery {
    fn survivor(&mut self, name: &str) -> Result<&mut Node> {
        let known: Vec<String> = self
            .survivors
            .iter()
            .map(|n| format!("\"{}\"", n.name))
            .collect();
        self.survivors
            .iter_mut()
            .find(|node| node.name == name)
            .ok_or_else(|| {
                Error::refused(
                    SqlState::UNDEFINED_OBJECT,
                    format!("node \"{name}\" is no survivor that can be reached"),
                    format!("The survivors are {}.", known.join(", ")),
                )
            })
    }

    /// Begins the journal, and the phase that changes something.
    fn begin(&mut self, gap: &Gap) -> Result<Journal> {
        let journal = Journal::begin(
            &self.local,
            &Subject {
                command: COMMAND,
                engine: self.engine.label(),
                source: &gap.source,
                source_dsn: "",
                node: &self.request.failed,
            },
        )?;
        self.report
            .phase("bring over what is missing, transaction by transaction");
        Ok(journal)
    }

    /// Says where the survivors are not the same.
    fn verify(&mut self) -> Result<()> {
        let mut nodes: Vec<&mut Node> = self.survivors.iter_mut().collect();
        let found = verify::mismatches(&*self.engine, &mut nodes, TOLD_KEYS)?;
        for mismatch in &found {
            let hint = "SELECT * FROM spock.verify_nodes() tells more.";
            self.report.warn(&mismatch.to_string(), hint);
        }
        if found.is_empty() {
            self.report.say("the survivors have the same content");
        }
        Ok(())
    }

    fn clean_up_interrupted(&mut self) -> Result<()> {
        self.clean_up("undone")
    }

    /// Lets go of what runs that have no end hold, whichever survivor they ran on, and ends them as `state`.
    fn clean_up(&mut self, state: &str) -> Result<()> {
        let mut elsewhere = vec![];
        for node in &mut self.survivors {
            if node.name != self.here && server::has_journal().run(node)?.one()?.bool(0) {
                elsewhere.push((node.name.clone(), node.dsn.clone()));
            }
        }
        let local = self.local.clone();
        self.clean_up_by(state, "", || Ok(Session::Local(local.clone())))?;
        for (name, dsn) in elsewhere {
            let open = || Conn::open(&name, &dsn).map(Session::Remote);
            self.clean_up_by(state, &format!(" on node \"{name}\""), open)?;
        }
        Ok(())
    }

    /// The same by one journal, which `open` opens a session to.
    fn clean_up_by(
        &mut self,
        state: &str,
        place: &str,
        open: impl Fn() -> Result<Session>,
    ) -> Result<()> {
        for dead in Journal::interrupted(&mut open()?)? {
            if dead.command != COMMAND {
                continue;
            }
            self.report.say(&format!(
                "cleaning up after the CALL {} for node \"{}\" that was interrupted (run {}{place})",
                dead.command, dead.node, dead.run
            ));
            let journal = Journal::reopen(open()?, dead.run);
            let undo = Undo {
                engine: &*self.engine,
                journal: &journal,
                new: &dead.node,
                name_taken: false,
            };
            let mut nodes: Vec<&mut Node> = self.survivors.iter_mut().collect();
            undo.clean_up(dead.run, state, &mut nodes)?;
        }
        Ok(())
    }

    fn take_back(&mut self, journal: &Journal, first: Error) -> Error {
        self.report.say(&format!("failed, undoing: {first}"));
        let undo = Undo {
            engine: &*self.engine,
            journal,
            new: &self.request.failed,
            name_taken: false,
        };
        let mut nodes: Vec<&mut Node> = self.survivors.iter_mut().collect();
        undo.give_up(first, &mut nodes)
    }
}
