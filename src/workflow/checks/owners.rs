//! Whether rows can be applied with the rights of the owners of their tables, which is how PostgreSQL's apply
//! workers do it.

use super::every_member::EveryMember;
use crate::engine::questions;
use crate::error::{Finding, Result, SqlState};
use crate::libpq::Row;
use crate::quote::{ident, qualified};
use crate::workflow::findings::Check;
use std::collections::{BTreeMap, BTreeSet};

pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    if !all.engine.uses_logical_workers() {
        return Ok(());
    }
    let mut exempt = BTreeMap::new();
    for (node, rows) in all.answers(check, &questions::owners(), false)? {
        let mut found = false;
        for row in &rows {
            if row.bool(7) {
                let key = [0, 1, 3, 5].map(|column| row.text(column).to_owned());
                exempt.insert(key, row.clone());
            } else {
                check.fail(finding(&node, row));
                found = true;
            }
        }
        if !found {
            check.pass(&node, "");
        }
    }
    if exempt.is_empty() {
        return Ok(());
    }
    let roles: BTreeSet<&str> = exempt.values().map(|row| row.text(2)).collect();
    let question = questions::attributes(roles);
    for (node, rows) in all.answers(check, &question, true)? {
        for row in exempt.values() {
            let column = if row.text(3) == "security" { 2 } else { 1 };
            // A role that is not there yet is told of elsewhere.
            let lacks = |role: &Row| role.text(0) == row.text(2) && !role.bool(column);
            if rows.iter().any(lacks) {
                check.fail(finding(&node, row));
            }
        }
    }
    Ok(())
}

fn finding(node: &str, row: &Row) -> Finding {
    let (table, owner) = (qualified(row.text(0), row.text(1)), ident(row.text(2)));
    let finding =
        |message, hint| Finding::new(node, SqlState::INSUFFICIENT_PRIVILEGE, message, hint);
    let finding = match row.text(3) {
        "security" => finding(
            format!(
                "table {table} forces row-level security on its owner, role {owner}, with whose rights its rows are applied"
            ),
            format!(
                "On every node: ALTER ROLE {owner} BYPASSRLS, or ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY."
            ),
        ),
        "function" => finding(
            format!(
                "{} of table {table} calls {}, which the owner of the table, role {owner}, may not execute; its rows are applied with the owner's rights",
                row.text(4),
                row.text(5)
            ),
            format!("On every node: {}.", row.text(6)),
        ),
        _ => finding(
            format!(
                "the owner of table {table}, role {owner}, has not the privileges {} on it that others have; its rows are applied with the owner's rights",
                row.text(5)
            ),
            format!("On every node: {}.", row.text(6)),
        ),
    };
    match row.get(6) {
        Some(statement) => finding.fixed_by(statement),
        None => finding,
    }
}
