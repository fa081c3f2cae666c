//! Sequences go on where those of the source are.

use super::OURS;
use super::sql::array;
use crate::error::Result;
use crate::node::Session;
use crate::quote::{literal, qualified};

/// Each sequence that a statement reads is locked until it ends, and the lock table is finite.
const BATCH: usize = 100;

/// Sequences that are not an extension's.
const SEQUENCES: &str = "
SELECT n.nspname, c.relname
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't'
   AND n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2";

/// Gives the sequences of the new node the values that those of the source have now, and returns how
/// many there are. Sequences are not part of any snapshot: read after the data, they are beyond all
/// keys in it.
pub fn carry(source: &mut Session, target: &mut Session) -> Result<usize> {
    let names: Vec<String> = source
        .query(SEQUENCES, &[&array(OURS)])?
        .iter()
        .map(|row| qualified(row.text(0), row.text(1)))
        .collect();
    for batch in names.chunks(BATCH) {
        let parts: Vec<String> = batch
            .iter()
            .map(|n| format!("SELECT {}, last_value, is_called FROM {n}", literal(n)))
            .collect();
        let values = source.query(&parts.join(" UNION ALL "), &[])?;
        let column = |i: usize| array(values.iter().map(|row| row.text(i)));
        target.query(
            "SELECT pg_catalog.setval(s.name::regclass, s.value, s.called)
               FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS s(name, value, called)",
            &[&column(0), &column(1), &column(2)],
        )?;
    }
    Ok(names.len())
}
