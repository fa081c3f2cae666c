//! Replication origins of a server.

use crate::error::Result;
use crate::lsn::Position;
use crate::node::{Query, Statement};

/// A replication origin, and how far it has come.
pub struct OriginProgress {
    pub origin: String,
    /// Of its provider; `None` where nothing was applied yet.
    pub position: Option<String>,
}

/// Those of `origins` that the server has.
pub fn origins_there(origins: &[String]) -> Query<OriginProgress> {
    Query::new(
        "SELECT o.roname, s.remote_lsn
           FROM pg_replication_origin o LEFT JOIN pg_replication_origin_status s ON s.local_id = o.roident
          WHERE o.roname = ANY (string_to_array($1, ',')) ORDER BY 1",
        &[&origins.join(",")], |row| {
            Ok(OriginProgress {
                origin: row.get("roname")?,
                position: row.get("remote_lsn")?,
            })
        })
}

pub fn origins_named(origin: &str) -> Query<String> {
    Query::new(
        "SELECT roname FROM pg_replication_origin WHERE roname = $1",
        &[origin],
        |row| row.only(),
    )
}

pub fn create_origin(origin: &str) -> Statement {
    Statement::new("SELECT pg_replication_origin_create($1)", &[origin])
}

pub fn drop_origin(origin: &str) -> Statement {
    Statement::new(
        "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1",
        &[origin],
    )
}

/// Moves the progress of an origin of `provider` that nobody uses to `position`, if it is not there yet. An error where that
/// is not of the provider.
pub fn advance_origin_to(provider: &str, origin: &str, position: &Position) -> Result<Statement> {
    let lsn = position.of(provider)?;
    Ok(Statement::new(
        "SELECT pg_replication_origin_advance($1, $2::pg_lsn)
          WHERE coalesce(pg_replication_origin_progress($1, true) < $2::pg_lsn, true)",
        &[origin, &lsn.to_string()],
    ))
}
