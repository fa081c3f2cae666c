//! `spock.enable_last_update_wins(...)` and its opposite.

use super::arguments;
use super::recovery_slot::own;
use crate::error::{Error, Result, SqlState};
use crate::node::Reader;
use crate::sqlstate;
use crate::workflow::last_update;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn enable_last_update_wins(relation: Option<pg_sys::Oid>) -> std::result::Result<i32, ErrorReport> {
    Ok(set("spock.enable_last_update_wins", relation, true)
        .inspect_err(|e| sqlstate::keep(e.sqlstate()))?)
}

#[pg_extern(sql = "")]
fn disable_last_update_wins(
    relation: Option<pg_sys::Oid>,
) -> std::result::Result<i32, ErrorReport> {
    Ok(set("spock.disable_last_update_wins", relation, false)
        .inspect_err(|e| sqlstate::keep(e.sqlstate()))?)
}

fn set(name: &str, relation: Option<pg_sys::Oid>, wanted: bool) -> Result<i32> {
    arguments::superuser_for(name)?;
    let relation = arguments::given("relation", relation)?;
    // The members are changed in sessions of their own, which may have to wait for the caller's locks.
    Reader::enter(name)?;
    let own = own()?.ok_or_else(|| {
        Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database is not a cluster node",
            "Run it in the database of any node of the cluster.",
        )
    })?;
    last_update::set(&own, relation.to_u32(), name, wanted)
}
