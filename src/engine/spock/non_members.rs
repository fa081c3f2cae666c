//! Who reads from a node, or is read by it, and is no member. When a database ceases to be a node, Spock drops every
//! slot of its own that nobody streams from, whoever waits for what is in it, and refuses as long as somebody streams
//! or a subscription is there.

use crate::engine::{Path, Provider};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, Row};
use crate::node::{Member, Node, Query};
use std::collections::{BTreeMap, BTreeSet};

type Paths = BTreeMap<(String, String), Vec<Path>>;

/// A slot of Spock, and who streams from it.
struct Slot {
    name: String,
    is_active: bool,
    /// Application and address.
    reader: String,
    /// What others have written is sent too.
    forwards: bool,
}

const SLOTS: &str = include_str!("slots.sql");

/// The slots of Spock in the database.
fn slots(node: &mut Node) -> Result<Vec<Slot>> {
    let slots = Query::new(SLOTS, &[], |row| {
        Ok(Slot {
            name: row.get("slot_name")?,
            is_active: row.get("active")?,
            reader: row.get("reader")?,
            forwards: row.get("forwards")?,
        })
    });
    slots.on(node)
}

/// The slots on `provider` of all paths that are known.
fn claimed(paths: &Paths, provider: &str) -> BTreeSet<String> {
    let ours = paths.iter().filter(|((from, _), _)| from == provider);
    ours.flat_map(|(_, paths)| paths)
        .map(|path| path.slot.clone())
        .collect()
}

/// What the node takes of others.
pub fn providers(node: &mut Node) -> Result<Vec<Provider>> {
    let rows = node.query(
        "SELECT n.node_name, i.if_dsn, s.sub_name, s.sub_enabled,
                coalesce(cardinality(s.sub_forward_origins), 0) > 0 AS forwarded
           FROM spock.subscription s
           JOIN spock.local_node l ON l.node_id = s.sub_target
           JOIN spock.node n ON n.node_id = s.sub_origin
           JOIN spock.node_interface i ON i.if_id = s.sub_origin_if ORDER BY 3",
        &[],
    )?;
    let provider = |row: &Row| {
        let name: String = row.get("node_name")?;
        let dsn = Dsn::parse(row.get("if_dsn")?).map_err(|bad| {
            Error::refused(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("the connection string of node \"{name}\" {}", bad.problem()),
                format!("See spock.node_interface of node \"{}\".", node.name),
            )
        })?;
        Ok(Provider {
            node: Member { name, dsn },
            subscription: row.get("sub_name")?,
            enabled: row.get("sub_enabled")?,
            forwarded: row.get("forwarded")?,
        })
    };
    rows.iter().map(provider).collect()
}

/// Slots of nodes that are no members, and subscriptions to such.
pub fn links(paths: &Paths, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
    let claimed = claimed(paths, &leaving.name);
    let mut findings = vec![];
    for Slot {
        name: slot,
        is_active,
        reader,
        ..
    } in slots(leaving)?
    {
        if claimed.contains(&slot) {
            continue;
        }
        let what = match is_active {
            true => {
                format!("{reader} streams from slot {slot}, and is not a member of the cluster")
            }
            false => format!(
                "slot {slot} is of no member of the cluster, and would be dropped with what its reader has not had yet"
            ),
        };
        findings.push(Finding::new(
            &leaving.name,
            SqlState::OBJECT_IN_USE,
            what,
            "A node that only reads gets nothing any more when this one leaves: drop its subscription first, or the slot if nobody needs it.",
        ));
    }
    for Provider {
        node, subscription, ..
    } in providers(leaving)?
    {
        let provider = node.name;
        if members.contains(&provider) {
            continue;
        }
        findings.push(
            Finding::new(
                &leaving.name,
                SqlState::OBJECT_IN_USE,
                format!(
                    "it has subscription {subscription} to node \"{provider}\", which is not a member of the cluster"
                ),
                "Drop the subscription first.",
            )
            .fixed_by(format!(
                "SELECT spock.sub_drop({})",
                crate::quote::literal(&subscription)
            )),
        );
    }
    Ok(findings)
}

/// Subscriptions of the member to nodes that are none, of which the new node gets nothing.
pub fn sources(member: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
    let outside = providers(member)?.into_iter();
    let outside = outside.filter(|p| !members.contains(&p.node.name));
    let findings = outside.map(|provider| {
        let name = provider.node.name;
        let had = match members.first() == Some(&member.name) {
            true => "the new node gets what is there when it joins, and nothing that comes later",
            false => "the new node gets none of them",
        };
        Finding::new(
            &member.name,
            SqlState::OK,
            format!(
                "subscription {} brings changes of node \"{name}\", which takes none of the cluster's and is not a member: Spock does not send them on, so {had}",
                provider.subscription
            ),
            format!("Where it is to have them, subscribe it to \"{name}\" too when it has joined, and bring what came meanwhile: spock.sub_resync_table."),
        )
    });
    Ok(findings.collect())
}

/// Who streams from `provider` and gets nothing of what is written on a node that joins.
pub fn readers(paths: &Paths, provider: &mut Node) -> Result<Vec<Finding>> {
    let claimed = claimed(paths, &provider.name);
    let slots = slots(provider)?.into_iter();
    let unclaimed = slots.filter(|slot| !claimed.contains(&slot.name) && !slot.forwards);
    let findings = unclaimed.map(|slot| {
        let who = match slot.is_active {
            true => slot.reader,
            false => "somebody who is not connected at the moment".to_owned(),
        };
        Finding::new(
            &provider.name,
            SqlState::OK,
            format!(
                "{who} reads from slot {}, is not a member of the cluster, and does not get what is written on the new node",
                slot.name
            ),
            "If it is to have all, give its connection string in the argument readers, or let it subscribe to the new node too when that has joined.",
        )
    });
    Ok(findings.collect())
}

/// Slots that no known path has, and whether somebody streams from them.
pub fn unclaimed_slots(paths: &Paths, node: &mut Node) -> Result<Vec<(String, bool)>> {
    let claimed = claimed(paths, &node.name);
    let slots = slots(node)?.into_iter().map(|s| (s.name, s.is_active));
    Ok(slots.filter(|(slot, _)| !claimed.contains(slot)).collect())
}
