//! What has to hold before a join, and on every member.

use crate::error::{Finding, Result};
use crate::libpq::Rows;
use crate::node::{Node, Query, Statement};

/// What an engine needs before a join, beyond what every engine needs.
pub struct EngineCheck {
    pub name: &'static str,
    pub wanted: &'static str,
    pub on: On,
}

/// The nodes that an [`EngineCheck`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Every,
    Members,
    Source,
    New,
}

impl On {
    /// Those of `members`, the source first, and `new`.
    pub fn of<'n>(self, members: &'n [String], new: &'n str) -> impl Iterator<Item = &'n str> {
        let (members, new) = match self {
            Self::Every => (members, Some(new)),
            Self::Members => (members, None),
            Self::Source => (&members[..members.len().min(1)], None),
            Self::New => (&members[..0], Some(new)),
        };
        members.iter().map(String::as_str).chain(new)
    }
}

/// What an engine's checks have found, by their names.
pub type EngineFindings = Vec<(&'static str, Vec<Finding>)>;

/// What a [`MemberCheck`] makes of an answer.
pub enum Judged {
    Failed(Finding),
    Warned(Finding),
}

/// What an engine wants every member to be like, before a join and afterwards.
pub struct MemberCheck {
    pub name: &'static str,
    pub wanted: &'static str,
    /// Whether a node that is to join is asked too.
    pub with_new: bool,
    /// Without parameters.
    pub question: Statement,
    judge: Box<Judge>,
}

/// What a node has answered.
pub type Answer<T> = (String, Vec<T>);

type Judge = dyn Fn(Vec<(String, Rows)>) -> Result<Vec<Judged>>;

impl MemberCheck {
    /// `judge` is given the answers by node; the source of a join is the first.
    pub fn new<T: 'static>(
        name: &'static str,
        wanted: &'static str,
        with_new: bool,
        question: Query<T>,
        judge: fn(&[Answer<T>]) -> Vec<Judged>,
    ) -> Self {
        Self {
            name,
            wanted,
            with_new,
            question: question.statement.clone(),
            judge: Box::new(move |answers| {
                let read = |(node, rows)| Ok((node, question.read(&rows)?));
                let answers: Result<Vec<_>> = answers.into_iter().map(read).collect();
                Ok(judge(&answers?))
            }),
        }
    }

    /// What is said of the answers, by node.
    pub fn judge(&self, answers: Vec<(String, Rows)>) -> Result<Vec<Judged>> {
        (self.judge)(answers)
    }
}

/// What has to hold before a join and on every member, beyond what has to with every engine. A check changes nothing, and
/// tells what it has found, each finding with a hint; an error means that it could not be made.
pub trait Checks {
    /// What is checked before a join, for plans, reports and the reference.
    fn checks(&self) -> &'static [EngineCheck];

    /// Makes these checks, the source being the first of `members`. One that needs what another has not found is left
    /// out. After [`Paths::load_paths_with`](super::Paths::load_paths_with).
    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings>;

    /// What every member is looked at for.
    fn member_checks(&self) -> Vec<MemberCheck> {
        vec![]
    }

    /// What does no harm to the join and is not as its user may think.
    fn warnings(&self, _members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        Ok(vec![])
    }
}
