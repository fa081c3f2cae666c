//! What every procedure begins and ends with.

use super::arguments;
use crate::error::Result;
use crate::node::{HiddenContext, Local, Procedure};
use crate::sqlstate;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

/// Runs `body` as the procedure `name`: the text of the CALL hidden, which may hold passwords, by a
/// superuser, outside a transaction block.
pub fn called<T>(
    fcinfo: pg_sys::FunctionCallInfo,
    name: &str,
    body: impl FnOnce(Local) -> Result<T>,
) -> std::result::Result<T, ErrorReport> {
    // First of all.
    let context = HiddenContext::hide();
    // SAFETY: the call info of the procedure that is running.
    let procedure = unsafe { Procedure::enter(fcinfo, name) }?;
    arguments::superuser(name)?;
    let answer = body(Local::new(procedure)).inspect_err(|e| sqlstate::keep(e.sqlstate()))?;
    context.show();
    Ok(answer)
}
