//! Statements apart from the sessions they run on, so that one can be sent to many nodes at once.

use super::{Ask, Node};
use crate::error::Result;
use crate::libpq::Rows;

/// One statement for one node, parameters apart.
#[derive(Clone, Debug)]
pub struct Statement {
    pub sql: String,
    pub params: Vec<String>,
}

impl Statement {
    pub fn new(sql: impl Into<String>, params: &[&str]) -> Self {
        Self {
            sql: sql.into(),
            params: params.iter().map(|p| (*p).to_owned()).collect(),
        }
    }

    pub fn on(self, node: &mut Node) -> Ask<'_> {
        Ask {
            node,
            sql: self.sql,
            params: self.params,
        }
    }

    pub fn run(&self, node: &mut Node) -> Result<Rows> {
        let params: Vec<&str> = self.params.iter().map(String::as_str).collect();
        node.query(&self.sql, &params)
    }
}
