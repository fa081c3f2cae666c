//! How far the building of indexes is, as the new node's own server tells it.

use super::OURS;
use super::sql::array;
use crate::error::Result;
use crate::node::Session;
use crate::quote::qualified;
use std::collections::HashMap;

/// The indexes of a database, without those of out-of-line values, which come with their tables.
const INDEXES: &str = "
SELECT n.nspname, i.relname, tn.nspname, t.relname, pg_catalog.pg_relation_size(i.oid)
  FROM pg_catalog.pg_index x
  JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid AND i.relkind = 'i' AND x.indisvalid
  JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace
  JOIN pg_catalog.pg_class t ON t.oid = x.indrelid AND t.relpersistence = 'p'
  JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
 WHERE n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";

/// Tables of which an index is being built, and how much of it is done: first the table is read, then
/// its sorted rows are written.
const BUILDING: &str = "
SELECT n.nspname, t.relname,
       CASE WHEN b.blocks_total > 0 THEN 0.5 * b.blocks_done / b.blocks_total
            WHEN b.tuples_total > 0 THEN 0.5 + 0.5 * b.tuples_done / b.tuples_total
            ELSE 0 END
  FROM pg_catalog.pg_stat_progress_create_index b
  JOIN pg_catalog.pg_class t ON t.oid = b.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE b.datname = pg_catalog.current_database()
 ORDER BY 1, 2";

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
        for row in &source.query(INDEXES, &[&array(OURS)])? {
            let size = row.parse_opt(4)?.unwrap_or(0);
            let table = qualified(row.text(2), row.text(3));
            bytes += size;
            wanted.insert(qualified(row.text(0), row.text(1)), (table, size));
        }
        Ok(Self { wanted, bytes })
    }

    pub fn built(&self, target: &mut Session) -> Result<Built> {
        let mut left: HashMap<&str, &(String, u64)> =
            self.wanted.iter().map(|(n, of)| (n.as_str(), of)).collect();
        let mut bytes = 0;
        for row in &target.query(INDEXES, &[&array(OURS)])? {
            let name = qualified(row.text(0), row.text(1));
            bytes += left.remove(name.as_str()).map_or(0, |(_, size)| *size);
        }
        let mut tables = vec![];
        for row in &target.query(BUILDING, &[])? {
            let table = qualified(row.text(0), row.text(1));
            let part: f64 = row.parse(2)?;
            // Which of its indexes it is, is not known before it is there.
            let sizes: Vec<u64> = left
                .values()
                .filter(|(of, _)| *of == table)
                .map(|(_, size)| *size)
                .collect();
            let mean = sizes.iter().sum::<u64>() / sizes.len().max(1) as u64;
            bytes += (part * mean as f64) as u64;
            tables.push(table);
        }
        Ok(Built { bytes, tables })
    }
}
