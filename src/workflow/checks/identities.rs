//! Whether updates and deletes of every table can be told to others.

use super::every_member::EveryMember;
use crate::error::{Finding, Result, SqlState};
use crate::workflow::findings::Check;

/// A source that becomes a node is given what is missing, so there only what cannot be mended fails. In a cluster
/// it fails where updates would stop those who apply them; where updates fail by themselves, applications know.
pub fn check(all: &mut EveryMember, check: &mut Check) -> Result<()> {
    let (unsent, mixed) = all.unsent();
    let Some(tables) = all.engine.published_tables() else {
        return Ok(());
    };
    for (node, unfit) in all.answers(check, &tables.unfit_identities(unsent), false)? {
        let mut fit = true;
        for unfit in unfit {
            let table = &unfit.table;
            let finding = match &unfit.becomes {
                Some(_) if all.bootstrapping => continue,
                Some(becomes) => Finding::new(
                    &node,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    match unfit.stops_apply {
                        true => format!("updates and deletes of table {table} stop those who apply them"),
                        false => format!(
                            "table {table} has no replica identity, so updates and deletes of it fail"
                        ),
                    },
                    format!("Make its replica identity {becomes}, on every member."),
                )
                .fixed_by(unfit.statement.as_str()),
                None => Finding::new(
                    &node,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("table {table} {}", unfit.why),
                    unfit.hint(),
                ),
            };
            fit = false;
            match all.bootstrapping || unfit.stops_apply || mixed && unfit.generated {
                true => check.fail(finding),
                false => check.warn(finding),
            }
        }
        if fit {
            check.pass(&node, "");
        }
    }
    Ok(())
}
