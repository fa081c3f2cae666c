//! Where our errors become PostgreSQL's.

use crate::encoding;
use crate::error::{Error, SqlState};
use crate::libpq::{scrub, wait};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// What may leave: no secret, and only characters that the server takes for what they are.
fn said(text: &str) -> String {
    encoding::shown(&scrub(text)).into_owned()
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(
            PgSqlErrorCode::from(error.sqlstate().pack()),
            said(&error.to_string()),
            "zodan",
        );
        if let Some(detail) = error.detail() {
            report = report.set_detail(said(&detail));
        }
        if let Some(hint) = error.hint() {
            report = report.set_hint(said(&hint));
        }
        report
    }
}

/// Tells the caller, at once.
pub fn notice(text: &str) {
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        said(text),
        "zodan",
    );
    wait::uncancelled(|| report.report(PgLogLevel::NOTICE));
}

/// Warns the caller, at once.
pub fn warning(text: &str, hint: &str) {
    warning_of(SqlState::WARNING, text, hint);
}

/// Warns of what has a SQLSTATE of its own.
pub fn warning_of(state: SqlState, text: &str, hint: &str) {
    let code = PgSqlErrorCode::from(state.pack());
    let report = ErrorReport::new(code, said(text), "zodan").set_hint(said(hint));
    wait::uncancelled(|| report.report(PgLogLevel::WARNING));
}
