//! Checks of single arguments, before anything is looked at.

use crate::engine::names::NAME_MAX;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;

fn refused(
    argument: &'static str,
    state: SqlState,
    problem: impl Into<String>,
    hint: impl Into<String>,
) -> Error {
    Error::Argument {
        argument,
        problem: problem.into(),
        hint: hint.into(),
        state,
    }
}

/// The value of an argument that must be given.
pub fn given<T>(argument: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        refused(
            argument,
            SqlState::NULL_VALUE_NOT_ALLOWED,
            "must not be null",
            format!("Give a value for {argument}."),
        )
    })
}

/// The value of an argument that may be left out, for which null stands.
pub fn optional<T>(
    argument: &'static str,
    value: Option<&str>,
    read: impl FnOnce(&'static str, Option<&str>) -> Result<T>,
) -> Result<Option<T>> {
    value.map(|value| read(argument, Some(value))).transpose()
}

/// A node name: any text of 1 to 63 bytes without control characters.
pub fn node_name(argument: &'static str, value: Option<&str>) -> Result<String> {
    let name = given(argument, value)?;
    if name.is_empty() {
        return Err(refused(
            argument,
            SqlState::INVALID_PARAMETER_VALUE,
            "must not be empty",
            "Give the name of the node.",
        ));
    }
    if name.len() > NAME_MAX {
        return Err(refused(
            argument,
            SqlState::NAME_TOO_LONG,
            format!(
                "is {} bytes long, a node name has at most {NAME_MAX}",
                name.len()
            ),
            "Choose a shorter name.",
        ));
    }
    if name.chars().any(char::is_control) || name.trim() != name {
        return Err(refused(
            argument,
            SqlState::INVALID_NAME,
            "holds a control character, or begins or ends with a space",
            "Choose a name without line breaks, tabs and outer spaces.",
        ));
    }
    Ok(name.to_owned())
}

/// A connection string that libpq can read.
pub fn dsn(argument: &'static str, value: Option<&str>) -> Result<Dsn> {
    let text = given(argument, value)?;
    if text.trim().is_empty() {
        return Err(refused(
            argument,
            SqlState::INVALID_PARAMETER_VALUE,
            "must not be empty",
            "Give a connection string such as 'host=... port=... dbname=... user=...'.",
        ));
    }
    let dsn = Dsn::parse(text).map_err(|bad| {
        refused(
            argument,
            SqlState::INVALID_PARAMETER_VALUE,
            bad.problem(),
            "Write it as keyword=value pairs, values with spaces in single quotes, or as a postgresql:// URI with / and @ in the password as %2F and %40.",
        )
    })?;
    if dsn.get("replication").is_some() {
        return Err(refused(
            argument,
            SqlState::INVALID_PARAMETER_VALUE,
            "asks for the replication protocol",
            "Leave replication= out: zodan and the subscriptions ask for it where they need it.",
        ));
    }
    Ok(dsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_by_name_and_state() {
        fn state(value: Option<&str>) -> String {
            node_name("new_node_name", value)
                .unwrap_err()
                .sqlstate()
                .to_string()
        }
        assert_eq!(state(None), "22004");
        assert_eq!(state(Some("")), "22023");
        assert_eq!(state(Some(&"x".repeat(64))), "42622");
        assert_eq!(state(Some("a\nb")), "42602");
        assert_eq!(state(Some(" a")), "42602");
        let message = node_name("src_node_name", None).unwrap_err().to_string();
        assert_eq!(message, "argument src_node_name must not be null");
        for good in ["n1", "n-3", "N3", "n 3", "n'3", "ñ\"", &"x".repeat(63)] {
            assert_eq!(node_name("a", Some(good)).unwrap(), good);
        }
    }

    #[test]
    fn connection_strings_are_refused_without_being_quoted() {
        let error = dsn("src_dsn", Some("s3cret but not a dsn")).unwrap_err();
        assert_eq!(error.sqlstate().as_str(), "22023");
        assert!(!error.to_string().contains("s3cret") && !error.hint().unwrap().contains("s3cret"));
        let replication = dsn("new_node_dsn", Some("host=h replication=database")).unwrap_err();
        assert_eq!(replication.sqlstate().as_str(), "22023");
        assert_eq!(
            replication.to_string(),
            "argument new_node_dsn asks for the replication protocol"
        );
        assert_eq!(
            dsn("src_dsn", Some("  ")).unwrap_err().to_string(),
            "argument src_dsn must not be empty"
        );
    }
}
