//! `CALL spock.add_node(...)`.

use super::arguments;
use super::entry::{self, raised};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::workflow::join::{self, Request};
use pgrx::JsonB;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn add_node(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
    verb: Option<bool>,
    new_node_location: Option<&str>,
    new_node_country: Option<&str>,
    new_node_info: Option<JsonB>,
    verify: Option<bool>,
    readers: Option<Vec<Option<String>>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<()> {
    entry::procedure(fcinfo, "spock.add_node", |local| {
        let request = Request {
            verbose: verb.unwrap_or(false),
            location: new_node_location.unwrap_or_default().to_owned(),
            country: new_node_country.unwrap_or_default().to_owned(),
            info: new_node_info.map_or("{}".into(), |json| json.0.to_string()),
            verify: verify.unwrap_or(false),
            readers: readers_given(readers)?,
            ..request(src_node_name, src_dsn, new_node_name, new_node_dsn)?
        };
        join::add_node(local, request)
    })
}

/// The request to join with these nodes, and defaults.
pub fn request(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
) -> Result<Request> {
    let request = Request {
        source: arguments::node_name("src_node_name", src_node_name)?,
        source_dsn: arguments::dsn("src_dsn", src_dsn)?,
        new: arguments::node_name("new_node_name", new_node_name)?,
        new_dsn: arguments::dsn("new_node_dsn", new_node_dsn)?,
        verbose: false,
        location: String::new(),
        country: String::new(),
        info: "{}".into(),
        verify: false,
        readers: vec![],
    };
    if request.source == request.new {
        return Err(Error::Argument {
            argument: "new_node_name",
            problem: format!("is the name of the source, \"{}\"", request.source),
            hint: "Give the new node a name of its own.".into(),
            state: SqlState::INVALID_PARAMETER_VALUE,
        });
    }
    Ok(request)
}

/// Connection strings of nodes that only read; none are null.
pub fn readers_given(readers: Option<Vec<Option<String>>>) -> Result<Vec<Dsn>> {
    let dsn = |reader: Option<String>| arguments::dsn("readers", reader.as_deref());
    readers.unwrap_or_default().into_iter().map(dsn).collect()
}
