//! What runs a statement.

use crate::error::Result;
use crate::libpq::{Conn, Rows};

/// A node, or a session that is of no node of the run.
pub trait Queryable {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows>;
}

impl Queryable for Conn {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query(sql, params)
    }
}

impl<Q: Queryable> Queryable for &mut Q {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        (**self).run(sql, params)
    }
}
