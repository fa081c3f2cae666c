//! Whether rows can be applied with the rights of the owners of their tables, which is how PostgreSQL's apply
//! workers do it.

use super::every_member::EveryMember;
use crate::engine::{Obstacle, OwnersRights, RoleAttributes};
use crate::error::{Finding, Result, SqlState};
use crate::quote::{ident, qualified};
use crate::workflow::findings::Check;
use std::collections::{BTreeMap, BTreeSet};

pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let Some(tables) = all.engine.published_tables() else {
        return Ok(());
    };
    let mut exempt = BTreeMap::new();
    for (node, unfit) in all.answers(check, &tables.owners_rights(), false)? {
        let mut found = false;
        for unfit in unfit {
            if unfit.is_exempt {
                let what = (unfit.schema.clone(), unfit.table.clone());
                let key = (what, unfit.obstacle.clone());
                exempt.insert(key, unfit);
            } else {
                check.fail(finding(&node, &unfit));
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
    let roles: BTreeSet<&str> = exempt.values().map(|e| e.owner.as_str()).collect();
    let question = tables.role_attributes(&roles.into_iter().collect::<Vec<_>>());
    for (node, roles) in all.answers(check, &question, true)? {
        for exempt in exempt.values() {
            // A role that is not there yet is told of elsewhere.
            let lacks = |role: &RoleAttributes| {
                let fits = match exempt.obstacle {
                    Obstacle::Security => role.passes_row_security,
                    _ => role.is_superuser,
                };
                role.role == exempt.owner && !fits
            };
            if roles.iter().any(lacks) {
                check.fail(finding(&node, exempt));
            }
        }
    }
    Ok(())
}

fn finding(node: &str, unfit: &OwnersRights) -> Finding {
    let table = qualified(&unfit.schema, &unfit.table);
    let owner = ident(&unfit.owner);
    let grant = || {
        let statement = unfit.statement.as_deref().unwrap_or_default();
        format!("On every node: {statement}.")
    };
    let finding =
        |message, hint| Finding::new(node, SqlState::INSUFFICIENT_PRIVILEGE, message, hint);
    let finding = match &unfit.obstacle {
        Obstacle::Security => finding(
            format!(
                "table {table} forces row-level security on its owner, role {owner}, with whose rights its rows are applied"
            ),
            format!(
                "On every node: ALTER ROLE {owner} BYPASSRLS, or ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY."
            ),
        ),
        Obstacle::Function { what, function } => finding(
            format!(
                "{what} of table {table} calls {function}, which the owner of the table, role {owner}, may not execute; its rows are applied with the owner's rights"
            ),
            grant(),
        ),
        Obstacle::Privileges(privileges) => finding(
            format!(
                "the owner of table {table}, role {owner}, has not the privileges {privileges} on it that others have; its rows are applied with the owner's rights"
            ),
            grant(),
        ),
    };
    match &unfit.statement {
        Some(statement) => finding.fixed_by(statement.as_str()),
        None => finding,
    }
}
