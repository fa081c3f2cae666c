//! How the values of sequences are divided among members that keep a registry.

use super::SequencePolicy;
use crate::node::Statement;
use crate::quote::literal;
use zodan_core::names::OWN_SCHEMAS;

/// Sequences of the node's users that are not divided in this way: `name, divided in another`.
pub fn undivided(policy: SequencePolicy, parts: i32, part: i32) -> Statement {
    Statement::new(
        format!(
            "SELECT format('%I.%I', n.nspname, c.relname), s.sequence IS NOT NULL
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           LEFT JOIN zodan.sequence s ON s.sequence = c.oid
          WHERE c.relkind = 'S' AND c.relpersistence <> 't'
            AND n.nspname NOT IN {OWN_SCHEMAS} AND n.nspname NOT LIKE 'pg\\_%'
            AND NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.deptype = 'e')
            AND (s.policy, s.parts, s.part) IS DISTINCT FROM ($1, $2::integer, $3::integer)
          ORDER BY 1"
        ),
        &[policy.label(), &parts.to_string(), &part.to_string()],
    )
}

/// Those that are divided: `name, how` as `elsewhere` of [`divide`].
pub fn divided() -> Statement {
    Statement::new(
        "SELECT format('%I.%I', n.nspname, c.relname), to_jsonb(s) - 'sequence'
           FROM zodan.sequence s
           JOIN pg_class c ON c.oid = s.sequence JOIN pg_namespace n ON n.oid = c.relnamespace
          ORDER BY 1",
        &[],
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
