//! What users have in a database.

use crate::node::{Query, Statement};
use zodan_core::names::OWN_SCHEMAS;

/// Of a row `c` of pg_class.
const OF_NO_EXTENSION: &str = "NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.deptype = 'e')";

/// The tables of this database that belong to its users, as `schema.table`.
pub fn user_tables() -> Query<String> {
    Query::new(
        format!(
            "SELECT format('%I.%I', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
            AND n.nspname NOT IN {OWN_SCHEMAS} AND n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND n.nspname NOT LIKE 'pg\\_%'
            AND {OF_NO_EXTENSION}
          ORDER BY 1"
        ),
        &[],
        |row| row.only(),
    )
}

/// Rows written so far.
pub struct RowsWritten {
    pub inserted: u64,
    pub changed: u64,
}

/// Rows written in the tables of this database so far, of all kinds. No row
/// where the server does not count. Tables of extensions are not looked at: their scripts store rows
/// when a restore runs them, and some extensions write of their own accord.
pub fn rows_written() -> Query<RowsWritten> {
    Query::new(
        format!(
            "SELECT coalesce(sum(s.n_tup_ins), 0) AS inserted, coalesce(sum(s.n_tup_upd + s.n_tup_del), 0) AS changed
           FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND s.schemaname NOT IN {OWN_SCHEMAS}
            AND {OF_NO_EXTENSION}
         HAVING current_setting('track_counts') = 'on'"
        ),
        &[], |row| {
            Ok(RowsWritten {
                inserted: row.get("inserted")?,
                changed: row.get("changed")?,
            })
        })
}

/// The file that a table has.
pub struct TableFile {
    pub schema: String,
    pub table: String,
    pub file: String,
}

/// The files of the same tables: one that was truncated has got another file.
pub fn table_files() -> Query<TableFile> {
    Query::new(
        format!(
            "SELECT n.nspname, c.relname, pg_relation_filenode(c.oid) AS file
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND n.nspname NOT IN {OWN_SCHEMAS} AND n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND {OF_NO_EXTENSION}"
        ),
        &[],
        |row| {
            Ok(TableFile {
                schema: row.get("nspname")?,
                table: row.get("relname")?,
                file: row.get("file")?,
            })
        },
    )
}

/// Empties tables together, since they may refer to each other.
pub fn empty(tables: &[String]) -> Statement {
    Statement::new(format!("TRUNCATE {}", tables.join(", ")), &[])
}

/// How many large objects the database has.
pub fn large_objects() -> Query<u64> {
    Query::new("SELECT count(*) FROM pg_largeobject_metadata", &[], |row| {
        row.only()
    })
}

/// What a sequence is going to give.
pub struct SequenceState {
    pub name: String,
    pub next: i128,
    pub increment: i128,
    pub minimum: i128,
    pub maximum: i128,
    pub cycles: bool,
}

/// The sequences of this database that belong to its users.
pub fn sequences() -> Query<SequenceState> {
    Query::new(
        format!(
            "SELECT format('%I.%I', schemaname, sequencename) AS name,
                coalesce(last_value::numeric + increment_by, start_value) AS next,
                increment_by, min_value, max_value, cycle
           FROM pg_sequences
          WHERE schemaname NOT IN {OWN_SCHEMAS} AND schemaname NOT LIKE 'pg\\_%'
          ORDER BY 1"
        ),
        &[],
        |row| {
            Ok(SequenceState {
                name: row.get("name")?,
                next: row.get("next")?,
                increment: row.get("increment_by")?,
                minimum: row.get("min_value")?,
                maximum: row.get("max_value")?,
                cycles: row.get("cycle")?,
            })
        },
    )
}

/// The name of a table, quoted.
pub fn table_name(oid: u32) -> Query<String> {
    Query::new(
        "SELECT format('%I.%I', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = $1::oid AND c.relkind IN ('r', 'p')",
        &[&oid.to_string()],
        |row| row.only(),
    )
}
