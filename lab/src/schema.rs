//! A database with tables of many kinds, for the demo and the tests.

/// The roles that [`kinds`] names. Roles belong to a whole server, so every node needs them beforehand: one
/// that owns things and cannot log in, and one that may read some of them.
pub const ROLES: &str = "
CREATE ROLE lab_owner NOLOGIN;
CREATE ROLE lab_reader LOGIN;
GRANT lab_owner TO lab_reader;
";

/// SQL that makes the database with about `rows` rows in all, at least some hundred. Run [`ROLES`] before.
///
/// Four large tables hold the rows in question; beside them are some twenty small ones, each there because
/// something about its kind is easily got wrong when a database is copied.
pub fn kinds(rows: u64) -> String {
    format!(
        "SET lab.rows = {};\n{}",
        rows.max(500),
        include_str!("schema.sql")
    )
}
