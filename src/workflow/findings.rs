//! Checks with a name, and what each of them has found on each node.

use crate::error::{Finding, SqlState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    Warning,
    Failed,
}

impl Status {
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What one check has found on one node.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub node: String,
    pub check: &'static str,
    pub status: Status,
    pub found: String,
    pub wanted: String,
    pub remedy: String,
    /// The remedy as a statement to run on the node, where it is one.
    pub statement: Option<String>,
    /// Of a check that has failed: what a CALL refuses with.
    pub finding: Option<Finding>,
}

/// One check on any number of nodes.
pub struct Check {
    name: &'static str,
    wanted: String,
    outcomes: Vec<Outcome>,
}

impl Check {
    pub fn new(name: &'static str, wanted: impl Into<String>) -> Self {
        Self {
            name,
            wanted: wanted.into(),
            outcomes: vec![],
        }
    }

    /// The node is as it should be, with what was found there.
    pub fn passed(&mut self, node: &str, found: impl Into<String>) {
        self.add(Status::Ok, Finding::new(node, SqlState::OK, found, ""));
    }

    pub fn failed(&mut self, finding: Finding) {
        self.add(Status::Failed, finding);
    }

    pub fn warned(&mut self, node: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.warned_of(Finding::new(node, SqlState::OK, found, remedy));
    }

    /// As [`Self::warned`], with more that can be said.
    pub fn warned_of(&mut self, finding: Finding) {
        self.add(Status::Warning, finding);
    }

    /// One look at one node.
    pub fn look(&mut self, node: &str, found: impl Into<String>, trouble: Option<Finding>) {
        match trouble {
            Some(finding) => self.failed(finding),
            None => self.passed(node, found),
        }
    }

    /// All that was found in one go; the other of `nodes` are as they should be.
    pub fn all<'n>(
        mut self,
        nodes: impl IntoIterator<Item = &'n str>,
        findings: Vec<Finding>,
    ) -> Self {
        let found: Vec<String> = findings.iter().map(|f| f.node.clone()).collect();
        for finding in findings {
            self.failed(finding);
        }
        for node in nodes {
            if !found.iter().any(|f| f == node) {
                self.passed(node, "");
            }
        }
        self
    }

    pub fn outcomes(self) -> Vec<Outcome> {
        self.outcomes
    }

    fn add(&mut self, status: Status, finding: Finding) {
        self.outcomes.push(Outcome {
            node: finding.node.clone(),
            check: self.name,
            status,
            found: finding.message.clone(),
            wanted: self.wanted.clone(),
            remedy: finding.hint.clone(),
            statement: finding.statement.clone(),
            finding: (status == Status::Failed).then_some(finding),
        });
    }
}

/// What the failed ones of `outcomes` have found.
pub fn failures(outcomes: &[Outcome]) -> Vec<Finding> {
    outcomes.iter().filter_map(|o| o.finding.clone()).collect()
}
