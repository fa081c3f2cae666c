//! Rows of the snapshot that may be newer than a change of a peer that is still on its way.

use super::tables::Table;
use super::{Source, snapshot_session};
use crate::error::{Error, Result};
use crate::node::Statement;
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
    pub fn oldest_running() -> Statement {
        Statement::new(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
            &[],
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

/// The columns by which rows are told apart, by the OID of the table; and the name that it has by now.
fn keys() -> String {
    format!(
        "SELECT c.oid, n.nspname, c.relname, json_agg(a.attname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_index i ON {IDENTITY_INDEX}
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
          GROUP BY c.oid, n.nspname, c.relname"
    )
}

struct Known {
    schema: String,
    name: String,
    key: BTreeSet<String>,
}

/// The recent rows of those of `tables` that have a key.
pub fn recent(source: &Source<'_>, tables: &[Table], since: Since) -> Result<Vec<Recent>> {
    let mut conn = snapshot_session(source)?;
    let mut known = BTreeMap::new();
    for row in &conn.query(&keys(), &[])? {
        let oid: u32 = row.parse(0)?;
        let key = serde_json::from_str(row.text(3)).map_err(|e| Error::internal(e.to_string()))?;
        let (schema, name) = (row.text(1).to_owned(), row.text(2).to_owned());
        known.insert(oid, Known { schema, name, key });
    }
    let mut all = vec![];
    for (i, table) in tables.iter().enumerate() {
        let Some(known) = known.get(&table.oid) else {
            continue;
        };
        let statement = statement(table, known, since);
        let params: Vec<&str> = statement.params.iter().map(String::as_str).collect();
        let rows = conn.query(&statement.sql, &params)?;
        if rows.is_empty() {
            continue;
        }
        let (schema, name) = table.target();
        let column = |column: &super::tables::Column| Column {
            name: column.name.clone(),
            key: known.key.contains(&column.name),
        };
        let value = |value: Option<&str>| value.map_or(Value::Null, |v| Value::Text(v.to_owned()));
        let row = |row: &crate::libpq::Row| {
            Ok(Row {
                written: row.parse(0)?,
                origin: row.parse(1)?,
                values: (0..table.columns.len())
                    .map(|c| value(row.at(c + 2)))
                    .collect(),
            })
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
            rows: rows.iter().map(row).collect::<Result<_>>()?,
        });
    }
    Ok(all)
}

/// `written, origin` and the columns. That a row is old enough its transaction id tells first, at no cost.
fn statement(table: &Table, known: &Known, since: Since) -> Statement {
    let mut columns = vec![WRITTEN.to_owned(), ORIGIN.to_owned()];
    columns.extend(table.columns.iter().map(|c| crate::quote::ident(&c.name)));
    let filter = table.filter.iter().map(|f| format!(" AND ({f})"));
    Statement::new(
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
    )
}
