//! Statements whose rows are values of a type, so that what is asked and what is read stand side by side.

use super::Node;
use super::queryable::Queryable;
use super::statement::{Ask, Statement};
use crate::error::{Error, Result};
use crate::libpq::{Row, Rows};

/// A statement, and how a row of its answer is read.
pub struct Query<T> {
    pub statement: Statement,
    read: fn(&Row) -> Result<T>,
}

impl<T> Clone for Query<T> {
    fn clone(&self) -> Self {
        Self {
            statement: self.statement.clone(),
            read: self.read,
        }
    }
}

/// What can be asked of several nodes at once: a statement, whose answer is rows, or a query.
pub trait Question {
    type Answer;

    fn statement(&self) -> &Statement;
    fn answer(&self, rows: Rows) -> Result<Self::Answer>;
}

impl Question for Statement {
    type Answer = Rows;

    fn statement(&self) -> &Statement {
        self
    }

    fn answer(&self, rows: Rows) -> Result<Rows> {
        Ok(rows)
    }
}

impl<T> Question for Query<T> {
    type Answer = Vec<T>;

    fn statement(&self) -> &Statement {
        &self.statement
    }

    fn answer(&self, rows: Rows) -> Result<Vec<T>> {
        self.read(&rows)
    }
}

impl<T> Query<T> {
    pub fn new(sql: impl Into<String>, params: &[&str], read: fn(&Row) -> Result<T>) -> Self {
        Self {
            statement: Statement::new(sql, params),
            read,
        }
    }

    /// One that has no rows, for who has nothing to tell.
    pub fn none() -> Self {
        Self::new("SELECT WHERE false", &[], |_| {
            Err(Error::internal("a row of nothing"))
        })
    }

    /// All rows of the node.
    pub fn on(&self, node: &mut impl Queryable) -> Result<Vec<T>> {
        self.read(&self.statement.run(node)?)
    }

    /// The only row of a query that always returns one.
    pub fn one(&self, node: &mut impl Queryable) -> Result<T> {
        self.read_one(&self.statement.run(node)?)
    }

    /// The first row, where there is one.
    pub fn first(&self, node: &mut impl Queryable) -> Result<Option<T>> {
        self.read_first(&self.statement.run(node)?)
    }

    /// For a batch of different questions.
    pub fn ask<'n>(&self, node: &'n mut Node) -> Ask<'n> {
        self.statement.clone().on(node)
    }

    pub fn read(&self, rows: &Rows) -> Result<Vec<T>> {
        rows.iter().map(self.read).collect()
    }

    pub fn read_one(&self, rows: &Rows) -> Result<T> {
        (self.read)(rows.one()?)
    }

    pub fn read_first(&self, rows: &Rows) -> Result<Option<T>> {
        rows.first().map(self.read).transpose()
    }
}
