//! Names that somebody else has already. What is there was not made by the run, so it is never touched; who it belongs
//! to is told.

use crate::error::{Error, Finding, Result, SqlState};
use crate::node::server::{self, NamedSlot, OriginProgress};
use crate::node::{Node, ask_each};

/// That a slot has the name which the run wants.
pub fn slot(node: &str, slot: &NamedSlot) -> Finding {
    let whose = match &slot.database {
        None => "a physical slot".to_owned(),
        Some(_) if slot.is_own => "of this database".to_owned(),
        Some(database) => format!("of database \"{database}\""),
    };
    let used = match &slot.pid {
        Some(pid) => format!("in use by pid {pid} (application \"{}\")", slot.application),
        None => "read by nobody at the moment".to_owned(),
    };
    let hint = match (slot.is_own, &slot.pid) {
        (false, _) => {
            "All databases of a server share the names of slots, and this one is somebody else's: give the new node another name."
        }
        (true, Some(_)) => {
            "It was not made by this run and is in use, so it is not touched: give the new node another name."
        }
        (true, None) => {
            "It was not made by this run, so it is not touched. A subscriber that is down needs it when it comes back; pg_drop_replication_slot() is for one that no subscription names any more."
        }
    };
    Finding::new(
        node,
        SqlState::DUPLICATE_OBJECT,
        format!(
            "replication slot {} exists already: {whose}, {used}",
            slot.name
        ),
        hint,
    )
}

/// The same for the replication origin of a subscription that is to be.
pub fn origin(node: &str, subscription: &str, present: &OriginProgress) -> Finding {
    let name = &present.origin;
    let position = match &present.position {
        Some(lsn) => format!(", at position {lsn} of its provider"),
        None => String::new(),
    };
    let statement = format!(
        "SELECT pg_replication_origin_drop({})",
        crate::quote::literal(name)
    );
    Finding::new(
        node,
        SqlState::DUPLICATE_OBJECT,
        format!(
            "replication origin {name} exists already{position}: it is named as that of subscription {subscription}, which is not there"
        ),
        format!(
            "It was not made by this run, so it is not touched. No session must use it, of any database of the server: {statement}"
        ),
    )
    .fixed_by(statement)
}

/// The same for a subscription.
pub fn subscription(node: &str, name: &str, working: bool) -> Finding {
    let (state, hint) = match working {
        true => (
            "and replicates",
            "It was not made by this run and is in use, so it is not touched: give the new node another name.",
        ),
        false => (
            "and does not replicate at the moment",
            "It was not made by this run, so it is not touched. Find out what it is for before it is dropped: its provider may only be down.",
        ),
    };
    Finding::new(
        node,
        SqlState::DUPLICATE_OBJECT,
        format!("subscription {name} exists already {state}"),
        hint,
    )
}

/// Says whose the slot is that stands in the way of one that was to be made; any other error is left as it is.
pub fn whose_slot(error: Error, node: &mut Node, name: &str) -> Error {
    if error.sqlstate() != SqlState::DUPLICATE_OBJECT {
        return error;
    }
    match server::slots_named(&[name.to_owned()]).first(node) {
        Ok(Some(present)) => Error::Checks(vec![slot(&node.name, &present)]),
        Ok(None) | Err(_) => error,
    }
}

/// Refuses if a slot has that name.
pub fn refuse_slot(node: &mut Node, name: &str) -> Result<()> {
    refuse_slots(&mut [node], |_| vec![name.to_owned()])
}

/// The same of those that are meant for each of `nodes`.
pub fn refuse_slots(nodes: &mut [&mut Node], names: impl Fn(&Node) -> Vec<String>) -> Result<()> {
    let asked = nodes.iter_mut().map(|node| &mut **node);
    let present = ask_each(asked, |node| server::slots_named(&names(node)))?;
    for (node, present) in nodes.iter().zip(present) {
        if let Some(present) = present.first() {
            return Err(Error::Checks(vec![slot(&node.name, present)]));
        }
    }
    Ok(())
}
