//! What a database holds before the first change, so that it can be brought back to that.

use super::OURS;
use super::objects::{Object, objects};
use super::settings::{self, Setting};
use super::sql::array;
use crate::error::Result;
use crate::libpq::Row;
use crate::node::Session;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Taken by [`inventory`], given back to [`super::undo`]. Small where the database is empty, as that
/// of a new node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Catalog and OID: what is there again under another OID is another object.
    pub(super) objects: BTreeSet<(String, u32)>,
    pub(super) schemas: Vec<Schema>,
    pub(super) defaults: Vec<Defaults>,
    pub(super) settings: Vec<Setting>,
    #[serde(default)]
    pub(super) privileges: Vec<Privileges>,
}

/// What an object that a restore finds is granted, where that is not what it was made with: pg_dump writes
/// that down for system objects and members of extensions too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Privileges {
    pub catalog: String,
    pub oid: u32,
    /// As GRANT takes it.
    pub name: String,
    pub grants: BTreeSet<Grant>,
    /// What it was made with.
    pub initial: BTreeSet<Grant>,
}

/// What a restore may change of a schema that it finds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Schema {
    pub name: String,
    pub owner: String,
    pub comment: Option<String>,
    pub grants: BTreeSet<Grant>,
}

/// What `ALTER DEFAULT PRIVILEGES` has set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Defaults {
    pub role: String,
    pub schema: Option<String>,
    /// `pg_default_acl.defaclobjtype`.
    pub kind: char,
    pub grants: BTreeSet<Grant>,
    /// What holds where nothing has been set.
    pub initial: BTreeSet<Grant>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Grant {
    /// `None` is PUBLIC.
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

impl Inventory {
    /// Adds what has been made since; true if there is something.
    pub fn add_objects(&mut self, session: &mut Session) -> Result<bool> {
        let known = self.objects.len();
        self.objects
            .extend(objects(session)?.iter().map(Object::key));
        Ok(self.objects.len() > known)
    }
}

/// What the database of this session holds.
pub fn inventory(session: &mut Session) -> Result<Inventory> {
    Ok(Inventory {
        objects: objects(session)?.iter().map(Object::key).collect(),
        schemas: schemas(session)?,
        defaults: defaults(session)?,
        settings: settings::read(session)?,
        privileges: privileges(session)?,
    })
}

pub(super) fn schemas(session: &mut Session) -> Result<Vec<Schema>> {
    let rows = session.query(
        "SELECT n.nspname, pg_get_userbyid(n.nspowner), obj_description(n.oid, 'pg_namespace'),
                CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END,
                a.privilege_type, a.is_grantable
           FROM pg_catalog.pg_namespace n
           LEFT JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a ON true
          WHERE n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema'
            AND n.nspname !~ '^pg_'",
        &[&array(OURS)],
    )?;
    let mut schemas: BTreeMap<String, Schema> = BTreeMap::new();
    for row in &rows {
        let schema = schemas
            .entry(row.text(0).to_owned())
            .or_insert_with(|| Schema {
                name: row.text(0).to_owned(),
                owner: row.text(1).to_owned(),
                comment: row.at(2).map(str::to_owned),
                grants: BTreeSet::new(),
            });
        schema.grants.extend(grant(row, 3));
    }
    Ok(schemas.into_values().collect())
}

pub(super) fn defaults(session: &mut Session) -> Result<Vec<Defaults>> {
    let rows = session.query(
        "SELECT pg_get_userbyid(d.defaclrole), n.nspname, d.defaclobjtype, e.initial,
                CASE e.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(e.grantee) END,
                e.privilege_type, e.is_grantable
           FROM pg_catalog.pg_default_acl d
           LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
           LEFT JOIN LATERAL (
                SELECT false AS initial, a.* FROM aclexplode(d.defaclacl) a
                 UNION ALL
                SELECT true, a.*
                  FROM aclexplode(acldefault(
                         CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole)) a
                 WHERE n.oid IS NULL) e ON true
          WHERE n.nspname IS NULL OR n.nspname <> ALL ($1::text[])",
        &[&array(OURS)],
    )?;
    let mut all: BTreeMap<(String, Option<String>, char), Defaults> = BTreeMap::new();
    for row in &rows {
        let key = (
            row.text(0).to_owned(),
            row.at(1).map(str::to_owned),
            row.parse(2)?,
        );
        let entry = all
            .entry(key)
            .or_insert_with_key(|(role, schema, kind)| Defaults {
                role: role.clone(),
                schema: schema.clone(),
                kind: *kind,
                grants: BTreeSet::new(),
                initial: BTreeSet::new(),
            });
        let list = if row.bool(3) {
            &mut entry.initial
        } else {
            &mut entry.grants
        };
        list.extend(grant(row, 4));
    }
    Ok(all.into_values().collect())
}

const PRIVILEGES: &str = "
SELECT o.class::text, o.oid, o.name, e.initial,
       CASE e.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(e.grantee) END, e.privilege_type, e.is_grantable
  FROM (
    SELECT 'pg_class'::regclass AS class, c.oid, c.relowner AS owner, c.relacl AS acl,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS name,
           CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS kind
      FROM pg_class c WHERE c.relnamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, p.proowner, p.proacl, 'ROUTINE ' || p.oid::regprocedure, 'f'
      FROM pg_proc p WHERE p.pronamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, t.typowner, t.typacl, 'TYPE ' || format_type(t.oid, NULL), 'T'
      FROM pg_type t WHERE t.typnamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_language'::regclass, l.oid, l.lanowner, l.lanacl, 'LANGUAGE ' || quote_ident(l.lanname), 'l'
      FROM pg_language l
    UNION ALL
    SELECT 'pg_foreign_data_wrapper'::regclass, w.oid, w.fdwowner, w.fdwacl, 'FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname), 'F'
      FROM pg_foreign_data_wrapper w
    UNION ALL
    SELECT 'pg_foreign_server'::regclass, s.oid, s.srvowner, s.srvacl, 'FOREIGN SERVER ' || quote_ident(s.srvname), 'S'
      FROM pg_foreign_server s
  ) o
  LEFT JOIN pg_init_privs i ON (i.classoid, i.objoid, i.objsubid) = (o.class, o.oid, 0)
  LEFT JOIN LATERAL (
       SELECT false AS initial, a.* FROM aclexplode(o.acl) a
        UNION ALL
       SELECT true, a.* FROM aclexplode(coalesce(i.initprivs, acldefault(o.kind::\"char\", o.owner))) a) e ON true
 WHERE o.acl IS NOT NULL AND o.acl IS DISTINCT FROM i.initprivs";

pub(super) fn privileges(session: &mut Session) -> Result<Vec<Privileges>> {
    let rows = session.query(PRIVILEGES, &[&array(OURS)])?;
    let mut all: BTreeMap<(String, u32), Privileges> = BTreeMap::new();
    for row in &rows {
        let key = (row.text(0).to_owned(), row.parse(1)?);
        let entry = all
            .entry(key)
            .or_insert_with_key(|(catalog, oid)| Privileges {
                catalog: catalog.clone(),
                oid: *oid,
                name: row.text(2).to_owned(),
                grants: BTreeSet::new(),
                initial: BTreeSet::new(),
            });
        let list = match row.bool(3) {
            true => &mut entry.initial,
            false => &mut entry.grants,
        };
        list.extend(grant(row, 4));
    }
    Ok(all.into_values().collect())
}

pub(super) fn grant(row: &Row, first: usize) -> Option<Grant> {
    Some(Grant {
        grantee: row.at(first).map(str::to_owned),
        privilege: row.at(first + 1)?.to_owned(),
        grantable: row.bool(first + 2),
    })
}
