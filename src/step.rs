//! The steps of a run: planned before it, written into the journal while it goes on, told to whoever asks
//! for a plan. One place has their words.

use std::fmt;

/// What is done on the node of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A table gets something to tell its rows by.
    ReplicaIdentity {
        table: String,
    },
    /// The node becomes the first of a cluster.
    BootstrapCluster {
        node: String,
    },
    /// The node gets its part of the values of sequences.
    DivideSequences,
    CreateSlot {
        slot: String,
    },
    Marker,
    PauseApply,
    /// What the members wrote during the copy comes from the source.
    CatchUp {
        source: String,
    },
    PauseApplyToHandOver,
    HoldOffWritesOfNew,
    HoldOffWritesByEngine,
    Origin,
    Copy,
    Provide,
    LetApplyWrite,
    Subscribe {
        provider: String,
        /// Which of several.
        subscription: Option<String>,
    },
    Register,
    HoldOffWrites,
    Detach {
        node: String,
    },
    Leave,
    CloneSlot {
        slot: String,
    },
    HoldSubscription {
        subscription: String,
    },
    NoteRecovery,
    Replay {
        failed: String,
        source: String,
    },
    Compare {
        failed: String,
        source: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplicaIdentity { table } => write!(f, "replica identity of {table}"),
            Self::BootstrapCluster { node } => {
                write!(f, "make \"{node}\" the first node of a cluster")
            }
            Self::DivideSequences => f.write_str("divide its sequences"),
            Self::CreateSlot { slot } => write!(f, "create slot {slot}"),
            Self::Marker => f.write_str("commit a marker"),
            Self::PauseApply => f.write_str("pause apply for the moment of the snapshot"),
            Self::CatchUp { source } => write!(f, "catch up with all that \"{source}\" has"),
            Self::PauseApplyToHandOver => {
                f.write_str("pause apply for the moment in which each peer takes over")
            }
            Self::HoldOffWritesOfNew => f.write_str("block application writes on the new node"),
            Self::HoldOffWritesByEngine => {
                f.write_str("block them by the engine's own setting too")
            }
            Self::Origin => f.write_str("create replication origin for copied rows"),
            Self::Copy => f.write_str("copy structure and data"),
            Self::Provide => f.write_str("make the new node a provider"),
            Self::LetApplyWrite => f.write_str("let apply workers write"),
            Self::Subscribe {
                provider,
                subscription,
            } => {
                write!(f, "subscribe to \"{provider}\"")?;
                subscription.iter().try_for_each(|s| write!(f, " with {s}"))
            }
            Self::Register => f.write_str("register the new node"),
            Self::HoldOffWrites => f.write_str("block application writes"),
            Self::Detach { node } => write!(f, "detach \"{node}\""),
            Self::Leave => f.write_str("drop the node"),
            Self::CloneSlot { slot } => write!(f, "clone slot {slot}"),
            Self::HoldSubscription { subscription } => {
                write!(f, "hold subscription {subscription}")
            }
            Self::NoteRecovery => f.write_str("record that a recovery is in progress"),
            Self::Replay { failed, source } => {
                write!(f, "replay what \"{source}\" has retained of \"{failed}\"")
            }
            Self::Compare { failed, source } => write!(
                f,
                "copy what \"{source}\" has of \"{failed}\", by comparison"
            ),
        }
    }
}

impl Action {
    /// What it is for.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ReplicaIdentity { .. } => {
                "it has none, and updates and deletes of a published table fail without"
            }
            Self::BootstrapCluster { .. } => "the source is in no cluster yet",
            Self::DivideSequences => "no two members are to draw the same value",
            Self::CreateSlot { .. } => {
                "from here on the node keeps what it commits for the one that will subscribe"
            }
            Self::Marker => {
                "a commit whose arrival elsewhere shows that all before it has arrived there"
            }
            Self::PauseApply => {
                "snapshot and progress of the source belong together only while nothing is applied"
            }
            Self::CatchUp { .. } => {
                "the source has the changes of all members in an order in which each finds its row"
            }
            Self::PauseApplyToHandOver => {
                "the new node is to have of each peer what the source has, no more and no less"
            }
            Self::HoldOffWritesOfNew | Self::HoldOffWritesByEngine => {
                "what is written before the join is proved could be lost with it"
            }
            Self::Origin => "copied rows are not to be sent back to where they come from",
            Self::Copy => "what the source has, as of the snapshot",
            Self::Provide => "the others are to get what is written there",
            Self::LetApplyWrite => {
                "writes of applications are still blocked, and statements that apply runs would be too"
            }
            Self::Subscribe { .. } => "to get what that node writes, from where the copy ends",
            Self::Register => "every member knows all members",
            Self::HoldOffWrites => "what it writes from here on would reach nobody",
            Self::Detach { .. } => {
                "drops subscription and slot of that node, and its place in the registry"
            }
            Self::Leave => "it becomes a database like any other, and can be written to again",
            Self::CloneSlot { .. } => "the recovery slot goes on being moved while it is read",
            Self::HoldSubscription { .. } => "nothing may come in between",
            Self::NoteRecovery => {
                "until its end the recovery slots keep what has to be repeated if it is interrupted"
            }
            Self::Replay { .. } => "the transactions that are missing, each as one, in their order",
            Self::Compare { .. } => {
                "no recovery slot has kept what is missing, so the rows that differ are looked for"
            }
        }
    }

    /// What takes it back when the run fails.
    pub fn undo(&self) -> &'static str {
        match self {
            Self::ReplicaIdentity { .. } => "the replica identity that it had before",
            Self::BootstrapCluster { .. } | Self::Provide => "the node stops being one",
            Self::DivideSequences => "the sequences become what they were",
            Self::CreateSlot { .. } | Self::CloneSlot { .. } => "the slot is dropped",
            Self::Marker => "markers are deleted",
            Self::CatchUp { .. } => "the subscription is dropped",
            Self::PauseApply | Self::PauseApplyToHandOver => {
                "apply resumes, at the latest after some seconds by itself"
            }
            Self::HoldOffWritesOfNew
            | Self::HoldOffWritesByEngine
            | Self::LetApplyWrite
            | Self::HoldOffWrites => "the setting that was there before",
            Self::Origin => "the origin is dropped",
            Self::Copy => "all that was not there before is dropped",
            Self::Subscribe { .. } => "the subscription is dropped",
            Self::Register => "the node is forgotten",
            Self::HoldSubscription { .. } => "the subscription is enabled",
            Self::Detach { .. } | Self::Leave => {
                "nothing: the same CALL again goes on where the run ended"
            }
            Self::NoteRecovery => "nothing: it stands until a recovery of the node has ended",
            Self::Replay { .. } | Self::Compare { .. } => {
                "nothing: what has been brought over stays, and the same CALL again goes on"
            }
        }
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
