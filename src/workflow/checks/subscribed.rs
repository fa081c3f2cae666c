//! Whether every subscription knows every table that its provider sends: what it does not know it leaves out
//! without a word. A table or partition that was created on all members is not known before a refresh.

use super::every_member::{EveryMember, some};
use crate::engine::{Engine, Path, SubscribedTable};
use crate::error::{Finding, Result, SqlState};
use crate::workflow::findings::Check;
use std::collections::BTreeSet;

pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let Some(tables) = all
        .engine
        .published_tables()
        .filter(|_| !all.paths.is_empty())
    else {
        return Ok(());
    };
    // Only where the digests differ anybody asks for more.
    let digests = all.answers(check, &tables.subscribed_digests(), false)?;
    let digest = |node: &str, subscription: &str| -> Option<&str> {
        let (_, of_node) = digests.iter().find(|(name, _)| name == node)?;
        let found = of_node.iter().find(|d| d.subscription == subscription)?;
        Some(found.digest.as_str())
    };
    // That there is no subscription, or that somebody cannot be asked, has a check of its own.
    let differ = |path: &Path| {
        let sent = digest(&path.provider, "");
        let known = digest(&path.subscriber, &path.subscription);
        sent.is_some() && known.is_some() && sent != known
    };
    let suspect: Vec<Path> = all.paths.iter().filter(|p| differ(p)).cloned().collect();
    let mut findings = vec![];
    if !suspect.is_empty() {
        let lines = all.answers(check, &tables.subscribed_tables(), false)?;
        let of = |name: &str| {
            lines
                .iter()
                .find(|(node, _)| node == name)
                .map(|(_, tables)| tables.as_slice())
        };
        for path in &suspect {
            if let (Some(of_provider), Some(of_subscriber)) =
                (of(&path.provider), of(&path.subscriber))
            {
                look(all.engine, path, of_provider, of_subscriber, &mut findings);
            }
        }
    }
    check.record_all(digests.iter().map(|(node, _)| node.as_str()), findings);
    Ok(())
}

fn look(
    engine: &dyn Engine,
    path: &Path,
    of_provider: &[SubscribedTable],
    of_subscriber: &[SubscribedTable],
    findings: &mut Vec<Finding>,
) {
    let tables = |all: &[SubscribedTable], subscription: &str| -> BTreeSet<String> {
        let of = all.iter().filter(|t| t.subscription == subscription);
        of.filter_map(|t| t.table.clone()).collect()
    };
    let (sent, known) = (
        tables(of_provider, ""),
        tables(of_subscriber, &path.subscription),
    );
    let (provider, subscription) = (&path.provider, &path.subscription);
    let mut tell = |names: Vec<String>, what: String, hint: &str| {
        if !names.is_empty() {
            let finding = Finding::new(
                &path.subscriber,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "subscription {subscription} from node \"{provider}\" {what}: {}",
                    some(&names)
                ),
                hint,
            );
            findings.push(match engine.refresh(path) {
                Ok(refresh) => finding.fixed_by(refresh.inlined()),
                Err(_) => finding,
            });
        }
    };
    tell(
        sent.difference(&known).cloned().collect(),
        "leaves out tables that it does not know".into(),
        "CALL spock.refresh_subscriptions(); what was written there before is missing on that node, which spock.verify_nodes() shows.",
    );
    tell(
        known.difference(&sent).cloned().collect(),
        "has tables that its provider does not send".into(),
        "Create them on every member, or drop them; then CALL spock.refresh_subscriptions().",
    );
    let copying = of_subscriber
        .iter()
        .filter(|t| t.subscription == *subscription && t.is_copied)
        .filter_map(|t| t.table.clone());
    tell(
        copying.collect(),
        "copies tables by itself".into(),
        "Rows that are there already stop such a copy. Wait for its end, or empty these tables on that node.",
    );
}
