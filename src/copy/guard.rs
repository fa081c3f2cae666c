//! Errors of this server as values.

use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// Runs `body`; an ERROR raised in it becomes a value. What the server has to clean up after an error
/// is left to the caller, who knows whether there is a transaction to abort.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let body = AssertUnwindSafe(body);
    PgTryBuilder::new(AssertUnwindSafe(move || {
        let body = body;
        (body.0)()
    }))
    .catch_others(|cause| {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic {
            ereport: report, ..
        }) = cause;
        Err(Error::Local {
            state: SqlState::unpack(report.sql_error_code() as i32),
            message: report.message().to_owned(),
            detail: report.detail().map(str::to_owned),
            hint: report.hint().map(str::to_owned),
        })
    })
    .execute()
}
