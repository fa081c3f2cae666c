//! Foreign keys that the source's own rows break. Apply makes such rows, because it does not check foreign
//! keys: the parent goes on one node while the child comes on another. They are on the source, so they are
//! on the new node; the constraint arrives NOT VALID, as it would have to be made over there today.

use super::sql::array;
use super::{OURS, Source, snapshot_session};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Rows;
use crate::node::Session;
use crate::quote::{ident, qualified};
use std::collections::HashSet;

/// Those that are no part of another's and come with no extension.
const WANTED: &str = "
SELECT n.nspname, c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid)
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0
   AND n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2, 3";

/// The statement that counts the rows which break one.
const BROKEN: &str = "
SELECT format('SELECT count(*) FROM %s%s f WHERE %s(num_nulls(%s) = 0 AND NOT EXISTS (SELECT FROM %s%s p WHERE %s))',
              CASE f.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, f.oid::regclass,
              CASE k.confmatchtype WHEN 'f'
                   THEN format('num_nulls(%s) BETWEEN 1 AND %s OR ', columns, cardinality(k.conkey) - 1) ELSE '' END,
              columns, CASE p.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, p.oid::regclass, equal)
  FROM pg_constraint k
  JOIN pg_class f ON f.oid = k.conrelid
  JOIN pg_class p ON p.oid = k.confrelid
 CROSS JOIN LATERAL (
       SELECT string_agg(format('f.%I', fa.attname), ', ' ORDER BY u.i) AS columns,
              string_agg(format('p.%I OPERATOR(%I.%s) f.%I', pa.attname, n.nspname, o.oprname, fa.attname),
                         ' AND ' ORDER BY u.i) AS equal
         FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY u(f, p, op, i)
         JOIN pg_attribute fa ON fa.attrelid = f.oid AND fa.attnum = u.f
         JOIN pg_attribute pa ON pa.attrelid = p.oid AND pa.attnum = u.p
         JOIN pg_operator o ON o.oid = u.op
         JOIN pg_namespace n ON n.oid = o.oprnamespace) c
 WHERE k.conrelid = $1::regclass AND k.conname = $2";

const LEAVES: &str = "
SELECT relid::regclass::text FROM pg_partition_tree($1::regclass) WHERE isleaf";

/// A foreign key that is there, and not valid.
pub struct Broken {
    pub table: String,
    pub name: String,
    /// `None` where a row alone does not break it.
    pub rows: Option<u64>,
}

/// The foreign keys of the source.
pub struct ForeignKeys(Rows);

impl ForeignKeys {
    pub fn of(source: &Source<'_>) -> Result<Self> {
        Ok(Self(
            snapshot_session(source)?.query(WANTED, &[&array(OURS)])?,
        ))
    }

    /// Makes those that the restore could not make, and returns those that rows break. What else is wrong
    /// with one is an error.
    pub fn mend(&self, target: &mut Session) -> Result<Vec<Broken>> {
        mend(&self.0, target)
    }
}

fn mend(wanted: &Rows, target: &mut Session) -> Result<Vec<Broken>> {
    let there: HashSet<(String, String)> = target
        .query(WANTED, &[&array(OURS)])?
        .iter()
        .map(|row| (qualified(row.text(0), row.text(1)), row.text(2).to_owned()))
        .collect();
    let mut broken = vec![];
    for row in wanted {
        let (table, name) = (qualified(row.text(0), row.text(1)), row.text(2).to_owned());
        let definition = row.text(3);
        if there.contains(&(table.clone(), name.clone())) || definition.is_empty() {
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
                let leaves: Vec<String> = target
                    .query(LEAVES, &[&table])?
                    .iter()
                    .map(|row| row.text(0).to_owned())
                    .collect();
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
        let statement = target.query(BROKEN, &[table, name])?;
        let counted = target.query(statement.one()?.text(0), &[])?;
        rows += counted.one()?.parse::<u64>(0)?;
    }
    Ok(rows)
}
