//! What the steps of a run leave on nodes, and what takes it back. "Already gone" is done: an undo may be interrupted and
//! repeated.

use crate::copy::{self, Inventory};
use crate::engine::{Engine, SequencePolicy};
use crate::ereport;
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::node::{Node, Statement, server};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A side effect, as an undo finds it again. Never holds a connection string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// Nothing yet: what is to be made has a name that somebody else may use first.
    Nothing,
    /// A replication slot on the node.
    Slot { slot: String },
    /// A subscription on the node.
    Subscription { subscription: String },
    /// The same on a node that only reads, which no member knows.
    OfReader { subscription: String },
    /// The database has been made a node: publication and registry, or the Spock node.
    Node,
    /// The source has been made the first node of a cluster; it stays one if others have joined since.
    FirstNode,
    /// A row about `member` in the registry of the node.
    Registration {
        member: String,
        /// How the cluster divided its sequences before, if that changed with it.
        divided_before: Option<(SequencePolicy, i32)>,
    },
    /// Apply is paused on the node.
    Pause,
    /// Markers of the node.
    Marker,
    /// A replication origin on the node.
    Origin { origin: String },
    /// Everything that was copied into the node; the list says what was there before.
    Objects {
        before: Inventory,
        /// Of those, tables that were empty and got rows.
        #[serde(default)]
        preexisting: Vec<String>,
        /// The names of all that may have come; what else is new others have made. `None` in runs of a
        /// version that did not write it down.
        #[serde(default)]
        brought: Option<BTreeSet<String>>,
    },
    /// New sessions of the node's database are read-only.
    ReadOnly {
        database: String,
        before: Option<String>,
    },
    /// A node of that name has been removed so often: a removal that goes on counts it once.
    Former { name: String, times: u32 },
    /// A statement on the node; the one that takes it back.
    Statement { undo: String },
    /// The replica identity of a table of a source that becomes the first node, and the statement that takes it back.
    ReplicaIdentity { undo: String },
}

impl Effect {
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::internal(format!("zodan.step.effect: {e}")))
    }

    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::internal(format!("zodan.step.effect: {e}")))
    }

    /// Takes it back, on the node that has it.
    pub fn undo(&self, engine: &dyn Engine, node: &mut Node) -> Result<()> {
        match self {
            Effect::Slot { slot } => drop_slot(node, slot),
            Effect::Marker => run_all(node, &engine.forget_markers(&node.name)),
            Effect::Objects {
                before,
                preexisting,
                brought,
            } => {
                if !preexisting.is_empty() {
                    server::empty(preexisting).run(node)?;
                }
                let others = copy::undo(&mut node.session, before, brought.as_ref())?;
                if !others.is_empty() {
                    ereport::warning(
                        &format!(
                            "node \"{}\" keeps what the copy did not bring: {}",
                            node.name,
                            others.join(", ")
                        ),
                        "Somebody made it while the node was joining. Drop it if it is not needed.",
                    );
                }
                Ok(())
            }
            other => run_all(node, &other.statements(engine)),
        }
    }

    /// What takes it back, where that is a matter of statements alone.
    pub fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        match self {
            Effect::Slot { slot } => vec![server::drop_slot(slot)],
            Effect::Subscription { subscription } | Effect::OfReader { subscription } => {
                engine.unsubscribe(subscription)
            }
            Effect::Node | Effect::FirstNode => engine.drop_node(),
            Effect::Registration { member, .. } => engine.forget_node(member),
            Effect::Pause => vec![engine.resume()],
            Effect::Origin { origin } => vec![server::drop_origin(origin)],
            Effect::ReadOnly { database, before } => {
                vec![server::set_database_read_only(database, before.as_deref())]
            }
            Effect::ReplicaIdentity { undo } | Effect::Statement { undo } => {
                vec![Statement::new(undo.as_str(), &[])]
            }
            Effect::Nothing | Effect::Marker | Effect::Objects { .. } | Effect::Former { .. } => {
                vec![]
            }
        }
    }

    /// It tells something of a run that is continued, and is not undone.
    pub fn is_record(&self) -> bool {
        matches!(self, Effect::Former { .. })
    }

    /// It made the source the first node of a cluster.
    pub fn is_of_bootstrap(&self) -> bool {
        matches!(self, Effect::FirstNode | Effect::ReplicaIdentity { .. })
    }
}

pub fn run_all(node: &mut Node, statements: &[Statement]) -> Result<()> {
    statements
        .iter()
        .try_for_each(|s| ignore_undefined(s.run(node)))
}

/// "Already gone" is done.
fn ignore_undefined<T>(answer: Result<T>) -> Result<()> {
    match answer {
        Err(error) if !error.is_undefined() => Err(error),
        _ => Ok(()),
    }
}

/// Drops a slot of ours, ending its user first: a subscriber that lost its subscription a moment
/// ago may still be connected.
pub fn drop_slot(node: &mut Node, slot: &str) -> Result<()> {
    let name = node.name.clone();
    wait_until(
        &name,
        &format!("dropping slot {slot}"),
        "See who streams from it.",
        || match server::drop_slot(slot).run(node) {
            Ok(_) => Ok(Poll::Ready(())),
            Err(error) if error.is_undefined() => Ok(Poll::Ready(())),
            Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                server::end_slot_user(slot).run(node)?;
                Ok(Poll::Pending(error.to_string()))
            }
            Err(error) => Err(error),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn effects_survive_the_journal() {
        for effect in [
            Effect::Slot { slot: "s".into() },
            Effect::Nothing,
            Effect::Node,
            Effect::ReadOnly {
                database: "d\"b".into(),
                before: None,
            },
            Effect::Objects {
                before: Inventory::default(),
                preexisting: vec!["s.t".into()],
                brought: Some(["table s.t".to_owned()].into()),
            },
        ] {
            let text = serde_json::to_string(&effect).unwrap();
            assert_eq!(serde_json::from_str::<Effect>(&text).unwrap(), effect);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_journal_fall_over(text in any::<String>(), kind in "[a-z_]{0,12}", slot in any::<String>()) {
            prop_assert!(Effect::parse(&text).is_err() || text.contains("kind"));
            let effect = Effect::Slot { slot };
            prop_assert_eq!(Effect::parse(&effect.to_text().unwrap()).unwrap(), effect);
            let _ = Effect::parse(&format!("{{\"kind\": \"{kind}\"}}"));
        }
    }
}
