//! Triggers that fire for what replication brings.

use crate::node::Query;
use zodan_core::names::OWN_SCHEMAS;

/// Whether triggers of users fire for what replication brings. What they write has no other origin than what has fired
/// them.
pub fn of_apply() -> Query<bool> {
    Query::new(
        format!(
            "SELECT EXISTS (SELECT FROM pg_trigger t
                          JOIN pg_proc p ON p.oid = t.tgfoid
                          JOIN pg_namespace n ON n.oid = p.pronamespace
                         WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal
                           AND n.nspname NOT IN {OWN_SCHEMAS})"
        ),
        &[],
        |row| row.only(),
    )
}
