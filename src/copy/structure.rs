//! What DDL on the source during the copy did to tables that the new node gets. Where DDL is not replicated, the
//! new node has them as the snapshot showed them, and what comes of them from now on comes under these names.

use super::sql::array;
use super::{InSnapshot, OURS};
use crate::error::{Error, Result, SqlState};
use crate::node::{Query, Session};
use crate::quote::qualified;
use std::collections::{HashMap, HashSet};

/// A table as it is defined at a moment.
struct Definition {
    oid: u32,
    /// Qualified.
    name: String,
    persistence: char,
    /// What it inherits from or is a partition of, and for which values.
    parents: String,
    /// With its identity.
    columns: String,
    file: u32,
}

impl Definition {
    fn is_logged(&self) -> bool {
        self.persistence == 'p'
    }
}

fn definitions() -> Query<Definition> {
    Query::new(include_str!("structure.sql"), &[&array(OURS)], |row| {
        Ok(Definition {
            oid: row.get("oid")?,
            name: qualified(row.get("schema")?, row.get("name")?),
            persistence: row.get("persistence")?,
            parents: row.get("parents")?,
            columns: row.get("columns")?,
            file: row.get("file")?,
        })
    })
}

/// The tables of the source as its snapshot shows them.
pub struct Structure(Vec<Definition>);

impl Structure {
    pub fn of(source: &mut InSnapshot) -> Result<Self> {
        Ok(Self(definitions().on(source)?))
    }

    /// Fails if a name means another table than it did, a table belongs to another one than it did or has other
    /// columns, one that was not logged is now, or one is new: members may replicate it by now, and the new node never had
    /// it. One that is just gone does no harm. Returns the tables that have got another file: nothing but their contents
    /// tells what was done.
    pub fn check(&self, source: &mut Session, node: &str) -> Result<Vec<String>> {
        let now = definitions().on(source)?;
        let pairs = pairs(&self.0, &now);
        let changed = changed(&pairs, &now);
        let Some((_, what)) = changed.first() else {
            return Ok(moved(&pairs));
        };
        let same = changed.iter().filter(|(_, other)| other == what);
        let tables: Vec<&str> = same.map(|(table, _)| table.as_str()).collect();
        Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "table {} of node \"{node}\" was {what} since the snapshot was taken",
                tables.join(", ")
            ),
            "Run the same CALL again, and do not change the structure of tables while a node joins.",
        ))
    }
}

/// A table as it was, and as it is if it is still in the database.
type Pair<'a> = (&'a Definition, Option<&'a Definition>);

fn pairs<'a>(then: &'a [Definition], now: &'a [Definition]) -> Vec<Pair<'a>> {
    let by_oid: HashMap<u32, &Definition> = now.iter().map(|table| (table.oid, table)).collect();
    let pair = |was: &'a Definition| (was, by_oid.get(&was.oid).copied());
    then.iter().map(pair).collect()
}

/// The tables that are not what they were, and what became of them.
fn changed(pairs: &[Pair<'_>], now: &[Definition]) -> Vec<(String, &'static str)> {
    let names: HashSet<&str> = now.iter().map(|table| table.name.as_str()).collect();
    let what = |was: &Definition, is: Option<&Definition>| match is {
        None => names
            .contains(was.name.as_str())
            .then_some("renamed or replaced"),
        Some(is) if is.name != was.name => Some("renamed or replaced"),
        Some(is) if is.parents != was.parents => {
            Some("attached to another table or detached from it")
        }
        Some(is) if is.persistence != was.persistence => Some("set LOGGED or UNLOGGED"),
        Some(is) if is.columns != was.columns => Some("given other columns or another identity"),
        Some(_) => None,
    };
    let known: HashSet<u32> = pairs.iter().map(|(was, _)| was.oid).collect();
    let created = now
        .iter()
        .filter(|is| is.is_logged() && !known.contains(&is.oid))
        .map(|is| (is.name.clone(), "created"));
    pairs
        .iter()
        .filter_map(|(was, is)| Some((was.name.clone(), what(was, *is)?)))
        .chain(created)
        .collect()
}

/// The tables with another file than they had.
fn moved(pairs: &[Pair<'_>]) -> Vec<String> {
    let has_moved = |was: &Definition, is: &Definition| is.is_logged() && is.file != was.file;
    pairs
        .iter()
        .filter(|(was, is)| is.is_some_and(|is| has_moved(was, is)))
        .map(|(was, _)| was.name.clone())
        .collect()
}
