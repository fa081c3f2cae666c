//! Foreign keys that the source's own rows break. Apply makes such rows, because it does not check foreign
//! keys: the parent goes on one node while the child comes on another. They are on the source, so they are
//! on the new node; the constraint arrives NOT VALID, as it would have to be made over there today.

use super::sql::array;
use super::{InSnapshot, OURS};
use crate::error::{Error, Result, SqlState};
use crate::node::{Query, Session};
use crate::quote::{ident, qualified};
use std::collections::HashSet;

/// A foreign key as a node has it.
struct ForeignKey {
    table: String,
    name: String,
    definition: String,
}

/// Those that are no part of another's and come with no extension.
fn foreign_keys() -> Query<ForeignKey> {
    Query::new(include_str!("foreign_keys.sql"), &[&array(OURS)], |row| {
        Ok(ForeignKey {
            table: qualified(row.get("schema")?, row.get("table_name")?),
            name: row.get("name")?,
            definition: row.get("definition")?,
        })
    })
}

/// The statement that counts the rows which break one.
fn counting_broken(table: &str, name: &str) -> Query<String> {
    Query::new(include_str!("broken_keys.sql"), &[table, name], |row| {
        row.only()
    })
}

fn leaves(table: &str) -> Query<String> {
    Query::new(
        "SELECT relid::regclass::text FROM pg_partition_tree($1::regclass) WHERE isleaf",
        &[table],
        |row| row.only(),
    )
}

/// A foreign key that is there, and not valid.
pub struct Broken {
    pub table: String,
    pub name: String,
    /// `None` where a row alone does not break it.
    pub rows: Option<u64>,
}

/// The foreign keys of the source.
pub struct ForeignKeys(Vec<ForeignKey>);

impl ForeignKeys {
    pub fn of(source: &mut InSnapshot) -> Result<Self> {
        Ok(Self(foreign_keys().on(source)?))
    }

    /// Makes those that the restore could not make, and returns those that rows break. What else is wrong
    /// with one is an error.
    pub fn mend(&self, target: &mut Session) -> Result<Vec<Broken>> {
        mend(&self.0, target)
    }
}

fn mend(wanted: &[ForeignKey], target: &mut Session) -> Result<Vec<Broken>> {
    let present: HashSet<(String, String)> = foreign_keys()
        .on(target)?
        .into_iter()
        .map(|key| (key.table, key.name))
        .collect();
    let mut broken = vec![];
    for key in wanted {
        let (table, name) = (key.table.clone(), key.name.clone());
        let definition = &key.definition;
        if present.contains(&(table.clone(), name.clone())) || definition.is_empty() {
            continue;
        }
        let unchecked = ["NOT VALID", "NOT ENFORCED"]
            .iter()
            .any(|state| definition.ends_with(state));
        let add = |table: &str, state: &str| {
            format!(
                "ALTER TABLE {table} ADD CONSTRAINT {} {definition}{state}",
                ident(&name)
            )
        };
        let explain = |error: Error| Error::Local {
            state: error.sqlstate(),
            message: format!(
                "could not create foreign key {} of table {table}: {error}",
                ident(&name)
            ),
            detail: error.detail(),
            hint: error.hint(),
        };
        match target.query(&add(&table, ""), &[]) {
            Err(error) if error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION && !unchecked => {}
            answer => {
                answer.map_err(explain)?;
                continue;
            }
        }
        let holders = match target.query(&add(&table, " NOT VALID"), &[]) {
            // Before PostgreSQL 18 a partitioned table cannot have one, but its partitions can.
            Err(error) if error.sqlstate() == SqlState::WRONG_OBJECT_TYPE => {
                let leaves = leaves(&table).on(target)?;
                for leaf in &leaves {
                    target
                        .query(&add(leaf, " NOT VALID"), &[])
                        .map_err(explain)?;
                }
                leaves
            }
            answer => {
                answer.map_err(explain)?;
                vec![table.clone()]
            }
        };
        let rows = match definition.contains(" PERIOD ") {
            true => None,
            false => Some(count(target, &holders, &name)?),
        };
        broken.push(Broken { table, name, rows });
    }
    Ok(broken)
}

fn count(target: &mut Session, tables: &[String], name: &str) -> Result<u64> {
    let mut rows = 0;
    for table in tables {
        let counting = counting_broken(table, name).one(target)?;
        rows += Query::<u64>::new(counting, &[], |row| row.only()).one(target)?;
    }
    Ok(rows)
}
