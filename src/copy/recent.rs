//! Rows of the snapshot that may be newer than a change of a peer that is still on its way.

use super::tables::Table;
use super::{Source, snapshot_session};
use crate::error::Result;
use crate::node::Query;
use crate::replay::share::{IDENTITY_INDEX, ORIGIN, WRITTEN};
use std::collections::{BTreeMap, BTreeSet};
use zodan_core::decoding::{Column, Relation, Tuple, Value};

/// So many transactions back rows are looked at in any case: the clock of who committed them may have been ahead.
const FURTHER_BACK: i64 = 100_000;

/// From when on rows are recent.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// In microseconds since 2000, as commit timestamps have it.
    pub at: i64,
    /// What has got no later transaction id than this was committed before; with its epoch.
    pub xid: i64,
}

impl Since {
    /// Answers the `xid` of a node where nothing is running that began before it.
    pub fn oldest_running() -> Query<i64> {
        Query::new(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
            &[],
            |row| row.only(),
        )
    }
}

/// The recent rows of a table, or of a piece of it that is copied apart.
pub struct Recent {
    /// The table on the new node, with the columns that were copied.
    pub relation: Relation,
    pub rows: Vec<Row>,
}

pub struct Row {
    /// When it was committed, in microseconds since 2000.
    pub written: i64,
    /// The number of the replication origin that it bears on the source.
    pub origin: u32,
    pub values: Tuple,
}

/// The columns by which rows of a table are told apart, and the name that it has by now.
struct Known {
    schema: String,
    name: String,
    key: BTreeSet<String>,
}

/// By the OID of the table.
fn keys() -> Query<(u32, Known)> {
    Query::new(
        format!(
            "SELECT c.oid, n.nspname, c.relname, json_agg(a.attname) AS key
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_index i ON {IDENTITY_INDEX}
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
              GROUP BY c.oid, n.nspname, c.relname"
        ),
        &[],
        |row| {
            let known = Known {
                schema: row.get("nspname")?,
                name: row.get("relname")?,
                key: row.json("key")?,
            };
            Ok((row.get("oid")?, known))
        },
    )
}

/// The recent rows of those of `tables` that have a key.
pub fn recent(source: &Source<'_>, tables: &[Table], since: Since) -> Result<Vec<Recent>> {
    let mut conn = snapshot_session(source)?;
    let known: BTreeMap<u32, Known> = keys().on(&mut conn)?.into_iter().collect();
    let mut all = vec![];
    for (i, table) in tables.iter().enumerate() {
        let Some(known) = known.get(&table.oid) else {
            continue;
        };
        let rows = recent_rows(table, known, since).on(&mut conn)?;
        if rows.is_empty() {
            continue;
        }
        let (schema, name) = table.target();
        let column = |column: &super::tables::Column| Column {
            name: column.name.clone(),
            key: known.key.contains(&column.name),
        };
        all.push(Recent {
            relation: Relation {
                // Pieces of one table have different columns.
                id: i as u32,
                schema: schema.to_owned(),
                name: name.to_owned(),
                full: false,
                columns: table.columns.iter().map(column).collect(),
            },
            rows,
        });
    }
    Ok(all)
}

/// That a row is old enough its transaction id tells first, at no cost.
fn recent_rows(table: &Table, known: &Known, since: Since) -> Query<Row> {
    let mut columns = vec![
        format!("{WRITTEN} AS written"),
        format!("{ORIGIN} AS origin"),
    ];
    columns.extend(table.columns.iter().map(|c| crate::quote::ident(&c.name)));
    let filter = table.filter.iter().map(|f| format!(" AND ({f})"));
    Query::new(
        format!(
            "SELECT {} FROM ONLY {} WHERE age(xmin) <= age($1::xid8::xid) AND {WRITTEN} >= $2::bigint{}",
            columns.join(", "),
            crate::quote::qualified(&known.schema, &known.name),
            filter.collect::<String>()
        ),
        &[
            &(since.xid - FURTHER_BACK).max(3).to_string(),
            &since.at.to_string(),
        ],
        |row| {
            Ok(Row {
                written: row.get("written")?,
                origin: row.get("origin")?,
                values: row.from(2).map(Value::from).collect(),
            })
        },
    )
}
