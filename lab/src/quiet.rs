//! Waiting until every node has everything.

use crate::parallel::in_parallel;
use crate::server::{PATIENCE, Server};
use std::time::Duration;

/// The table that [`wait_quiet`] writes its markers to. [`crate::Cluster::form_mesh`] makes it.
pub const SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS lab;
CREATE TABLE IF NOT EXISTS lab.marker (token uuid PRIMARY KEY, node text NOT NULL);
";

/// Waits until each of `servers` has every transaction that committed on any of them before the call.
///
/// Positions would not prove it: a keepalive moves what a subscription has *received*, and nothing moves what
/// it has applied while the provider is idle. So every node commits a marker after everything else, and the
/// markers are waited for: changes of one origin are applied in the order of their commits.
///
/// The writers must have stopped, and the nodes must all replicate [`SCHEMA`].
pub fn wait_quiet(servers: &[&Server]) {
    wait_quiet_within(servers, PATIENCE);
}

/// [`wait_quiet`] with a deadline of its own.
pub fn wait_quiet_within(servers: &[&Server], patience: Duration) {
    let tokens: Vec<String> = in_parallel(servers, |server| {
        server.value(&format!(
            "INSERT INTO lab.marker VALUES (gen_random_uuid(), {}) RETURNING token",
            crate::quote_literal(server.name())
        ))
    });
    let list: Vec<String> = tokens.iter().map(|token| format!("'{token}'")).collect();
    // The missing nodes by name: that is what the reader of a failed test wants to know first.
    let missing = format!(
        "SELECT coalesce(string_agg(n.name, ', ' ORDER BY n.name), 'none') || ' missing'
           FROM unnest(ARRAY[{}]::uuid[], ARRAY[{}]) AS n(token, name)
          WHERE NOT EXISTS (SELECT FROM lab.marker m WHERE m.token = n.token)",
        list.join(", "),
        servers
            .iter()
            .map(|s| crate::quote_literal(s.name()))
            .collect::<Vec<_>>()
            .join(", ")
    );
    in_parallel(servers, |server| {
        server.wait_for_within(&missing, "none missing", patience);
    });
}
