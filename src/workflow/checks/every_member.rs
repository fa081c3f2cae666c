//! What is checked on every member: before a join, and in the same words afterwards.

use crate::engine::{Engine, Judged, MemberCheck, Path};
use crate::error::{Error, Finding, Result};
use crate::libpq::Rows;
use crate::node::{Question, Statement};
use crate::workflow::findings::{Check, Outcome, Severity};

/// What a node answers, or why it does not.
pub type Answers = Vec<(String, Result<Vec<Rows>>)>;

pub struct EveryMember<'a> {
    pub engine: &'a dyn Engine,
    /// Asks every member the same, and where the second argument says so also a node that is to join. The source of
    /// a join is the first.
    pub ask: &'a mut dyn FnMut(&[&Statement], bool) -> Result<Answers>,
    /// Between the members, as they are called.
    pub paths: Vec<Path>,
    /// Whether the source is about to found a cluster.
    pub bootstrapping: bool,
    /// Major versions of the members, then of the node that is to join.
    pub versions: Vec<u32>,
}

/// Since this major version a server refuses updates that are told by columns it does not send.
pub const REFUSES_UNSENT: u32 = 18;

impl EveryMember<'_> {
    /// What the engine wants of every member.
    pub fn of_the_engine(&mut self, wanted: MemberCheck) -> Result<Vec<Outcome>> {
        let mut check = Check::new(wanted.name, wanted.wanted, Severity::Failure);
        let answers = self.answers(&mut check, &wanted.question, wanted.with_new)?;
        let nodes: Vec<String> = answers.iter().map(|(node, _)| node.clone()).collect();
        let mut reported = vec![];
        for judged in wanted.judge(answers)? {
            match judged {
                Judged::Failed(finding) => {
                    reported.push(finding.node.clone());
                    check.fail(finding);
                }
                Judged::Warned(finding) => {
                    reported.push(finding.node.clone());
                    check.warn(finding);
                }
            }
        }
        for node in nodes.iter().filter(|node| !reported.contains(node)) {
            check.pass(node, "");
        }
        Ok(check.outcomes())
    }

    /// The answers of those who give one; that the others do not has its place in the check.
    pub fn answers<Q: Question>(
        &mut self,
        check: &mut Check,
        question: &Q,
        with_new: bool,
    ) -> Result<Vec<(String, Q::Answer)>> {
        let mut answers = vec![];
        for (node, answer) in (self.ask)(&question.statements(), with_new)? {
            match answer.and_then(|rows| question.answer(&mut rows.into_iter())) {
                Ok(answer) => answers.push((node, answer)),
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(error) => check.fail(Finding::unanswered(&node, &error)),
            }
        }
        Ok(answers)
    }

    /// Whether some node refuses updates that are told by columns it does not send, and some node does not.
    pub fn unsent(&self) -> (bool, bool) {
        let refuses = |version: &u32| *version >= REFUSES_UNSENT;
        (
            self.versions.iter().any(refuses),
            !self.versions.iter().all(refuses),
        )
    }
}

/// The first of `names`, and how many more there are.
pub fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}
