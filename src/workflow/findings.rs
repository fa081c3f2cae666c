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

/// What a check does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It refuses a join, and makes a cluster that is checked an unhealthy one. Where a check takes some of it for
    /// harmless, it says so itself.
    Failure,
    /// It is told.
    Warning,
}

/// One check on any number of nodes.
pub struct Check {
    name: &'static str,
    wanted: String,
    severity: Severity,
    outcomes: Vec<Outcome>,
}

impl Check {
    pub fn new(name: &'static str, wanted: impl Into<String>, severity: Severity) -> Self {
        Self {
            name,
            wanted: wanted.into(),
            severity,
            outcomes: vec![],
        }
    }

    /// What is wanted of the nodes that are recorded from here on.
    pub fn want(&mut self, wanted: impl Into<String>) {
        self.wanted = wanted.into();
    }

    /// The node is as it should be, with what was found there.
    pub fn pass(&mut self, node: &str, found: impl Into<String>) {
        self.add(Status::Ok, Finding::new(node, SqlState::OK, found, ""));
    }

    /// The node is not as it should be.
    pub fn find(&mut self, finding: Finding) {
        match self.severity {
            Severity::Failure => self.fail(finding),
            Severity::Warning => self.warn(finding),
        }
    }

    pub fn fail(&mut self, finding: Finding) {
        self.add(Status::Failed, finding);
    }

    pub fn warn(&mut self, finding: Finding) {
        self.add(Status::Warning, finding);
    }

    /// One node: what it has, or what is wrong with it.
    pub fn record(&mut self, node: &str, found: impl Into<String>, trouble: Option<Finding>) {
        match trouble {
            Some(finding) => self.find(finding),
            None => self.pass(node, found),
        }
    }

    /// All that was found in one go; the other of `nodes` are as they should be.
    pub fn record_all<'n>(
        &mut self,
        nodes: impl IntoIterator<Item = &'n str>,
        findings: Vec<Finding>,
    ) {
        let found: Vec<String> = findings.iter().map(|f| f.node.clone()).collect();
        findings.into_iter().for_each(|finding| self.find(finding));
        for node in nodes {
            if !found.iter().any(|f| f == node) {
                self.pass(node, "");
            }
        }
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
