//! The journal of a run: `zodan.run` and `zodan.step`, written and committed before a side effect
//! and again after it, so that whoever comes later knows what may have to be undone.

use super::action::{Act, Action, AfterFailure, Complete, Incomplete, Kind};
use super::interrupted::Command;
use super::plan::{Plan, Step};
use crate::copy::Inventory;
use crate::encoding::shown;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::libpq::Rows;
use crate::node::{Local, Query, Session, Statement};
use crate::progress;
use crate::settings;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A step of a run that may have to be taken back, or that a run which goes on has to know of.
#[derive(Clone, Debug)]
pub struct Begun {
    pub step: i32,
    pub node: String,
    pub description: String,
    pub action: Action,
    /// Nothing is there that is the run's.
    pub announced: bool,
    /// The step has come to its end: what is there is the run's.
    pub done: bool,
}

/// A step that is going to be made where somebody else may make something of that name first. Nothing of it is undone.
#[must_use]
pub struct Announced(i32);

/// A step that is under way: how it ends has to be written down.
#[must_use]
pub struct Running(i32);

/// What a run is about.
pub struct RunHeader<'a> {
    pub command: Command,
    pub engine: &'a str,
    pub source: &'a str,
    /// How the source is reached, without secrets.
    pub source_dsn: &'a str,
    pub node: &'a str,
}

/// How a run has ended, as in `zodan.run.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    Done,
    /// It failed, and nothing of it is left.
    Undone,
    /// It failed, and something of it could not be undone.
    Failed,
}

impl RunState {
    const fn text(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Undone => "undone",
            Self::Failed => "failed",
        }
    }
}

/// How a step has ended, as in `zodan.step.state`.
#[derive(Clone, Copy)]
enum StepState {
    Done,
    Undone,
    UndoFailed,
}

impl StepState {
    const fn text(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Undone => "undone",
            Self::UndoFailed => "undo_failed",
        }
    }
}

/// How a run hangs at a point that a test has named: until the test lets go of the lock.
const HANG: &str = "SELECT pg_advisory_xact_lock_shared(2054120550, 1)";

pub struct Journal {
    session: RefCell<Session>,
    run: i64,
    /// What is still to come.
    plan: Plan,
    /// Steps of which the end has not been written down.
    open: RefCell<BTreeSet<i32>>,
    /// Steps that somebody else's things stood in the way of, also where that could not be written down.
    refused: RefCell<BTreeSet<i32>>,
}

impl Journal {
    /// The journal of a run that takes its steps from `plan`.
    pub fn open(local: &Local, header: &RunHeader, plan: Plan) -> Result<Self> {
        if let Some(days) = settings::history_days() {
            // What failed, or was interrupted, has still to be undone or gone on with.
            local.query(
                "DELETE FROM zodan.run USING zodan.unreplicated()
                  WHERE state IN ('done', 'undone')
                    AND ended_at < clock_timestamp() - make_interval(days => $1::integer)",
                &[&days.to_string()],
            )?;
        }
        let run: Query<i64> = Query::new(
            "INSERT INTO zodan.run (command, engine, source_node, source_dsn, node)
             SELECT $1, $2, $3, $4, $5 FROM zodan.unreplicated() RETURNING id",
            &[
                header.command.name(),
                header.engine,
                header.source,
                header.source_dsn,
                header.node,
            ],
            |row| row.only(),
        );
        let run = run.one(&mut &*local)?;
        progress::run(run);
        Ok(Self {
            session: RefCell::new(Session::Local(local.clone())),
            run,
            plan,
            open: RefCell::default(),
            refused: RefCell::default(),
        })
    }

    /// The journal of a run that was interrupted, on this node or on another one.
    pub fn reopen(session: Session, run: i64) -> Self {
        Self {
            session: RefCell::new(session),
            run,
            plan: Plan::default(),
            open: RefCell::default(),
            refused: RefCell::default(),
        }
    }

    /// The number of the run.
    pub fn run(&self) -> i64 {
        self.run
    }

    fn query(&self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.session.borrow_mut().query(sql, params)
    }

    /// The steps that have not been undone, the last one first.
    pub fn begun(&self) -> Result<Vec<Begun>> {
        let begun = Query::new(
            "SELECT step, node, description, action, state = 'announced' AS announced, state = 'done' AS done
               FROM zodan.step
              WHERE run_id = $1::bigint AND state <> 'undone'
              ORDER BY step DESC",
            &[&self.run.to_string()],
            |row| {
                Ok(Begun {
                    step: row.get("step")?,
                    node: row.get("node")?,
                    description: row.get("description")?,
                    action: Action::parse(row.get("action")?)?,
                    announced: row.get("announced")?,
                    done: row.get("done")?,
                })
            },
        );
        let mut begun = begun.on(&mut *self.session.borrow_mut())?;
        begun.retain(|b| {
            let stays = matches!(b.action.after_failure(), AfterFailure::Stays(_));
            (!stays || b.action.is_record()) && !self.refused.borrow().contains(&b.step)
        });
        Ok(begun)
    }

    /// The last phase that the run wrote about.
    pub fn furthest_phase(&self) -> Result<usize> {
        let rows = self.query(
            "SELECT coalesce(max(phase), 0) FROM zodan.step WHERE run_id = $1::bigint",
            &[&self.run.to_string()],
        )?;
        rows.one()?.only()
    }

    /// Takes the next step from the plan, which is one on `node`.
    pub fn take<A: Kind>(&mut self, phase: usize, node: &str) -> Result<Step<A>> {
        self.plan.take(phase, node)
    }

    /// Takes the next step from the plan, if it is one of that kind on `node`.
    pub fn take_on<A: Kind>(&mut self, phase: usize, node: &str) -> Option<Step<A>> {
        self.plan.take_on(phase, node)
    }

    /// Takes the next step from the plan, if it is one of that kind.
    pub fn take_if<A: Kind>(&mut self, phase: usize) -> Option<Step<A>> {
        self.plan.take_if(phase)
    }

    /// Takes all of that kind that are next in the plan.
    pub fn take_all<A: Kind>(&mut self, phase: usize) -> Vec<Step<A>> {
        std::iter::from_fn(|| self.plan.take_if(phase)).collect()
    }

    /// Writes down what is about to be done, and commits that.
    pub fn begin<A: Complete>(&self, step: Step<A>) -> Result<Running> {
        self.write(step.with(Into::into), "begun").map(Running)
    }

    /// The same, with what has been found out for it.
    pub fn begin_with<A: Incomplete>(&self, step: Step<A>, found: A::Found) -> Result<Running> {
        let step = step.with(|action| action.with(found).into());
        self.write(step, "begun").map(Running)
    }

    /// All of that kind that are next in the plan.
    pub fn begin_all<A: Complete>(&mut self, phase: usize) -> Result<Vec<Running>> {
        let steps = self.take_all::<A>(phase).into_iter();
        steps.map(|step| self.begin(step)).collect()
    }

    /// Writes down what is about to be made. Nothing is undone before [`Journal::makes`].
    pub fn announce<A: Complete>(&self, step: Step<A>) -> Result<Announced> {
        self.write(step.with(Into::into), "announced")
            .map(Announced)
    }

    /// From here on it may be there, and is the run's.
    pub fn makes(&self, Announced(step): Announced) -> Result<Running> {
        self.query(
            "UPDATE zodan.step SET state = 'begun' FROM zodan.unreplicated()
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string()],
        )?;
        Ok(Running(step))
    }

    /// It was not made: what is there is somebody else's, and is not undone.
    pub fn refused(&self, Running(step): &Running) -> Result<()> {
        self.refused.borrow_mut().insert(*step);
        self.set(*step, StepState::Undone, "")
    }

    /// Has `make` make what was announced, in one transaction.
    pub fn make<T>(
        &self,
        announced: Announced,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Running> {
        let step = self.makes(announced)?;
        let made = make();
        if made.as_ref().is_err_and(Error::is_answer) {
            self.refused(&step)?;
        }
        made.map(|_| step)
    }

    fn write(&self, step: Step, state: &str) -> Result<i32> {
        let Step {
            number,
            phase,
            node,
            action,
        } = step;
        let description = action.to_string();
        progress::step(&node, &description);
        self.query(
            "INSERT INTO zodan.step (run_id, step, phase, node, description, action, state)
             SELECT $1::bigint, $2::integer, $3::integer, $4, $5, $6::jsonb, $7
               FROM zodan.unreplicated()",
            &[
                &self.run.to_string(),
                &number.to_string(),
                &phase.to_string(),
                &node,
                &description,
                &action.to_text()?,
                state,
            ],
        )?;
        self.open.borrow_mut().insert(number);
        self.reached(|| Ok(format!("{phase} before {description} on {node}")))?;
        Ok(number)
    }

    pub fn done(&self, Running(step): Running) -> Result<()> {
        self.reached(|| self.name_after(step))?;
        self.set(step, StepState::Done, "")
    }

    pub fn all_done(&self, steps: impl IntoIterator<Item = Running>) -> Result<()> {
        steps.into_iter().try_for_each(|step| self.done(step))
    }

    /// Nothing of it is there any more.
    pub fn ended(&self, Running(step): Running) -> Result<()> {
        self.set(step, StepState::Undone, "")
    }

    /// A step of several side effects, or a stretch between steps, has come to here.
    pub fn passed(&self, what: &str) -> Result<()> {
        self.reached(|| Ok(format!("within {what}")))
    }

    fn reached(&self, point: impl FnOnce() -> Result<String>) -> Result<()> {
        let hang = || self.query(HANG, &[]).map(|_| ());
        failpoint::reached(point, hang)
    }

    fn name_after(&self, step: i32) -> Result<String> {
        let rows = self.query(
            "SELECT format('%s after %s on %s', phase, description, node) FROM zodan.step
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string()],
        )?;
        rows.one()?.only()
    }

    pub fn undone(&self, begun: &Begun) -> Result<()> {
        self.set(begun.step, StepState::Undone, "")
    }

    pub fn not_undone(&self, begun: &Begun, why: &str) -> Result<()> {
        self.set(begun.step, StepState::UndoFailed, why)
    }

    /// More was there before the copy than what its step says.
    pub fn note_inventory(&self, Running(step): &Running, before: &Inventory) -> Result<()> {
        let before = serde_json::to_string(before)
            .map_err(|e| Error::internal(format!("zodan.step.action: {e}")))?;
        self.query(
            "UPDATE zodan.step SET action = jsonb_set(action, '{restore,before}', $3::jsonb)
               FROM zodan.unreplicated()
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string(), &before],
        )?;
        Ok(())
    }

    fn set(&self, step: i32, state: StepState, message: &str) -> Result<()> {
        self.query(
            "UPDATE zodan.step SET state = $3, ended_at = clock_timestamp(), message = nullif($4, '')
               FROM zodan.unreplicated()
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string(), state.text(), &shown(message)],
        )?;
        self.open.borrow_mut().remove(&step);
        Ok(())
    }

    pub fn note_pause(&self, millis: f64) -> Result<()> {
        self.query(
            "UPDATE zodan.run
                SET apply_pause_ms = greatest(coalesce(apply_pause_ms, 0), $2::numeric)
               FROM zodan.unreplicated() WHERE id = $1::bigint",
            &[&self.run.to_string(), &format!("{millis:.1}")],
        )?;
        Ok(())
    }

    pub fn note_copy(&self, tables: u64, rows: u64, bytes: u64) -> Result<()> {
        self.query(
            "UPDATE zodan.run SET copied_tables = $2::bigint, copied_rows = $3::bigint,
                                  copied_bytes = $4::bigint
               FROM zodan.unreplicated() WHERE id = $1::bigint",
            &[
                &self.run.to_string(),
                &tables.to_string(),
                &rows.to_string(),
                &bytes.to_string(),
            ],
        )?;
        Ok(())
    }

    /// The run has done all that was planned.
    pub fn finish(&self) -> Result<()> {
        self.finish_with(&[])
    }

    /// As [`Journal::finish`], together with statements on this server, without parameters, in one
    /// transaction: they hold if and only if the run can no longer be undone.
    pub fn finish_with(&self, last: &[Statement]) -> Result<()> {
        if let Some(left) = self.plan.next() {
            return Err(Error::internal(format!(
                "{left:?} was planned and not done"
            )));
        }
        if let Some(open) = self.open.borrow().first() {
            return Err(Error::internal(format!(
                "step {open} was begun and has no end"
            )));
        }
        self.end_with(last, RunState::Done, None)
    }

    pub fn end(&self, state: RunState, error: Option<&Error>) -> Result<()> {
        self.end_with(&[], state, error)
    }

    fn end_with(&self, last: &[Statement], state: RunState, error: Option<&Error>) -> Result<()> {
        let sqlstate = error.map_or(String::new(), |e| e.sqlstate().to_string());
        let message = error.map_or(String::new(), |e| crate::libpq::scrub(&e.to_string()));
        // What others say may hold characters that this database has not.
        let message = shown(&message);
        let last: String = last.iter().map(|s| format!("{};\n", s.sql)).collect();
        self.query(
            &format!(
                "{last}UPDATE zodan.run SET state = $2, ended_at = clock_timestamp(),
                    sqlstate = coalesce(nullif($3, ''), sqlstate),
                    message = coalesce(nullif($4, ''), message)
               FROM zodan.unreplicated() WHERE id = $1::bigint"
            ),
            &[&self.run.to_string(), state.text(), &sqlstate, &message],
        )?;
        Ok(())
    }
}
