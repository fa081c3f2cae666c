//! The steps of a run: planned before it, written into the journal while it goes on, told to whoever asks
//! for a plan. One block for each action has its words, what it is for, and what becomes of it if the run fails.

use std::fmt;

/// What is done on the node of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    ReplicaIdentity {
        table: String,
    },
    BootstrapCluster {
        node: String,
    },
    DivideSequences,
    CreateSlot {
        slot: String,
    },
    Marker,
    PauseApply,
    CatchUp {
        source: String,
    },
    PauseApplyToHandOver,
    BlockWritesOfNew,
    BlockWritesByEngine,
    CreateOrigin,
    Copy,
    CreateNode,
    LetApplyWrite,
    Subscribe {
        provider: String,
        /// Which of several.
        subscription: Option<String>,
    },
    Register,
    BlockWrites,
    Detach {
        node: String,
    },
    DropNode,
    CloneSlot {
        slot: String,
    },
    HoldSubscription {
        subscription: String,
    },
    RecordRecovery,
    Replay {
        failed: String,
        source: String,
    },
    Compare {
        failed: String,
        source: String,
    },
}

/// What becomes of an action if its run fails or is interrupted after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// It is undone by the effect that the journal has of it.
    Undone(&'static str),
    /// It stays: the same CALL again continues, or nothing depends on it.
    Stays(&'static str),
}

struct Words {
    does: String,
    why: &'static str,
    after_failure: AfterFailure,
}

impl Action {
    fn words(&self) -> Words {
        use AfterFailure::{Stays, Undone};
        let words = |does: String, why, after_failure| Words {
            does,
            why,
            after_failure,
        };
        match self {
            Self::ReplicaIdentity { table } => words(
                format!("replica identity of {table}"),
                "it has none, and updates and deletes of a published table fail without",
                Undone("the replica identity that it had before"),
            ),
            Self::BootstrapCluster { node } => words(
                format!("make \"{node}\" the first node of a cluster"),
                "the source is in no cluster yet",
                Undone("the node is dropped"),
            ),
            Self::DivideSequences => words(
                "divide its sequences".into(),
                "no two members are to draw the same value",
                Undone("the sequences become what they were"),
            ),
            Self::CreateSlot { slot } => words(
                format!("create slot {slot}"),
                "from here on the node keeps what it commits for the one that will subscribe",
                Undone("the slot is dropped"),
            ),
            Self::Marker => words(
                "commit a marker".into(),
                "a commit whose arrival elsewhere shows that all before it has arrived there",
                Undone("markers are deleted"),
            ),
            Self::PauseApply => words(
                "pause apply for the moment of the snapshot".into(),
                "snapshot and progress of the source belong together only while nothing is applied",
                Undone("apply resumes, at the latest after some seconds by itself"),
            ),
            Self::CatchUp { source } => words(
                format!("catch up with all that \"{source}\" has"),
                "the source has the changes of all members in an order in which each finds its row",
                Undone("the subscription is dropped"),
            ),
            Self::PauseApplyToHandOver => words(
                "pause apply for the moment in which each peer takes over".into(),
                "the new node is to have of each peer what the source has, no more and no less",
                Undone("apply resumes, at the latest after some seconds by itself"),
            ),
            Self::BlockWritesOfNew => words(
                "block application writes on the new node".into(),
                "what is written before the join is proved could be lost with it",
                Undone("the setting that was there before"),
            ),
            Self::BlockWritesByEngine => words(
                "block them by the engine's own setting too".into(),
                "what is written before the join is proved could be lost with it",
                Undone("the setting that was there before"),
            ),
            Self::CreateOrigin => words(
                "create replication origin for copied rows".into(),
                "copied rows are not to be sent back to where they come from",
                Undone("the origin is dropped"),
            ),
            Self::Copy => words(
                "copy structure and data".into(),
                "what the source has, as of the snapshot",
                Undone("all that was not there before is dropped"),
            ),
            Self::CreateNode => words(
                "make the new node a provider".into(),
                "the others are to get what is written there",
                Undone("the node is dropped"),
            ),
            Self::LetApplyWrite => words(
                "let apply workers write".into(),
                "writes of applications are still blocked, and statements that apply runs would be too",
                Undone("the setting that was there before"),
            ),
            Self::Subscribe {
                provider,
                subscription,
            } => words(
                match subscription {
                    Some(name) => format!("subscribe to \"{provider}\" with {name}"),
                    None => format!("subscribe to \"{provider}\""),
                },
                "to get what that node writes, from where the copy ends",
                Undone("the subscription is dropped"),
            ),
            Self::Register => words(
                "register the new node".into(),
                "every member knows all members",
                Undone("the node is removed from the registry"),
            ),
            Self::BlockWrites => words(
                "block application writes".into(),
                "what it writes from here on would reach nobody",
                Undone("the setting that was there before"),
            ),
            Self::Detach { node } => words(
                format!("detach \"{node}\""),
                "drops subscription and slot of that node, and its place in the registry",
                Stays("nothing: the same CALL again goes on where the run ended"),
            ),
            Self::DropNode => words(
                "drop the node".into(),
                "it becomes a database like any other, and can be written to again",
                Stays("nothing: the same CALL again goes on where the run ended"),
            ),
            Self::CloneSlot { slot } => words(
                format!("clone slot {slot}"),
                "the recovery slot goes on being moved while it is read",
                Undone("the slot is dropped"),
            ),
            Self::HoldSubscription { subscription } => words(
                format!("hold subscription {subscription}"),
                "nothing may come in between",
                Undone("the subscription is enabled"),
            ),
            Self::RecordRecovery => words(
                "record that a recovery is in progress".into(),
                "until its end the recovery slots keep what has to be repeated if it is interrupted",
                Stays("nothing: it stands until a recovery of the node has ended"),
            ),
            Self::Replay { failed, source } => words(
                format!("replay what \"{source}\" has retained of \"{failed}\""),
                "the transactions that are missing, each as one, in their order",
                Stays("nothing: what has been replayed stays, and the same CALL again goes on"),
            ),
            Self::Compare { failed, source } => words(
                format!("copy what \"{source}\" has of \"{failed}\", by comparison"),
                "no recovery slot has kept what is missing, so the rows that differ are looked for",
                Stays("nothing: what has been copied stays, and the same CALL again goes on"),
            ),
        }
    }

    /// What it is for.
    pub fn reason(&self) -> &'static str {
        self.words().why
    }

    pub fn after_failure(&self) -> AfterFailure {
        self.words().after_failure
    }

    /// What takes it back when the run fails, for people.
    pub fn undo(&self) -> &'static str {
        match self.after_failure() {
            AfterFailure::Undone(how) | AfterFailure::Stays(how) => how,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().does)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The phase of the run, from 1.
    pub phase: usize,
    pub node: String,
    pub action: Action,
}

impl Step {
    pub fn new(phase: usize, node: &str, action: Action) -> Self {
        Self {
            phase,
            node: node.to_owned(),
            action,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_action() -> Vec<Action> {
        let (node, source, provider) = ("P".to_owned(), "S".to_owned(), "P".to_owned());
        let (slot, subscription, failed) = ("X".to_owned(), "X".to_owned(), "F".to_owned());
        let mut all = vec![Action::ReplicaIdentity { table: "T".into() }];
        // Each names the next one, so that none is forgotten.
        while let Some(next) = match all.last().unwrap_or(&Action::Marker) {
            Action::ReplicaIdentity { .. } => Some(Action::BootstrapCluster { node: node.clone() }),
            Action::BootstrapCluster { .. } => Some(Action::DivideSequences),
            Action::DivideSequences => Some(Action::CreateSlot { slot: slot.clone() }),
            Action::CreateSlot { .. } => Some(Action::Marker),
            Action::Marker => Some(Action::PauseApply),
            Action::PauseApply => Some(Action::BlockWritesOfNew),
            Action::BlockWritesOfNew => Some(Action::BlockWritesByEngine),
            Action::BlockWritesByEngine => Some(Action::CreateOrigin),
            Action::CreateOrigin => Some(Action::Copy),
            Action::Copy => Some(Action::CreateNode),
            Action::CreateNode => Some(Action::LetApplyWrite),
            Action::LetApplyWrite => Some(Action::Subscribe {
                provider: provider.clone(),
                subscription: None,
            }),
            Action::Subscribe { .. } => Some(Action::CatchUp {
                source: source.clone(),
            }),
            Action::CatchUp { .. } => Some(Action::PauseApplyToHandOver),
            Action::PauseApplyToHandOver => Some(Action::Register),
            Action::Register => Some(Action::BlockWrites),
            Action::BlockWrites => Some(Action::Detach { node: node.clone() }),
            Action::Detach { .. } => Some(Action::DropNode),
            Action::DropNode => Some(Action::CloneSlot { slot: slot.clone() }),
            Action::CloneSlot { .. } => Some(Action::HoldSubscription {
                subscription: subscription.clone(),
            }),
            Action::HoldSubscription { .. } => Some(Action::RecordRecovery),
            Action::RecordRecovery => Some(Action::Replay {
                failed: failed.clone(),
                source: source.clone(),
            }),
            Action::Replay { .. } => Some(Action::Compare {
                failed: failed.clone(),
                source: source.clone(),
            }),
            Action::Compare { .. } => None,
        } {
            all.push(next);
        }
        all
    }

    #[test]
    fn every_action_is_in_the_internals() {
        let internals = include_str!("../../docs/internals.md");
        for action in every_action() {
            let row = format!("| {action} | {} |", action.undo());
            assert!(
                internals.contains(&row),
                "missing in docs/internals.md:\n{row}"
            );
        }
    }
}
