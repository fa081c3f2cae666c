//! Whether members have the same content, at a position that they have in common: every one has applied what
//! the others committed before it was looked at.

use super::markers::{self, Workers};
use crate::engine::Engine;
use crate::error::{Error, Result, SqlState};
use crate::node::{Node, Query};
use crate::quote::{ident, literal, qualified};
use crate::replay::content::{self, Compared, Difference, Part, Version, differences, relations};
use crate::replay::share::Share;
use std::collections::BTreeMap;
use zodan_core::decoding::Relation;

/// How often rows that change while they are compared are looked at again.
const LOOKS: usize = 5;

/// Which differences are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Those of what is sent between members.
    Sent,
    /// The same, where the second node is new.
    Copy,
    /// Those that are there by design: of what is not sent.
    Design,
}

/// A table, and what of it two members are to have alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub relation: Relation,
    pub share: Share,
}

impl Table {
    pub fn name(&self) -> String {
        qualified(&self.relation.schema, &self.relation.name)
    }

    /// What of it is sent.
    pub fn sent(self) -> Compared {
        Compared::new(self.relation, self.share)
    }

    fn with_all(self) -> Compared {
        Compared::with_all(self.relation, self.share)
    }
}

/// A table, or columns of it, that one of two members has and the other one has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    table: Table,
    /// Empty where it is the table itself.
    columns: Vec<String>,
    /// Who lacks it, and who has it.
    node: String,
    owner: String,
}

impl Lack {
    pub const HINT: &'static str =
        "Make it the same on both; what is in the table has to be compared and brought over then.";

    pub fn sqlstate(&self) -> SqlState {
        match self.columns.is_empty() {
            true => SqlState::UNDEFINED_TABLE,
            false => SqlState::UNDEFINED_COLUMN,
        }
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (node, table, owner) = (&self.node, self.table.name(), &self.owner);
        match self.columns.as_slice() {
            [] => write!(
                f,
                "node \"{node}\" lacks table {table}, which node \"{owner}\" has"
            ),
            columns => {
                let columns: Vec<String> = columns.iter().map(|c| ident(c)).collect();
                let columns = columns.join(", ");
                write!(
                    f,
                    "node \"{node}\" lacks columns {columns} of table {table}, which node \"{owner}\" has"
                )
            }
        }
    }
}

/// What of two members can be compared, and what cannot.
pub struct Comparable {
    pub tables: Vec<Table>,
    pub lacking: Vec<Lack>,
}

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
    /// Why it was not compared. What the one has is counted as missing, too many or different.
    pub lack: Option<Lack>,
}

impl Mismatch {
    fn new(table: String, reference: &Node, node: &Node) -> Self {
        Self {
            table,
            reference: reference.name.clone(),
            node: node.name.clone(),
            missing: 0,
            extra: 0,
            different: 0,
            keys: vec![],
            lack: None,
        }
    }

    /// Of a table that one of `reference` and `other` lacks.
    fn lacking(lack: Lack, reference: &mut Node, other: &mut Node) -> Result<Self> {
        let mut mismatch = Self::new(lack.table.name(), reference, other);
        let (owner, side) = match lack.node == reference.name {
            true => (other, 1),
            false => (reference, 0),
        };
        let count = content::count_sent(&lack.table.clone().sent(), side).one(owner)?;
        *match (lack.columns.is_empty(), side) {
            (true, 0) => &mut mismatch.missing,
            (true, _) => &mut mismatch.extra,
            (false, _) => &mut mismatch.different,
        } = count;
        mismatch.lack = Some(lack);
        Ok(mismatch)
    }

    fn add(&mut self, difference: &Difference) {
        *match (&difference.left, &difference.right) {
            (Some(_), None) => &mut self.missing,
            (None, _) => &mut self.extra,
            (Some(_), Some(_)) => &mut self.different,
        } += 1;
        self.keys.push(difference.key.clone());
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(lack) = &self.lack {
            return lack.fmt(f);
        }
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
/// committed be there. Unlogged and foreign tables, and each node's own, are left out, and so is what is not sent
/// between the two.
pub fn mismatches(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    compared: usize,
    most_keys: usize,
    of: Of,
) -> Result<Vec<Mismatch>> {
    let mut found = vec![];
    for i in 1..compared {
        let Comparable { tables, lacking } = comparable(engine, nodes, 0, i)?;
        for lack in lacking.into_iter().filter(|_| of != Of::Design) {
            let [reference, other] = pair(nodes, 0, i)?;
            found.push(Mismatch::lacking(lack, reference, other)?);
        }
        for table in tables {
            let table = match of {
                Of::Design if table.share.is_whole() => continue,
                Of::Design => table.with_all(),
                Of::Sent | Of::Copy => table.sent(),
            };
            let mut mismatch = Mismatch::new(table.name(), nodes[0], nodes[i]);
            for part in parts(nodes, &table, 0, i)? {
                for difference in settled(engine, nodes, &table, &part, 0, i)? {
                    let by_design = is_by_design(&table, &difference, of == Of::Copy);
                    if by_design == (of == Of::Design) {
                        mismatch.add(&difference);
                    }
                }
                mismatch.keys.sort();
                mismatch.keys.truncate(most_keys);
            }
            if mismatch.missing + mismatch.extra + mismatch.different > 0 {
                found.push(mismatch);
            }
        }
    }
    found.sort_by(|a, b| (&a.table, &a.node).cmp(&(&b.table, &b.node)));
    Ok(found)
}

/// Whether the two may have a row differently although nothing is on its way. A node that has just got its `copy` has
/// deleted nothing.
fn is_by_design(table: &Compared, difference: &Difference, copy: bool) -> bool {
    let kinds = table.share.kinds;
    let removal_is_sent = |row: &Version| kinds.deletes && kinds.truncates && row.deletable;
    match (&difference.left, &difference.right) {
        (Some(row), None) => {
            let changed = !kinds.updates && table.relation.full;
            let removed = !copy && !removal_is_sent(row);
            !row.sent || !kinds.inserts || changed || removed
        }
        (None, Some(row)) => !row.sent || !kinds.inserts || !removal_is_sent(row),
        (Some(reference), Some(other)) => {
            !reference.sent || !other.sent || !kinds.updates || reference.shared == other.shared
        }
        (None, None) => true,
    }
}

/// Whether a table has rows on one of two of `nodes` that it has not on the other, and that stay so.
pub fn differ(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    table: &Compared,
    reference: usize,
    other: usize,
) -> Result<bool> {
    for part in parts(nodes, table, reference, other)? {
        let found = settled(engine, nodes, table, &part, reference, other)?;
        if found.iter().any(|d| !is_by_design(table, d, true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The tables that two of `nodes` are to have alike, as they are on the first.
pub fn comparable(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    reference: usize,
    other: usize,
) -> Result<Comparable> {
    let shares = engine.shares(nodes, reference, other)?;
    let shared = |relations: Vec<Relation>| -> Vec<Table> {
        let table = |relation: Relation| {
            let share = match &shares {
                Some(shares) => shares
                    .get(&(relation.schema.clone(), relation.name.clone()))?
                    .clone(),
                None => Share::whole(),
            };
            Some(Table { relation, share })
        };
        relations.into_iter().filter_map(table).collect()
    };
    let on_reference = shared(relations(nodes[reference], engine.own_schemas())?);
    let on_other = shared(relations(nodes[other], engine.own_schemas())?);
    let [reference, other] = pair(nodes, reference, other)?;
    let (tables, mut lacking) = divided(on_reference, reference, other)?;
    lacking.extend(divided(on_other, other, reference)?.1);
    Ok(Comparable { tables, lacking })
}

/// Those of the tables of `owner` that `node` has, and what it lacks of the others.
fn divided(tables: Vec<Table>, owner: &Node, node: &mut Node) -> Result<(Vec<Table>, Vec<Lack>)> {
    let mut missing = missing_columns(&tables, node)?;
    let (mut present, mut lacking) = (vec![], vec![]);
    for table in tables {
        let Some(mut columns) = missing.remove(&table.name()) else {
            present.push(table);
            continue;
        };
        if columns.iter().any(|column| column == EVERYWHERE) {
            columns.clear();
        }
        lacking.push(Lack {
            table,
            columns,
            node: node.name.clone(),
            owner: owner.name.clone(),
        });
    }
    Ok((present, lacking))
}

/// A column that every table has.
const EVERYWHERE: &str = "tableoid";

/// Which columns that are to be compared the node has not, by table.
fn missing_columns(tables: &[Table], node: &mut Node) -> Result<BTreeMap<String, Vec<String>>> {
    let (mut names, mut columns) = (vec![], vec![]);
    for table in tables.iter().cloned().map(Table::sent) {
        let compared = table.relation.columns.iter().map(|c| c.name.as_str());
        for column in compared.chain([EVERYWHERE]) {
            names.push(literal(&table.name()));
            columns.push(literal(column));
        }
    }
    let question: Query<(String, String)> = Query::new(
        format!(
            "SELECT t, c FROM unnest(ARRAY[{}]::text[], ARRAY[{}]::text[]) AS u (t, c)
              WHERE NOT EXISTS (SELECT FROM pg_attribute a
                                 WHERE a.attrelid = to_regclass(t) AND a.attname = c AND NOT a.attisdropped)",
            names.join(", "),
            columns.join(", ")
        ),
        &[],
        |row| Ok((row.get("t")?, row.get("c")?)),
    );
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (table, column) in question.on(node)? {
        missing.entry(table).or_default().push(column);
    }
    Ok(missing)
}

/// What is left out where the two are the same, to be said behind that; nothing where all is sent.
pub fn left_out(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    reference: usize,
    other: usize,
) -> Result<&'static str> {
    let tables = comparable(engine, nodes, reference, other)?.tables;
    Ok(match tables.iter().all(|t| t.share.is_whole()) {
        true => "",
        false => {
            ", as far as it is sent; spock.verify_nodes(by_design := true) lists what differs else"
        }
    })
}

fn pair<'a>(
    nodes: &'a mut [&mut Node],
    reference: usize,
    other: usize,
) -> Result<[&'a mut Node; 2]> {
    let [reference, other] = nodes
        .get_disjoint_mut([reference, other])
        .map_err(|_| Error::internal("a node was to be compared with itself"))?;
    Ok([reference, other])
}

/// Where two of `nodes` differ just now, in parts for [`settled`].
pub fn parts(
    nodes: &mut [&mut Node],
    table: &Compared,
    reference: usize,
    other: usize,
) -> Result<Vec<Part>> {
    let [reference, other] = pair(nodes, reference, other)?;
    content::parts(table, reference, other)
}

/// What differs between two of `nodes`, and stays so while nothing is on its way: rows that applications are
/// changing are looked at again.
pub fn settled(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    table: &Compared,
    part: &Part,
    reference: usize,
    other: usize,
) -> Result<Vec<Difference>> {
    let look = |nodes: &mut [&mut Node]| {
        let [reference, other] = pair(nodes, reference, other)?;
        differences(table, part, reference, other)
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
    let markers = markers::emit(engine, nodes.iter_mut().map(|n| &mut **n))?;
    let awaited = markers::all_of_each(engine, nodes);
    markers::wait_on_all(engine, nodes, &awaited, &markers, "", Workers::MayBeAway)?;
    markers::forget(engine, nodes.iter_mut().map(|n| &mut **n), &markers)
}
