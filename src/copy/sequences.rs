//! Sequences go on where those of the source are.

use super::OURS;
use super::sql::array;
use crate::error::{Error, Result};
use crate::node::{Node, Query, Session, ask_one, side_by_side};
use crate::quote::qualified;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

/// Each sequence that a statement reads is locked until it ends, and the lock table is finite.
const BATCH: usize = 100;

/// Sequences; of an extension's those that it says are its users', as `pg_dump` takes them.
fn sequences() -> Query<Sequence> {
    Query::new(include_str!("sequences.sql"), &[&array(OURS)], |row| {
        Ok(Sequence {
            name: qualified(row.get("schema")?, row.get("name")?),
            plain: row.get("plain")?,
            increment: row.get("increment")?,
            range: row.get("min")?..=row.get("max")?,
        })
    })
}

/// A sequence, as it was made.
#[derive(Clone, Debug)]
struct Sequence {
    name: String,
    /// As `format('%I.%I')` has it.
    plain: String,
    increment: i64,
    range: RangeInclusive<i64>,
}

/// Where a sequence of a batch stands.
struct Standing {
    /// Its number in the batch.
    number: usize,
    last: i64,
    called: bool,
}

fn standings(batch: &[Sequence]) -> Query<Standing> {
    let parts: Vec<String> = batch
        .iter()
        .enumerate()
        .map(|(i, s)| {
            format!(
                "SELECT {i} AS number, last_value, is_called FROM {}",
                s.name
            )
        })
        .collect();
    Query::new(parts.join(" UNION ALL "), &[], |row| {
        Ok(Standing {
            number: row.get("number")?,
            last: row.get("last_value")?,
            called: row.get("is_called")?,
        })
    })
}

/// Gives the sequences of the new node the values that those of the source have, and returns how
/// many there are. Sequences are not part of any snapshot: read after the data, they are beyond all
/// keys in it.
pub fn carry(values: &[Value], target: &mut Session) -> Result<usize> {
    set(target, values)
}

/// Gives the sequences of the new node the values of the member that is furthest with them, and leaves alone what is
/// further on the new node already: applications may draw from its sequences by now. What a sequence of the new node
/// cannot have, since the members have divided it among themselves in a way of their own, is left out.
pub fn catch_up(members: &mut [Node], target: &mut Node) -> Result<usize> {
    let mut own: HashMap<String, Value> = values(target)?
        .into_iter()
        .map(|v| (v.name.clone(), v))
        .collect();
    let mut behind = BTreeSet::new();
    let all = members.len();
    let standings = side_by_side(
        members,
        |members| members.iter_mut().collect(),
        all,
        |i, members| values(&mut members[i]),
    );
    for theirs in standings {
        for theirs in theirs? {
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
    set(&mut target.session, &own.into_values().collect::<Vec<_>>())
}

/// What each sequence gives next, by its name as `format('%I.%I')` has it, and whether it goes upwards.
pub fn next_values(node: &mut Node) -> Result<BTreeMap<String, (i128, bool)>> {
    let next = |v: Value| {
        let step = if v.called { v.increment } else { 0 };
        let next = i128::from(v.last) + i128::from(step);
        (v.plain, (next, v.increment > 0))
    };
    Ok(values(node)?.into_iter().map(next).collect())
}

/// A sequence and where it stands.
#[derive(Clone, Debug)]
pub struct Value {
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

/// Where all sequences of the node stand.
pub fn values(node: &mut Node) -> Result<Vec<Value>> {
    let sequences = sequences().on(node)?;
    let mut values = vec![];
    let asked: Vec<_> = sequences.chunks(BATCH).map(standings).collect();
    for (batch, standings) in sequences.chunks(BATCH).zip(ask_one(node, &asked)?) {
        for standing in standings {
            let sequence = batch
                .get(standing.number)
                .ok_or_else(|| Error::internal("a sequence that was not asked for"))?
                .clone();
            values.push(Value {
                name: sequence.name,
                plain: sequence.plain,
                last: standing.last,
                called: standing.called,
                increment: sequence.increment,
                range: sequence.range,
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
