//! Whether the source is at work for the copy although nothing arrives: it reads past rows that nobody
//! sees any more, or that a filter keeps back.

use super::Source;
use super::shared::Slot;
use super::sql::array;
use crate::error::Result;
use crate::libpq::Conn;
use std::time::Duration;

/// Neither waiting for a lock, nor for this side to take what there is, nor for time to pass.
const WORKING: &str = "
SELECT count(*) > 0 FROM pg_catalog.pg_stat_activity
 WHERE pid = ANY ($1::integer[]) AND state = 'active'
   AND coalesce(wait_event_type, '') NOT IN ('Lock', 'Client', 'Timeout', 'IPC', 'Extension')";

/// Asked in a session of its own, which a source that is away does not answer.
pub fn source_is_at_work(source: &Source<'_>, slots: &[Slot], within: Duration) -> Result<bool> {
    let pids: Vec<String> = slots
        .iter()
        .filter_map(Slot::server)
        .map(|pid| pid.to_string())
        .collect();
    if pids.is_empty() {
        return Ok(false);
    }
    let pids = array(pids.iter().map(String::as_str));
    let rows =
        Conn::open(source.node, source.dsn)?.query_within(WORKING, &[&pids], Some(within))?;
    rows.one()?.only()
}
