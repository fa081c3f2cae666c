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

extension_sql_file!("../sql/schema.sql", name = "schema", bootstrap);
extension_sql_file!("../sql/native.sql", name = "native", requires = ["schema"]);
extension_sql_file!(
    "../sql/progress.sql",
    name = "progress",
    requires = ["schema"]
);
extension_sql_file!(
    "../sql/membership.sql",
    name = "membership",
    requires = ["native"]
);
extension_sql_file!(
    "../sql/sequences.sql",
    name = "sequences",
    requires = ["membership"]
);
extension_sql_file!(
    "../sql/add_node.sql",
    name = "add_node",
    requires = ["sequences", "progress"]
);
extension_sql_file!(
    "../sql/remove_node.sql",
    name = "remove_node",
    requires = ["add_node"]
);
extension_sql_file!(
    "../sql/status.sql",
    name = "status",
    requires = ["remove_node"]
);
extension_sql_file!("../sql/health.sql", name = "health", requires = ["status"]);
extension_sql_file!(
    "../sql/recovery.sql",
    name = "recovery",
    requires = ["remove_node", "health"]
);
extension_sql_file!(
    "../sql/former_node.sql",
    name = "former_node",
    requires = ["schema"]
);
extension_sql_file!(
    "../sql/own_tables.sql",
    name = "own_tables",
    requires = ["recovery", "former_node"]
);
extension_sql_file!("../sql/plan.sql", name = "plan", requires = ["own_tables"]);
extension_sql_file!(
    "../sql/last_update.sql",
    name = "last_update",
    requires = ["recovery"]
);
extension_sql_file!(
    "../sql/refresh.sql",
    name = "refresh",
    requires = ["last_update"]
);
extension_sql_file!(
    "../sql/verify.sql",
    name = "verify",
    requires = ["refresh", "plan"],
    finalize
);

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
    place::watch_apply_workers();
    sql_api::start_launcher();
}
