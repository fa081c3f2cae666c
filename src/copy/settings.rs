//! `ALTER DATABASE ... SET` and `ALTER ROLE ... IN DATABASE ... SET`, which no dump of one database has.

use crate::error::Result;
use crate::node::{Query, Session};
use crate::quote::{ident, literal};
use serde::{Deserialize, Serialize};

/// Settings whose value is a list of quoted names, as PostgreSQL's `GUC_LIST_QUOTE` marks them.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// A setting of a database, of one role or of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// The settings of the database of this session. Not `default_transaction_read_only` for all roles:
/// on the new node that is how the run itself keeps writers away.
pub fn of_database() -> Query<Setting> {
    Query::new(include_str!("database_settings.sql"), &[], |row| {
        Ok(Setting {
            role: row.get("role")?,
            name: row.get("name")?,
            value: row.get("value")?,
        })
    })
}

/// Sets them for the database of this session.
pub fn apply(session: &mut Session, settings: &[Setting]) -> Result<()> {
    let database = current_database(session)?;
    for setting in settings {
        session.query(&setting.set(&database), &[])?;
    }
    Ok(())
}

/// Makes the settings of the database of this session those of `before`.
pub(super) fn restore(session: &mut Session, before: &[Setting]) -> Result<()> {
    let now = of_database().on(session)?;
    let database = current_database(session)?;
    for setting in &now {
        if !before
            .iter()
            .any(|b| b.role == setting.role && b.name == setting.name)
        {
            session.query(&setting.reset(&database), &[])?;
        }
    }
    for setting in before.iter().filter(|b| !now.contains(b)) {
        session.query(&setting.set(&database), &[])?;
    }
    Ok(())
}

/// The search_path that a session like this one has by default. Not what it has now: our sessions on
/// other nodes see pg_catalog alone.
pub fn search_path() -> Query<String> {
    Query::new(
        "SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'",
        &[],
        |row| row.only(),
    )
}

/// What the result of a query may depend on, as a session like this one has it by default: functions are found
/// by the search_path, days begin by the time zone.
pub fn of_queries() -> Query<(String, String)> {
    Query::new(
        "SELECT name, reset_val FROM pg_catalog.pg_settings
          WHERE name IN ('search_path', 'DateStyle', 'IntervalStyle', 'TimeZone', 'extra_float_digits',
                         'bytea_output', 'xmlbinary', 'xmloption', 'array_nulls', 'quote_all_identifiers',
                         'transform_null_equals', 'default_text_search_config', 'lc_monetary', 'lc_numeric', 'lc_time')
          ORDER BY 1",
        &[],
        |row| Ok((row.get("name")?, row.get("reset_val")?)),
    )
}

fn current_database(session: &mut Session) -> Result<String> {
    Query::new("SELECT current_database()", &[], |row| row.only()).one(session)
}

impl Setting {
    fn subject(&self, database: &str) -> String {
        match &self.role {
            Some(role) => format!("ALTER ROLE {} IN DATABASE {}", ident(role), ident(database)),
            None => format!("ALTER DATABASE {}", ident(database)),
        }
    }

    /// A name like `zodan.copy_jobs` is two words.
    fn quoted_name(&self) -> String {
        self.name
            .split('.')
            .map(ident)
            .collect::<Vec<_>>()
            .join(".")
    }

    fn set(&self, database: &str) -> String {
        let value = if LISTS.contains(&self.name.to_lowercase().as_str()) {
            split_list(&self.value)
                .iter()
                .map(|v| literal(v))
                .collect::<Vec<_>>()
                .join(", ")
        } else {
            literal(&self.value)
        };
        let value = if value.is_empty() {
            "''".to_owned()
        } else {
            value
        };
        format!(
            "{} SET {} TO {value}",
            self.subject(database),
            self.quoted_name()
        )
    }

    fn reset(&self, database: &str) -> String {
        format!("{} RESET {}", self.subject(database), self.quoted_name())
    }
}

/// The elements of a stored list: names in double quotes where they need them, separated by commas.
fn split_list(text: &str) -> Vec<String> {
    let mut elements = vec![];
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        let mut element = String::new();
        match chars.next() {
            None => return elements,
            Some('"') => {
                while let Some(c) = chars.next() {
                    if c == '"' && chars.next_if_eq(&'"').is_none() {
                        break;
                    }
                    element.push(c);
                }
            }
            Some(first) => {
                element.push(first);
                while let Some(c) = chars.next_if(|c| *c != ',' && !c.is_whitespace()) {
                    element.push(c);
                }
            }
        }
        elements.push(element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(role: Option<&str>, name: &str, value: &str) -> Setting {
        Setting {
            role: role.map(String::from),
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn lists_are_taken_apart() {
        assert_eq!(split_list(r#""$user", public"#), ["$user", "public"]);
        assert_eq!(
            split_list(r#""a ""b"", c",d , e"#),
            ["a \"b\", c", "d", "e"]
        );
        assert_eq!(split_list(r#""""#), [""]);
        assert!(split_list("").is_empty());
    }

    #[test]
    fn statements() {
        let path = setting(None, "search_path", r#""$user", app, "x'y""#);
        assert_eq!(
            path.set("d\"b"),
            r#"ALTER DATABASE "d""b" SET "search_path" TO '$user', 'app', 'x''y'"#
        );
        let custom = setting(Some("r 1"), "app.mode", "a, b");
        assert_eq!(
            custom.set("d"),
            r#"ALTER ROLE "r 1" IN DATABASE "d" SET "app"."mode" TO 'a, b'"#
        );
        assert_eq!(
            custom.reset("d"),
            r#"ALTER ROLE "r 1" IN DATABASE "d" RESET "app"."mode""#
        );
        assert_eq!(
            setting(None, "search_path", r#""""#).set("d"),
            r#"ALTER DATABASE "d" SET "search_path" TO ''"#
        );
    }
}
