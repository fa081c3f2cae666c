//! `CALL spock.remove_node(...)`.

use super::arguments;
use crate::error::Result;
use crate::node::{HiddenContext, Local, Procedure};
use crate::raw_code;
use crate::workflow::leave::{self, Request};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn remove_node(
    target_node_name: Option<&str>,
    target_node_dsn: Option<&str>,
    verbose_mode: Option<bool>,
    force: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> std::result::Result<(), ErrorReport> {
    // First of all: the text of the CALL may hold passwords.
    let context = HiddenContext::hide();
    // SAFETY: our own call info.
    let procedure = unsafe { Procedure::enter(fcinfo, "spock.remove_node") }?;
    arguments::superuser("spock.remove_node")?;
    let request = || -> Result<Request> {
        Ok(Request {
            target: arguments::node_name("target_node_name", target_node_name)?,
            target_dsn: target_node_dsn
                .map(|dsn| arguments::dsn("target_node_dsn", Some(dsn)))
                .transpose()?,
            verbose: verbose_mode.unwrap_or(true),
            force: force.unwrap_or(false),
        })
    };
    leave::remove_node(Local::new(procedure), request()?)
        .inspect_err(|e| raw_code::keep(e.sqlstate()))?;
    context.show();
    Ok(())
}
