//! Nodes that only read from members and are to get what is written on the new node too.

use super::members;
use crate::engine::{Engine, no_reader};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Node};

/// Opens a session on each, and refuses what is no such node.
pub fn connect(
    engine: &mut dyn Engine,
    dsns: &[Dsn],
    members: &mut [&mut Node],
    new: &mut Node,
) -> Result<Vec<Node>> {
    if dsns.is_empty() {
        return Ok(vec![]);
    }
    if engine.registry().is_some() {
        return Err(Error::Argument {
            argument: "readers",
            problem:
                "is for clusters of Spock: with PostgreSQL's own replication every node is a member"
                    .into(),
            hint: "Leave it out. Who only reads subscribes to the new node by itself.".into(),
            state: SqlState::FEATURE_NOT_SUPPORTED,
        });
    }
    let given: Vec<Member> = dsns
        .iter()
        .enumerate()
        .map(|(i, dsn)| Member {
            name: format!("reader {}", i + 1),
            dsn: dsn.clone(),
        })
        .collect();
    let opened = members::connect_each(&given).into_iter().map(|answer| {
        answer.map_err(|error| {
            members::with_address(error, || "Its address is that of argument readers.".into())
        })
    });
    let mut readers = members::all(given.iter().cloned().zip(opened).collect())?;
    members::require_superuser(&mut readers)?;
    let mut taken = vec![(members::identity(new)?, new.name.clone())];
    for member in members.iter_mut() {
        taken.push((members::identity(member)?, member.name.clone()));
    }
    for reader in &mut readers {
        let Some(name) = engine.local_name(reader)? else {
            return Err(no_reader(
                "a database that is not a cluster node".into(),
                "Give connection strings of nodes that subscribe to members.",
            ));
        };
        let identity = members::identity(reader)?;
        if let Some((_, other)) = taken.iter().find(|(known, _)| *known == identity) {
            return Err(no_reader(
                format!("node \"{other}\", which gets all without that"),
                "Give each node that only reads once, and no others.",
            ));
        }
        if taken.iter().any(|(_, other)| *other == name) {
            return Err(no_reader(
                format!("another node \"{name}\" than the one that is known by that name"),
                "Nodes that exchange changes need names of their own.",
            ));
        }
        reader.name.clone_from(&name);
        taken.push((identity, name));
        engine.load_reader_paths(members, new, reader)?;
    }
    Ok(readers)
}
