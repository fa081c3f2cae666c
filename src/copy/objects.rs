//! All objects of a database that somebody has made, by identity.

use super::OURS;
use super::sql::array;
use crate::error::Result;
use crate::node::{Query, Session};

/// What zodan itself has in a database outside of its schema.
const OUR_PUBLICATIONS: [&str; 1] = ["zodan"];

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The catalog and the OID, which mean something on this node only.
    pub catalog: String,
    pub oid: u32,
    /// As `pg_identify_object` calls it: "table", "operator class".
    pub kind: String,
    /// The same on every node; quoted and qualified.
    pub identity: String,
    /// It belongs to an extension.
    pub member: bool,
    /// Another object owns it and takes it along.
    pub owned: bool,
}

impl Object {
    pub fn key(&self) -> (String, u32) {
        (self.catalog.clone(), self.oid)
    }

    /// What it is called on every node.
    pub fn name(&self) -> String {
        format!("{} {}", self.kind, self.identity)
    }
}

/// Objects with an OID from the range of users, without those that only exist as a part of another:
/// row types, array types, toast tables.
/// Those of zodan and of the engines excepted.
pub fn objects(session: &mut Session) -> Result<Vec<Object>> {
    let objects = Query::new(
        include_str!("objects.sql"),
        &[&array(OURS), &array(OURS), &array(OUR_PUBLICATIONS)],
        |row| {
            Ok(Object {
                catalog: row.get("catalog")?,
                oid: row.get("oid")?,
                kind: row.get("kind")?,
                identity: row.get("identity")?,
                member: row.get("member")?,
                owned: row.get("owned")?,
            })
        },
    );
    objects.on(session)
}
