//! One cluster member: how it is reached, and its sessions, remote or local.

mod local;
mod mode;
mod procedure;
mod query;
mod queryable;
mod reader;
pub mod server;
mod session;
mod statement;

pub use local::{Local, own_database};
pub use mode::Mode;
pub use procedure::{HiddenContext, Procedure, hide_statement, show_activity};
pub use query::{Query, Question};
pub use queryable::Queryable;
pub use reader::Reader;
pub use session::{
    Session, ask, ask_all, ask_in_turn, ask_within, check_open, query_with_deadline,
};
pub use statement::Statement;

use crate::libpq::Dsn;

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
}

impl Node {
    pub fn query(
        &mut self,
        sql: &str,
        params: &[&str],
    ) -> crate::error::Result<crate::libpq::Rows> {
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
    fn run(&mut self, sql: &str, params: &[&str]) -> crate::error::Result<crate::libpq::Rows> {
        self.query(sql, params)
    }
}
