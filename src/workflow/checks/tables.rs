//! Whether the members have the same tables, columns and types: a row that a member has no place for stops its
//! replication, and the new node gets what the source has.

use super::every_member::{EveryMember, some};
use crate::engine::Structure;
use crate::error::{Finding, Result, SqlState};
use crate::workflow::findings::Check;
use std::collections::BTreeMap;

pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let Some(tables) = all.engine.published_tables() else {
        return Ok(());
    };
    // Only where the digests differ anybody asks for more.
    let digests = all.answers(check, &tables.structure_digest(), false)?;
    if digests.windows(2).all(|two| two[0].1 == two[1].1) {
        for (node, _) in &digests {
            check.pass(node, "");
        }
        return Ok(());
    }
    let lines = all.answers(check, &tables.structure(), false)?;
    let Some(((first, there), others)) = lines.split_first() else {
        return Ok(());
    };
    let mut findings = vec![];
    for (node, here) in others {
        differences((first, there), (node, here), &mut findings);
    }
    check.record_all(lines.iter().map(|(node, _)| node.as_str()), findings);
    Ok(())
}

/// What the name of a key begins with.
const KEY: &str = "the key of";

type Side<'a> = (&'a String, &'a [Structure]);

fn differences(a: Side, b: Side, findings: &mut Vec<Finding>) {
    let keyed = |lines: &[Structure]| -> BTreeMap<(String, String), String> {
        let line = |line: &Structure| ((line.what.clone(), line.column.clone()), line.is.clone());
        lines.iter().map(line).collect()
    };
    let (theirs, ours) = (keyed(a.1), keyed(b.1));
    for (node, here, other, there) in [(b.0, &ours, a.0, &theirs), (a.0, &theirs, b.0, &ours)] {
        let mut missing = vec![];
        // That a table has no key is told elsewhere.
        let lost = |(what, _): &&(String, String)| !what.starts_with(KEY);
        let lost = there.keys().filter(lost);
        for (table, column) in lost.filter(|key| !here.contains_key(*key)) {
            let has_table = here.keys().any(|(t, _)| t == table);
            match has_table {
                true => missing.push(format!("column {column} of {table}")),
                false if missing.last() == Some(table) => {}
                false => missing.push(table.clone()),
            }
        }
        if !missing.is_empty() {
            findings.push(different(
                node,
                format!("{}: missing here, node \"{other}\" has it", some(&missing)),
            ));
        }
    }
    let mut others = vec![];
    for ((what, column), is) in &ours {
        let Some(was) = theirs.get(&(what.clone(), column.clone())) else {
            continue;
        };
        if is != was {
            others.push(match column.is_empty() {
                true => format!("{what} has {is}, on node \"{}\" {was}", a.0),
                false => format!(
                    "column {column} of {what} is {is}, on node \"{}\" {was}",
                    a.0
                ),
            });
        }
    }
    if !others.is_empty() {
        findings.push(different(b.0, some(&others)));
    }
}

fn different(node: &str, message: String) -> Finding {
    Finding::new(
        node,
        SqlState::NOT_IN_PREREQUISITE_STATE,
        message,
        "Give all members the same tables, columns and types; what a member has no place for stops its replication.",
    )
}
