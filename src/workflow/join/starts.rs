//! Where the subscriptions of the new node start.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lsn::Position;
use crate::node::Node;
use crate::workflow::pause::Progress;
use std::collections::BTreeMap;

/// By subscription of the new node.
pub type Positions = BTreeMap<String, Position>;

/// Where the slots of the new node start.
pub struct Starts {
    pub slots: Positions,
    /// That of the source's slot that was made with the snapshot.
    pub snapshot: Position,
}

impl Starts {
    /// From where the subscriptions to the peers apply: behind what the source has of them, of which `progress` is how
    /// much, and not before their slots.
    pub fn behind(
        &self,
        engine: &dyn Engine,
        progress: &Progress,
        source: &str,
        peers: &[Node],
        new: &str,
    ) -> Result<Positions> {
        let mut positions = Positions::new();
        for peer in peers {
            // The source has the same subscriptions to it, in the same order.
            let ours = engine.paths(&peer.name, new).into_iter();
            let of_source = engine.paths(&peer.name, source);
            for (path, theirs) in ours.zip(of_source) {
                let (Some(progress), Some(start)) = (
                    progress.get(&theirs.subscription),
                    self.slots.get(&path.subscription),
                ) else {
                    continue;
                };
                if !progress.reaches(start)? {
                    // The barrier has seen to it; if not, changes between the two would be nowhere.
                    return Err(Error::internal(format!(
                        "node \"{source}\" has \"{}\" by {} up to {progress}, but slot {} starts at {start}",
                        peer.name, theirs.subscription, path.slot
                    )));
                }
                positions.insert(path.subscription, progress.clone().max(start)?);
            }
        }
        Ok(positions)
    }

    /// From where the subscriptions to the source apply: from the snapshot on.
    pub fn of_source(&self, engine: &dyn Engine, source: &str, new: &str) -> Result<Positions> {
        let mut positions = Positions::new();
        for path in engine.paths(source, new) {
            if let Some(start) = self.slots.get(&path.subscription)
                && !self.snapshot.reaches(start)?
            {
                return Err(Error::internal(format!(
                    "the snapshot is of {}, but slot {} starts at {start}",
                    self.snapshot, path.slot
                )));
            }
            positions.insert(path.subscription, self.snapshot.clone());
        }
        Ok(positions)
    }
}
