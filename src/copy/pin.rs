//! A table of the plan, held as it is on the source while a piece of it is read.
//!
//! A snapshot does not protect against everything. VACUUM FULL, CLUSTER and SET TABLESPACE give a table
//! another file with the same row versions elsewhere in it. A table that was rewritten by an ALTER TABLE,
//! or got the file of another one as pg_repack does it, looks empty to the snapshot, and nobody would ever
//! send its rows. TRUNCATE looks the same and is harmless, because it is replicated. Names move, too.

use super::begin_in_snapshot;
use super::shared::Job;
use super::tables::Table;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Dsn};
use crate::node::Query;
use crate::quote::literal;

/// What is in the file that the table has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// It is the file of the plan.
    Planned,
    /// Another one, with the row versions that the snapshot sees.
    Moved,
    /// Another one without a row. Whatever the snapshot saw is gone by TRUNCATE or DELETE, which are
    /// replicated.
    Emptied,
    /// Another one with rows that are all newer than the snapshot: a TRUNCATE explains that, and so does
    /// the file of another table.
    Newer,
}

const HINT: &str =
    "Run the same CALL again, and do not change the structure of tables while a node joins.";

const CHANGED: &str = "its definition has changed since the snapshot was taken";

/// What the column `a` of the snapshot is called by now: functions look into the present catalogs.
const NAME_NOW: &str =
    "(pg_identify_object_as_address('pg_class'::regclass, a.attrelid, a.attnum)).object_names[3]";

/// Opens a transaction of the snapshot on the source and keeps the table as it is from now on.
pub fn pin(job: &Job, dsn: &Dsn, conn: &mut Conn, table: &Table) -> Result<File> {
    let oid = table.oid;
    let begin = begin_in_snapshot(&job.snapshot);
    let locked = match lock(&begin, table).one(conn) {
        Err(error) if error.is_undefined() => return Err(moved_away(conn, table)?),
        locked => locked?,
    };
    if !locked.has_name {
        return Err(moved_away(conn, table)?);
    }
    if !locked.has_columns {
        return Err(refused(CHANGED));
    }
    if locked.has_file {
        return Ok(File::Planned);
    }
    let definition = format!(
        "SELECT c.relam, c.relpersistence, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation,
                a.attisdropped, a.attgenerated, d.adbin
           FROM pg_class c
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
           LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated <> ''
          WHERE c.oid = {oid} ORDER BY a.attnum"
    );
    let mut beside = Conn::open(&job.node, dsn)?;
    let then = conn.query(&definition, &[])?;
    if then.is_empty() || then != beside.query(&definition, &[])? {
        return Err(refused(CHANGED));
    }
    let contents = contents(table).one(conn)?;
    if contents.is_empty {
        return Ok(File::Emptied);
    }
    if contents.has_rows {
        return Ok(File::Moved);
    }
    if was_filled_elsewhere(&mut beside, table, contents.toast)? {
        return Err(refused(
            "it has got other row versions since the snapshot was taken, as by pg_repack or by an ALTER TABLE that rewrites it",
        ));
    }
    Ok(File::Newer)
}

/// The statements that keep several tables, and the query whose rows say of each whether all of it is as planned. Where
/// one is locked by somebody they fail: who waits for one table while it holds others may have somebody wait for ever.
pub fn pin_several(snapshot: &str, tables: &[&Table]) -> String {
    let names: Vec<String> = tables
        .iter()
        .map(|table| format!("ONLY {}", table.label()))
        .collect();
    let planned: Vec<String> = tables
        .iter()
        .map(|table| {
            format!(
                "({}::oid, {}, {}::oid)",
                table.oid,
                literal(&table.label()),
                table.file
            )
        })
        .collect();
    format!(
        "{}; LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT;
         SELECT coalesce(to_regclass(t.label)::oid = t.oid AND pg_relation_filenode(t.oid) = t.file
                         AND (SELECT bool_and(coalesce(({NAME_NOW}) = a.attname::text, false))
                                FROM pg_attribute a
                               WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped)
                             IS NOT FALSE, false) AS as_planned
           FROM (VALUES {}) AS t (oid, label, file)",
        begin_in_snapshot(snapshot),
        names.join(", "),
        planned.join(", ")
    )
}

/// What a table is once it is locked.
struct Locked {
    /// It is the one that has the name.
    has_name: bool,
    /// The file that the plan knows.
    has_file: bool,
    /// Its columns are called what the snapshot calls them.
    has_columns: bool,
}

fn lock(begin: &str, table: &Table) -> Query<Locked> {
    let (label, oid) = (table.label(), table.oid);
    Query::new(
        format!(
            "{begin}; LOCK TABLE ONLY {label} IN ACCESS SHARE MODE;
             SELECT coalesce(to_regclass({})::oid = {oid}, false) AS has_name,
                    pg_relation_filenode({oid}) = {} AS has_file,
                    coalesce((SELECT bool_and(coalesce(({NAME_NOW}) = a.attname::text, false))
                                FROM pg_attribute a
                               WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped), true) AS has_columns",
            literal(&label),
            table.file
        ),
        &[],
        |row| {
            Ok(Locked {
                has_name: row.get("has_name")?,
                has_file: row.get("has_file")?,
                has_columns: row.get("has_columns")?,
            })
        },
    )
}

/// What is in the file of a table.
struct Contents {
    is_empty: bool,
    /// Rows that the snapshot sees.
    has_rows: bool,
    /// The OID of the table for its out-of-line values as the snapshot shows it, or 0.
    toast: u32,
}

fn contents(table: &Table) -> Query<Contents> {
    let (label, oid) = (table.label(), table.oid);
    Query::new(
        format!(
            "SELECT pg_relation_size({oid}) = 0 AS is_empty, EXISTS (SELECT FROM ONLY {label}) AS has_rows,
                    (SELECT reltoastrelid FROM pg_class WHERE oid = {oid}) AS toast"
        ),
        &[],
        |row| {
            Ok(Contents {
                is_empty: row.get("is_empty")?,
                has_rows: row.get("has_rows")?,
                toast: row.get("toast")?,
            })
        },
    )
}

/// Whether rows of the file are older than the moment at which the table got it. TRUNCATE keeps the
/// table for out-of-line values; where there is none, nothing tells it from a rewrite but that.
///
/// A look only, which finds the common case before the copy is through: somebody may be waiting for the
/// lock that the other session holds, and would keep this one waiting for ever.
fn was_filled_elsewhere(beside: &mut Conn, table: &Table, toast: u32) -> Result<bool> {
    let look = format!(
        "SET lock_timeout = '1s';
         SELECT coalesce(bool_or(age(r.xmin) > age(c.xmin)
                                 OR r.xmin = c.xmin AND r.cmin::text::bigint <= c.cmin::text::bigint), false)
           FROM (SELECT xmin, cmin, reltoastrelid FROM pg_class WHERE oid = {oid}) c,
                (SELECT xmin, cmin FROM ONLY {label} LIMIT 1000) r
          WHERE c.reltoastrelid = 0 OR c.reltoastrelid <> {toast}",
        oid = table.oid,
        label = table.label(),
    );
    match beside.query(&look, &[]) {
        Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => Ok(false),
        rows => rows?.one()?.only(),
    }
}

/// The table is not there any more under its name.
fn moved_away(conn: &mut Conn, table: &Table) -> Result<Error> {
    conn.query("ROLLBACK", &[])?;
    let now = Query::new(
        format!(
            "SELECT (SELECT format('%I.%I', n.nspname, c.relname)
                       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {}) AS name,
                    to_regclass({}) IS NOT NULL AS has_successor",
            table.oid,
            literal(&table.label())
        ),
        &[],
        |row| Ok((row.get("name")?, row.get("has_successor")?)),
    );
    let (name, has_successor): (Option<String>, bool) = now.one(conn)?;
    let what = match name {
        Some(name) => format!("it was renamed to {name} since the snapshot was taken"),
        None => "it was dropped since the snapshot was taken".into(),
    };
    let successor = match has_successor {
        true => ", and another table has its name",
        false => "",
    };
    Ok(refused(&format!("{what}{successor}")))
}

fn refused(what: &str) -> Error {
    Error::refused(SqlState::NOT_IN_PREREQUISITE_STATE, what, HINT)
}
