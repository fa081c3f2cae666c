//! What DDL on the source during the copy did to tables that the new node gets. Where DDL is not replicated, the
//! new node has them as the snapshot showed them, and what comes of them from now on comes under these names.

use super::sql::array;
use super::{OURS, Source, snapshot_session};
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Row, Rows};
use crate::node::Session;
use crate::quote::qualified;
use std::collections::{HashMap, HashSet};

const TABLES: &str = "
SELECT c.oid, n.nspname, c.relname, c.relpersistence,
       concat(ARRAY(SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid ORDER BY i.inhseqno),
              c.relpartbound),
       concat(c.relreplident,
              ARRAY(SELECT concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attgenerated)
                      FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)),
       c.relfilenode
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
 ORDER BY 2, 3";

/// The tables of the source as its snapshot shows them.
pub struct Structure(Rows);

impl Structure {
    pub fn of(source: &Source<'_>) -> Result<Self> {
        Ok(Self(
            snapshot_session(source)?.query(TABLES, &[&array(OURS)])?,
        ))
    }

    /// Fails if a name means another table than it did, a table belongs to another one than it did or has other
    /// columns, one that was not logged is now, or one is new: members may replicate it by now, and the new node never had
    /// it. One that is just gone does no harm. Returns the tables that have got another file: nothing but their contents
    /// tells what was done.
    pub fn check(&self, source: &mut Session, node: &str) -> Result<Vec<String>> {
        let now = source.query(TABLES, &[&array(OURS)])?;
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

fn name(row: &Row) -> String {
    qualified(row.text(1), row.text(2))
}

/// Each table as it was, and as it is if it is there.
fn pairs<'a>(then: &'a Rows, now: &'a Rows) -> Vec<(&'a Row, Option<&'a Row>)> {
    let by_oid: HashMap<&str, &Row> = now.iter().map(|row| (row.text(0), row)).collect();
    let pair = |was: &'a Row| (was, by_oid.get(was.text(0)).copied());
    then.iter().map(pair).collect()
}

/// The tables that are not what they were, and what became of them.
fn changed(pairs: &[(&Row, Option<&Row>)], now: &Rows) -> Vec<(String, &'static str)> {
    let names: HashSet<String> = now.iter().map(name).collect();
    let what = |was: &Row, is: Option<&Row>| match is {
        None => names.contains(&name(was)).then_some("renamed or replaced"),
        Some(is) if name(is) != name(was) => Some("renamed or replaced"),
        Some(is) if is.text(4) != was.text(4) => {
            Some("attached to another table or detached from it")
        }
        Some(is) if is.text(3) != was.text(3) => Some("set LOGGED or UNLOGGED"),
        Some(is) if is.text(5) != was.text(5) => Some("given other columns or another identity"),
        Some(_) => None,
    };
    let known: HashSet<&str> = pairs.iter().map(|(was, _)| was.text(0)).collect();
    let created = now
        .iter()
        .filter(|is| is.text(3) == "p" && !known.contains(is.text(0)))
        .map(|is| (name(is), "created"));
    pairs
        .iter()
        .filter_map(|(was, is)| Some((name(was), what(was, *is)?)))
        .chain(created)
        .collect()
}

/// The tables with another file than they had.
fn moved(pairs: &[(&Row, Option<&Row>)]) -> Vec<String> {
    let has_moved = |is: &Row, was: &Row| is.text(3) == "p" && is.text(6) != was.text(6);
    pairs
        .iter()
        .filter(|(was, is)| is.is_some_and(|is| has_moved(is, was)))
        .map(|(was, _)| name(was))
        .collect()
}
