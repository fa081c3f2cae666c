//! From where on the recovery slot of a node keeps the transactions of each provider.

use crate::lsn::Lsn;
use crate::node::{Query, Statement};

/// The node's records of what its recovery slot keeps, of the members that there are.
pub fn keep_recovery_of(members: &[String]) -> Statement {
    let members = serde_json::to_string(members).unwrap_or_default();
    Statement::new(
        "DELETE FROM zodan.recovery_slot USING zodan.unreplicated()
          WHERE NOT ($1::jsonb ? provider)",
        &[&members],
    )
}

/// None of them is true any more.
pub fn forget_recovery() -> Statement {
    Statement::new(
        "DELETE FROM zodan.recovery_slot USING zodan.unreplicated()",
        &[],
    )
}

/// Notes from where on the slot keeps each provider's transactions. Without `moved` only of those of which
/// nothing is known.
pub fn protect(progress: &std::collections::BTreeMap<String, Lsn>, moved: bool) -> Statement {
    let progress: std::collections::BTreeMap<&String, String> = progress
        .iter()
        .map(|(p, lsn)| (p, lsn.to_string()))
        .collect();
    let progress = serde_json::to_string(&progress).unwrap_or_default();
    let conflict = match moved {
        true => {
            "UPDATE SET retained_from = excluded.retained_from, changed_at = clock_timestamp()
              WHERE zodan.recovery_slot.retained_from < excluded.retained_from"
        }
        false => "NOTHING",
    };
    Statement::new(
        format!(
            "INSERT INTO zodan.recovery_slot (provider, retained_from)
             SELECT key, value::pg_lsn FROM jsonb_each_text($1::jsonb), zodan.unreplicated()
             ON CONFLICT (provider) DO {conflict}"
        ),
        &[&progress],
    )
}

/// Notes that something had to be given up.
pub fn record_gap(why: &str) -> Statement {
    Statement::new(
        "UPDATE zodan.recovery_slot SET gap_since = clock_timestamp(), gap_reason = $1
           FROM zodan.unreplicated()",
        &[why],
    )
}

/// Nothing that was given up is lacking anywhere any more.
pub fn clear_gap() -> Statement {
    Statement::new(
        "UPDATE zodan.recovery_slot SET gap_since = NULL, gap_reason = NULL
           FROM zodan.unreplicated() WHERE gap_since IS NOT NULL",
        &[],
    )
}

/// From where on the node's recovery slot has the transactions of `provider`; null if it is not known.
pub fn retained_from(provider: &str) -> Query<Option<Lsn>> {
    Query::new(
        "SELECT retained_from FROM zodan.recovery_slot WHERE provider = $1",
        &[provider],
        |row| row.only(),
    )
}
