//! Which tables get data, with which columns and in which format.

use super::plan::{Range, Size};
use super::sql::array;
use super::{InSnapshot, OURS};
use crate::encoding;
use crate::error::Result;
use crate::node::Query;
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

/// Every ordinary table and partition of the source as its snapshot shows them, sizes as of now. `members` are tables of
/// extensions that are wanted too. Of an extension's tables
/// those that it says hold its users' rows, which are the rows that pg_dump would take.
/// Rows of unlogged tables are not in the WAL, so no node but their own has them.
///
/// * Binary is out for types without binary input or output, and for the `reg*` types, whose binary
///   form is an OID of the source. The OIDs of user-defined types inside of arrays and composites do
///   no harm: since PostgreSQL 14 the receiver takes its own.
/// * Rows of a partition go into its root where the partition may be another one on the new node:
///   below a table partitioned by hash of something whose hash comes from OIDs, such as an enum.
pub fn tables(source: &mut InSnapshot, members: &[String]) -> Result<Vec<Table>> {
    let tables = Query::new(
        include_str!("tables.sql"),
        &[&array(OURS), &array(members)],
        |row| {
            let root: (Option<String>, Option<String>) =
                (row.get("root_schema")?, row.get("root_name")?);
            Ok(Table {
                oid: row.get("oid")?,
                file: row.get("file")?,
                schema: row.get("schema")?,
                name: row.get("name")?,
                into: root.0.zip(root.1),
                columns: row.json("columns")?,
                filter: row.get("filter")?,
                extension: row.get("extension")?,
                bytes: row.get::<Option<u64>>("bytes")?.unwrap_or(0),
                blocks: row.get("blocks")?,
                rows: row.get("rows")?,
            })
        },
    );
    tables.on(source)
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
