//! `spock.refresh_subscriptions()`.

use super::entry::{self, raised};
use super::recovery_slot::require_own;
use crate::ereport;
use crate::node::Reader;
use crate::workflow::refresh;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn refresh_subscriptions() -> raised::Result<()> {
    const NAME: &str = "CALL spock.refresh_subscriptions";
    entry::superuser_function(NAME, || {
        // Subscriptions of this server are refreshed too, which may wait for what the transaction has locked.
        Reader::enter(NAME)?;
        let own = require_own("Run it in the database of any node of the cluster.")?;
        refresh::refresh(&own, ereport::notice)
    })
}
