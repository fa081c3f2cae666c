//! Whether members have the same content, at a position that they have in common: every one has applied what
//! the others committed before it was looked at.

use super::markers;
use super::members::each_beside_others;
use crate::engine::{Engine, Path};
use crate::error::Result;
use crate::node::Node;
use crate::quote::qualified;
use crate::replay::content::{Difference, differences, relations};
use crate::replay::pgoutput::Relation;

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

/// Compares each of `nodes` with the first. Unlogged and foreign tables, and each node's own, are left out.
pub fn mismatches(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    most_keys: usize,
) -> Result<Vec<Mismatch>> {
    let mut found = vec![];
    let Some(first) = nodes.first_mut() else {
        return Ok(found);
    };
    for table in tables(engine, first)? {
        for i in 1..nodes.len() {
            let differences = settled(engine, nodes, &table, 0, i)?;
            if differences.is_empty() {
                continue;
            }
            let count =
                |which: fn(&Difference) -> bool| differences.iter().filter(|d| which(d)).count();
            found.push(Mismatch {
                table: qualified(&table.schema, &table.name),
                reference: nodes[0].name.clone(),
                node: nodes[i].name.clone(),
                missing: count(|d| d.there.is_none()),
                extra: count(|d| d.here.is_none()),
                different: count(|d| d.here.is_some() && d.there.is_some()),
                keys: differences
                    .iter()
                    .take(most_keys)
                    .map(|d| d.key.clone())
                    .collect(),
            });
        }
    }
    Ok(found)
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

/// What differs between two of `nodes`, and stays so while nothing is on its way: rows that applications are
/// changing are looked at again.
pub fn settled(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    table: &Relation,
    here: usize,
    there: usize,
) -> Result<Vec<Difference>> {
    let look = |nodes: &mut [&mut Node]| {
        let [here, there] = nodes
            .get_disjoint_mut([here, there])
            .map_err(|_| crate::error::Error::internal("a node was to be compared with itself"))?;
        differences(table, here, there)
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
    let last = look(nodes)?;
    Ok(last.into_iter().filter(|d| before.contains(d)).collect())
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
    for node in nodes.iter_mut() {
        if let Some(statement) = engine.forget_markers(&node.name) {
            statement.run(node)?;
        }
    }
    Ok(())
}
