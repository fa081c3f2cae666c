//! Who reads from a node, or is read by it, and is no member. When a database ceases to be a node, Spock drops every
//! slot of its own that nobody streams from, whoever waits for what is in it, and refuses as long as somebody streams
//! or a subscription is there.

use crate::engine::Path;
use crate::error::{Finding, Result, SqlState};
use crate::libpq::Row;
use crate::node::Node;
use std::collections::{BTreeMap, BTreeSet};

type Paths = BTreeMap<(String, String), Vec<Path>>;

/// The slots of Spock in the database, and whether somebody streams from them.
const SLOTS: &str = "
SELECT s.slot_name, s.active, coalesce(r.application_name, ''), coalesce(r.client_addr::text, '')
  FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
 WHERE s.plugin IN ('spock_output', 'spock') AND s.database = current_database() AND s.slot_name ~ '^spk_'
   AND s.slot_name !~ '^spk_recovery_'
 ORDER BY 1";

/// The slots on `provider` of all paths that are known.
fn claimed(paths: &Paths, provider: &str) -> BTreeSet<String> {
    let ours = paths.iter().filter(|((from, _), _)| from == provider);
    ours.flat_map(|(_, paths)| paths)
        .map(|path| path.slot.clone())
        .collect()
}

/// Slots of nodes that are no members, and subscriptions to such.
pub fn strangers(paths: &Paths, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
    let claimed = claimed(paths, &leaving.name);
    let mut findings = vec![];
    for row in &leaving.query(SLOTS, &[])? {
        let slot = row.text(0);
        if claimed.contains(slot) {
            continue;
        }
        let what = match row.bool(1) {
            true => format!(
                "{} streams from slot {slot}, and is no member of the cluster",
                reader(row)
            ),
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
    let subscriptions = leaving.query(
        "SELECT s.sub_name, n.node_name
           FROM spock.subscription s
           JOIN spock.local_node l ON l.node_id = s.sub_target
           JOIN spock.node n ON n.node_id = s.sub_origin ORDER BY 1",
        &[],
    )?;
    for row in &subscriptions {
        let (subscription, provider) = (row.text(0), row.text(1));
        if members.iter().any(|m| m == provider) {
            continue;
        }
        findings.push(
            Finding::new(
                &leaving.name,
                SqlState::OBJECT_IN_USE,
                format!(
                    "it has subscription {subscription} to node \"{provider}\", which is no member of the cluster"
                ),
                "Drop the subscription first.",
            )
            .mended_by(format!(
                "SELECT spock.sub_drop({})",
                crate::quote::literal(subscription)
            )),
        );
    }
    Ok(findings)
}

/// Application and address.
fn reader(row: &Row) -> String {
    format!("{} {}", row.text(2), row.text(3))
        .trim_end()
        .to_owned()
}

/// Who streams from `provider` and gets nothing of what is written on a node that joins.
pub fn readers(paths: &Paths, provider: &mut Node) -> Result<Vec<Finding>> {
    let claimed = claimed(paths, &provider.name);
    let rows = provider.query(SLOTS, &[])?;
    let strangers = rows.iter().filter(|row| !claimed.contains(row.text(0)));
    let told = strangers.map(|row| {
        let who = match row.bool(1) {
            true => reader(row),
            false => "somebody who is not connected at the moment".to_owned(),
        };
        Finding::new(
            &provider.name,
            SqlState::OK,
            format!(
                "{who} reads from slot {}, is no member of the cluster, and does not get what is written on the new node",
                row.text(0)
            ),
            "If it is to have all, let it subscribe to the new node too when that has joined.",
        )
    });
    Ok(told.collect())
}

/// Slots that nobody streams from and no known path has.
pub fn unclaimed_slots(paths: &Paths, node: &mut Node) -> Result<Vec<String>> {
    let claimed = claimed(paths, &node.name);
    let rows = node.query(SLOTS, &[])?;
    let left = rows.iter().filter(|row| !row.bool(1));
    let left = left.map(|row| row.text(0).to_owned());
    Ok(left.filter(|slot| !claimed.contains(slot)).collect())
}
