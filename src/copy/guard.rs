//! Errors of this server as values.

use crate::error::Result;
use crate::sqlstate;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// Runs `body`; an ERROR raised in it becomes a value. What the server has to clean up after an error
/// is left to the caller, who knows whether there is a transaction to abort.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let body = AssertUnwindSafe(body);
    sqlstate::watch(|| {
        PgTryBuilder::new(AssertUnwindSafe(move || {
            let body = body;
            (body.0)()
        }))
        .catch_others(|cause| Err(sqlstate::caught(cause)))
        .execute()
    })
}
