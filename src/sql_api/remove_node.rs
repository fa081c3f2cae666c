//! `CALL spock.remove_node(...)`.

use super::arguments;
use super::entry::{self, raised};
use crate::error::Result;
use crate::workflow::remove::{self, Request};
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn remove_node(
    target_node_name: Option<&str>,
    target_node_dsn: Option<&str>,
    verbose_mode: Option<bool>,
    force: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<()> {
    entry::procedure(fcinfo, "spock.remove_node", |local| {
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
        target_dsn: arguments::optional("target_node_dsn", target_node_dsn, arguments::dsn)?,
        verbose: false,
        force: force.unwrap_or(false),
    })
}
