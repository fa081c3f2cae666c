//! The journal of a run: `zodan.run` and `zodan.step`, written and committed before a side effect
//! and again after it, so that whoever comes later knows what may have to be undone.

use super::action::{AfterFailure, Step};
use super::effect::Effect;
use super::interrupted::Command;
use crate::copy::Inventory;
use crate::encoding::shown;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::libpq::Rows;
use crate::node::{Local, Session, Statement};
use crate::progress;
use crate::settings;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// A step whose effect may still be there.
#[derive(Clone, Debug)]
pub struct Begun {
    pub step: i32,
    pub node: String,
    pub description: String,
    pub effect: Effect,
    /// The step has come to its end: what is there is the run's.
    pub done: bool,
}

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
    next: i32,
    /// What is still to come.
    plan: VecDeque<Step>,
    /// Steps that somebody else's things stood in the way of, also where that could not be written down.
    refused: RefCell<BTreeSet<i32>>,
}

impl Journal {
    /// The journal of a run of these steps: it takes no other, and none in another order.
    pub fn begin(local: &Local, header: &RunHeader, plan: Vec<Step>) -> Result<Self> {
        if let Some(days) = settings::history_days() {
            // What failed, or was interrupted, has still to be undone or gone on with.
            local.query(
                "DELETE FROM zodan.run USING zodan.unreplicated()
                  WHERE state IN ('done', 'undone')
                    AND ended_at < clock_timestamp() - make_interval(days => $1::integer)",
                &[&days.to_string()],
            )?;
        }
        let rows = local.query(
            "INSERT INTO zodan.run (command, engine, source_node, source_dsn, node)
             SELECT $1, $2, $3, $4, $5 FROM zodan.unreplicated() RETURNING id",
            &[
                header.command.name(),
                header.engine,
                header.source,
                header.source_dsn,
                header.node,
            ],
        )?;
        let run = rows.one()?.parse(0)?;
        progress::run(run);
        Ok(Self {
            session: RefCell::new(Session::Local(local.clone())),
            run,
            next: 1,
            plan: plan.into(),
            refused: RefCell::default(),
        })
    }

    /// The journal of a run that was interrupted, on this node or on another one.
    pub fn reopen(session: Session, run: i64) -> Self {
        Self {
            session: RefCell::new(session),
            run,
            next: i32::MAX,
            plan: VecDeque::new(),
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

    /// Steps with effects that have not been undone, the last one first.
    pub fn begun(&self) -> Result<Vec<Begun>> {
        let rows = self.query(
            "SELECT step, node, description, effect, state = 'done' FROM zodan.step
              WHERE run_id = $1::bigint AND effect IS NOT NULL AND state <> 'undone'
              ORDER BY step DESC",
            &[&self.run.to_string()],
        )?;
        let begun = rows.iter().map(|row| {
            Ok(Begun {
                step: row.parse(0)?,
                node: row.text(1).to_owned(),
                description: row.text(2).to_owned(),
                effect: Effect::parse(row.text(3))?,
                done: row.bool(4),
            })
        });
        let mut begun = begun.collect::<Result<Vec<Begun>>>()?;
        begun.retain(|b| !self.refused.borrow().contains(&b.step));
        Ok(begun)
    }

    /// The last phase that the run wrote about.
    pub fn furthest_phase(&self) -> Result<usize> {
        let rows = self.query(
            "SELECT coalesce(max(phase), 0) FROM zodan.step WHERE run_id = $1::bigint",
            &[&self.run.to_string()],
        )?;
        rows.one()?.parse(0)
    }

    /// Writes down what is about to be done, and commits that.
    pub fn intend(&mut self, step: &Step, effect: &Effect) -> Result<i32> {
        self.write(step, Some(effect))
    }

    /// Writes down what is about to be done and is not undone: a run that is interrupted there is continued.
    pub fn go_on(&mut self, step: &Step) -> Result<i32> {
        self.write(step, None)
    }

    /// Writes down what is about to be made where somebody else may make something of that name first. Nothing is
    /// undone before [`Journal::makes`].
    pub fn announce(&mut self, step: &Step) -> Result<i32> {
        self.intend(step, &Effect::Nothing)
    }

    /// From here on `effect` may be there, and is the run's.
    pub fn makes(&self, step: i32, effect: &Effect) -> Result<()> {
        self.query(
            "UPDATE zodan.step SET effect = $3::jsonb FROM zodan.unreplicated()
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string(), &effect.to_text()?],
        )?;
        Ok(())
    }

    /// It was not made: what is there is somebody else's, and is not undone.
    pub fn refused(&self, step: i32) -> Result<()> {
        self.refused.borrow_mut().insert(step);
        self.undone(step)
    }

    /// Has `make` make the effect of a step that was announced, in one transaction.
    pub fn make<T>(
        &self,
        step: i32,
        effect: &Effect,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.makes(step, effect)?;
        let made = make();
        if made.as_ref().is_err_and(Error::is_answer) {
            self.refused(step)?;
        }
        made
    }

    fn write(&mut self, intended: &Step, effect: Option<&Effect>) -> Result<i32> {
        let planned = self.plan.pop_front();
        if planned.as_ref() != Some(intended) {
            return Err(Error::internal(format!(
                "{intended:?} was to be done, but {planned:?} was planned"
            )));
        }
        let stays = matches!(intended.action.after_failure(), AfterFailure::Stays(_));
        if stays && effect.is_some_and(|effect| !effect.is_record()) || !stays && effect.is_none() {
            return Err(Error::internal(format!(
                "{intended:?} has {effect:?} to undo, against its plan"
            )));
        }
        let effect = effect.map_or(Ok(String::new()), Effect::to_text)?;
        let step = self.next;
        let Step {
            phase,
            node,
            action,
        } = intended;
        let description = action.to_string();
        progress::step(node, &description);
        self.query(
            "INSERT INTO zodan.step (run_id, step, phase, node, description, effect)
             SELECT $1::bigint, $2::integer, $3::integer, $4, $5, nullif($6, '')::jsonb
               FROM zodan.unreplicated()",
            &[
                &self.run.to_string(),
                &step.to_string(),
                &phase.to_string(),
                node,
                &description,
                &effect,
            ],
        )?;
        self.next += 1;
        self.reached(|| Ok(format!("{phase} before {description} on {node}")))?;
        Ok(step)
    }

    pub fn done(&self, step: i32) -> Result<()> {
        self.reached(|| self.name_after(step))?;
        self.set(step, StepState::Done, "")
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
        Ok(rows.one()?.text(0).to_owned())
    }

    pub fn undone(&self, step: i32) -> Result<()> {
        self.set(step, StepState::Undone, "")
    }

    pub fn not_undone(&self, step: i32, why: &str) -> Result<()> {
        self.set(step, StepState::UndoFailed, why)
    }

    /// More was there before the copy than what its step says.
    pub fn note_inventory(&self, step: i32, before: &Inventory) -> Result<()> {
        let before = serde_json::to_string(before)
            .map_err(|e| Error::internal(format!("zodan.step.effect: {e}")))?;
        self.query(
            "UPDATE zodan.step SET effect = jsonb_set(effect, '{before}', $3::jsonb)
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
        match self.plan.front() {
            None => self.end_with(last, RunState::Done, None),
            Some(left) => Err(Error::internal(format!(
                "{left:?} was planned and not done"
            ))),
        }
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
