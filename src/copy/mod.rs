//! Structure and data of one database from one exported snapshot.
//!
//! The order: [`Archive::dump`] from the source, [`Archive::restore_before_data`], [`data::copy`],
//! [`Archive::restore_after_data`], [`sequences::carry`], [`matviews::refresh`], [`settings::apply`].
//! Before the first change an [`Inventory`] is taken; [`undo`] brings the database back to it from any
//! state in between. [`requirements`] and [`collisions`] find what would stop the copy before it starts.

mod archive;
mod check_constraints;
mod collisions;
mod conninfo;
mod contents;
mod copied_bytes;
pub mod data;
mod foreign_keys;
mod guard;
mod indexes;
mod inventory;
mod labels;
pub mod matviews;
mod objects;
mod on_exit;
mod origin;
mod pin;
mod privileges;
mod program;
mod pulse;
mod recent;
mod requirements;
mod scratch;
pub mod sequences;
pub mod settings;
mod several;
mod shared;
mod sql;
mod stream;
mod structure;
mod tables;
mod undo;
mod worker;

pub use archive::{Archive, Excluded, SeenBefore};
pub use check_constraints::{CheckConstraints, Unproved};
pub use collisions::collisions;
pub use foreign_keys::{Broken, ForeignKeys};
pub use indexes::Indexes;
pub use inventory::{Inventory, inventory};
pub use privileges::Privileges;
pub use recent::{Recent, Since, recent};
pub use requirements::requirements;
pub use structure::Structure;
pub use tables::{Table, tables};
pub use undo::undo;

use crate::error::{Error, Result};
use crate::libpq::{Conn, Dsn, Rows};
use crate::node::{Node, Query, Queryable, Session};
use crate::quote::literal;
use std::collections::BTreeSet;
use zodan_core::copy_plan as plan;

use zodan_core::names::OWN_EXTENSIONS as OURS;

/// What has been there since initdb on the source, and may be gone on the new node.
fn from_the_beginning() -> Query<String> {
    Query::new(
        "SELECT format('extension %I', extname) FROM pg_catalog.pg_extension
          UNION ALL
         SELECT 'schema public'",
        &[],
        |row| row.only(),
    )
}

/// The names of all that a restore may bring from the database of this session.
pub fn restorable(source: &mut Session) -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = objects::objects(source)?
        .iter()
        .filter(|o| !o.member && !o.owned)
        .map(objects::Object::name)
        .collect();
    names.extend(from_the_beginning().on(source)?);
    Ok(names)
}

/// Where the copy comes from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub node: &'a str,
    pub dsn: &'a Dsn,
    /// A snapshot exported on that node by a session that stays open during the copy.
    pub snapshot: &'a str,
}

/// This server, as programs reach it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub node: &'a str,
    pub dsn: &'a Dsn,
    /// Settings for the sessions of `pg_restore`, for example to keep the engine from replicating DDL.
    pub settings: &'a [(&'a str, &'a str)],
}

/// A read-only session on the source that sees what the snapshot shows.
fn snapshot_session(source: &Source<'_>) -> Result<Conn> {
    let adopt = set_snapshot(source.snapshot);
    let begin = [(BEGIN_READING, vec![]), (adopt.as_str(), vec![])];
    let opened = Conn::open_all_asking(&[(source.node, source.dsn)], &begin).pop();
    let (conn, begun) = opened.unwrap_or_else(|| Err(Error::internal("no answer")))?;
    begun.into_iter().collect::<Result<Vec<Rows>>>()?;
    Ok(conn)
}

/// A read-only session on the source that sees what the snapshot shows, for questions.
pub struct InSnapshot(Node);

impl InSnapshot {
    /// On a session of the source that is in a transaction for nothing.
    pub fn adopt(mut conn: Conn, source: &Source<'_>) -> Result<Self> {
        let begin = format!("ROLLBACK; {}", begin_in_snapshot(source.snapshot));
        conn.query(&begin, &[])?;
        Ok(Self::on(conn, source.node, source.dsn))
    }

    /// Of what is there at this moment.
    pub fn of_now(node: &str, dsn: &Dsn) -> Result<Self> {
        let mut conn = Conn::open(node, dsn)?;
        conn.query(BEGIN_READING, &[])?;
        Ok(Self::on(conn, node, dsn))
    }

    fn on(conn: Conn, node: &str, dsn: &Dsn) -> Self {
        Self(Node::new(node, dsn.clone(), Session::Remote(conn)))
    }

    pub fn node(&mut self) -> &mut Node {
        &mut self.0
    }
}

impl Queryable for InSnapshot {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.0.run(sql, params)
    }
}

const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

fn set_snapshot(snapshot: &str) -> String {
    format!("SET TRANSACTION SNAPSHOT {}", literal(snapshot))
}

fn begin_in_snapshot(snapshot: &str) -> String {
    format!("{BEGIN_READING}; {}", set_snapshot(snapshot))
}

/// The fault of a user's object, or of the functions in it, which the source has had as well: not that of the
/// server or of the connection to it.
fn is_of_users(error: &Error) -> bool {
    let state = error.sqlstate();
    let class = &state.as_str()[..2];
    !matches!(error, Error::Interrupted { .. } | Error::Lost { .. })
        && !["08", "40", "53", "57", "58", "F0", "XX"].contains(&class)
}
