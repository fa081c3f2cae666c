//! Two servers that claim to be one node: one of them was made from the other by a base backup, a copy of the files or a
//! snapshot. The node is the one that the connection string of the registry leads to.

use super::members::{connect_each, identity, present_slots};
use super::registries::registry_of;
use super::removed;
use crate::engine::Engine;
use crate::error::{Error, Result, SqlState};
use crate::node::{Member, Node, Session, Statement, server};
use crate::place;
use crate::run::revert::{drop_slot, run_all};

/// A server that claims to be what the registry means by another one.
pub struct NodeCopy {
    name: String,
    copy: String,
    node: String,
}

impl NodeCopy {
    /// `copy` and `node`, if they are two servers of which one was made from the other.
    pub fn of(engine: &dyn Engine, copy: &mut Node, node: &mut Node) -> Result<Option<Self>> {
        let (first, second) = (identity(copy)?, identity(node)?);
        if first.database != second.database || !is_copy(&first.server, &second.server) {
            return Ok(None);
        }
        let name = engine.local_name(copy)?;
        if name.is_none() || name != engine.local_name(node)? {
            return Ok(None);
        }
        // Another one of an image has joined under the name.
        if let (Some(theirs), Some(ours)) = (registry_of(engine, node)?, registry_of(engine, copy)?)
            && !theirs.has_same(&node.name, &ours)
        {
            return Ok(None);
        }
        Ok(Some(Self {
            name: name.unwrap_or_default(),
            copy: place_of(copy)?,
            node: place_of(node)?,
        }))
    }

    /// What the registry of `me` means by its name, if that is another one.
    pub fn of_registered(engine: &dyn Engine, me: &mut Node) -> Result<Option<Self>> {
        let members = engine.survey(me)?.members;
        let own: Vec<Member> = members.into_iter().filter(|m| m.name == me.name).collect();
        match connect_each(&own).pop() {
            Some(Ok(mut node)) => Self::of(engine, me, &mut node),
            Some(Err(error @ Error::Interrupted { .. })) => Err(error),
            // One that does not answer claims nothing.
            _ => Ok(None),
        }
    }

    pub fn refusal(&self) -> Error {
        Error::Refused {
            state: SqlState::NOT_IN_PREREQUISITE_STATE,
            message: self.message(),
            detail: Some("The members mean the second: the registry's connection string leads to it.".into()),
            hint: "If the first is a copy, run SELECT zodan.become_standalone() on it. If it is the node and has moved, end the other server, or correct the connection string of the node on every member.".into(),
        }
    }

    pub fn message(&self) -> String {
        message(&self.name, &self.copy, &self.node)
    }
}

pub fn message(name: &str, copy: &str, node: &str) -> String {
    format!("two servers claim to be node \"{name}\": {copy}; and {node}")
}

/// Whether two running servers have one origin: `one` and `other` begin with the system identifier.
pub fn is_copy(one: &str, other: &str) -> bool {
    let system = |server: &str| server.split(' ').next().map(str::to_owned);
    one != other && system(one) == system(other)
}

/// Refuses if the server of `me` is the node that it claims to be.
pub fn require_copy(engine: &dyn Engine, me: &mut Node) -> Result<()> {
    let own = engine.survey(me)?.members;
    let own: Vec<Member> = own.into_iter().filter(|m| m.name == me.name).collect();
    let mut node = match connect_each(&own).pop() {
        Some(Ok(node)) => node,
        Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
        // Nobody is there to be taken for it.
        _ => return Ok(()),
    };
    match identity(&mut node)? == identity(me)? {
        true => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "the database is node \"{}\" itself, and no copy of it",
                me.name
            ),
            format!(
                "The connection string of the registry leads to it. To take it out of the cluster: CALL spock.remove_node({});",
                crate::quote::literal(&me.name)
            ),
        )),
        false => Ok(()),
    }
}

/// The slots of `me` for the members that its registry has.
pub fn own_slots(engine: &dyn Engine, me: &mut Node) -> Result<Vec<String>> {
    let database = identity(me)?.database;
    match registry_of(engine, me)? {
        Some(own) => Ok(removed::own_slots(&own, &me.name, &database)),
        None => server::slots_of(engine.plugin()).on(me),
    }
}

/// What takes its subscriptions away. Nothing is done on other servers.
pub fn unsubscribe(engine: &dyn Engine) -> Vec<Statement> {
    let mut statements = engine.end_subscriptions();
    statements.push(server::forget_recoveries(None));
    statements.push(server::forget_recovery());
    statements
}

/// Takes the subscriptions of a copy away, and its slots.
pub fn end_replication(engine: &dyn Engine, me: &mut Node) -> Result<()> {
    let recovery = server::all_recovery_slots().on(me)?;
    let mut slots = own_slots(engine, me)?;
    slots.extend(recovery);
    run_all(me, &unsubscribe(engine))?;
    for (slot, _) in present_slots(me, &slots)? {
        drop_slot(me, &slot)?;
    }
    Ok(())
}

/// Where the server of the node is, for people.
pub fn place_of(node: &mut Node) -> Result<String> {
    let place = server::place().one(node)?;
    Ok(match node.session {
        Session::Remote(_) => format!("{}, {place}", node.dsn.redacted()),
        Session::Local(_) | Session::Reader(_) => format!("{}, {place}", place::host()),
    })
}
