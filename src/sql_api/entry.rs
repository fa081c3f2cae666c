//! The door from SQL: what every function and procedure begins and ends with.

use crate::error::{Error, Result, SqlState};
use crate::node::{HiddenContext, Local, Procedure, Reader, hide_statement};
use crate::sqlstate;
use pgrx::pg_sys;

/// An error of ours on its way to the server.
pub mod raised {
    /// Its name is what the macros of pgrx look for.
    pub type Result<T> = std::result::Result<T, pgrx::pg_sys::panic::ErrorReport>;
}

/// Runs `body` as the procedure `name`, which commits after each of its steps: the text of the CALL hidden, which may
/// hold passwords, by a superuser, outside a transaction block.
pub fn procedure<T>(
    fcinfo: pg_sys::FunctionCallInfo,
    name: &str,
    body: impl FnOnce(Local) -> Result<T>,
) -> raised::Result<T> {
    hidden(|| {
        // SAFETY: the call info of the procedure that is running.
        let procedure = unsafe { Procedure::enter(fcinfo, name) }?;
        require_superuser(&format!("CALL {name}"))?;
        body(Local::new(procedure))
    })
}

/// Runs `body` as the function `name`, or a procedure that commits nothing: the text of the statement hidden, which may
/// hold passwords, by a superuser, in a transaction that has written nothing.
pub fn function<T>(name: &str, body: impl FnOnce(&Reader) -> Result<T>) -> raised::Result<T> {
    hidden(|| {
        hide_statement(&format!("{name}(...)"));
        require_superuser(name)?;
        body(&Reader::enter(name)?)
    })
}

/// As [`function`] for whoever may execute it, and without secrets among the arguments.
pub fn public_function<T>(
    name: &str,
    body: impl FnOnce(&Reader) -> Result<T>,
) -> raised::Result<T> {
    raise(|| body(&Reader::enter(name)?))
}

/// As [`function`] without secrets among the arguments, and in any transaction.
pub fn superuser_function<T>(name: &str, body: impl FnOnce() -> Result<T>) -> raised::Result<T> {
    raise(|| {
        require_superuser(name)?;
        body()
    })
}

/// Runs `body`; the server raises its error with the SQLSTATE that it has.
pub fn raise<T>(body: impl FnOnce() -> Result<T>) -> raised::Result<T> {
    Ok(body().inspect_err(|e| sqlstate::keep(e.sqlstate()))?)
}

/// As [`raise`], without the text of the statement as the context of errors.
fn hidden<T>(body: impl FnOnce() -> Result<T>) -> raised::Result<T> {
    // First of all.
    let context = HiddenContext::hide();
    let answer = raise(body)?;
    context.show();
    Ok(answer)
}

/// Slots, subscriptions and the settings of databases are for superusers.
fn require_superuser(name: &str) -> Result<()> {
    // SAFETY: reads the current user's catalog row.
    if unsafe { pg_sys::superuser() } {
        return Ok(());
    }
    Err(Error::refused(
        SqlState::INSUFFICIENT_PRIVILEGE,
        format!("only a superuser can run {name}"),
        "Connect as a superuser.",
    ))
}
