//! `spock.refresh_subscriptions()`.

use super::arguments;
use super::recovery_slot::own;
use crate::error::{Error, Result, SqlState};
use crate::node::Reader;
use crate::workflow::refresh;
use crate::{ereport, sqlstate};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

const NAME: &str = "spock.refresh_subscriptions";

#[pg_extern(sql = "")]
fn refresh_subscriptions() -> std::result::Result<(), ErrorReport> {
    run().inspect_err(|e| sqlstate::keep(e.sqlstate()))?;
    Ok(())
}

fn run() -> Result<()> {
    arguments::superuser(NAME)?;
    // Subscriptions of this server are refreshed too, which may wait for what the transaction has locked.
    Reader::enter(&format!("CALL {NAME}"))?;
    let Some(own) = own()? else {
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database is not a cluster node",
            "Run it in the database of any node of the cluster.",
        ));
    };
    refresh::refresh(&own, ereport::notice)
}
