//! The one error type: every failure carries a SQLSTATE, and says which node and what to do next.

pub use zodan_core::sqlstate::SqlState;

pub type Result<T> = std::result::Result<T, Error>;

/// One thing a check found wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub node: String,
    pub state: SqlState,
    pub message: String,
    pub hint: String,
    /// What mends it when it is run on the node, where there is such a statement.
    pub statement: Option<String>,
}

impl Finding {
    pub fn new(
        node: &str,
        state: SqlState,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            node: node.into(),
            state,
            message: message.into(),
            hint: hint.into(),
            statement: None,
        }
    }

    /// What is told, and refuses nothing.
    pub fn warning(node: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(node, SqlState::OK, message, hint)
    }

    /// That a node does not answer what it is asked.
    pub fn unanswered(node: &str, error: &Error) -> Self {
        let hint = error.hint().unwrap_or_default();
        Self::new(node, error.sqlstate(), error.to_string(), hint)
    }

    pub fn fixed_by(mut self, statement: impl Into<String>) -> Self {
        self.statement = Some(statement.into());
        self
    }
}

/// An error that a remote server raised.
#[derive(Clone, Debug)]
pub struct Remote {
    pub node: String,
    pub state: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The statement without its parameters, which may hold connection strings.
    pub statement: String,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("argument {argument} {problem}")]
    Argument {
        argument: &'static str,
        problem: String,
        hint: String,
        state: SqlState,
    },

    #[error("could not connect to node \"{node}\": {reason}")]
    Connect {
        node: String,
        reason: String,
        /// A server has answered, if only to refuse.
        answered: bool,
        hint: String,
    },

    #[error("node \"{}\": {}", .0.node, .0.message)]
    Remote(Box<Remote>),

    #[error("connection to node \"{node}\" was lost: {reason}")]
    Lost { node: String, reason: String },

    #[error("{message}")]
    Local {
        state: SqlState,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },

    #[error("{message}")]
    Refused {
        state: SqlState,
        message: String,
        detail: Option<String>,
        hint: String,
    },

    /// Too few members answer to change the membership. `away` says who does not, and why.
    #[error("cannot reach a majority: {reached} of {members} members reachable")]
    NoMajority {
        reached: usize,
        members: usize,
        away: Vec<String>,
        hint: String,
    },

    #[error("{}", checks_message(.0))]
    Checks(Vec<Finding>),

    #[error("node \"{node}\": {program} failed: {message}")]
    Program {
        program: String,
        node: String,
        message: String,
    },

    /// A statement was cancelled because its own time limit passed, not because anybody asked.
    #[error("node \"{node}\": {what} took longer than {limit_ms} ms")]
    Deadline {
        node: String,
        what: String,
        limit_ms: u128,
    },

    #[error("node \"{node}\": {what} made no progress for {seconds} s")]
    Stalled {
        node: String,
        what: String,
        seconds: u64,
        detail: String,
        hint: String,
    },

    #[error("{message}")]
    Interrupted { state: SqlState, message: String },

    /// Of a task that is made beside others: see `node::side_by_side`. Nobody is told.
    #[error("not answered yet")]
    Unanswered,

    /// The first error of a run, after its undo left something behind.
    #[error("{first}")]
    NotUndone {
        first: Box<Error>,
        left: Vec<String>,
        hint: String,
    },

    /// The error that ended a run which is gone on with, not taken back.
    #[error("{first}")]
    Unfinished { first: Box<Error>, hint: String },

    #[error("{0}")]
    Internal(String),
}

fn checks_message(findings: &[Finding]) -> String {
    match findings {
        [one] => format!("node \"{}\": {}", one.node, one.message),
        many => format!("{} checks failed before the first change", many.len()),
    }
}

impl From<zodan_core::Error> for Error {
    fn from(error: zodan_core::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

impl Error {
    pub fn refused(state: SqlState, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            state,
            message: message.into(),
            detail: None,
            hint: hint.into(),
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into())
    }

    /// No connection could be made to `node`; whether a server has answered.
    pub fn connect(node: &str, reason: String, answered: bool) -> Self {
        Self::Connect {
            answered,
            hint: format!(
                "Check host, port, database, user and password in the connection string of node \"{node}\", and pg_hba.conf and the state of its server."
            ),
            node: node.to_owned(),
            reason,
        }
    }

    /// Where no connection could be made: with another hint, made from the one that it has.
    pub fn hinted(mut self, make: impl FnOnce(&str) -> String) -> Self {
        if let Self::Connect { hint, .. } = &mut self {
            *hint = make(hint);
        }
        self
    }

    /// That something stands still names the node where it does.
    pub fn of_node(mut self, name: &str) -> Self {
        if let Self::Stalled { node, .. } = &mut self {
            name.clone_into(node);
        }
        self
    }

    /// Whether the server of a node has said this: one that is dead says nothing.
    pub fn is_of_a_server(&self) -> bool {
        matches!(self, Self::Connect { answered: true, .. } | Self::Remote(_))
    }

    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Argument { state, .. }
            | Self::Local { state, .. }
            | Self::Refused { state, .. }
            | Self::Interrupted { state, .. } => *state,
            Self::Connect { .. } => SqlState::UNABLE_TO_CONNECT,
            Self::NoMajority { .. } => SqlState::NO_MAJORITY,
            Self::Remote(remote) => remote.state,
            Self::Lost { .. } => SqlState::CONNECTION_FAILURE,
            Self::Checks(findings) => findings
                .first()
                .map_or(SqlState::INTERNAL_ERROR, |f| f.state),
            Self::Program { .. } => SqlState::EXTERNAL_ROUTINE_EXCEPTION,
            Self::Deadline { .. } => SqlState::QUERY_CANCELED,
            Self::Stalled { .. } => SqlState::NOT_IN_PREREQUISITE_STATE,
            Self::NotUndone { first, .. } | Self::Unfinished { first, .. } => first.sqlstate(),
            Self::Internal(_) | Self::Unanswered => SqlState::INTERNAL_ERROR,
        }
    }

    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Local { detail, .. } | Self::Refused { detail, .. } => detail.clone(),
            Self::Remote(remote) => {
                let statement = format!("Remote statement: {}", remote.statement);
                Some(match &remote.detail {
                    Some(detail) => format!("{detail}\n{statement}"),
                    None => statement,
                })
            }
            Self::Checks(findings) if findings.len() > 1 => Some(
                findings
                    .iter()
                    .map(|f| format!("node \"{}\": {} ({})", f.node, f.message, f.state))
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            Self::Stalled { detail, .. } if !detail.is_empty() => Some(detail.clone()),
            Self::NoMajority { away, .. } if !away.is_empty() => Some(away.join("\n")),
            Self::NotUndone { first, .. } | Self::Unfinished { first, .. } => first.detail(),
            _ => None,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Argument { hint, .. }
            | Self::Connect { hint, .. }
            | Self::Refused { hint, .. }
            | Self::NoMajority { hint, .. }
            | Self::Stalled { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Local { hint, .. } => hint.clone(),
            Self::Remote(remote) => remote.hint.clone(),
            Self::Lost { .. } => {
                Some("Make the node reachable and run the same CALL again.".into())
            }
            Self::Checks(findings) => {
                let mut hints: Vec<&str> = vec![];
                for finding in findings {
                    if !finding.hint.is_empty() && !hints.contains(&finding.hint.as_str()) {
                        hints.push(&finding.hint);
                    }
                }
                (!hints.is_empty()).then(|| hints.join("\n"))
            }
            Self::Unfinished { first, hint } => {
                let mut parts: Vec<String> = first.hint().into_iter().collect();
                if !parts.contains(hint) {
                    parts.push(hint.clone());
                }
                Some(parts.join("\n"))
            }
            Self::NotUndone { first, left, hint } => {
                let mut parts: Vec<String> = first.hint().into_iter().collect();
                parts.push(format!("Could not be undone: {}. {hint}", left.join("; ")));
                Some(parts.join("\n"))
            }
            _ => None,
        }
    }

    /// Whether a server has answered that it did not do it. Of a statement that is one transaction nothing is left then.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Remote(_) | Self::Local { .. })
    }

    /// True for what an undo may meet when the thing it removes is gone already.
    pub fn is_undefined(&self) -> bool {
        self.sqlstate().is_undefined()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_reported_together() {
        let a = Finding::new(
            "n1",
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "no slot free",
            "Raise it.",
        );
        let b = Finding::new(
            "n2",
            SqlState::UNDEFINED_OBJECT,
            "role r is missing",
            "Raise it.",
        );
        let one = Error::Checks(vec![a.clone()]);
        assert_eq!(one.to_string(), "node \"n1\": no slot free");
        assert_eq!(one.detail(), None);
        let both = Error::Checks(vec![a, b]);
        assert_eq!(both.sqlstate().as_str(), "53400");
        assert_eq!(both.to_string(), "2 checks failed before the first change");
        assert_eq!(
            both.detail().unwrap(),
            "node \"n1\": no slot free (53400)\nnode \"n2\": role r is missing (42704)"
        );
        assert_eq!(both.hint().unwrap(), "Raise it.");
    }

    #[test]
    fn what_could_not_be_undone_keeps_the_first_error() {
        let first = Error::Lost {
            node: "n2".into(),
            reason: "server closed".into(),
        };
        let e = Error::NotUndone {
            first: Box::new(first),
            left: vec!["slot s on n2".into()],
            hint: "Run the same CALL again.".into(),
        };
        assert_eq!(e.sqlstate(), SqlState::CONNECTION_FAILURE);
        assert!(
            e.hint()
                .unwrap()
                .ends_with("slot s on n2. Run the same CALL again.")
        );
    }
}
