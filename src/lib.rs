//! zodan adds, removes and recovers nodes of a running multi-master cluster, from SQL.

use pgrx::prelude::*;

mod error;
mod libpq;
mod lsn;
mod node;
mod quote;
mod rim;
mod settings;

::pgrx::pg_module_magic!(name, version);

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
}
