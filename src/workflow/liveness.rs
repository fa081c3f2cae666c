//! Whether a node lives that cannot be connected to: what it does on other nodes tells.

use crate::engine::Engine;
use crate::error::Result;
use crate::libpq::poll::holds_within;
use crate::node::{Node, server};
use crate::settings;

/// A slot that a node reads although nobody can connect to it.
pub struct SlotReader {
    pub provider: String,
    pub slot: String,
}

impl SlotReader {
    /// How long a dead node may look like one.
    pub const HINT: &str = "It lives, and its server or the way to it refuses connections: make it reachable, or stop it. Where its machine has died, the walsenders for it end after wal_sender_timeout.";
}

/// A slot of one of `providers` from which `subscriber` streams, still after `zodan.connect_timeout`: that of a server that
/// has just ended may be in use for a moment.
pub fn still_reads(
    engine: &dyn Engine,
    providers: &mut [Node],
    subscriber: &str,
) -> Result<Option<SlotReader>> {
    let mut found = None;
    holds_within(settings::connect_timeout(), || {
        found = reads(engine, providers, subscriber)?;
        Ok(found.is_none())
    })?;
    Ok(found)
}

fn reads(
    engine: &dyn Engine,
    providers: &mut [Node],
    subscriber: &str,
) -> Result<Option<SlotReader>> {
    for provider in providers {
        for path in engine.paths(&provider.name, subscriber) {
            if server::slot_reader(&path.slot).first(provider)?.is_some() {
                return Ok(Some(SlotReader {
                    provider: provider.name.clone(),
                    slot: path.slot,
                }));
            }
        }
    }
    Ok(None)
}
