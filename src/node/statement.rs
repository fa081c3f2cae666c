//! Statements apart from the sessions they run on, so that one can be sent to many nodes at once.

use super::Node;
use super::queryable::Queryable;
use crate::error::Result;
use crate::libpq::{Command, Rows};

/// A statement, parameters apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub sql: String,
    pub params: Vec<String>,
}

/// A [`Statement`] and the node that it is for.
pub struct Ask<'a> {
    pub node: &'a mut Node,
    pub statement: Statement,
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
            statement: self,
        }
    }

    pub fn command(&self) -> Command<'_> {
        let params = self.params.iter().map(String::as_str).collect();
        (&self.sql, params)
    }

    /// The statement as a human runs it, parameters in their places.
    pub fn inlined(&self) -> String {
        let words = self.sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut parts = words.split('$');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            let (number, rest) = part.split_at(end);
            let number: usize = number.parse().unwrap_or_default();
            match number.checked_sub(1).and_then(|i| self.params.get(i)) {
                Some(value) => {
                    text.push_str(&crate::quote::literal(value));
                    text.push_str(rest);
                }
                None => {
                    text.push('$');
                    text.push_str(part);
                }
            }
        }
        text
    }

    /// Runs one after the other; the first error ends it.
    pub fn run_in_turn(statements: &[Self], node: &mut Node) -> Result<()> {
        statements.iter().try_for_each(|s| s.run(node).map(|_| ()))
    }

    pub fn run(&self, on: &mut impl Queryable) -> Result<Rows> {
        let (sql, params) = self.command();
        on.run(sql, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::Statement;

    #[test]
    fn parameters_are_put_in_their_places() {
        let params: Vec<String> = (1..=10).map(|i| format!("p'{i}")).collect();
        let params: Vec<&str> = params.iter().map(String::as_str).collect();
        let statement = Statement::new("SELECT f($1::name,\n       $10, true)", &params);
        assert_eq!(statement.inlined(), "SELECT f('p''1'::name, 'p''10', true)");
        let statement = Statement::new("DO $do$ $2 $1 $3 $", &["a $2 $do$", "b $1"]);
        assert_eq!(statement.inlined(), "DO $do$ 'b $1' 'a $2 $do$' $3 $");
    }
}
