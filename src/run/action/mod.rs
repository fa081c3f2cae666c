//! What the steps of a run do. The same value is planned, told to whoever asks for a plan, written into the journal and
//! undone; one block for each has its words, what it is for, what becomes of it if the run fails, and what takes it
//! back.

mod join;
mod recover;
mod remove;

pub use join::*;
pub use recover::*;
pub use remove::*;

use super::revert::run_all;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::node::{Node, Statement, server};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is done on the node of a step. Never holds a connection string.
pub trait Act {
    /// What it does, for people.
    fn does(&self) -> String;

    /// What it is for.
    fn why(&self) -> &'static str;

    fn after_failure(&self) -> AfterFailure;

    /// What takes it back, where that is a matter of statements alone.
    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        vec![]
    }

    /// Takes it back, on the node that has it.
    fn undo(&self, engine: &dyn Engine, node: &mut Node) -> Result<()> {
        run_all(node, &self.statements(engine))
    }

    /// Why it may be left although its run is undone.
    fn left_if(&self) -> Option<LeftIf<'_>> {
        None
    }

    /// Nothing of it is undone, but a run that goes on where this one ended reads what it says.
    fn is_record(&self) -> bool {
        false
    }
}

/// What becomes of an action if its run fails or is interrupted after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// It is taken back.
    Undone(&'static str),
    /// It stays: the same CALL again continues, or nothing depends on it.
    Stays(&'static str),
}

/// Others depend on what an action has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftIf<'a> {
    /// The cluster that was founded has other members.
    OtherMembers,
    /// Somebody reads from the slot, which the run was just about to make.
    Read { slot: &'a str },
}

/// One kind of action, as a plan has it.
pub trait Kind: Act + Clone + Into<Action> {
    fn of(action: &Action) -> Option<&Self>;
}

/// An action of which all is known when it is planned.
pub trait Complete: Kind {}

/// An action of which something is known only when it is begun.
pub trait Incomplete: Kind {
    type Found;

    fn with(self, found: Self::Found) -> Self;
}

// Not by way of `dyn Act`: unit tests, which have no server to link, would need all that an undo does.
macro_rules! actions {
    ($($action:ident),* $(,)?) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum Action {
            $($action($action),)*
        }

        impl Action {
            #[cfg(test)]
            const COUNT: usize = [$(stringify!($action)),*].len();
        }

        impl Act for Action {
            fn does(&self) -> String {
                match self {
                    $(Self::$action(action) => action.does(),)*
                }
            }

            fn why(&self) -> &'static str {
                match self {
                    $(Self::$action(action) => action.why(),)*
                }
            }

            fn after_failure(&self) -> AfterFailure {
                match self {
                    $(Self::$action(action) => action.after_failure(),)*
                }
            }

            fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
                match self {
                    $(Self::$action(action) => action.statements(engine),)*
                }
            }

            fn undo(&self, engine: &dyn Engine, node: &mut Node) -> Result<()> {
                match self {
                    $(Self::$action(action) => action.undo(engine, node),)*
                }
            }

            fn left_if(&self) -> Option<LeftIf<'_>> {
                match self {
                    $(Self::$action(action) => action.left_if(),)*
                }
            }

            fn is_record(&self) -> bool {
                match self {
                    $(Self::$action(action) => action.is_record(),)*
                }
            }
        }

        $(
            impl From<$action> for Action {
                fn from(action: $action) -> Self {
                    Self::$action(action)
                }
            }

            impl Kind for $action {
                fn of(action: &Action) -> Option<&Self> {
                    match action {
                        Action::$action(action) => Some(action),
                        _ => None,
                    }
                }
            }
        )*
    };
}

macro_rules! complete {
    ($($action:ident),* $(,)?) => {
        $(impl Complete for $action {})*
    };
}

actions! {
    // Of a join.
    ReplicaIdentity,
    BootstrapCluster,
    DivideSequences,
    CreateSlot,
    Marker,
    PauseApply,
    BlockWritesOfNew,
    BlockWritesByEngine,
    CreateOrigin,
    CopyDatabase,
    CreateNode,
    LetApplyWrite,
    Subscribe,
    CatchUp,
    PauseApplyToHandOver,
    Register,
    // Of a removal.
    BlockWrites,
    Detach,
    DropNode,
    // Of a recovery, the second also of a removal.
    CloneSlot,
    HoldSubscription,
    RecordRecovery,
    Replay,
    Compare,
}

complete! {
    ReplicaIdentity,
    BootstrapCluster,
    CreateSlot,
    Marker,
    PauseApply,
    BlockWritesByEngine,
    CreateNode,
    Subscribe,
    CatchUp,
    PauseApplyToHandOver,
    Register,
    Detach,
    DropNode,
    HoldSubscription,
    RecordRecovery,
    Replay,
    Compare,
}

impl Action {
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::internal(format!("zodan.step.action: {e}")))
    }

    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::internal(format!("zodan.step.action: {e}")))
    }

    /// What takes it back when the run fails, for people.
    pub fn undo_words(&self) -> &'static str {
        match self.after_failure() {
            AfterFailure::Undone(how) | AfterFailure::Stays(how) => how,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.does())
    }
}

/// What new sessions of a database were before they became read-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadOnlyBefore {
    pub database: String,
    /// What the database had set `default_transaction_read_only` to.
    pub setting: Option<String>,
}

impl ReadOnlyBefore {
    /// Makes them so again.
    pub fn restore(&self) -> Statement {
        server::set_database_read_only(&self.database, self.setting.as_deref())
    }
}

const UNTIL_PROVED: &str = "what is written before the join is proved could be lost with it";
const SETTING_BEFORE: AfterFailure = AfterFailure::Undone("the setting that was there before");
const NODE_IS_DROPPED: AfterFailure = AfterFailure::Undone("the node is dropped");
const SLOT_IS_DROPPED: AfterFailure = AfterFailure::Undone("the slot is dropped");
const SUBSCRIPTION_IS_DROPPED: AfterFailure = AfterFailure::Undone("the subscription is dropped");
const APPLY_RESUMES: AfterFailure =
    AfterFailure::Undone("apply resumes, at the latest after some seconds by itself");
const REMOVAL_GOES_ON: AfterFailure =
    AfterFailure::Stays("nothing: the same CALL again goes on where the run ended");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// One of each kind.
    fn every_action() -> Vec<Action> {
        let text = str::to_owned;
        let before = ReadOnlyBefore {
            database: text("d\"b"),
            setting: None,
        };
        let copy = CopyDatabase::default().with(Restore {
            preexisting: vec![text("s.t")],
            restorable: Some([text("table s.t")].into()),
            ..Restore::default()
        });
        let all = vec![
            ReplicaIdentity {
                table: text("T"),
                becomes: text("FULL"),
                change: text("ALTER TABLE T"),
                restore: text("ALTER TABLE T"),
            }
            .into(),
            BootstrapCluster { node: text("P") }.into(),
            DivideSequences::default().with(text("SELECT 1")).into(),
            CreateSlot { slot: text("X") }.into(),
            Marker {}.into(),
            PauseApply {}.into(),
            BlockWritesOfNew::default().with(before.clone()).into(),
            BlockWritesByEngine {
                block: text("SELECT 0"),
                release: text("SELECT 1"),
            }
            .into(),
            CreateOrigin::default().with(text("o")).into(),
            copy.into(),
            CreateNode {}.into(),
            LetApplyWrite::default().with(text("SELECT 1")).into(),
            Subscribe {
                provider: text("P"),
                subscription: text("X"),
                one_of_several: false,
                by_reader: false,
            }
            .into(),
            CatchUp { source: text("S") }.into(),
            PauseApplyToHandOver {}.into(),
            Register {
                member: text("N"),
                divided_before: None,
            }
            .into(),
            BlockWrites::default().with(before).into(),
            Detach {
                node: text("P"),
                times_removed: Some(2),
            }
            .into(),
            DropNode {}.into(),
            CloneSlot::new(text("X")).with(text("Y")).into(),
            HoldSubscription {
                subscription: text("X"),
                let_go: text("SELECT 1"),
            }
            .into(),
            RecordRecovery {}.into(),
            Replay {
                failed: text("F"),
                source: text("S"),
            }
            .into(),
            Compare {
                failed: text("F"),
                source: text("S"),
            }
            .into(),
        ];
        let kinds: BTreeSet<String> = all.iter().map(kind).collect();
        assert_eq!(
            kinds.len(),
            Action::COUNT,
            "every_action() has not one of each kind: {kinds:?}"
        );
        all
    }

    fn kind(action: &Action) -> String {
        let journalled = serde_json::to_value(action).unwrap();
        journalled["kind"].as_str().unwrap().to_owned()
    }

    #[test]
    fn every_action_is_in_the_internals() {
        let internals = include_str!("../../../docs/internals.md");
        for action in every_action() {
            let row = format!("| {action} | {} |", action.undo_words());
            assert!(
                internals.contains(&row),
                "missing in docs/internals.md:\n{row}"
            );
        }
    }

    #[test]
    fn actions_survive_the_journal() {
        for action in every_action() {
            let text = action.to_text().unwrap();
            assert_eq!(Action::parse(&text).unwrap(), action, "{text}");
        }
    }

    #[test]
    fn only_what_is_undone_may_be_left() {
        for action in every_action() {
            let stays = matches!(action.after_failure(), AfterFailure::Stays(_));
            assert!(!(stays && action.left_if().is_some()), "{action}");
            assert!(stays || !action.is_record(), "{action}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_journal_fall_over(text in any::<String>(), kind in "[a-z_]{0,12}", slot in any::<String>()) {
            prop_assert!(Action::parse(&text).is_err() || text.contains("kind"));
            let action = Action::from(CreateSlot { slot });
            prop_assert_eq!(Action::parse(&action.to_text().unwrap()).unwrap(), action);
            let _ = Action::parse(&format!("{{\"kind\": \"{kind}\"}}"));
        }
    }
}
