//! What a removal does.

use super::{Act, AfterFailure, Incomplete, REMOVAL_GOES_ON, ReadOnlyBefore, SETTING_BEFORE};
use crate::engine::Engine;
use crate::node::Statement;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockWrites {
    pub before: Option<ReadOnlyBefore>,
}

impl Act for BlockWrites {
    fn does(&self) -> String {
        "block application writes".into()
    }

    fn why(&self) -> &'static str {
        "what it writes from here on would reach nobody"
    }

    fn after_failure(&self) -> AfterFailure {
        SETTING_BEFORE
    }

    fn statements(&self, _engine: &dyn Engine) -> Vec<Statement> {
        self.before.iter().map(ReadOnlyBefore::restore).collect()
    }
}

impl Incomplete for BlockWrites {
    type Found = ReadOnlyBefore;

    fn with(self, before: ReadOnlyBefore) -> Self {
        Self {
            before: Some(before),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detach {
    pub node: String,
    /// So often nodes of that name have been removed then: a removal that goes on counts it once.
    pub times_removed: Option<u32>,
}

impl Act for Detach {
    fn does(&self) -> String {
        format!("detach \"{}\"", self.node)
    }

    fn why(&self) -> &'static str {
        "drops subscription and slot of that node, and its place in the registry"
    }

    fn after_failure(&self) -> AfterFailure {
        REMOVAL_GOES_ON
    }

    fn is_record(&self) -> bool {
        self.times_removed.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropNode {}

impl Act for DropNode {
    fn does(&self) -> String {
        "drop the node".into()
    }

    fn why(&self) -> &'static str {
        "it becomes a database like any other, and can be written to again"
    }

    fn after_failure(&self) -> AfterFailure {
        REMOVAL_GOES_ON
    }
}
