//! `spock.enable_last_update_wins(...)` and its opposite.

use super::arguments;
use super::entry::{self, raised};
use super::recovery_slot::require_own;
use crate::node::Reader;
use crate::workflow::last_update;
use pgrx::pg_sys;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn enable_last_update_wins(relation: Option<pg_sys::Oid>) -> raised::Result<i32> {
    set("spock.enable_last_update_wins", relation, true)
}

#[pg_extern(sql = "")]
fn disable_last_update_wins(relation: Option<pg_sys::Oid>) -> raised::Result<i32> {
    set("spock.disable_last_update_wins", relation, false)
}

fn set(name: &str, relation: Option<pg_sys::Oid>, wanted: bool) -> raised::Result<i32> {
    entry::superuser_function(name, || {
        let relation = arguments::given("relation", relation)?;
        // The members are changed in sessions of their own, which may have to wait for the caller's locks.
        Reader::enter(name)?;
        let own = require_own("Run it in the database of any node of the cluster.")?;
        last_update::set(&own, relation.to_u32(), name, wanted)
    })
}
