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
mod shared;
mod sql;
mod stream;
mod structure;
mod tables;
mod undo;
mod worker;

pub use archive::{Archive, Excluded};
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
use crate::libpq::{Conn, Dsn};
use crate::node::{Query, Question, Session};
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
    let mut conn = Conn::open(source.node, source.dsn)?;
    conn.query(&begin_in_snapshot(source.snapshot), &[])?;
    Ok(conn)
}

/// What `statement` answers on the source for what the snapshot shows.
pub fn in_snapshot<Q: Question>(source: &Source<'_>, question: &Q) -> Result<Q::Answer> {
    question.answer(question.statement().run(&mut snapshot_session(source)?)?)
}

fn begin_in_snapshot(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(snapshot)
    )
}

/// The fault of a user's object, or of the functions in it, which the source has had as well: not that of the
/// server or of the connection to it.
fn is_of_users(error: &Error) -> bool {
    let state = error.sqlstate();
    let class = &state.as_str()[..2];
    !matches!(error, Error::Interrupted { .. } | Error::Lost { .. })
        && !["08", "40", "53", "57", "58", "F0", "XX"].contains(&class)
}
