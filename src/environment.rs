//! The settings of every session of ours, whatever the server, the database, the role or the connection string
//! says: one table, since a setting that one kind of session lacks changes a value, a name or the meaning of a
//! statement there.
//!
//! | session | how it gets them |
//! | --- | --- |
//! | on a node, over libpq | [`startup`] with the connection, the rest by [`setup`], its first statements |
//! | the backend of a CALL | [`set_locally`] for each statement, and [`Between`] for the time between them |
//! | the backend of a function | [`within`] for each statement |
//! | a background worker | [`adopt`], by `worker::begin` |
//! | `pg_dump`, `pg_restore` | those that [`known`] finds on the server, as `options` of the connection |
//!
//! A server that lacks a setting goes without. Names are in lower case here; `pg_settings` has some in another.

use crate::failpoint;
use pgrx::pg_sys;
use std::ffi::{CStr, c_int};
use std::sync::LazyLock;

type Setting = (&'static CStr, &'static CStr);

/// Values print the same on every node and are read as they were written, so that they can be stored and compared
/// as text.
const VALUES: [Setting; 10] = [
    (c"datestyle", c"ISO, YMD"),
    (c"intervalstyle", c"postgres"),
    (c"timezone", c"UTC"),
    (c"extra_float_digits", c"3"),
    (c"bytea_output", c"hex"),
    (c"xmlbinary", c"base64"),
    (c"xmloption", c"content"),
    (c"array_nulls", c"on"),
    (c"lc_monetary", c"C"),
    // regclass and its like print names.
    (c"quote_all_identifiers", c"off"),
];

/// Statements and names mean what we wrote, and answers are whole.
const MEANING: [Setting; 17] = [
    (c"search_path", c""),
    (c"standard_conforming_strings", c"on"),
    (c"backslash_quote", c"safe_encoding"),
    (c"escape_string_warning", c"off"),
    (c"transform_null_equals", c"off"),
    (c"row_security", c"off"),
    (c"restrict_nonsystem_relation_kind", c""),
    (c"lo_compat_privileges", c"off"),
    (c"default_tablespace", c""),
    (c"default_table_access_method", c"heap"),
    (c"temp_tablespaces", c""),
    (c"check_function_bodies", c"on"),
    (c"gin_fuzzy_search_limit", c"0"),
    // A page that cannot be read is an error, not one without rows.
    (c"zero_damaged_pages", c"off"),
    (c"ignore_checksum_failure", c"off"),
    (c"session_replication_role", c"origin"),
    (c"plan_cache_mode", c"auto"),
];

/// How the functions of ours that are written in PL/pgSQL are read. It may not have been loaded yet.
const PLPGSQL: [Setting; 3] = [
    (c"plpgsql.variable_conflict", c"error"),
    (c"plpgsql.extra_errors", c"none"),
    (c"plpgsql.extra_warnings", c"none"),
];

/// What has begun comes to its end, and every transaction may write and sees what is committed. These hold from
/// the first moment of a connection, since the first statement may be ended by them already.
const COURSE: [Setting; 8] = [
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"exit_on_error", c"off"),
];

/// As [`COURSE`], of PostgreSQL 17 and newer. Event triggers of users fire for what users do: what they note of ours
/// would be a row of each node's own. Only superusers may set it, and login triggers have fired when a session begins.
const COURSE_17: [Setting; 2] = [(c"event_triggers", c"off"), (c"transaction_timeout", c"0")];

/// What DDL of ours makes is of one node; Spock's AutoDDL would make it on all others. And what keeps applications from
/// writing is not meant for us. Where Spock works it is preloaded.
const SPOCK: [Setting; 2] = [
    (c"spock.enable_ddl_replication", c"off"),
    (c"spock.readonly", c"off"),
];

/// Commits of ours wait for this server's own disk, and for no standby.
const COMMIT: Setting = (c"synchronous_commit", c"local");

/// No statement text of ours reaches the server's log, since some texts cannot help holding connection strings.
const QUIET: [Setting; 8] = [
    (c"log_statement", c"none"),
    (c"log_min_duration_statement", c"-1"),
    (c"log_duration", c"off"),
    (c"log_min_duration_sample", c"-1"),
    (c"log_min_error_statement", c"panic"),
    (c"log_error_verbosity", c"terse"),
    (c"pg_stat_statements.track", c"none"),
    (c"auto_explain.log_min_duration", c"-1"),
];

/// In the backend of a CALL the texts are not the client's, but parameters and contexts may be logged.
const QUIET_HERE: [Setting; 2] = [
    (c"auto_explain.log_min_duration", c"-1"),
    (c"log_error_verbosity", c"terse"),
];

/// What keeps event triggers from firing, where the server has it.
pub const EVENT_TRIGGERS: &str = "event_triggers";

/// Whether a server refuses a connection with `reason` because it is too old for one of [`COURSE_17`]. It is told the
/// rest only then.
pub fn is_too_old(reason: &str) -> bool {
    COURSE_17
        .iter()
        .any(|(name, _)| reason.contains(&*text(name)))
}

/// The settings that each session has, of whatever kind.
fn all() -> impl Iterator<Item = Setting> {
    VALUES
        .into_iter()
        .chain(MEANING)
        .chain(COURSE)
        .chain(course_17())
        .chain(SPOCK)
        .chain([COMMIT])
}

fn course_17() -> impl Iterator<Item = Setting> {
    let fire = failpoint::event_triggers_fire();
    let is_theirs = |(name, _): &Setting| text(name) == EVENT_TRIGGERS;
    COURSE_17
        .into_iter()
        .filter(move |setting| !(fire && is_theirs(setting)))
}

/// Those that a session on a node begins with, as libpq's `options` has them. Before `given`, which is what the
/// connection string has there, stands what it may say otherwise; `all` is false for a server that has refused
/// some; see [`is_too_old`].
pub fn startup(given: &str, all: bool) -> String {
    let newer = course_17().filter(|_| all);
    // A role that is named in the connection string is meant, one that the login has by default is not.
    let mut words = vec!["-c role=none".to_owned()];
    words.extend((!given.is_empty()).then(|| given.to_owned()));
    words.extend(
        newer
            .chain(COURSE)
            .map(|(name, value)| option(&text(name), &text(value))),
    );
    words.join(" ")
}

/// One setting as `options` has it.
pub fn option(name: &str, value: &str) -> String {
    format!("-c {}={}", escape(name), escape(value))
}

/// The server splits `options` at blanks that no backslash precedes.
fn escape(word: &str) -> String {
    word.chars()
        .flat_map(|c| {
            (c.is_whitespace() || c == '\\')
                .then_some('\\')
                .into_iter()
                .chain([c])
        })
        .collect()
}

/// The first statements of a session on a node. The last one returns which running server that is.
pub fn setup() -> &'static [String; 3] {
    static SETUP: LazyLock<[String; 3]> = LazyLock::new(|| {
        let ours = all()
            .chain(QUIET)
            // What it says is relayed.
            .chain([(c"client_min_messages", c"notice")]);
        [
            applied("pg_catalog.set_config(s.name, s.value, false)", ours),
            format!(
                "SELECT pg_catalog.set_config(s.name, s.value, false) FROM {} WHERE {SUPERUSER}",
                values(PLPGSQL)
            ),
            SERVER.to_owned(),
        ]
    });
    &SETUP
}

/// `name, value` of the settings that a server has and a session of it may set.
pub fn known() -> &'static str {
    static KNOWN: LazyLock<String> = LazyLock::new(|| applied("s.name, s.value", all()));
    &KNOWN
}

const SUPERUSER: &str = "pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on'";

/// Which running server answers.
pub const SERVER: &str = "SELECT pg_catalog.concat_ws(' ', \
     EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()), pg_catalog.current_setting('port'))";

fn applied(what: &str, settings: impl IntoIterator<Item = Setting>) -> String {
    format!(
        "SELECT {what} FROM {}
           JOIN pg_catalog.pg_settings g ON pg_catalog.lower(g.name) OPERATOR(pg_catalog.=) s.name
          WHERE g.context OPERATOR(pg_catalog.=) 'user' OR {SUPERUSER}",
        values(settings)
    )
}

fn values(settings: impl IntoIterator<Item = Setting>) -> String {
    let rows: Vec<String> = settings
        .into_iter()
        .map(|(name, value)| format!("('{}', '{}')", text(name), text(value)))
        .collect();
    format!("(VALUES {}) AS s(name, value)", rows.join(", "))
}

/// The settings of this table are ASCII.
fn text(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

/// For the rest of the transaction. What it replaces comes back at its end, however that is.
///
/// # Safety
/// In a transaction.
pub unsafe fn set_locally() {
    for (name, value) in available() {
        // SAFETY: says the caller.
        unsafe { set(name, value, pg_sys::GucAction::GUC_ACTION_LOCAL) };
    }
}

/// Runs `body` with them, inside a function.
///
/// # Safety
/// In a transaction. If `body` raises, the server takes the settings back.
pub unsafe fn within<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: what the server does for a function with SET clauses.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        for (name, value) in available() {
            set(name, value, pg_sys::GucAction::GUC_ACTION_SAVE);
        }
        let answer = body();
        pg_sys::AtEOXact_GUC(true, level);
        answer
    }
}

fn available() -> impl Iterator<Item = Setting> {
    all()
        .chain(PLPGSQL)
        .chain(QUIET_HERE)
        .filter(|(name, _)| is_known(name))
}

/// Whether this server has the setting, or whether it is one of an extension, which may be loaded later.
fn is_known(name: &CStr) -> bool {
    let of_spock = SPOCK.iter().any(|(spock, _)| *spock == name);
    // SAFETY: a C string; for a setting that is missing the answer is null.
    name.to_bytes().contains(&b'.') && !of_spock
        || unsafe { !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() }
}

/// # Safety
/// The server must be in a state for that action.
unsafe fn set(name: &CStr, value: &CStr, action: pg_sys::GucAction::Type) {
    // SAFETY: C strings, copied by the callee; the state says the caller.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

/// Gives them to a background worker, for good: before it connects, so that what the database and the role say
/// never comes to hold.
pub fn adopt() {
    for (name, value) in all().chain(PLPGSQL).chain([(c"role", c"none")]) {
        if is_known(name) {
            // SAFETY: C strings; as the server's own workers do it.
            unsafe {
                pg_sys::SetConfigOption(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_OVERRIDE,
                );
            }
        }
    }
}

/// What holds between the statements of a CALL, where the transactions of a procedure begin. A SET would be taken back
/// at the first commit, or outlive the CALL; the server's own variables are put back however it ends.
pub struct Between {
    read_only: bool,
    isolation: c_int,
    deferrable: bool,
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    transaction_timeout: c_int,
}

impl Between {
    /// From the next transaction on. One that has its limit already is ended by nothing: the server looks at the
    /// setting again when the time has passed.
    pub fn begin() -> Self {
        // SAFETY: variables of this process, which the server reads when a transaction begins.
        unsafe {
            Self {
                read_only: (&raw mut pg_sys::DefaultXactReadOnly).replace(false),
                isolation: (&raw mut pg_sys::DefaultXactIsoLevel)
                    .replace(pg_sys::XACT_READ_COMMITTED as c_int),
                deferrable: (&raw mut pg_sys::DefaultXactDeferrable).replace(false),
                #[cfg(not(any(feature = "pg15", feature = "pg16")))]
                transaction_timeout: (&raw mut pg_sys::TransactionTimeout).replace(0),
            }
        }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::DefaultXactReadOnly = self.read_only;
            pg_sys::DefaultXactIsoLevel = self.isolation;
            pg_sys::DefaultXactDeferrable = self.deferrable;
            #[cfg(not(any(feature = "pg15", feature = "pg16")))]
            {
                pg_sys::TransactionTimeout = self.transaction_timeout;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_connection_string_says_stands_before_ours() {
        assert_eq!(
            startup("-c role=x -c lock_timeout=5", false),
            "-c role=none -c role=x -c lock_timeout=5 -c statement_timeout=0 -c lock_timeout=0 \
             -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 \
             -c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off \
             -c default_transaction_deferrable=off -c exit_on_error=off"
        );
        assert!(
            startup("", true)
                .starts_with("-c role=none -c event_triggers=off -c transaction_timeout=0 ")
        );
    }

    #[test]
    fn settings_are_named_as_they_are_compared() {
        for (name, value) in all().chain(PLPGSQL).chain(QUIET) {
            assert_eq!(text(name), text(name).to_lowercase());
            assert!(!text(value).contains('\''));
        }
        assert!(setup()[0].contains("('timezone', 'UTC')"));
    }
}
