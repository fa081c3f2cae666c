//! Sequences go on where those of the source are.

use super::OURS;
use super::sql::array;
use crate::error::{Error, Result};
use crate::libpq::Row;
use crate::node::Session;
use crate::quote::qualified;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

/// Each sequence that a statement reads is locked until it ends, and the lock table is finite.
const BATCH: usize = 100;

/// Sequences; of an extension's those that it says are its users', as `pg_dump` takes them.
const SEQUENCES: &str = "
SELECT n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, format('%I.%I', n.nspname, c.relname)
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

/// Gives the sequences of the new node the values of the member that is furthest with them, and leaves alone what is
/// further on the new node already: applications may draw from its sequences by now. What a sequence of the new node
/// cannot have, since the members have divided it among themselves in a way of their own, is left out.
pub fn catch_up<'s>(
    members: impl IntoIterator<Item = &'s mut Session>,
    target: &mut Session,
) -> Result<usize> {
    let mut own: HashMap<String, Value> = values(target)?
        .into_iter()
        .map(|v| (v.name.clone(), v))
        .collect();
    let mut behind = BTreeSet::new();
    for member in members {
        for theirs in values(member)? {
            if let Some(ours) = own.get_mut(&theirs.name)
                && ours.range.contains(&theirs.last)
                && ours.is_behind(&theirs)
            {
                (ours.last, ours.called) = (theirs.last, theirs.called);
                behind.insert(theirs.name);
            }
        }
    }
    own.retain(|name, _| behind.contains(name));
    set(target, &own.into_values().collect::<Vec<_>>())
}

/// What each sequence gives next, by its name as `format('%I.%I')` has it, and whether it goes upwards.
pub fn next_values(session: &mut Session) -> Result<BTreeMap<String, (i128, bool)>> {
    let next = |v: Value| {
        let step = if v.called { v.increment } else { 0 };
        let next = i128::from(v.last) + i128::from(step);
        (v.plain, (next, v.increment > 0))
    };
    Ok(values(session)?.into_iter().map(next).collect())
}

/// A sequence and where it stands.
#[derive(Clone, Debug)]
struct Value {
    name: String,
    plain: String,
    last: i64,
    called: bool,
    increment: i64,
    range: RangeInclusive<i64>,
}

impl Value {
    fn is_behind(&self, other: &Self) -> bool {
        match self.last.cmp(&other.last) {
            Ordering::Equal => !self.called && other.called,
            order => (order == Ordering::Less) == (self.increment > 0),
        }
    }
}

fn values(session: &mut Session) -> Result<Vec<Value>> {
    let sequences = session.query(SEQUENCES, &[&array(OURS)])?;
    let sequences: Vec<&Row> = sequences.iter().collect();
    let mut values = vec![];
    for batch in sequences.chunks(BATCH) {
        let parts: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let name = qualified(row.text(0), row.text(1));
                format!("SELECT {i}, last_value, is_called FROM {name}")
            })
            .collect();
        for standing in &session.query(&parts.join(" UNION ALL "), &[])? {
            let row = batch
                .get(standing.parse::<usize>(0)?)
                .ok_or_else(|| Error::internal("a sequence that was not asked for"))?;
            values.push(Value {
                name: qualified(row.text(0), row.text(1)),
                plain: row.text(5).to_owned(),
                last: standing.parse(1)?,
                called: standing.bool(2),
                increment: row.parse(2)?,
                range: row.parse(3)?..=row.parse(4)?,
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
            plain: "s".into(),
            last,
            called,
            increment: if ascending { 1 } else { -1 },
            range: i64::MIN..=i64::MAX,
        };
        assert!(value(1, false, true).is_behind(&value(1, true, true)));
        assert!(value(1, true, true).is_behind(&value(9, true, true)));
        assert!(!value(9, true, true).is_behind(&value(1, true, true)));
        assert!(!value(1, true, true).is_behind(&value(1, true, true)));
        assert!(value(-1, true, false).is_behind(&value(-5, true, false)));
        assert!(!value(-5, true, false).is_behind(&value(-1, true, false)));
    }
}
