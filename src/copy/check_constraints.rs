//! CHECK constraints that the source's own rows break. PostgreSQL does not look at a constraint again when a function
//! in it is changed, or when what the function reads in another table is: such rows are on the source, so they are on
//! the new node. And a function that reads another table may find that empty still.
//!
//! A table of which a row does not come through is copied without its CHECK constraints. They stay where they are, as
//! they are, and are not looked at until all rows are there. Then they are NOT VALID, until they are validated.

use super::is_of_users;
use super::shared::Count;
use super::sql::array;
use super::tables::Table;
use crate::encoding;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Row;
use crate::node::{Local, Query, Session};
use crate::quote::{ident, qualified};
use pgrx::prelude::*;
use std::collections::HashSet;
use std::ptr::null_mut;

/// Which constraints nobody looks at, and what makes that so. A table that is being copied has none which is
/// NOT VALID or NOT ENFORCED already: those come after the rows.
#[cfg(feature = "pg18")]
const SUSPENDED: &str = "NOT k.conenforced";
#[cfg(not(feature = "pg18"))]
const SUSPENDED: &str = "c.relchecks = 0";

#[cfg(feature = "pg18")]
const SUSPEND: &str = "
UPDATE pg_catalog.pg_constraint SET conenforced = false, convalidated = false
 WHERE contype OPERATOR(pg_catalog.=) 'c' AND conenforced AND conrelid OPERATOR(pg_catalog.=)";
#[cfg(not(feature = "pg18"))]
const SUSPEND: &str = "
UPDATE pg_catalog.pg_class SET relchecks = 0
 WHERE relchecks OPERATOR(pg_catalog.>) 0 AND oid OPERATOR(pg_catalog.=)";

#[cfg(feature = "pg18")]
const ENFORCED: &str = ", conenforced = true";
#[cfg(not(feature = "pg18"))]
const ENFORCED: &str = "";

/// Whether this is what a row that breaks a CHECK constraint comes to: its function may raise what it likes. What the
/// server lacks for the function, or the owner of the table, is told as it is.
pub(super) fn may_be_one(error: &Error) -> bool {
    matches!(error, Error::Local { state, .. } if is_of_users(error) && !state.as_str().starts_with("42"))
}

/// From now on nobody looks at the CHECK constraints of the table into which the rows of `table` go. False if there
/// are none. Whatever this worker has stored and not told the statistics yet has been taken back: it is counted.
pub(super) fn suspend(table: &Table, count: &Count) -> Result<bool> {
    // What its rows break is for the extension to mend.
    if table.extension {
        return Ok(false);
    }
    // SAFETY: the frame of a transaction as background workers make it. An error ends this worker.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        // Keeps out ANALYZE and DDL, and not the others who are copying.
        let relation = table.open(pg_sys::ShareUpdateExclusiveLock)?;
        let tables = discard_pending(table, (*relation).rd_id, count)?;
        let list: Vec<String> = tables.iter().map(|oid| oid.to_u32().to_string()).collect();
        let statement = format!(
            "{SUSPEND} ANY (ARRAY[{}]::pg_catalog.oid[]) RETURNING 1",
            list.join(", ")
        );
        let any = Spi::connect_mut(|client| {
            let rows = client.update(&statement, None, &[]);
            rows.map(|rows| !rows.is_empty())
        });
        if any.map_err(|e| Error::internal(e.to_string()))? {
            for oid in tables {
                pg_sys::CacheInvalidateRelcacheByRelid(oid);
            }
            count.leave_unchecked();
        }
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
    // Another worker may have been the first.
    Ok(count.is_unchecked())
}

/// What this worker has stored of the table and not told the statistics yet has been taken back, and is stored once more.
pub(super) fn count_taken_back(table: &Table, count: &Count) -> Result<()> {
    if table.extension {
        return Ok(());
    }
    // SAFETY: after an error, whatever was open; then as above.
    unsafe {
        pg_sys::AbortOutOfAnyTransaction();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let relation = table.open(pg_sys::AccessShareLock)?;
        discard_pending(table, (*relation).rd_id, count)?;
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_stat(true);
    }
    Ok(())
}

/// Counts the rows that have been taken back of the tables into which those of `table` go, and returns these; `own` is
/// the first.
fn discard_pending(table: &Table, own: pg_sys::Oid, count: &Count) -> Result<Vec<pg_sys::Oid>> {
    let tables = match table.into {
        None => vec![own],
        Some(_) => tree(own)?,
    };
    count.discard_stored(tables.iter().map(|oid| pending(*oid)).sum());
    Ok(tables)
}

/// Before PostgreSQL 18 nobody can drop a table while its CHECK constraints are not counted.
#[cfg(not(feature = "pg18"))]
pub(super) fn count_again(session: &mut Session) -> Result<()> {
    session.query(
        "UPDATE pg_class c SET relchecks = k.n
           FROM (SELECT conrelid, count(*) AS n FROM pg_constraint WHERE contype = 'c' AND conrelid >= 16384 GROUP BY 1) k
          WHERE k.conrelid = c.oid AND c.relchecks = 0",
        &[],
    )?;
    Ok(())
}

/// A partitioned table with its partitions, of any depth.
fn tree(root: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>> {
    let statement = format!(
        "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree({})",
        root.to_u32()
    );
    let oids = Spi::connect(|client| {
        client
            .select(&statement, None, &[])?
            .map(|row| row.get::<pg_sys::Oid>(1))
            .collect::<pgrx::spi::SpiResult<Vec<_>>>()
    });
    let oids = oids.map_err(|e| Error::internal(e.to_string()))?;
    Ok(oids.into_iter().flatten().collect())
}

/// Rows that this process has inserted and not told the statistics yet.
fn pending(table: pg_sys::Oid) -> u64 {
    // SAFETY: a counter of this process, or a copy of it, or null.
    unsafe {
        let Some(status) = pg_sys::find_tabstat_entry(table).as_ref() else {
            return 0;
        };
        #[cfg(feature = "pg15")]
        let rows = status.t_counts.t_tuples_inserted;
        #[cfg(not(feature = "pg15"))]
        let rows = status.counts.tuples_inserted;
        rows as u64
    }
}

/// A constraint that has not been looked at, or of which a part has not.
struct Unchecked {
    relation: u32,
    table: String,
    name: String,
    owner: u32,
    has_rows: bool,
    expression: String,
    /// The tables from which this one inherits, at any distance.
    ancestors: Vec<u32>,
    /// The tables at the top of the tree that has the constraint, with their schemas.
    tops: Vec<(String, String)>,
}

/// One that stays NOT VALID.
pub struct Unproved {
    /// The first of `validate_on`.
    pub table: String,
    pub name: String,
    /// How many rows break it; `None` if the owner cannot count them.
    pub rows: Option<u64>,
    /// Why nobody knows whether rows break it.
    pub error: Option<Error>,
    /// The tables for which it has to be validated.
    pub validate_on: Vec<String>,
}

/// The CHECK constraints that nobody looked at while rows were copied; children before their parents.
pub struct CheckConstraints(Vec<Unchecked>);

impl CheckConstraints {
    /// They hold again for what comes from now on. A parent is not valid where a child is not.
    pub fn resume(target: &mut Session, tables: &[String]) -> Result<Self> {
        if tables.is_empty() {
            return Ok(Self(vec![]));
        }
        let sql = include_str!("check_constraints.sql")
            .replace(":suspended", SUSPENDED)
            .replace(":enforced", ENFORCED);
        Ok(Self(
            Query::new(sql, &[&array(tables)], Unchecked::read).on(target)?,
        ))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Validates them as the owners of their tables, and returns those that stay NOT VALID.
    pub fn validate(&self, local: &Local, search_path: &str) -> Result<Vec<Unproved>> {
        let mut unproved: Vec<Unproved> = vec![];
        // Tables of which a child is not valid.
        let mut blocked: HashSet<(u32, &str)> = HashSet::new();
        for check in &self.0 {
            let (owner, name) = (check.owner, check.name.as_str());
            let is_blocked = blocked.contains(&(check.relation, name));
            let mut error = None;
            if !is_blocked {
                // SAFETY: a table that is there, in a transaction.
                let validated = local.act_as(owner, search_path, || unsafe {
                    validate(check.relation, name)
                });
                match validated {
                    Ok(()) => continue,
                    Err(broken) if broken.sqlstate() == SqlState::CHECK_VIOLATION => {}
                    Err(other) if is_of_users(&other) => error = Some(other),
                    Err(other) => return Err(explain(other, check)),
                }
            }
            blocked.extend(check.ancestors.iter().map(|table| (*table, name)));
            let rows = match (check.has_rows, &error) {
                (true, None) => {
                    let count = format!(
                        "SELECT pg_catalog.count(*) FROM ONLY {} WHERE NOT ({})",
                        check.table, check.expression
                    );
                    match local.query_as(owner, search_path, &count) {
                        Ok(rows) => Some(rows.one()?.only()?),
                        Err(error) if is_of_users(&error) => None,
                        Err(error) => return Err(explain(error, check)),
                    }
                }
                (true, Some(_)) => None,
                (false, _) => Some(0),
            };
            // Told with the child.
            if !(is_blocked && rows == Some(0)) {
                add(&mut unproved, check, rows, error);
            }
        }
        Ok(unproved)
    }
}

impl Unchecked {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            relation: row.get("relation")?,
            table: qualified(row.get("schema")?, row.get("table_name")?),
            name: row.get("name")?,
            owner: row.get("owner")?,
            has_rows: row.get("has_rows")?,
            expression: row.get("expression")?,
            ancestors: row.json("ancestors")?,
            tops: row.json("tops")?,
        })
    }
}

/// One constraint of a tree is told once.
fn add(all: &mut Vec<Unproved>, check: &Unchecked, rows: Option<u64>, error: Option<Error>) {
    let tops = check.tops.iter();
    let tops: Vec<String> = tops.map(|(schema, name)| qualified(schema, name)).collect();
    let same = |known: &&mut Unproved| known.name == check.name && known.validate_on == tops;
    match all.iter_mut().find(same) {
        Some(known) => {
            known.rows = known.rows.zip(rows).map(|(known, more)| known + more);
            known.error = known.error.take().or(error);
        }
        None => all.push(Unproved {
            table: tops.first().unwrap_or(&check.table).clone(),
            name: check.name.clone(),
            rows,
            error,
            validate_on: tops,
        }),
    }
}

/// ALTER TABLE ... VALIDATE CONSTRAINT, as the current user: no right on the schema is needed, and nobody replicates
/// it as a statement.
///
/// # Safety
/// In a transaction; the table exists.
unsafe fn validate(table: u32, name: &str) -> Result<()> {
    let name = encoding::to_server(name)?;
    // SAFETY: a node as the parser makes it, in the memory of the transaction.
    unsafe {
        let command: *mut pg_sys::AlterTableCmd =
            pg_sys::palloc0(size_of::<pg_sys::AlterTableCmd>()).cast();
        (*command).type_ = pg_sys::NodeTag::T_AlterTableCmd;
        (*command).subtype = pg_sys::AlterTableType::AT_ValidateConstraint;
        (*command).name = pg_sys::pstrdup(name.as_ptr());
        let commands = pg_sys::lappend(null_mut(), command.cast());
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::AlterTableInternal(pg_sys::Oid::from(table), commands, true);
        pg_sys::PopActiveSnapshot();
    }
    Ok(())
}

fn explain(error: Error, check: &Unchecked) -> Error {
    if error.sqlstate() == SqlState::QUERY_CANCELED {
        return error;
    }
    Error::Local {
        state: error.sqlstate(),
        message: format!(
            "could not validate check constraint {} of table {}: {error}",
            ident(&check.name),
            check.table
        ),
        detail: error.detail(),
        hint: error.hint(),
    }
}
