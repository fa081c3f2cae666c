//! Results as owned text, the same for a remote server and for this one.

use crate::error::{Error, Result};
use std::str::FromStr;

/// The rows of a result in text form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    rows: Vec<Row>,
    affected: u64,
}

impl Rows {
    pub fn new(rows: Vec<Vec<Option<String>>>, affected: u64) -> Self {
        Self {
            rows: rows.into_iter().map(|values| Row { values }).collect(),
            affected,
        }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Row> {
        self.rows.iter()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn first(&self) -> Option<&Row> {
        self.rows.first()
    }

    /// The only row of a query that always returns one.
    pub fn one(&self) -> Result<&Row> {
        match self.rows.as_slice() {
            [row] => Ok(row),
            rows => Err(Error::internal(format!(
                "expected one row, got {}",
                rows.len()
            ))),
        }
    }

    /// Rows changed, as the command tag says.
    pub fn affected(&self) -> u64 {
        self.affected
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a Row;
    type IntoIter = std::slice::Iter<'a, Row>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    values: Vec<Option<String>>,
}

impl Row {
    pub fn get(&self, column: usize) -> Option<&str> {
        self.values.get(column)?.as_deref()
    }

    /// The value, or "" where it is null.
    pub fn text(&self, column: usize) -> &str {
        self.get(column).unwrap_or("")
    }

    pub fn bool(&self, column: usize) -> bool {
        self.get(column) == Some("t") || self.get(column) == Some("true")
    }

    pub fn parse<T: FromStr>(&self, column: usize) -> Result<T> {
        let text = self.text(column);
        text.parse().map_err(|_| {
            Error::internal(format!(
                "column {column} holds \"{text}\", which is not a {}",
                std::any::type_name::<T>()
            ))
        })
    }

    /// `None` where the value is null.
    pub fn parse_opt<T: FromStr>(&self, column: usize) -> Result<Option<T>> {
        self.get(column).map(|_| self.parse(column)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::subscription_states;
    use proptest::prelude::*;

    proptest! {
        /// A server of another version, or one that is none, may answer anything.
        #[test]
        fn whatever_a_peer_answers_is_a_value_or_an_error(
            values in proptest::collection::vec(proptest::option::of(any::<String>()), 0..8)
        ) {
            let rows = Rows::new(vec![values.clone()], 0);
            let row = rows.one().unwrap();
            for column in 0..10 {
                let value = values.get(column).cloned().flatten();
                prop_assert_eq!(row.get(column), value.as_deref());
                prop_assert_eq!(row.parse::<i64>(column).ok(), value.as_deref().and_then(|v| v.parse().ok()));
                prop_assert_eq!(row.parse_opt::<u32>(column).ok().flatten(), value.as_deref().and_then(|v| v.parse().ok()));
                row.bool(column);
            }
            if let Ok(states) = subscription_states(&rows) {
                prop_assert_eq!(states[0].applied.is_some(), row.get(4).is_some());
            }
        }
    }
}
