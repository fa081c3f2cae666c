//! Which tables get data, with which columns and in which format.

use super::plan::{Range, Size};
use super::{OURS, Source, snapshot_session};
use crate::encoding;
use crate::error::{Error, Result};
use crate::quote::{ident, qualified};
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A table of the source whose rows are copied: an OID with a file, as of the snapshot. Its name is what
/// the statements need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub oid: u32,
    /// `pg_class.relfilenode`. A range of blocks means something in this file only.
    pub file: u32,
    pub schema: String,
    pub name: String,
    /// Where the rows go if not into the table of the same name.
    pub into: Option<(String, String)>,
    /// The columns to copy; generated ones are computed anew.
    pub columns: Vec<Column>,
    /// It belongs to an extension, whose script may store rows on the new node too.
    pub extension: bool,
    /// Only rows for which this expression is true; names in it are qualified.
    pub filter: Option<String>,
    /// All that has to be read, out-of-line values included.
    pub bytes: u64,
    /// Blocks of the table itself; `None` if it is not a heap.
    pub blocks: Option<u32>,
    /// How many rows that is, by the density that the last ANALYZE found; `None` if there was none.
    pub rows: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// Whether the binary form means the same on another node.
    pub binary: bool,
}

impl Table {
    /// Opens and locks the table into which the rows go.
    ///
    /// # Safety
    /// In a transaction.
    pub(super) unsafe fn open(&self, lock: u32) -> Result<pg_sys::Relation> {
        let (schema, name) = self.target();
        let (schema, name) = (encoding::to_server(schema)?, encoding::to_server(name)?);
        // SAFETY: copies of C strings, in the transaction of the caller.
        unsafe {
            let range = pg_sys::makeRangeVar(
                pg_sys::pstrdup(schema.as_ptr()),
                pg_sys::pstrdup(name.as_ptr()),
                -1,
            );
            Ok(pg_sys::table_openrv(range, lock as pg_sys::LOCKMODE))
        }
    }

    /// Copies only the columns named; what is not a column of the table is ignored.
    pub fn keep_columns(&mut self, names: &BTreeSet<String>) {
        self.columns.retain(|column| names.contains(&column.name));
    }

    /// Other rows of the table are copied apart from these: they share it on the new node.
    pub fn share(&mut self) {
        self.blocks = None;
    }

    /// True where COPY can use its binary format for all columns.
    pub fn is_binary(&self) -> bool {
        self.columns.iter().all(|column| column.binary)
    }

    /// The name for messages and for the activity of a worker.
    pub fn label(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Schema and name of the table into which the rows go.
    pub(super) fn target(&self) -> (&str, &str) {
        match &self.into {
            Some((schema, name)) => (schema, name),
            None => (&self.schema, &self.name),
        }
    }

    /// What cannot be emptied on the new node is copied in one piece: there it shares a table with rows
    /// that came from elsewhere.
    pub(super) fn size(&self) -> Size {
        let alone = self.into.is_none() && !self.extension;
        Size {
            bytes: self.bytes,
            blocks: self.blocks.filter(|_| alone),
        }
    }

    /// The table has no row: what is not even a block holds nothing that any snapshot sees.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks == Some(0)
    }

    pub(super) fn copy_out(&self, range: Range) -> String {
        let columns: Vec<String> = self.columns.iter().map(|c| ident(&c.name)).collect();
        let columns = columns.join(", ");
        let mut conditions: Vec<String> = self.filter.iter().map(|f| format!("({f})")).collect();
        if let Range::From(from) | Range::Blocks(from, _) = range {
            conditions.push(format!("ctid >= '({from},0)'::tid"));
        }
        if let Range::Blocks(_, to) = range {
            conditions.push(format!("ctid < '({to},0)'::tid"));
        }
        let table = self.label();
        let what = match (conditions.is_empty(), columns.is_empty()) {
            (true, true) => table,
            (true, false) => format!("{table} ({columns})"),
            (false, _) => {
                format!(
                    "(SELECT {columns} FROM ONLY {table} WHERE {})",
                    conditions.join(" AND ")
                )
            }
        };
        let format = if self.is_binary() { "binary" } else { "text" };
        format!("COPY {what} TO STDOUT (FORMAT {format})")
    }
}

/// Every ordinary table and partition of the source, as of the snapshot. Of an extension's tables
/// those that it says hold its users' rows, which are the rows that pg_dump would take.
/// Rows of unlogged tables are not in the WAL, so no node but their own has them.
///
/// * Binary is out for types without binary input or output, and for the `reg*` types, whose binary
///   form is an OID of the source. The OIDs of user-defined types inside of arrays and composites do
///   no harm: since PostgreSQL 14 the receiver takes its own.
/// * Rows of a partition go into its root where the partition may be another one on the new node:
///   below a table partitioned by hash of something whose hash comes from OIDs, such as an enum.
const TABLES: &str = r"
WITH RECURSIVE member AS (
  SELECT objid FROM pg_depend
   WHERE classid = 'pg_class'::regclass AND deptype = 'e'
), config AS (
  SELECT t.oid, t.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS t(oid, condition)
), chosen AS (
  SELECT c.oid, c.relfilenode, n.nspname, c.relname, c.relispartition, am.amname = 'heap' AS heap, c.reltuples, c.relpages,
         (SELECT nullif(regexp_replace(condition, '^\s*WHERE\s', '', 'i'), '') FROM config WHERE config.oid = c.oid) AS filter
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_am am ON am.oid = c.relam
   WHERE c.relkind = 'r' AND c.relpersistence = 'p'
     AND n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
     AND (c.oid NOT IN (SELECT objid FROM member) OR c.oid IN (SELECT oid FROM config)
          OR format('%I.%I', n.nspname, c.relname) = ANY ($2::text[]))
), part AS (
  SELECT DISTINCT a.atttypid AS root, a.atttypid AS typ
    FROM pg_attribute a JOIN chosen ON chosen.oid = a.attrelid
   WHERE a.attnum > 0 AND NOT a.attisdropped
   UNION
  SELECT part.root, inner_type.oid
    FROM part JOIN pg_type t ON t.oid = part.typ
   CROSS JOIN LATERAL (
         SELECT t.typbasetype WHERE t.typtype = 'd'
          UNION ALL SELECT t.typelem WHERE t.typelem <> 0 AND t.typlen = -1
          UNION ALL SELECT a.atttypid FROM pg_attribute a
                     WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
                       AND a.attnum > 0 AND NOT a.attisdropped
          UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
          UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid
         ) AS inner_type(oid)
), textual AS (
  SELECT DISTINCT part.root
    FROM part JOIN pg_type t ON t.oid = part.typ
   WHERE (t.typsend = 0 OR t.typreceive = 0
          OR t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^reg')
), unsteady AS (
  SELECT p.partrelid
    FROM pg_partitioned_table p
   WHERE p.partstrat = 'h'
     AND EXISTS (SELECT FROM pg_opclass o JOIN pg_am am ON am.oid = o.opcmethod
                  WHERE o.oid = ANY (p.partclass) AND am.amname = 'hash'
                    AND o.opcname IN ('enum_ops', 'array_ops', 'record_ops', 'range_ops', 'multirange_ops'))
)
SELECT c.nspname, c.relname, rn.nspname, r.relname,
       pg_table_size(c.oid), CASE WHEN c.heap THEN pg_relation_size(c.oid) / current_setting('block_size')::int END,
       (SELECT json_agg(json_build_object('name', a.attname,
                                          'binary', a.atttypid NOT IN (SELECT root FROM textual))
                        ORDER BY a.attnum)
          FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
       c.filter, c.oid IN (SELECT objid FROM member),
       CASE WHEN pg_relation_size(c.oid) = 0 THEN 0
            WHEN c.reltuples >= 0 AND c.relpages > 0
            THEN round(pg_relation_size(c.oid) / current_setting('block_size')::numeric * c.reltuples::numeric / c.relpages) END,
       c.oid, c.relfilenode
  FROM chosen c
  LEFT JOIN pg_class r
         ON c.relispartition AND r.oid = pg_partition_root(c.oid)
        AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a(oid) JOIN unsteady ON partrelid = a.oid)
  LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
 ORDER BY 1, 2";

/// The tables of the source as its snapshot shows them, sizes as of now. `members` are tables of
/// extensions that are wanted too.
pub fn tables(source: &Source<'_>, members: &[String]) -> Result<Vec<Table>> {
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let parameters = [super::sql::array(OURS), super::sql::array(members)];
    let rows = snapshot_session(source)?.query(TABLES, &[&parameters[0], &parameters[1]])?;
    rows.iter()
        .map(|row| {
            let columns = row.at(6).unwrap_or("[]");
            Ok(Table {
                oid: row.parse(10)?,
                file: row.parse(11)?,
                schema: row.text(0).to_owned(),
                name: row.text(1).to_owned(),
                into: row
                    .at(2)
                    .zip(row.at(3))
                    .map(|(s, n)| (s.to_owned(), n.to_owned())),
                columns: serde_json::from_str(columns)
                    .map_err(|e| Error::internal(format!("columns of a table: {e}: {columns}")))?,
                filter: row.at(7).map(str::to_owned),
                extension: row.bool(8),
                bytes: row.parse_opt(4)?.unwrap_or(0),
                blocks: row.parse_opt(5)?,
                rows: row.parse_opt(9)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            oid: 16384,
            file: 16384,
            schema: "S\"1".into(),
            name: "t".into(),
            into: None,
            columns: vec![
                Column {
                    name: "a".into(),
                    binary: true,
                },
                Column {
                    name: "b c".into(),
                    binary: true,
                },
            ],
            extension: false,
            filter: None,
            bytes: 1,
            blocks: Some(1),
            rows: Some(1),
        }
    }

    #[test]
    fn statements() {
        let mut t = table();
        assert_eq!(
            t.copy_out(Range::Whole),
            r#"COPY "S""1"."t" ("a", "b c") TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            t.copy_out(Range::Blocks(3, 7)),
            r#"COPY (SELECT "a", "b c" FROM ONLY "S""1"."t" WHERE ctid >= '(3,0)'::tid AND ctid < '(7,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
        t.filter = Some("a > 1 OR a < 0".into());
        t.columns[1].binary = false;
        assert_eq!(
            t.copy_out(Range::From(7)),
            r#"COPY (SELECT "a", "b c" FROM ONLY "S""1"."t" WHERE (a > 1 OR a < 0) AND ctid >= '(7,0)'::tid) TO STDOUT (FORMAT text)"#
        );
        t.keep_columns(&BTreeSet::from(["a".into()]));
        assert!(t.is_binary());
        t.keep_columns(&BTreeSet::new());
        t.filter = None;
        assert_eq!(
            t.copy_out(Range::Whole),
            r#"COPY "S""1"."t" TO STDOUT (FORMAT binary)"#
        );
    }
}
