//! Default privileges of the new node itself change what restored objects are granted to: pg_dump writes
//! down what differs from PostgreSQL's own defaults, and only that.

use super::inventory::{Grant, Inventory};
use super::sql::array;
use super::undo::changes;
use super::{InSnapshot, OURS};
use crate::error::Result;
use crate::node::{Query, Session};
use std::collections::{BTreeMap, BTreeSet};

/// Who but the owner may do what with the objects to which default privileges apply. What an owner may is
/// a matter of versions, and pg_dump sees to the rest.
fn privileges() -> Query<Granted> {
    let sql = include_str!("restored_privileges.sql");
    Query::new(sql, &[&array(OURS)], |row| {
        Ok(Granted {
            object: (row.get("catalog")?, row.get("oid")?),
            name: row.get("name")?,
            grant: Grant::read(row)?,
        })
    })
}

/// One grant of an object, or an object without any.
struct Granted {
    /// Its catalog and OID.
    object: (String, u32),
    name: String,
    grant: Option<Grant>,
}

/// What the objects of the source are granted, where it has to be looked at: on a new node without default
/// privileges of its own the restore does all of it.
pub struct Privileges(Option<BTreeMap<String, BTreeSet<Grant>>>);

impl Privileges {
    pub fn of(source: &mut InSnapshot, before: &Inventory) -> Result<Self> {
        if before.defaults.is_empty() {
            return Ok(Self(None));
        }
        let granted = privileges().on(source)?;
        Ok(Self(Some(by_object(granted))))
    }

    /// Grants what the restored objects are granted on the source, and nothing else.
    pub fn carry(&self, target: &mut Session, before: &Inventory) -> Result<()> {
        match &self.0 {
            Some(wanted) => carry(wanted, target, before),
            None => Ok(()),
        }
    }
}

fn carry(
    wanted: &BTreeMap<String, BTreeSet<Grant>>,
    target: &mut Session,
    before: &Inventory,
) -> Result<()> {
    let mut restored = privileges().on(target)?;
    restored.retain(|granted| !before.objects.contains(&granted.object));
    for (object, now) in &by_object(restored) {
        let Some(wanted) = wanted.get(object) else {
            continue;
        };
        for statement in changes(now, wanted, &format!("ON {object}")) {
            target.query(&statement, &[])?;
        }
    }
    Ok(())
}

/// Objects that nobody may use are in it, with nothing.
fn by_object(all: Vec<Granted>) -> BTreeMap<String, BTreeSet<Grant>> {
    let mut objects: BTreeMap<String, BTreeSet<Grant>> = BTreeMap::new();
    for granted in all {
        let grants = objects.entry(granted.name).or_default();
        grants.extend(granted.grant);
    }
    objects
}
