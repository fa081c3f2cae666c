//! What a database holds before the first change, so that it can be brought back to that.

use super::OURS;
use super::objects::{Object, objects};
use super::settings::{self, Setting};
use super::sql::array;
use crate::error::Result;
use crate::libpq::Row;
use crate::node::{Query, Session};
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
        settings: settings::of_database().on(session)?,
        privileges: privileges(session)?,
    })
}

pub(super) fn schemas(session: &mut Session) -> Result<Vec<Schema>> {
    let rows = Query::new(include_str!("schemas.sql"), &[&array(OURS)], |row| {
        let schema = Schema {
            name: row.get("name")?,
            owner: row.get("owner")?,
            comment: row.get("comment")?,
            grants: BTreeSet::new(),
        };
        Ok((schema, Grant::read(row)?))
    });
    let mut schemas: BTreeMap<String, Schema> = BTreeMap::new();
    for (schema, grant) in rows.on(session)? {
        let schema = schemas.entry(schema.name.clone()).or_insert(schema);
        schema.grants.extend(grant);
    }
    Ok(schemas.into_values().collect())
}

pub(super) fn defaults(session: &mut Session) -> Result<Vec<Defaults>> {
    let sql = include_str!("default_privileges.sql");
    let rows = Query::new(sql, &[&array(OURS)], |row| {
        let key: (String, Option<String>, char) =
            (row.get("role")?, row.get("schema")?, row.get("kind")?);
        Ok((key, row.get::<bool>("initial")?, Grant::read(row)?))
    });
    let mut all: BTreeMap<(String, Option<String>, char), Defaults> = BTreeMap::new();
    for (key, initial, grant) in rows.on(session)? {
        let entry = all
            .entry(key)
            .or_insert_with_key(|(role, schema, kind)| Defaults {
                role: role.clone(),
                schema: schema.clone(),
                kind: *kind,
                grants: BTreeSet::new(),
                initial: BTreeSet::new(),
            });
        let list = match initial {
            true => &mut entry.initial,
            false => &mut entry.grants,
        };
        list.extend(grant);
    }
    Ok(all.into_values().collect())
}

pub(super) fn privileges(session: &mut Session) -> Result<Vec<Privileges>> {
    let sql = include_str!("object_privileges.sql");
    let rows = Query::new(sql, &[&array(OURS)], |row| {
        let object = Privileges {
            catalog: row.get("catalog")?,
            oid: row.get("oid")?,
            name: row.get("name")?,
            grants: BTreeSet::new(),
            initial: BTreeSet::new(),
        };
        Ok((object, row.get::<bool>("initial")?, Grant::read(row)?))
    });
    let mut all: BTreeMap<(String, u32), Privileges> = BTreeMap::new();
    for (object, initial, grant) in rows.on(session)? {
        let key = (object.catalog.clone(), object.oid);
        let entry = all.entry(key).or_insert(object);
        let list = match initial {
            true => &mut entry.initial,
            false => &mut entry.grants,
        };
        list.extend(grant);
    }
    Ok(all.into_values().collect())
}

impl Grant {
    /// `None` where nobody is granted anything.
    pub fn read(row: &Row) -> Result<Option<Self>> {
        let Some(privilege) = row.get("privilege")? else {
            return Ok(None);
        };
        Ok(Some(Self {
            grantee: row.get("grantee")?,
            privilege,
            grantable: row.get("grantable")?,
        }))
    }
}
