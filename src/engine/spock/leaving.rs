//! What Spock does to others when a database ceases to be a node: it drops every slot of its own that nobody streams
//! from, whoever waits for what is in it, and refuses as long as somebody streams or a subscription is there.

use crate::engine::Path;
use crate::error::{Finding, Result, SqlState};
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
        let who = format!("{} {}", row.text(2), row.text(3));
        let what = match row.bool(1) {
            true => format!(
                "{} streams from slot {slot}, and is no member of the cluster",
                who.trim_end()
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

/// Slots that nobody streams from and no known path has.
pub fn unclaimed_slots(paths: &Paths, node: &mut Node) -> Result<Vec<String>> {
    let claimed = claimed(paths, &node.name);
    let rows = node.query(SLOTS, &[])?;
    let left = rows.iter().filter(|row| !row.bool(1));
    let left = left.map(|row| row.text(0).to_owned());
    Ok(left.filter(|slot| !claimed.contains(slot)).collect())
}
