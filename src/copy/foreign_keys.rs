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
SELECT n.nspname, c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid), c.relkind = 'p'
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

/// A foreign key that is there, and not valid.
pub struct Broken {
    pub table: String,
    pub name: String,
    pub rows: u64,
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
        let only = if row.bool(4) { "" } else { "ONLY " };
        let unchecked = ["NOT VALID", "NOT ENFORCED"]
            .iter()
            .any(|state| definition.ends_with(state));
        let not_valid = if unchecked { "" } else { " NOT VALID" };
        let constraint = ident(&name);
        let explain = |error: Error| Error::Local {
            state: error.sqlstate(),
            message: format!("could not create foreign key {constraint} of table {table}: {error}"),
            detail: error.detail(),
            hint: error.hint(),
        };
        target
            .query(
                &format!(
                    "ALTER TABLE {only}{table} ADD CONSTRAINT {constraint} {definition}{not_valid}"
                ),
                &[],
            )
            .map_err(explain)?;
        if unchecked {
            continue;
        }
        match target.query(
            &format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"),
            &[],
        ) {
            Err(error) if error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION => {
                let count = target.query(BROKEN, &[&table, &name])?;
                let rows = target.query(count.one()?.text(0), &[])?.one()?.parse(0)?;
                broken.push(Broken { table, name, rows });
            }
            answer => {
                answer.map_err(explain)?;
            }
        }
    }
    Ok(broken)
}
