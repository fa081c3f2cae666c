//! Results as owned text, the same for a remote server and for this one.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use serde::de::DeserializeOwned;
use std::rc::Rc;

/// The rows of a result in text form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    rows: Vec<Row>,
    affected: u64,
}

impl Rows {
    pub fn new(columns: Vec<String>, rows: Vec<Vec<Option<String>>>, affected: u64) -> Self {
        let columns: Rc<[String]> = columns.into();
        let row = |values| Row {
            columns: Rc::clone(&columns),
            values,
        };
        Self {
            rows: rows.into_iter().map(row).collect(),
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

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Shared by all rows of an answer.
    columns: Rc<[String]>,
    values: Vec<Option<String>>,
}

impl Row {
    /// The value of a column. An error where there is no such column, or the value is none of that type.
    pub fn get<'a, T: Value<'a>>(&'a self, column: &str) -> Result<T> {
        let Some(number) = self.columns.iter().position(|name| name == column) else {
            return Err(Error::internal(format!(
                "there is no column \"{column}\" among {}",
                self.columns.join(", ")
            )));
        };
        self.read(number)
    }

    /// The value where one column is all there is.
    pub fn only<'a, T: Value<'a>>(&'a self) -> Result<T> {
        match self.values.len() {
            1 => self.read(0),
            n => Err(Error::internal(format!("expected one column, got {n}"))),
        }
    }

    fn read<'a, T: Value<'a>>(&'a self, number: usize) -> Result<T> {
        let value = self.values.get(number).and_then(Option::as_deref);
        T::of(value).ok_or_else(|| {
            Error::internal(format!(
                "column \"{}\" holds \"{}\", which is not a {}",
                self.columns.get(number).map_or("", String::as_str),
                value.unwrap_or("null"),
                std::any::type_name::<T>()
            ))
        })
    }

    /// The texts from column number `first` on, for the columns of users' tables: only those have names that are not
    /// known beforehand, and may be named like another column.
    pub fn from(&self, first: usize) -> impl Iterator<Item = Option<&str>> {
        self.values.iter().skip(first).map(Option::as_deref)
    }

    /// A value in JSON; null is an empty list.
    pub fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        let text: Option<&str> = self.get(column)?;
        serde_json::from_str(text.unwrap_or("[]"))
            .map_err(|e| Error::internal(format!("column \"{column}\" holds {text:?}: {e}")))
    }
}

/// What a value of a row can be read as. Null is an empty text, and not true.
pub trait Value<'a>: Sized {
    fn of(value: Option<&'a str>) -> Option<Self>;
}

impl<'a> Value<'a> for &'a str {
    fn of(value: Option<&'a str>) -> Option<Self> {
        Some(value.unwrap_or_default())
    }
}

impl Value<'_> for String {
    fn of(value: Option<&str>) -> Option<Self> {
        Some(value.unwrap_or_default().to_owned())
    }
}

impl Value<'_> for bool {
    fn of(value: Option<&str>) -> Option<Self> {
        Some(matches!(value, Some("t" | "true")))
    }
}

impl<'a, T: Value<'a>> Value<'a> for Option<T> {
    fn of(value: Option<&'a str>) -> Option<Self> {
        match value {
            Some(value) => T::of(Some(value)).map(Some),
            None => Some(None),
        }
    }
}

macro_rules! parsed {
    ($($type:ty),*) => {$(
        impl Value<'_> for $type {
            fn of(value: Option<&str>) -> Option<Self> {
                value?.parse().ok()
            }
        }
    )*};
}
parsed!(char, i32, i64, i128, u16, u32, u64, usize, f64, Lsn);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(values: &[(&str, Option<&str>)]) -> Row {
        let columns = values.iter().map(|(name, _)| (*name).to_owned()).collect();
        let values = values.iter().map(|(_, v)| v.map(str::to_owned)).collect();
        let rows = Rows::new(columns, vec![values], 0);
        rows.one().unwrap().clone()
    }

    #[test]
    fn a_value_is_read_by_the_name_of_its_column() {
        let row = row(&[("name", Some("n1")), ("lsn", Some("0/A")), ("gone", None)]);
        assert_eq!(row.get::<&str>("name").unwrap(), "n1");
        assert_eq!(row.get::<Lsn>("lsn").unwrap(), Lsn(10));
        assert_eq!(row.get::<Option<i64>>("gone").unwrap(), None);
        assert_eq!(row.get::<String>("gone").unwrap(), "");
        assert!(!row.get::<bool>("gone").unwrap());
        let message = |error: Error| error.to_string();
        assert_eq!(
            message(row.get::<String>("names").unwrap_err()),
            "there is no column \"names\" among name, lsn, gone"
        );
        assert_eq!(
            message(row.get::<i64>("gone").unwrap_err()),
            "column \"gone\" holds \"null\", which is not a i64"
        );
        assert_eq!(
            message(row.only::<String>().unwrap_err()),
            "expected one column, got 3"
        );
    }

    proptest! {
        /// A server of another version, or one that is none, may answer anything.
        #[test]
        fn whatever_a_peer_answers_is_a_value_or_an_error(value in proptest::option::of(any::<String>())) {
            let row = row(&[("x", value.as_deref())]);
            prop_assert_eq!(row.get::<Option<&str>>("x").unwrap(), value.as_deref());
            prop_assert_eq!(row.only::<i64>().ok(), value.as_deref().and_then(|v| v.parse().ok()));
            prop_assert_eq!(
                row.get::<Option<u32>>("x").ok().flatten(),
                value.as_deref().and_then(|v| v.parse().ok())
            );
            let _ = (row.get::<bool>("x"), row.get::<Lsn>("x"));
        }
    }
}
