//! Whether members have the same content, at a position that they have in common: every one has applied what
//! the others committed before it was looked at.

use super::markers;
use super::members::each_beside_others;
use crate::engine::{Engine, Path};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::quote::qualified;
use crate::replay::content::{self, Difference, Part, differences, relations};
use crate::replay::pgoutput::Relation;
use std::collections::BTreeMap;

/// How often rows that change while they are compared are looked at again.
const LOOKS: usize = 5;

/// A table that is not the same on two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub table: String,
    /// The member that the other one is compared with.
    pub reference: String,
    pub node: String,
    /// Rows that only the reference has.
    pub missing: usize,
    /// Rows that only the node has.
    pub extra: usize,
    /// Rows that both have, with other values.
    pub different: usize,
    /// Keys of such rows, so many as were asked for.
    pub keys: Vec<String>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "table {} of node \"{}\" is not that of node \"{}\": {} rows missing, {} too many, {} different, among them {}",
            self.table,
            self.node,
            self.reference,
            self.missing,
            self.extra,
            self.different,
            self.keys.join(" ")
        )
    }
}

/// Compares each of the first `compared` of `nodes` with the first one. The others only have what they have
/// committed be there. Unlogged and foreign tables, and each node's own, are left out.
pub fn mismatches(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    compared: usize,
    most_keys: usize,
) -> Result<Vec<Mismatch>> {
    let mut found = vec![];
    let Some(first) = nodes.first_mut() else {
        return Ok(found);
    };
    for table in tables(engine, first)? {
        for i in 1..compared {
            let mut mismatch = Mismatch {
                table: qualified(&table.schema, &table.name),
                reference: nodes[0].name.clone(),
                node: nodes[i].name.clone(),
                missing: 0,
                extra: 0,
                different: 0,
                keys: vec![],
            };
            for part in parts(nodes, &table, 0, i)? {
                for difference in settled(engine, nodes, &table, &part, 0, i)? {
                    *match (&difference.here, &difference.there) {
                        (Some(_), None) => &mut mismatch.missing,
                        (None, _) => &mut mismatch.extra,
                        (Some(_), Some(_)) => &mut mismatch.different,
                    } += 1;
                    mismatch.keys.push(difference.key);
                }
                mismatch.keys.sort();
                mismatch.keys.truncate(most_keys);
            }
            if mismatch.missing + mismatch.extra + mismatch.different > 0 {
                found.push(mismatch);
            }
        }
    }
    Ok(found)
}

/// Whether a table has rows on one of two of `nodes` that it has not on the other, and that stay so.
pub fn differ(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    table: &Relation,
    here: usize,
    there: usize,
) -> Result<bool> {
    for part in parts(nodes, table, here, there)? {
        if !settled(engine, nodes, table, &part, here, there)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The tables that the node sends.
pub fn tables(engine: &dyn Engine, node: &mut Node) -> Result<Vec<Relation>> {
    let sent = engine.replicated_tables(node)?;
    let all = relations(node, engine.own_schemas())?;
    Ok(all
        .into_iter()
        .filter(|t| {
            let name = qualified(&t.schema, &t.name);
            sent.as_ref().is_none_or(|s| s.contains(&name))
        })
        .collect())
}

fn pair<'a>(nodes: &'a mut [&mut Node], here: usize, there: usize) -> Result<[&'a mut Node; 2]> {
    let [here, there] = nodes
        .get_disjoint_mut([here, there])
        .map_err(|_| Error::internal("a node was to be compared with itself"))?;
    Ok([here, there])
}

/// Where two of `nodes` differ just now, in parts for [`settled`].
pub fn parts(
    nodes: &mut [&mut Node],
    table: &Relation,
    here: usize,
    there: usize,
) -> Result<Vec<Part>> {
    let [here, there] = pair(nodes, here, there)?;
    content::parts(table, here, there)
}

/// What differs between two of `nodes`, and stays so while nothing is on its way: rows that applications are
/// changing are looked at again.
pub fn settled(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    table: &Relation,
    part: &Part,
    here: usize,
    there: usize,
) -> Result<Vec<Difference>> {
    let look = |nodes: &mut [&mut Node]| {
        let [here, there] = pair(nodes, here, there)?;
        differences(table, part, here, there)
    };
    let mut before: Vec<Difference> = vec![];
    for round in 0..LOOKS {
        let now = look(nodes)?;
        if now.is_empty() || round > 0 && now == before {
            return Ok(now);
        }
        before = now;
        barrier(engine, nodes)?;
    }
    let before: BTreeMap<&str, &Difference> = before.iter().map(|d| (d.key.as_str(), d)).collect();
    let mut last = look(nodes)?;
    last.retain(|d| before.get(d.key.as_str()) == Some(&d));
    Ok(last)
}

/// Nothing that one of `nodes` has committed is on its way to another one.
fn barrier(engine: &dyn Engine, nodes: &mut [&mut Node]) -> Result<()> {
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let markers = markers::emit(engine, nodes.iter_mut().map(|n| &mut **n))?;
    each_beside_others(nodes, |node, others| {
        let inbound: Vec<Path> = names
            .iter()
            .filter(|name| **name != node.name)
            .map(|name| engine.path(name, &node.name))
            .collect();
        markers::wait(engine, node, others, &markers, &inbound, "")
    })?;
    markers::forget(engine, nodes.iter_mut().map(|n| &mut **n), &markers)
}
