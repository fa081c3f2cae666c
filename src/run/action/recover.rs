//! What a recovery does.

use super::{Act, AfterFailure, Incomplete, LeftIf, SLOT_IS_DROPPED};
use crate::engine::Engine;
use crate::error::Result;
use crate::node::{Node, Statement};
use crate::run::revert::drop_slot;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloneSlot {
    pub slot: String,
    /// Named after the run.
    clone: Option<String>,
}

impl CloneSlot {
    pub fn new(slot: String) -> Self {
        Self { slot, clone: None }
    }
}

impl Act for CloneSlot {
    fn does(&self) -> String {
        format!("clone slot {}", self.slot)
    }

    fn why(&self) -> &'static str {
        "the recovery slot goes on being moved while it is read"
    }

    fn after_failure(&self) -> AfterFailure {
        SLOT_IS_DROPPED
    }

    fn undo(&self, _engine: &dyn Engine, node: &mut Node) -> Result<()> {
        let mut clone = self.clone.iter();
        clone.try_for_each(|clone| drop_slot(node, clone))
    }

    fn left_if(&self) -> Option<LeftIf<'_>> {
        self.clone.as_deref().map(|slot| LeftIf::Read { slot })
    }
}

impl Incomplete for CloneSlot {
    type Found = String;

    fn with(self, clone: String) -> Self {
        Self {
            clone: Some(clone),
            ..self
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldSubscription {
    pub subscription: String,
    /// The statement that enables it.
    pub let_go: String,
}

impl Act for HoldSubscription {
    fn does(&self) -> String {
        format!("hold subscription {}", self.subscription)
    }

    fn why(&self) -> &'static str {
        "nothing may come in between"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("the subscription is enabled")
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        vec![Statement::new(self.let_go.as_str(), &[])]
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordRecovery {}

impl Act for RecordRecovery {
    fn does(&self) -> String {
        "record that a recovery is in progress".into()
    }

    fn why(&self) -> &'static str {
        "until its end the recovery slots keep what has to be repeated if it is interrupted"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Stays("nothing: it stands until a recovery of the node has ended")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    pub failed: String,
    pub source: String,
}

impl Act for Replay {
    fn does(&self) -> String {
        format!(
            "replay what \"{}\" has retained of \"{}\"",
            self.source, self.failed
        )
    }

    fn why(&self) -> &'static str {
        "the transactions that are missing, each as one, in their order"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Stays(
            "nothing: what has been replayed stays, and the same CALL again goes on",
        )
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub failed: String,
    pub source: String,
}

impl Act for Compare {
    fn does(&self) -> String {
        format!(
            "copy what \"{}\" has of \"{}\", by comparison",
            self.source, self.failed
        )
    }

    fn why(&self) -> &'static str {
        "no recovery slot has kept what is missing, so the rows that differ are looked for"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Stays("nothing: what has been copied stays, and the same CALL again goes on")
    }
}
