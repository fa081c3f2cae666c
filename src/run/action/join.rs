//! What a join does. Slots and markers are those of others too.

use super::{
    APPLY_RESUMES, Act, AfterFailure, Incomplete, LeftIf, NODE_IS_DROPPED, ReadOnlyBefore,
    SETTING_BEFORE, SLOT_IS_DROPPED, SUBSCRIPTION_IS_DROPPED, UNTIL_PROVED,
};
use crate::copy::{self, Inventory};
use crate::engine::{Engine, SequencePolicy};
use crate::ereport;
use crate::error::Result;
use crate::node::{Node, Statement, server};
use crate::run::revert::{drop_slot, run_all};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaIdentity {
    pub table: String,
    /// FULL or DEFAULT.
    pub becomes: String,
    /// The statement that makes it so.
    pub change: String,
    /// The statement that gives the table back what it had.
    pub restore: String,
}

impl Act for ReplicaIdentity {
    fn does(&self) -> String {
        format!("replica identity of {}", self.table)
    }

    fn why(&self) -> &'static str {
        "it has none, and updates and deletes of a published table fail without"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("the replica identity that it had before")
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        vec![Statement::new(self.restore.as_str(), &[])]
    }

    fn left_if(&self) -> Option<LeftIf<'_>> {
        Some(LeftIf::OtherMembers)
    }
}

/// The source becomes the first node of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapCluster {
    pub node: String,
}

impl Act for BootstrapCluster {
    fn does(&self) -> String {
        format!("make \"{}\" the first node of a cluster", self.node)
    }

    fn why(&self) -> &'static str {
        "the source is in no cluster yet"
    }

    fn after_failure(&self) -> AfterFailure {
        NODE_IS_DROPPED
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        engine.drop_node()
    }

    fn left_if(&self) -> Option<LeftIf<'_>> {
        Some(LeftIf::OtherMembers)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DivideSequences {
    /// The statement that makes them what they were.
    restore: Option<String>,
}

impl Act for DivideSequences {
    fn does(&self) -> String {
        "divide its sequences".into()
    }

    fn why(&self) -> &'static str {
        "no two members are to draw the same value"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("the sequences become what they were")
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        let restore = self.restore.iter();
        restore
            .map(|sql| Statement::new(sql.as_str(), &[]))
            .collect()
    }
}

impl Incomplete for DivideSequences {
    type Found = String;

    fn with(self, restore: String) -> Self {
        Self {
            restore: Some(restore),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateSlot {
    pub slot: String,
}

impl Act for CreateSlot {
    fn does(&self) -> String {
        format!("create slot {}", self.slot)
    }

    fn why(&self) -> &'static str {
        "from here on the node keeps what it commits for the one that will subscribe"
    }

    fn after_failure(&self) -> AfterFailure {
        SLOT_IS_DROPPED
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        vec![server::drop_slot(&self.slot)]
    }

    fn undo(&self, _engine: &dyn Engine, node: &mut Node) -> Result<()> {
        drop_slot(node, &self.slot)
    }

    fn left_if(&self) -> Option<LeftIf<'_>> {
        Some(LeftIf::Read { slot: &self.slot })
    }
}

/// Markers of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Marker {}

impl Act for Marker {
    fn does(&self) -> String {
        "commit a marker".into()
    }

    fn why(&self) -> &'static str {
        "a commit whose arrival elsewhere shows that all before it has arrived there"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("markers are deleted")
    }

    fn undo(&self, engine: &dyn Engine, node: &mut Node) -> Result<()> {
        run_all(node, &engine.forget_markers(&node.name))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseApply {}

impl Act for PauseApply {
    fn does(&self) -> String {
        "pause apply for the moment of the snapshot".into()
    }

    fn why(&self) -> &'static str {
        "snapshot and progress of the source belong together only while nothing is applied"
    }

    fn after_failure(&self) -> AfterFailure {
        APPLY_RESUMES
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        vec![engine.resume()]
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockWritesOfNew {
    before: Option<ReadOnlyBefore>,
}

impl Act for BlockWritesOfNew {
    fn does(&self) -> String {
        "block application writes on the new node".into()
    }

    fn why(&self) -> &'static str {
        UNTIL_PROVED
    }

    fn after_failure(&self) -> AfterFailure {
        SETTING_BEFORE
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        self.before.iter().map(ReadOnlyBefore::restore).collect()
    }
}

impl Incomplete for BlockWritesOfNew {
    type Found = ReadOnlyBefore;

    fn with(self, before: ReadOnlyBefore) -> Self {
        Self {
            before: Some(before),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockWritesByEngine {
    /// The statement that blocks them.
    pub block: String,
    /// The statement that lets them in again.
    pub release: String,
}

impl Act for BlockWritesByEngine {
    fn does(&self) -> String {
        "block them by the engine's own setting too".into()
    }

    fn why(&self) -> &'static str {
        UNTIL_PROVED
    }

    fn after_failure(&self) -> AfterFailure {
        SETTING_BEFORE
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        vec![Statement::new(self.release.as_str(), &[])]
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateOrigin {
    origin: Option<String>,
}

impl Act for CreateOrigin {
    fn does(&self) -> String {
        "create replication origin for copied rows".into()
    }

    fn why(&self) -> &'static str {
        "copied rows are not to be sent back to where they come from"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("the origin is dropped")
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        let origin = self.origin.iter();
        origin.map(|origin| server::drop_origin(origin)).collect()
    }
}

impl Incomplete for CreateOrigin {
    type Found = String;

    fn with(self, origin: String) -> Self {
        Self {
            origin: Some(origin),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CopyDatabase {
    restore: Option<Box<Restore>>,
}

/// What tells apart what a copy has brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// What was there before.
    pub before: Inventory,
    /// Of those, tables that were empty and got rows.
    pub preexisting: Vec<String>,
    /// The names of all that may have come; what else is new others have made.
    pub restorable: Option<BTreeSet<String>>,
}

impl Act for CopyDatabase {
    fn does(&self) -> String {
        "copy structure and data".into()
    }

    fn why(&self) -> &'static str {
        "what the source has, as of the snapshot"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("all that was not there before is dropped")
    }

    fn undo(&self, _engine: &dyn Engine, node: &mut Node) -> Result<()> {
        let Some(restore) = &self.restore else {
            return Ok(());
        };
        if !restore.preexisting.is_empty() {
            server::empty(&restore.preexisting).run(node)?;
        }
        let others = copy::undo(
            &mut node.session,
            &restore.before,
            restore.restorable.as_ref(),
        )?;
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
}

impl Incomplete for CopyDatabase {
    type Found = Restore;

    fn with(self, restore: Restore) -> Self {
        Self {
            restore: Some(Box::new(restore)),
        }
    }
}

/// The database is made a node: what the engine has of one is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateNode {}

impl Act for CreateNode {
    fn does(&self) -> String {
        "make the new node a provider".into()
    }

    fn why(&self) -> &'static str {
        "the others are to get what is written there"
    }

    fn after_failure(&self) -> AfterFailure {
        NODE_IS_DROPPED
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        engine.drop_node()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LetApplyWrite {
    /// The statement that gives their role back what it had.
    restore: Option<String>,
}

impl Act for LetApplyWrite {
    fn does(&self) -> String {
        "let apply workers write".into()
    }

    fn why(&self) -> &'static str {
        "writes of applications are still blocked, and statements that apply runs would be too"
    }

    fn after_failure(&self) -> AfterFailure {
        SETTING_BEFORE
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        let restore = self.restore.iter();
        restore
            .map(|sql| Statement::new(sql.as_str(), &[]))
            .collect()
    }
}

impl Incomplete for LetApplyWrite {
    type Found = String;

    fn with(self, restore: String) -> Self {
        Self {
            restore: Some(restore),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subscribe {
    pub provider: String,
    pub subscription: String,
    /// There are others between the two nodes, so it is named.
    pub one_of_several: bool,
    /// The subscriber only reads, and no member knows it.
    pub by_reader: bool,
}

impl Act for Subscribe {
    fn does(&self) -> String {
        match self.one_of_several {
            true => format!(
                "subscribe to \"{}\" with {}",
                self.provider, self.subscription
            ),
            false => format!("subscribe to \"{}\"", self.provider),
        }
    }

    fn why(&self) -> &'static str {
        "to get what that node writes, from where the copy ends"
    }

    fn after_failure(&self) -> AfterFailure {
        SUBSCRIPTION_IS_DROPPED
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        engine.unsubscribe(&self.subscription)
    }
}

/// By a subscription that is there: what takes that back takes this back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatchUp {
    pub source: String,
}

impl Act for CatchUp {
    fn does(&self) -> String {
        format!("catch up with all that \"{}\" has", self.source)
    }

    fn why(&self) -> &'static str {
        "the source has the changes of all members in an order in which each finds its row"
    }

    fn after_failure(&self) -> AfterFailure {
        SUBSCRIPTION_IS_DROPPED
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseApplyToHandOver {}

impl Act for PauseApplyToHandOver {
    fn does(&self) -> String {
        "pause apply for the moment in which each peer takes over".into()
    }

    fn why(&self) -> &'static str {
        "the new node is to have of each peer what the source has, no more and no less"
    }

    fn after_failure(&self) -> AfterFailure {
        APPLY_RESUMES
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        vec![engine.resume()]
    }
}

/// The registry of the node gets `member`. Every registry is changed back, before the node forgets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    pub member: String,
    /// How the cluster divided its sequences before, if that changes with it.
    pub divided_before: Option<(SequencePolicy, i32)>,
}

impl Act for Register {
    fn does(&self) -> String {
        "register the new node".into()
    }

    fn why(&self) -> &'static str {
        "every member knows all members"
    }

    fn after_failure(&self) -> AfterFailure {
        AfterFailure::Undone("the node is removed from the registry")
    }

    fn statements(&self, engine: &dyn Engine) -> Vec<Statement> {
        engine.forget_node(&self.member)
    }
}
