//! What two nodes have in a table, compared by digests of buckets of keys, and row by row where those differ.

use super::pgoutput::{Column, Relation, Tuple, Value};
use crate::error::{Error, Result};
use crate::libpq::Rows;
use crate::node::{Node, Statement, ask};
use crate::quote::{ident, qualified};
use std::collections::{BTreeMap, BTreeSet};

/// Buckets of a table: what differs is fetched by the bucket.
const BUCKETS: u32 = 1024;

/// A row as its node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of the whole row.
    pub digest: String,
    /// When it was written, in microseconds since 2000, if the node knows.
    pub written: Option<i64>,
    /// The name of the origin that wrote it; empty for the node itself.
    pub origin: String,
    /// The values in the order of the relation's columns.
    pub values: Tuple,
}

/// The versions of one key on two nodes; never equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    pub here: Option<Version>,
    pub there: Option<Version>,
}

/// The ordinary tables of the node but those in `left_out`.
pub fn relations(node: &mut Node, left_out: &[&str]) -> Result<Vec<Relation>> {
    let rows = node.query(
        "SELECT c.oid, n.nspname, c.relname, a.attname,
                coalesce(a.attnum = ANY (i.indkey), false)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                              AND a.attgenerated = ''
           LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid
                AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND n.nspname NOT IN ('pg_catalog', 'information_schema')
          ORDER BY 2, 3, a.attnum",
        &[],
    )?;
    let mut found: Vec<Relation> = vec![];
    for row in &rows {
        if left_out.contains(&row.text(1)) {
            continue;
        }
        let id = row.parse(0)?;
        if found.last().is_none_or(|last| last.id != id) {
            found.push(Relation {
                id,
                schema: row.text(1).to_owned(),
                name: row.text(2).to_owned(),
                full: false,
                columns: vec![],
            });
        }
        if let Some(last) = found.last_mut() {
            last.columns.push(Column {
                name: row.text(3).to_owned(),
                key: row.bool(4),
            });
        }
    }
    for relation in &mut found {
        relation.full = !relation.columns.iter().any(|c| c.key);
    }
    Ok(found)
}

/// Where the two nodes differ in `relation`, by key. Without a key the whole row is one.
pub fn differences(
    relation: &Relation,
    here: &mut Node,
    there: &mut Node,
) -> Result<Vec<Difference>> {
    let digests = both(here, there, &digest(relation))?;
    let of = |rows: &Rows| -> BTreeMap<String, String> {
        let bucket = |row: &crate::libpq::Row| {
            let sums = format!("{} {}", row.text(1), row.text(2));
            (row.text(0).to_owned(), sums)
        };
        rows.iter().map(bucket).collect()
    };
    let (a, b) = (of(&digests[0]), of(&digests[1]));
    let buckets: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing: Vec<&str> = buckets
        .into_iter()
        .filter(|bucket| a.get(*bucket) != b.get(*bucket))
        .map(String::as_str)
        .collect();
    if differing.is_empty() {
        return Ok(vec![]);
    }
    let rows = both(here, there, &versions(relation, &differing.join(",")))?;
    let (mut ours, mut theirs) = (keyed(relation, &rows[0])?, keyed(relation, &rows[1])?);
    let keys: BTreeSet<String> = ours.keys().chain(theirs.keys()).cloned().collect();
    let mut found = vec![];
    for key in keys {
        let (here, there) = (ours.remove(&key), theirs.remove(&key));
        let digest = |v: &Option<Version>| v.as_ref().map(|v| v.digest.clone());
        if digest(&here) != digest(&there) {
            found.push(Difference { key, here, there });
        }
    }
    Ok(found)
}

fn both(here: &mut Node, there: &mut Node, statement: &Statement) -> Result<Vec<Rows>> {
    ask(vec![
        statement.clone().on(here),
        statement.clone().on(there),
    ])
    .into_iter()
    .collect()
}

fn key(relation: &Relation) -> String {
    let columns: Vec<String> = relation
        .columns
        .iter()
        .filter(|c| c.key || relation.full)
        .map(|c| format!("t.{}", ident(&c.name)))
        .collect();
    format!("ROW({})::text", columns.join(", "))
}

fn bucket(relation: &Relation) -> String {
    format!("(hashtextextended({}, 0) & {})", key(relation), BUCKETS - 1)
}

fn row(relation: &Relation) -> String {
    let columns: Vec<String> = relation
        .columns
        .iter()
        .map(|c| format!("t.{}", ident(&c.name)))
        .collect();
    format!("ROW({})::text", columns.join(", "))
}

/// When the newest row of the table was written that bears that origin, in microseconds since 2000.
pub fn newest_of(relation: &Relation, origin: &str) -> Statement {
    Statement::new(
        format!(
            "SELECT max((extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint)
               FROM ONLY {} t,
                    pg_xact_commit_timestamp_origin(
                        CASE current_setting('track_commit_timestamp') WHEN 'on' THEN t.xmin END) w
              WHERE w.roident = coalesce((SELECT roident FROM pg_replication_origin WHERE roname = $1),
                                         (CASE WHEN $1 ~ '^[0-9]+$' THEN $1 END)::oid)",
            qualified(&relation.schema, &relation.name)
        ),
        &[origin],
    )
}

fn digest(relation: &Relation) -> Statement {
    Statement::new(
        format!(
            "SELECT {}, count(*), sum(hashtextextended({}, 1)::numeric)
               FROM ONLY {} t GROUP BY 1",
            bucket(relation),
            row(relation),
            qualified(&relation.schema, &relation.name)
        ),
        &[],
    )
}

fn versions(relation: &Relation, buckets: &str) -> Statement {
    let values: Vec<String> = relation
        .columns
        .iter()
        .map(|c| format!("t.{}::text", ident(&c.name)))
        .collect();
    Statement::new(
        format!(
            "SELECT {}, hashtextextended({}, 1),
                    (extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint,
                    CASE w.roident WHEN 0 THEN '' ELSE coalesce(o.roname, w.roident::text) END, {}
               FROM ONLY {} t
               LEFT JOIN LATERAL pg_xact_commit_timestamp_origin(
                    CASE current_setting('track_commit_timestamp') WHEN 'on' THEN t.xmin END) w ON true
               LEFT JOIN pg_replication_origin o ON o.roident = w.roident
              WHERE {} = ANY (string_to_array($1, ',')::bigint[])",
            key(relation),
            row(relation),
            values.join(", "),
            qualified(&relation.schema, &relation.name),
            bucket(relation)
        ),
        &[buckets],
    )
}

fn keyed(relation: &Relation, rows: &Rows) -> Result<BTreeMap<String, Version>> {
    let mut found = BTreeMap::new();
    let mut alike: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows {
        let values = (4..4 + relation.columns.len())
            .map(|i| {
                row.get(i)
                    .map_or(Value::Null, |v| Value::Text(v.to_owned()))
            })
            .collect();
        let version = Version {
            digest: row.text(1).to_owned(),
            written: row.parse_opt(2)?,
            origin: row.text(3).to_owned(),
            values,
        };
        // Rows that are alike are told apart by their number.
        let number = alike.entry(row.text(0)).or_insert(0);
        *number += 1;
        let key = match number {
            1 => row.text(0).to_owned(),
            n => format!("{} (no. {n})", row.text(0)),
        };
        if found.insert(key, version).is_some() {
            return Err(Error::internal("a row was read twice"));
        }
    }
    Ok(found)
}
