//! A node that was removed while it was away: the cluster goes on without it, perhaps with another one of its name. It
//! ends what it has of the cluster on its own server, and touches nothing on the others: what was its own there they
//! have dropped, what there is now may be its successor's.

use super::members::slots_there;
use super::undo::drop_slot;
use crate::engine::{Engine, Registry, names};
use crate::error::Result;
use crate::node::{Node, server};

/// What the slots may be called that others of the cluster read on member `name`, whose database is called `database`
/// now.
fn own_slots(own: &Registry, name: &str, database: &str) -> Vec<String> {
    let databases = [Some(database), own.database_of(name)];
    let readers = own.names().filter(|reader| *reader != name);
    let mut slots: Vec<String> = readers
        .flat_map(|reader| {
            let of = |database| names::slots(name, reader, own.next_number, database);
            databases.into_iter().flatten().flat_map(of)
        })
        .collect();
    slots.sort();
    slots.dedup();
    slots
}

/// Drops the subscriptions of `me`, which has the registry `own`, with their origins, and the slots on it.
pub fn end_replication(engine: &dyn Engine, me: &mut Node, own: &Registry) -> Result<()> {
    if let Some(statement) = engine.end_subscriptions() {
        statement.run(me)?;
    }
    let database = super::members::identity(me)?.1;
    let mut slots = own_slots(own, &me.name, &database);
    let recovery = server::all_recovery_slots().run(me)?;
    slots.extend(recovery.iter().map(|row| row.text(0).to_owned()));
    for (slot, _) in slots_there(me, &slots)? {
        drop_slot(me, &slot)?;
    }
    server::forget_unfinished(None).run(me)?;
    server::forget_recovery().run(me)?;
    Ok(())
}
