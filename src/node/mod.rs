//! One cluster member: how it is reached, and its sessions, remote or local.

mod ask;
mod local;
mod mode;
mod procedure;
mod query;
mod queryable;
mod reader;
pub mod server;
mod session;
mod side_by_side;
mod statement;

pub use ask::{
    ask, ask_all, ask_each, ask_in_turn, ask_one, ask_timed, ask_within, query_with_deadline,
};
pub use local::{Local, own_database};
pub use mode::Mode;
pub use procedure::{HiddenContext, Procedure, hide_statement, show_activity};
pub use query::{Query, Question};
pub use queryable::Queryable;
pub use reader::Reader;
pub use session::{Session, check_open};
pub use side_by_side::{Tasks, alone, side_by_side};
pub use statement::Statement;

use crate::error::Result;
use crate::libpq::{Command, Conn, Dsn, Rows};
use server::DatabaseId;

/// A member as the cluster knows it.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub dsn: Dsn,
}

/// A member with a session on it.
pub struct Node {
    pub name: String,
    pub dsn: Dsn,
    pub session: Session,
    /// What was asked when the session was opened.
    connected: Option<Connected>,
}

/// What does not change while a session is open.
struct Connected {
    is_superuser: bool,
    id: DatabaseId,
}

impl Node {
    pub fn new(name: impl Into<String>, dsn: Dsn, session: Session) -> Self {
        Self {
            name: name.into(),
            dsn,
            session,
            connected: None,
        }
    }

    /// Opens a session on each of `members`, all at the same time; the answers are in their order.
    pub fn connect(members: &[Member]) -> Vec<Result<Self>> {
        let wanted: Vec<(&str, &Dsn)> = members.iter().map(|m| (m.name.as_str(), &m.dsn)).collect();
        let first = (server::is_superuser(), server::identity());
        let statements = first.statements();
        let commands: Vec<Command> = statements.into_iter().map(Statement::command).collect();
        let opened = members
            .iter()
            .zip(Conn::open_all_asking(&wanted, &commands));
        opened
            .map(|(member, opened)| {
                let (conn, answers) = opened?;
                let rows: Result<Vec<Rows>> = answers.into_iter().collect();
                // Who is refused one of them is asked again when it is needed.
                let known = rows.and_then(|rows| first.answer(&mut rows.into_iter()));
                let known = known.ok().and_then(|(superuser, id)| {
                    let (is_superuser, id) = superuser.into_iter().zip(id).next()?;
                    Some(Connected { is_superuser, id })
                });
                Ok(Self {
                    connected: known,
                    ..Self::new(&member.name, member.dsn.clone(), Session::Remote(conn))
                })
            })
            .collect()
    }

    /// Which running server and which database it is.
    pub fn identity(&mut self) -> Result<DatabaseId> {
        match &self.connected {
            Some(connected) => Ok(connected.id.clone()),
            None => server::identity().one(self),
        }
    }

    /// Whether the role of the session may do what a run does.
    pub fn is_superuser(&mut self) -> Result<bool> {
        match &self.connected {
            Some(connected) => Ok(connected.is_superuser),
            None => server::is_superuser().one(self),
        }
    }

    pub fn query(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.session.query(sql, params)
    }

    pub fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            dsn: self.dsn.clone(),
        }
    }
}

impl Queryable for Node {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query(sql, params)
    }
}
