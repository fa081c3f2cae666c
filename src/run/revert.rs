//! Dropping what a run has made. "Already gone" is done: an undo may be interrupted and repeated.

use crate::error::{Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::node::{Node, Statement, server};

pub fn run_all(node: &mut Node, statements: &[Statement]) -> Result<()> {
    statements
        .iter()
        .try_for_each(|s| ignore_undefined(s.run(node)))
}

fn ignore_undefined<T>(answer: Result<T>) -> Result<()> {
    match answer {
        Err(error) if !error.is_undefined() => Err(error),
        _ => Ok(()),
    }
}

/// Drops a slot of ours, ending its user first: a subscriber that lost its subscription a moment
/// ago may still be connected.
pub fn drop_slot(node: &mut Node, slot: &str) -> Result<()> {
    let name = node.name.clone();
    wait_until(
        &name,
        &format!("dropping slot {slot}"),
        "See who streams from it.",
        || match server::drop_slot(slot).run(node) {
            Ok(_) => Ok(Poll::Ready(())),
            Err(error) if error.is_undefined() => Ok(Poll::Ready(())),
            Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => {
                server::end_slot_user(slot).run(node)?;
                Ok(Poll::Pending(error.to_string()))
            }
            Err(error) => Err(error),
        },
    )
}
