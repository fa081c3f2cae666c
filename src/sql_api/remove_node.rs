//! `CALL spock.remove_node(...)`.

use super::arguments;
use super::call::called;
use crate::error::Result;
use crate::workflow::remove::{self, Request};
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
    called(fcinfo, "spock.remove_node", |local| {
        let request = Request {
            verbose: verbose_mode.unwrap_or(true),
            ..request(target_node_name, target_node_dsn, force)?
        };
        remove::remove_node(local, request)
    })
}

pub fn request(
    target_node_name: Option<&str>,
    target_node_dsn: Option<&str>,
    force: Option<bool>,
) -> Result<Request> {
    Ok(Request {
        target: arguments::node_name("target_node_name", target_node_name)?,
        target_dsn: target_node_dsn
            .map(|dsn| arguments::dsn("target_node_dsn", Some(dsn)))
            .transpose()?,
        verbose: false,
        force: force.unwrap_or(false),
    })
}
