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

/// What can be asked of several nodes at once: a statement, whose answer is rows, a query, or several of them together.
pub trait Question {
    type Answer;

    fn statements(&self) -> Vec<&Statement>;
    /// Takes the rows of its statements, in their order.
    fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Self::Answer>;
}

impl Question for Statement {
    type Answer = Rows;

    fn statements(&self) -> Vec<&Statement> {
        vec![self]
    }

    fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Rows> {
        rows.next()
            .ok_or_else(|| Error::internal("a statement has no answer"))
    }
}

impl<T> Question for Query<T> {
    type Answer = Vec<T>;

    fn statements(&self) -> Vec<&Statement> {
        vec![&self.statement]
    }

    fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Vec<T>> {
        self.read(&self.statement.answer(rows)?)
    }
}

impl<Q: Question> Question for &Q {
    type Answer = Q::Answer;

    fn statements(&self) -> Vec<&Statement> {
        (**self).statements()
    }

    fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Q::Answer> {
        (**self).answer(rows)
    }
}

/// Only those that are asked at all.
impl<Q: Question> Question for Vec<Q> {
    type Answer = Vec<Q::Answer>;

    fn statements(&self) -> Vec<&Statement> {
        self.iter().flat_map(Q::statements).collect()
    }

    fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Self::Answer> {
        self.iter().map(|question| question.answer(rows)).collect()
    }
}

macro_rules! questions {
    ($($name:ident)+) => {
        impl<$($name: Question),+> Question for ($($name,)+) {
            type Answer = ($($name::Answer,)+);

            #[allow(non_snake_case)]
            fn statements(&self) -> Vec<&Statement> {
                let ($($name,)+) = self;
                [$($name.statements()),+].concat()
            }

            #[allow(non_snake_case)]
            fn answer(&self, rows: &mut std::vec::IntoIter<Rows>) -> Result<Self::Answer> {
                let ($($name,)+) = self;
                Ok(($($name.answer(rows)?,)+))
            }
        }
    };
}

questions!(A B);
questions!(A B C);
questions!(A B C D);
questions!(A B C D E);
questions!(A B C D E F);

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
