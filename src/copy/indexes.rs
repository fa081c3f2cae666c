//! How far the building of indexes is, as the new node's own server tells it.

use super::OURS;
use super::sql::array;
use crate::error::Result;
use crate::node::{Query, Session};
use crate::quote::qualified;
use std::collections::HashMap;

/// An index of a database.
struct Index {
    name: String,
    table: String,
    bytes: u64,
}

/// The indexes of a database, without those of out-of-line values, which come with their tables.
fn indexes() -> Query<Index> {
    Query::new(include_str!("indexes.sql"), &[&array(OURS)], |row| {
        Ok(Index {
            name: qualified(row.get("schema")?, row.get("name")?),
            table: qualified(row.get("table_schema")?, row.get("table_name")?),
            bytes: row.get::<Option<u64>>("bytes")?.unwrap_or(0),
        })
    })
}

/// A table of which an index is being built.
struct Build {
    table: String,
    /// How much of it is done, up to 1: first the table is read, then its sorted rows are written.
    done: f64,
}

fn index_builds() -> Query<Build> {
    Query::new(include_str!("index_builds.sql"), &[], |row| {
        Ok(Build {
            table: qualified(row.get("table_schema")?, row.get("table_name")?),
            done: row.get("done")?,
        })
    })
}

/// The indexes that the new node is to have.
pub struct Indexes {
    /// Table and bytes of each, by name.
    wanted: HashMap<String, (String, u64)>,
    /// How many bytes they have on the source.
    pub bytes: u64,
}

/// How many bytes of them are built, and for which tables more are being built now.
pub struct Built {
    pub bytes: u64,
    pub tables: Vec<String>,
}

impl Indexes {
    pub fn of(source: &mut Session) -> Result<Self> {
        let mut wanted = HashMap::new();
        let mut bytes = 0;
        for index in indexes().on(source)? {
            bytes += index.bytes;
            wanted.insert(index.name, (index.table, index.bytes));
        }
        Ok(Self { wanted, bytes })
    }

    pub fn built(&self, target: &mut Session) -> Result<Built> {
        let mut left: HashMap<&str, &(String, u64)> =
            self.wanted.iter().map(|(n, of)| (n.as_str(), of)).collect();
        let mut bytes = 0;
        for index in indexes().on(target)? {
            bytes += left
                .remove(index.name.as_str())
                .map_or(0, |(_, size)| *size);
        }
        let mut tables = vec![];
        for Build { table, done } in index_builds().on(target)? {
            // Which of its indexes it is, is not known before it is there.
            let sizes: Vec<u64> = left
                .values()
                .filter(|(of, _)| *of == table)
                .map(|(_, size)| *size)
                .collect();
            let mean = sizes.iter().sum::<u64>() / sizes.len().max(1) as u64;
            bytes += (done * mean as f64) as u64;
            tables.push(table);
        }
        Ok(Built { bytes, tables })
    }
}
