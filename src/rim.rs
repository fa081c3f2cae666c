//! Where our errors become PostgreSQL's.

use crate::error::Error;
use crate::libpq::{scrub, wait};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(
            PgSqlErrorCode::from(error.sqlstate().pack()),
            scrub(&error.to_string()),
            "zodan",
        );
        if let Some(detail) = error.detail() {
            report = report.set_detail(scrub(&detail));
        }
        if let Some(hint) = error.hint() {
            report = report.set_hint(scrub(&hint));
        }
        report
    }
}

/// Tells the caller, at once.
pub fn notice(text: &str) {
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        scrub(text),
        "zodan",
    );
    wait::uncancelled(|| report.report(PgLogLevel::NOTICE));
}

/// Warns the caller, at once.
pub fn warning(text: &str, hint: &str) {
    let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, scrub(text), "zodan")
        .set_hint(scrub(hint));
    wait::uncancelled(|| report.report(PgLogLevel::WARNING));
}
