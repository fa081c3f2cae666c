//! Settings and attributes of databases, roles and servers.

use crate::error::Result;
use crate::libpq::Row;
use crate::node::{Query, Statement};

/// The value of `default_transaction_read_only` that the database itself sets, if it sets one.
pub fn database_read_only() -> Query<String> {
    Query::new(
        "SELECT split_part(c, '=', 2)
           FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                unnest(s.setconfig) c
          WHERE d.datname = current_database() AND s.setrole = 0
            AND c LIKE 'default\\_transaction\\_read\\_only=%'",
        &[],
        |row| row.only(),
    )
}

/// Makes transactions of new sessions of the database read-only, or puts back what was before.
pub fn set_database_read_only(database: &str, value: Option<&str>) -> Statement {
    let database = crate::quote::ident(database);
    Statement::new(
        match value {
            Some(value) => format!(
                "ALTER DATABASE {database} SET default_transaction_read_only = {}",
                crate::quote::literal(value)
            ),
            None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
        },
        &[],
    )
}

/// The same for new sessions of one role in the database.
pub fn set_role_read_only(role: &str, database: &str, value: Option<&str>) -> Statement {
    let (role, database) = (crate::quote::ident(role), crate::quote::ident(database));
    let value = value.map(crate::quote::literal);
    Statement::new(
        match value {
            Some(value) => format!(
                "ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = {value}"
            ),
            None => format!(
                "ALTER ROLE {role} IN DATABASE {database} RESET default_transaction_read_only"
            ),
        },
        &[],
    )
}

/// The value of `default_transaction_read_only` that is set for the role in the database, if there is one.
pub fn role_read_only(role: &str) -> Query<String> {
    Query::new(
        "SELECT split_part(c, '=', 2)
           FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
          WHERE d.datname = current_database() AND r.rolname = $1
            AND c LIKE 'default\\_transaction\\_read\\_only=%'",
        &[role],
        |row| row.only(),
    )
}

/// What no copy of the structure of a database has.
pub struct DatabaseAttributes {
    pub privileges: String,
    pub connection_limit: String,
    pub comment: String,
}

/// What no copy of the structure of this database has. The owner is left out:
/// whoever made the servers has the first, under whatever name.
pub fn database_itself() -> Query<DatabaseAttributes> {
    Query::new(
        "SELECT (SELECT string_agg(x.a, ', ' ORDER BY x.a COLLATE \"C\") FROM (
                    SELECT concat_ws(' ', CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN d.datdba THEN 'the owner'
                                          ELSE pg_get_userbyid(a.grantee) END, lower(a.privilege_type))
                      FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a) AS x (a)) AS privileges,
                d.datconnlimit, coalesce(shobj_description(d.oid, 'pg_database'), '') AS comment
           FROM pg_database d WHERE d.datname = current_database()",
        &[], |row| {
            Ok(DatabaseAttributes {
                privileges: row.get("privileges")?,
                connection_limit: row.get("datconnlimit")?,
                comment: row.get("comment")?,
            })
        })
}

/// A setting of somebody, and the statement that takes it back.
pub struct Default {
    pub whose: String,
    pub reset: String,
}

impl Default {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            whose: row.get("whose")?,
            reset: row.get("reset")?,
        })
    }
}

/// What keeps writes of this database's sessions from being counted by default. Not the server's own setting where the database has one.
pub fn uncounted_defaults() -> Query<Default> {
    Query::new(include_str!("uncounted_defaults.sql"), &[], Default::read)
}

/// Event triggers of users that fire for what zodan does, since the server cannot keep them from a session:
/// before PostgreSQL 17.
pub fn unavoidable_event_triggers() -> Query<String> {
    Query::new(
        "SELECT e.evtname FROM pg_event_trigger e
          WHERE e.evtenabled <> 'D' AND current_setting('event_triggers', true) IS NULL
            AND NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid
                               AND d.deptype = 'e')
          ORDER BY 1",
        &[],
        |row| row.only(),
    )
}

/// Login triggers of users.
pub fn login_triggers() -> Query<String> {
    Query::new(
        "SELECT evtname FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D' ORDER BY 1",
        &[],
        |row| row.only(),
    )
}

pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Settings by which apply workers of a role like this one's read other values than were sent or do not come to an
/// end, as they are by default for a session of the database. `lc_monetary` always, and `money` where there are
/// amounts of it: what counts is whether the first is the same on all nodes.
pub fn misreading_settings() -> Query<Setting> {
    Query::new(include_str!("misreading_settings.sql"), &[], |row| {
        Ok(Setting {
            name: row.get("name")?,
            value: row.get("reset_val")?,
        })
    })
}

/// Sets a setting of the whole server, where it takes effect with a reload or a restart.
pub fn set_server_setting(setting: &str, value: &str) -> Statement {
    let value = match setting {
        // A list; its elements are names, not one text.
        "output_plugin_libraries" => value.to_owned(),
        _ => crate::quote::literal(value),
    };
    Statement::new(format!("ALTER SYSTEM SET {setting} = {value}"), &[])
}

/// Roles whose sessions write in this database although it is read-only by default.
pub fn roles_that_write_on() -> Query<Default> {
    Query::new(include_str!("roles_that_write.sql"), &[], Default::read)
}
