//! Sequences go on where those of the source are.

use super::OURS;
use super::sql::array;
use crate::error::Result;
use crate::node::Session;
use crate::quote::{literal, qualified};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Each sequence that a statement reads is locked until it ends, and the lock table is finite.
const BATCH: usize = 100;

/// Sequences; of an extension's those that it says are its users', as `pg_dump` takes them.
const SEQUENCES: &str = "
SELECT n.nspname, c.relname, s.seqincrement > 0
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't'
   AND n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_'
   AND (NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        OR EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig)))
 ORDER BY 1, 2";

/// Gives the sequences of the new node the values that those of the source have now, and returns how
/// many there are. Sequences are not part of any snapshot: read after the data, they are beyond all
/// keys in it.
pub fn carry(source: &mut Session, target: &mut Session) -> Result<usize> {
    set(target, &values(source)?)
}

/// As [`carry`], but leaves alone what is further on the new node already: applications may draw from
/// its sequences by now.
pub fn catch_up(source: &mut Session, target: &mut Session) -> Result<usize> {
    let own: HashMap<String, Value> = values(target)?
        .into_iter()
        .map(|v| (v.name.clone(), v))
        .collect();
    let behind: Vec<Value> = values(source)?
        .into_iter()
        .filter(|theirs| {
            own.get(&theirs.name)
                .is_some_and(|ours| ours.is_behind(theirs))
        })
        .collect();
    set(target, &behind)
}

/// A sequence and where it stands.
#[derive(Clone, Debug)]
struct Value {
    name: String,
    last: i64,
    called: bool,
    ascending: bool,
}

impl Value {
    fn is_behind(&self, other: &Self) -> bool {
        match self.last.cmp(&other.last) {
            Ordering::Equal => !self.called && other.called,
            order => (order == Ordering::Less) == other.ascending,
        }
    }
}

fn values(session: &mut Session) -> Result<Vec<Value>> {
    let names: Vec<(String, bool)> = session
        .query(SEQUENCES, &[&array(OURS)])?
        .iter()
        .map(|row| (qualified(row.text(0), row.text(1)), row.bool(2)))
        .collect();
    let mut values = vec![];
    for batch in names.chunks(BATCH) {
        let parts: Vec<String> = batch
            .iter()
            .map(|(name, up)| {
                format!(
                    "SELECT {}, last_value, is_called, {up} FROM {name}",
                    literal(name)
                )
            })
            .collect();
        for row in &session.query(&parts.join(" UNION ALL "), &[])? {
            values.push(Value {
                name: row.text(0).to_owned(),
                last: row.parse(1)?,
                called: row.bool(2),
                ascending: row.bool(3),
            });
        }
    }
    Ok(values)
}

fn set(target: &mut Session, values: &[Value]) -> Result<usize> {
    for batch in values.chunks(BATCH) {
        target.query(
            "SELECT pg_catalog.setval(s.name::regclass, s.value, s.called)
               FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS s(name, value, called)",
            &[
                &array(batch.iter().map(|v| v.name.as_str())),
                &array(batch.iter().map(|v| v.last.to_string())),
                &array(batch.iter().map(|v| v.called.to_string())),
            ],
        )?;
    }
    Ok(values.len())
}

#[cfg(test)]
mod tests {
    use super::Value;

    #[test]
    fn only_what_is_behind_catches_up() {
        let value = |last, called, ascending| Value {
            name: "s".into(),
            last,
            called,
            ascending,
        };
        assert!(value(1, false, true).is_behind(&value(1, true, true)));
        assert!(value(1, true, true).is_behind(&value(9, true, true)));
        assert!(!value(9, true, true).is_behind(&value(1, true, true)));
        assert!(!value(1, true, true).is_behind(&value(1, true, true)));
        assert!(value(-1, true, false).is_behind(&value(-5, true, false)));
        assert!(!value(-5, true, false).is_behind(&value(-1, true, false)));
    }
}
