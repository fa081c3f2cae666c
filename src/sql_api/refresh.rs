//! `spock.refresh_subscriptions()`.

use super::entry::{self, raised};
use super::recovery_slot::own;
use crate::ereport;
use crate::error::{Error, SqlState};
use crate::node::Reader;
use crate::workflow::refresh;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn refresh_subscriptions() -> raised::Result<()> {
    const NAME: &str = "CALL spock.refresh_subscriptions";
    entry::superuser_function(NAME, || {
        // Subscriptions of this server are refreshed too, which may wait for what the transaction has locked.
        Reader::enter(NAME)?;
        let Some(own) = own()? else {
            return Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                "the database is not a cluster node",
                "Run it in the database of any node of the cluster.",
            ));
        };
        refresh::refresh(&own, ereport::notice)
    })
}
