//! Default privileges of the new node itself change what restored objects are granted to: pg_dump writes
//! down what differs from PostgreSQL's own defaults, and only that.

use super::inventory::{Grant, Inventory, grant};
use super::sql::array;
use super::undo::changes;
use super::{OURS, Source, snapshot_session};
use crate::error::Result;
use crate::libpq::{Row, Rows};
use crate::node::Session;
use std::collections::{BTreeMap, BTreeSet};

/// Who but the owner may do what with the objects to which default privileges apply. What an owner may is
/// a matter of versions, and pg_dump sees to the rest.
const PRIVILEGES: &str = "
SELECT o.class::text, o.oid, o.name, CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable
  FROM (
    SELECT 'pg_class'::regclass AS class, c.oid, c.relnamespace AS schema, c.relowner AS owner,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS name,
           CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS kind, c.relacl AS acl
      FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, p.pronamespace, p.proowner, 'ROUTINE ' || p.oid::regprocedure, 'f', p.proacl
      FROM pg_proc p
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, t.typnamespace, t.typowner, 'TYPE ' || format_type(t.oid, NULL), 'T', t.typacl
      FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
     WHERE t.typtype IN ('b', 'd', 'e', 'r', 'c') AND coalesce(c.relkind, 'c') = 'c'
       AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    UNION ALL
    SELECT 'pg_namespace'::regclass, n.oid, n.oid, n.nspowner, 'SCHEMA ' || quote_ident(n.nspname), 'n', n.nspacl
      FROM pg_namespace n WHERE n.oid >= 16384
  ) o
  JOIN pg_namespace n ON n.oid = o.schema
  LEFT JOIN LATERAL aclexplode(coalesce(o.acl, acldefault(o.kind::\"char\", o.owner))) a ON a.grantee <> o.owner
 WHERE o.oid >= 16384 AND n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')";

/// What the objects of the source are granted, where it has to be looked at: on a new node without default
/// privileges of its own the restore does all of it.
pub struct Privileges(Option<BTreeMap<String, BTreeSet<Grant>>>);

impl Privileges {
    pub fn of(source: &Source<'_>, before: &Inventory) -> Result<Self> {
        if before.defaults.is_empty() {
            return Ok(Self(None));
        }
        let rows = snapshot_session(source)?.query(PRIVILEGES, &[&array(OURS)])?;
        Ok(Self(Some(by_object(&rows, |_| true))))
    }

    /// Grants what the restored objects are granted on the source, and nothing else.
    pub fn carry(&self, target: &mut Session, before: &Inventory) -> Result<()> {
        match &self.0 {
            Some(there) => carry(there, target, before),
            None => Ok(()),
        }
    }
}

fn carry(
    there: &BTreeMap<String, BTreeSet<Grant>>,
    target: &mut Session,
    before: &Inventory,
) -> Result<()> {
    let restored = |row: &Row| {
        let oid = row.parse(1).unwrap_or_default();
        !before.objects.contains(&(row.text(0).to_owned(), oid))
    };
    let here = by_object(&target.query(PRIVILEGES, &[&array(OURS)])?, restored);
    for (object, here) in &here {
        for statement in there.get(object).map_or(vec![], |there| {
            changes(here, there, &format!("ON {object}"))
        }) {
            target.query(&statement, &[])?;
        }
    }
    Ok(())
}

/// Objects that nobody may use are there, with nothing.
fn by_object(rows: &Rows, wanted: impl Fn(&Row) -> bool) -> BTreeMap<String, BTreeSet<Grant>> {
    let mut objects: BTreeMap<String, BTreeSet<Grant>> = BTreeMap::new();
    for row in rows.iter().filter(|row| wanted(row)) {
        let grants = objects.entry(row.text(2).to_owned()).or_default();
        grants.extend(grant(row, 3));
    }
    objects
}
