//! What the scenario tests share, by subject; here what has none of its own.

// Cargo compiles this into each of the test programs, and each uses its part. One program of all tests would not need
// it, but could not run a suite by its name.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod call;
pub mod engines;
pub mod faults;
pub mod fingerprint;
pub mod gate;
pub mod joining;
pub mod plan;
pub mod recovery;
pub mod refused;
pub mod removal;
pub mod writers;

pub use call::{Call, Running, assert_failed, assert_findings};
pub use faults::Hang;
pub use fingerprint::{Fingerprint, fingerprint, fingerprint_meanwhile};
pub use writers::{
    CHASED_TABLE, StopOnDrop, insert_and_change, while_nodes_change_each_others_rows,
};

use lab::postgres::Client;
use lab::{Server, ServerOptions, quote_literal};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How often a condition is looked at that no server can be asked for.
pub const POLL: Duration = Duration::from_millis(5);

/// How many apply workers a server has. Before PostgreSQL 17 they are called otherwise.
pub const APPLY_WORKERS: &str = "
SELECT count(*) FROM pg_stat_activity
 WHERE backend_type IN ('logical replication apply worker', 'logical replication worker')";

/// What a CALL that waits for another node shows as its wait event: before PostgreSQL 17 the server's own word.
pub const WAITS_FOR_ANOTHER: &str = "'ZodanRemote', 'Extension'";

/// Servers whose subscriptions come back at once after a restart of their provider.
pub fn quick() -> ServerOptions {
    ServerOptions::default().set("wal_retrieve_retry_interval", "100ms")
}

/// How often a test repeats what may go wrong now and then: `few`, or what the environment says.
pub fn rounds(few: usize) -> usize {
    match std::env::var("ZODAN_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("ZODAN_ROUNDS is a number"),
        Err(_) => few,
    }
}

/// The rows of a query, columns joined by a bar, null as nothing.
pub fn table(server: &Server, query: &str) -> Vec<String> {
    let line = |row: Vec<Option<String>>| {
        let cells: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        cells.join("|")
    };
    server.rows(query).into_iter().map(line).collect()
}

/// Waits until the log of the server has `text`.
pub fn wait_logged(server: &Server, text: &str) {
    let log = quote_literal(&server.log_path().display().to_string());
    let text = quote_literal(text);
    server.wait_for(
        &format!("SELECT strpos(pg_read_file({log}), {text}) > 0"),
        "t",
    );
}

/// Writes a file that only the servers' account may read: libpq ignores a password file that others could
/// read, and a server does so with its key.
pub fn write_private(file: &Path, text: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    fs::write(file, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("make it private");
    let owner = fs::metadata(file.parent().expect("a directory")).expect("look at the directory");
    chown(file, Some(owner.uid()), Some(owner.gid())).expect("give it to the servers' account");
}

/// A transaction with an id, which the creation of a slot on the same server has to wait for.
pub fn open_writer(server: &Server) -> Client {
    let mut writer = server.client_named("writer");
    writer
        .batch_execute("BEGIN; SELECT pg_current_xact_id()")
        .expect("open a write transaction");
    writer
}

/// Waits until every subscription of `servers` has a worker that is connected.
pub fn wait_mesh(servers: &[&Server]) {
    let expected = servers.len() - 1;
    for server in servers {
        server.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND relid IS NULL",
            &expected.to_string(),
        );
    }
}

/// Waits until the product has no session and no worker on `servers` any more. A session ends a moment
/// after the one that had opened it.
pub fn wait_no_sessions(servers: &[&Server]) {
    for server in servers {
        server.wait_for(
            "SELECT count(*) FROM pg_stat_activity
              WHERE pid <> pg_backend_pid() AND (application_name LIKE 'zodan%' OR backend_type LIKE 'zodan%')
                AND application_name NOT LIKE 'zodan node worker%' AND backend_type NOT LIKE 'zodan %'",
            "0",
        );
    }
}

/// The runs in the journals of `servers`, which a refusal does not add to.
pub fn runs(servers: &[&Server]) -> Vec<Vec<Option<String>>> {
    servers
        .iter()
        .flat_map(|server| {
            server.rows("SELECT to_jsonb(r), (SELECT count(*) FROM zodan.step) FROM zodan.run r ORDER BY id")
        })
        .collect()
}
