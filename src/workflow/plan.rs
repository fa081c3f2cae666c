//! What a CALL would do, told without doing it.

use super::estimate::Estimate;
use crate::error::{Error, Result, SqlState};
use crate::node::Mode;
use crate::run::{Command, Interrupted, Step};

/// A step with how much it has to do, where that can be told.
pub struct Planned {
    pub step: Step,
    pub estimate: Option<Estimate>,
}

impl From<Step> for Planned {
    fn from(step: Step) -> Self {
        Self {
            step,
            estimate: None,
        }
    }
}

/// A CALL takes back first what an interrupted one has left, and what is there until then would spoil a plan.
pub fn refuse_interrupted(mode: &Mode) -> Result<()> {
    refuse(mode, |_| true)
}

/// The same before a removal, which goes on with a removal that was interrupted.
pub fn refuse_interrupted_join(mode: &Mode) -> Result<()> {
    refuse(mode, |run| run.command == Command::AddNode)
}

fn refuse(mode: &Mode, concerned: impl Fn(&Interrupted) -> bool) -> Result<()> {
    let runs = Interrupted::all(&mut mode.session())?;
    match runs.iter().find(|run| concerned(run)) {
        None => Ok(()),
        Some(run) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "run {} ({} of node \"{}\") was interrupted",
                run.run, run.command, run.node
            ),
            "If it is not in progress, the next CALL on this node undoes it first.",
        )),
    }
}
