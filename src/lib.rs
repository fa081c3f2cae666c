//! zodan adds, removes and recovers nodes of a running multi-master cluster, from SQL.

use pgrx::prelude::*;
use zodan_core::{lsn, quote};

mod copy;
mod encoding;
mod engine;
mod environment;
mod ereport;
mod error;
mod failpoint;
mod libpq;
mod node;
mod place;
mod progress;
mod replay;
mod run;
mod settings;
mod sql_api;
mod sqlstate;
mod worker;
mod workflow;

::pgrx::pg_module_magic!(name, version);

/// The SQL of the extension, each file after the one before it.
macro_rules! sql_files {
    ($file:literal as $name:literal, $($rest:tt)+) => {
        extension_sql_file!($file, name = $name, bootstrap);
        sql_files!(after $name: $($rest)+);
    };
    (after $before:literal: $file:literal as $name:literal,) => {
        extension_sql_file!($file, name = $name, requires = [$before], finalize);
    };
    (after $before:literal: $file:literal as $name:literal, $($rest:tt)+) => {
        extension_sql_file!($file, name = $name, requires = [$before]);
        sql_files!(after $name: $($rest)+);
    };
}

sql_files! {
    "../sql/schema.sql" as "schema",
    "../sql/native.sql" as "native",
    "../sql/progress.sql" as "progress",
    "../sql/membership.sql" as "membership",
    "../sql/sequences.sql" as "sequences",
    "../sql/add_node.sql" as "add_node",
    "../sql/remove_node.sql" as "remove_node",
    "../sql/status.sql" as "status",
    "../sql/health.sql" as "health",
    "../sql/recovery.sql" as "recovery",
    "../sql/former_node.sql" as "former_node",
    "../sql/own_tables.sql" as "own_tables",
    "../sql/plan.sql" as "plan",
    "../sql/last_update.sql" as "last_update",
    "../sql/refresh.sql" as "refresh",
    "../sql/verify.sql" as "verify",
}

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
    place::watch_apply_workers();
    sql_api::start_launcher();
}
