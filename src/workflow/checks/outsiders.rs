//! Replication with the world outside of the cluster.

use super::every_member::EveryMember;
use crate::engine::{self, Outlet, names};
use crate::error::{Finding, Result, SqlState};
use crate::node::server;
use crate::quote::ident;
use crate::workflow::findings::Check;

/// Publications of others that would send zodan's own records, and who may read them. The records hold connection
/// strings, and a reader that has no such tables stops at the first of their rows.
pub fn publications(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let Some(tables) = all.engine.published_tables() else {
        return Ok(());
    };
    let plugin = all.engine.plugin();
    for (node, outlets) in all.answers(check, &tables.outlets(), true)? {
        let own = |slot: &str| {
            let paths = all.paths.iter().filter(|p| p.provider == node);
            slot.starts_with(names::RECOVERY_SLOTS) || paths.into_iter().any(|p| p.slot == slot)
        };
        let (mut sending, mut reading, mut unfiltered) = (vec![], vec![], vec![]);
        for outlet in outlets {
            match outlet {
                Outlet::Publication { name, all_tables } => sending.push((name, all_tables)),
                Outlet::Slot { name, .. } if own(&name) => {}
                Outlet::Slot {
                    name,
                    plugin: of_it,
                } if of_it == plugin => reading.push(name),
                // It sends replication sets.
                Outlet::Slot { plugin, .. } if engine::filters_tables(&plugin) => {}
                Outlet::Slot { name, plugin } => unfiltered.push(format!("{name} ({plugin})")),
            }
        }
        if sending.is_empty() && unfiltered.is_empty() {
            check.pass(&node, "");
        }
        for (name, all_tables) in sending {
            let publication = ident(&name);
            let what = match all_tables {
                true => "is for all tables",
                false => "has tables of schema zodan",
            };
            let hint = format!(
                "Make it a publication of what others are to have: DROP PUBLICATION {publication}; CREATE PUBLICATION {publication} FOR TABLES IN SCHEMA ..."
            );
            let records = "zodan's own records, which hold connection strings";
            let finding = |message| {
                Finding::new(
                    &node,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    message,
                    hint.as_str(),
                )
            };
            match reading.is_empty() {
                true => check.warn(finding(format!(
                    "publication {publication} {what}: who reads it is sent {records}"
                ))),
                false => check.fail(finding(format!(
                    "publication {publication} {what}: the reader of slot {} may be sent {records}, and stop for lack of such tables",
                    reading.join(", ")
                ))),
            }
        }
        if !unfiltered.is_empty() {
            check.warn(Finding::warning(
                &node,
                format!(
                    "slot {} is sent all tables, also zodan's own records, which hold connection strings",
                    unfiltered.join(", ")
                ),
                "Have its reader leave out schema zodan.",
            ));
        }
    }
    Ok(())
}

/// Subscriptions that are not the cluster's. What they bring stays where it arrives: members send on only what was
/// written on them.
pub fn subscriptions(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let question = server::subscriptions();
    for (node, mut names) in all.answers(check, &question, true)? {
        let own = |name: &str| {
            let mut paths = all.paths.iter().filter(|p| p.subscriber == node);
            paths.any(|p| p.subscription == name)
        };
        names.retain(|name| !own(name));
        match names.is_empty() {
            true => check.pass(&node, "none"),
            false => check.warn(Finding::warning(
                &node,
                format!(
                    "subscription {} brings rows from outside of the cluster, which no other member gets",
                    names.join(", ")
                ),
                "Give every member such a subscription of its own, or end it.",
            )),
        }
    }
    Ok(())
}
