//! How the values of sequences are divided among members that keep a registry.

use super::SequencePolicy;
use crate::node::{Query, Statement};
use crate::quote::literal;
use serde_json::Value;
use zodan_core::names::OWN_SCHEMAS;

/// A sequence that is not divided as it is to be.
pub struct Undivided {
    pub name: String,
    /// It is divided in another way.
    pub otherwise: bool,
}

/// Sequences of the node's users that are not divided in this way.
pub fn undivided(policy: SequencePolicy, parts: i32, part: i32) -> Query<Undivided> {
    Query::new(
        include_str!("undivided.sql").replace(":own_schemas", OWN_SCHEMAS),
        &[policy.label(), &parts.to_string(), &part.to_string()],
        |row| {
            Ok(Undivided {
                name: row.get("name")?,
                otherwise: row.get("otherwise")?,
            })
        },
    )
}

/// Those that are divided, and how, as `elsewhere` of [`divide`].
pub fn divided() -> Query<(String, Value)> {
    Query::new(
        "SELECT format('%I.%I', n.nspname, c.relname) AS name, to_jsonb(s) - 'sequence' AS division
           FROM zodan.sequence s
           JOIN pg_class c ON c.oid = s.sequence JOIN pg_namespace n ON n.oid = c.relnamespace
          ORDER BY 1",
        &[],
        |row| Ok((row.get("name")?, row.json("division")?)),
    )
}

/// Divides one sequence; `elsewhere` is how it is on the member that was first.
pub fn divide(
    name: &str,
    policy: SequencePolicy,
    parts: i32,
    part: i32,
    elsewhere: Option<&str>,
) -> Statement {
    Statement::new(
        "SELECT zodan.divide_sequence($1::regclass, $2, $3::integer, $4::integer, nullif($5, '')::jsonb)",
        &[
            name,
            policy.label(),
            &parts.to_string(),
            &part.to_string(),
            elsewhere.unwrap_or_default(),
        ],
    )
}

/// The statement that makes sequences what they were.
pub fn restore(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| literal(n)).collect();
    format!(
        "SELECT zodan.restore_sequences(ARRAY[{}]::text[])",
        names.join(", ")
    )
}
