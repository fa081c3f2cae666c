//! Whether every subscription knows every table that its provider sends: what it does not know it leaves out
//! without a word. A table or partition that was created on all members is not known before a refresh.

use super::every_member::{EveryMember, some};
use crate::engine::{Engine, Path, questions};
use crate::error::{Finding, Result, SqlState};
use crate::libpq::Rows;
use crate::workflow::findings::Check;
use std::collections::BTreeSet;

pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    if all.paths.is_empty() || !all.engine.uses_logical_workers() {
        return Ok(());
    }
    // Only where the digests differ anybody asks for more.
    let digests = all.answers(check, &questions::subscribed_digest(), false)?;
    let digest = |node: &str, subscription: &str| -> Option<&str> {
        let (_, rows) = digests.iter().find(|(name, _)| name == node)?;
        let row = rows.iter().find(|row| row.text(0) == subscription)?;
        Some(row.text(1))
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
        let lines = all.answers(check, &questions::subscribed(), false)?;
        let of = |name: &str| {
            lines
                .iter()
                .find(|(node, _)| node == name)
                .map(|(_, rows)| rows)
        };
        for path in &suspect {
            if let (Some(there), Some(here)) = (of(&path.provider), of(&path.subscriber)) {
                look(all.engine, path, there, here, &mut findings);
            }
        }
    }
    check.record_all(digests.iter().map(|(node, _)| node.as_str()), findings);
    Ok(())
}

fn look(engine: &dyn Engine, path: &Path, there: &Rows, here: &Rows, findings: &mut Vec<Finding>) {
    let tables = |rows: &Rows, subscription: &str| -> BTreeSet<String> {
        let of = rows.iter().filter(|row| row.text(0) == subscription);
        of.filter_map(|row| row.get(1).map(str::to_owned)).collect()
    };
    let (sent, known) = (tables(there, ""), tables(here, &path.subscription));
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
                Some(refresh) => finding.fixed_by(refresh.inlined()),
                None => finding,
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
    let copying = here
        .iter()
        .filter(|row| row.text(0) == *subscription && row.get(2) == Some("f"))
        .map(|row| row.text(1).to_owned());
    tell(
        copying.collect(),
        "copies tables by itself".into(),
        "Rows that are there already stop such a copy. Wait for its end, or empty these tables on that node.",
    );
}
