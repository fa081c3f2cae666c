//! The slots that keep for the new node what is committed while its data is copied.

use crate::engine::Engine;
use crate::error::{Error, Result, SqlState};
use crate::node::{Node, ask_each, server};

/// A slot that lost its WAL during a long copy, or that somebody dropped, has lost changes for good.
pub fn check<'a>(
    engine: &dyn Engine,
    members: impl IntoIterator<Item = &'a mut Node>,
    new: &str,
) -> Result<()> {
    let mut members: Vec<&mut Node> = members.into_iter().collect();
    let answers = ask_each(members.iter_mut().map(|m| &mut **m), |m| {
        let paths = engine.paths(&m.name, new).into_iter();
        server::slots_lost(&paths.map(|p| p.slot).collect::<Vec<_>>())
    })?;
    for (member, lost) in members.iter().zip(&answers) {
        let Some(slot) = lost.first() else { continue };
        let (what, hint) = match slot.is_missing {
            true => (
                "was dropped while the copy ran",
                "Leave the slots of the join alone, and run the CALL again.",
            ),
            false => (
                "lost the WAL that the new node needs while the copy ran",
                "Raise max_slot_wal_keep_size and idle_replication_slot_timeout there for the time of the join.",
            ),
        };
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!("slot {} on node \"{}\" {what}", slot.name, member.name),
            hint,
        ));
    }
    Ok(())
}
