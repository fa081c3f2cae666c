//! A node that was removed while it was away: the cluster goes on without it, perhaps with another one of its name. It
//! ends what it has of the cluster on its own server, and touches nothing on the others: what was its own there they
//! have dropped, what there is now may be its successor's.

use super::members::{connect_each, identity, lock_if_free, present_slots};
use super::registries::registry_of;
use crate::engine::names::{self, Numbered};
use crate::engine::{Engine, Path, Registry, parse_dsn, registered_members};
use crate::error::{Error, Result, SqlState};
use crate::node::{Member, Node, server};
use crate::run::revert::{drop_slot, run_all};
use std::collections::BTreeSet;

/// What the slots may be called that others of the cluster read on member `name`, whose database is called `database`
/// now.
pub fn own_slots(own: &Registry, name: &str, database: &str) -> Vec<String> {
    let Some(me) = own.numbered(name) else {
        return vec![];
    };
    let mut slots = BTreeSet::new();
    for database in std::iter::once(database).chain(own.database_of(name)) {
        for reader in own.names().filter(|reader| *reader != name) {
            // Under the name of a member one may have been half added before.
            let readers = (0..own.next_number).map(|number| Numbered {
                name: reader,
                number,
            });
            slots.extend(readers.map(|reader| names::slot(&own.cluster, me, reader, database)));
        }
    }
    slots.into_iter().collect()
}

/// What to tell of member `name` with the registry `own`, if `other`, a node of the same cluster, has a newer one
/// without it, and what its slots may be called.
pub fn by_another(
    engine: &dyn Engine,
    name: &str,
    database: &str,
    own: &Registry,
    other: &mut Node,
) -> Result<Option<(String, Vec<String>)>> {
    let Some(registry) = engine.registry() else {
        return Ok(None);
    };
    let Some(newest) = registry.read().first(other)? else {
        return Ok(None);
    };
    let newest = newest.registry;
    if !newest.is_newer_than(own) || newest.has_same(name, own) {
        return Ok(None);
    }
    Ok(Some((
        removal_message(name, own, &newest),
        own_slots(own, name, database),
    )))
}

/// What to tell of `me`, whose engine keeps no registry, if half of the `known` other members or more, among them
/// `others`, which can be asked, mean another server by its name, or have removed it and have no slot of it, and none
/// means it.
pub fn by_members(
    engine: &dyn Engine,
    me: &mut Node,
    others: &mut [&mut Node],
    known: usize,
) -> Result<Option<String>> {
    if engine.registry().is_some() {
        return Ok(None);
    }
    let own = identity(me)?;
    let mut reasons = vec![];
    for other in others {
        if engine.local_name(other)?.as_ref() != Some(&other.name) {
            continue;
        }
        let registry = engine.members().on(other)?;
        let entry = registry.iter().find(|entry| entry.name == me.name);
        let Some(entry) = entry else {
            if engine.has_removed(other, me)? {
                reasons.push(format!("node \"{}\" has removed it", other.name));
            }
            continue;
        };
        let member = Member {
            name: me.name.clone(),
            dsn: parse_dsn(&me.name, &entry.dsn)?,
        };
        match connect_each(&[member]).pop() {
            Some(Ok(mut node)) => {
                if identity(&mut node)? == own {
                    return Ok(None);
                }
                // From here the address may lead to somebody else than from there.
                if engine.local_name(&mut node)?.as_ref() != Some(&me.name) {
                    continue;
                }
                reasons.push(format!(
                    "by that name node \"{}\" means another server, {}",
                    other.name,
                    node.dsn.redacted()
                ));
            }
            Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
            // Nobody there: it may be this one, and it may not.
            _ => {}
        }
    }
    let enough = !reasons.is_empty() && reasons.len() * 2 >= known;
    Ok(enough.then(|| {
        format!(
            "node \"{}\" was removed from the cluster while it was away: {}",
            me.name,
            reasons.join(", ")
        )
    }))
}

/// `ended` tells whether it has ended what it had of the cluster.
pub fn removed(name: &str, own: &Registry, newest: &Registry, ended: bool) -> Error {
    Error::Refused {
        state: SqlState::NOT_IN_PREREQUISITE_STATE,
        message: format!("node \"{name}\" was removed from the cluster while it was away"),
        detail: Some(format!(
            "Its registry has generation {}; the members have generation {}, without it.{}",
            own.generation,
            newest.generation,
            match ended {
                true =>
                    " Its subscriptions to them, with their origins, and its slots have been dropped.",
                false => "",
            }
        )),
        hint: format!(
            "On it, CALL spock.remove_node({}) makes it a database like any other.",
            crate::quote::literal(name)
        ),
    }
}

fn successor_message(path: &Path) -> String {
    format!(
        "node \"{}\" was removed from the cluster while it was away: subscription {} of node \"{}\" is to another one that has its name now",
        path.provider, path.subscription, path.subscriber
    )
}

/// What to tell of `nodes`, between which the paths are known, if one of them has a successor.
pub fn by_successor(engine: &dyn Engine, nodes: &mut [&mut Node]) -> Result<Option<String>> {
    let path = engine.path_to_successor(nodes)?;
    Ok(path.as_ref().map(successor_message))
}

/// Refuses if one of them has.
pub fn refuse_succeeded(engine: &dyn Engine, nodes: &mut [&mut Node]) -> Result<()> {
    match engine.path_to_successor(nodes)? {
        None => Ok(()),
        Some(path) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            successor_message(&path),
            format!(
                "On it, CALL spock.remove_node({}) makes it a database like any other.",
                crate::quote::literal(&path.provider)
            ),
        )),
    }
}

/// For the log of the node.
pub fn removal_message(name: &str, own: &Registry, newest: &Registry) -> String {
    let error = removed(name, own, newest, true);
    let more = [error.detail(), error.hint()];
    let more: Vec<String> = more.into_iter().flatten().collect();
    format!("{error}. {}", more.join(" "))
}

/// Ends what the nodes `gone`, as the registry `old` of a member knows them, have of the cluster, if they answer and do
/// not know that they were removed. Those that did; one that cannot be asked ends by its own node worker or CALL.
pub fn end_on(
    engine: &dyn Engine,
    old: &Registry,
    gone: &[String],
    newest: &Registry,
) -> Result<Vec<String>> {
    let mut members = registered_members(old)?;
    members.retain(|member| gone.contains(&member.name));
    let mut ended = vec![];
    for answer in connect_each(&members) {
        let answer = answer.and_then(|mut node| {
            let done = end_unaware(engine, &mut node, newest)?;
            Ok(done.then_some(node.name))
        });
        match answer {
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(_) => {}
            Ok(name) => ended.extend(name),
        }
    }
    Ok(ended)
}

/// What [`end_on`] has done to a node.
pub fn ended_on(removed: &str) -> String {
    format!("removed node \"{removed}\" has ended what it had of the cluster")
}

/// Whether `node` took itself for a member of the cluster that `newest` is of, which goes on without it.
fn end_unaware(engine: &dyn Engine, node: &mut Node, newest: &Registry) -> Result<bool> {
    let Some(own) = registry_of(engine, node)? else {
        return Ok(false);
    };
    let removed = newest.is_newer_than(&own) && !newest.has_same(&node.name, &own);
    if own.cluster != newest.cluster || !removed {
        return Ok(false);
    }
    // Somebody who changes the membership on it at this moment finds out.
    if !lock_if_free(node, "zodan end of a removed node")? {
        return Ok(false);
    }
    let done = end_replication(engine, node, &own);
    server::membership_unlock().run(node)?;
    done.map(|()| true)
}

/// Drops the subscriptions of `me`, which has the registry `own`, with their origins, and the slots on it.
pub fn end_replication(engine: &dyn Engine, me: &mut Node, own: &Registry) -> Result<()> {
    run_all(me, &engine.end_subscriptions())?;
    let database = identity(me)?.database;
    let mut slots = own_slots(own, &me.name, &database);
    slots.extend(server::all_recovery_slots().on(me)?);
    for (slot, _) in present_slots(me, &slots)? {
        drop_slot(me, &slot)?;
    }
    server::forget_recoveries(None).run(me)?;
    server::forget_recovery().run(me)?;
    Ok(())
}
