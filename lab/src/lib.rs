//! Throw-away PostgreSQL clusters: what the scenario tests, the demo and the benchmarks stand on.
//!
//! Every server is a real one, started from the binaries that `ZODAN_PG_CONFIG` (else `PG_CONFIG`, else
//! `pg_config` on the PATH) names. It is private, costs a fraction of a second, and dies with the process
//! that started it.
//!
//! ```no_run
//! use lab::{Cluster, Load, add_node, assert_same_content, wait_quiet};
//!
//! let cluster = Cluster::start(4);
//! cluster.form_mesh(3, lab::load::SCHEMA);
//! let load = Load::start(&cluster.first(3));
//! load.wait_commits(100);
//! add_node(cluster.n(4), "n4", cluster.n(1), "n1").unwrap();
//! let report = load.stop();
//! assert!(report.failures.is_empty(), "{report}");
//! wait_quiet(&cluster.first(4));
//! assert_same_content(&cluster.first(4));
//! report.assert_present_on(cluster.n(4));
//! ```
//!
//! Anything that goes wrong in the lab itself panics with the reason: a test has nothing better to do with it.

pub mod clock;
pub mod cluster;
pub mod digest;
pub mod dirs;
pub mod extension;
pub mod load;
pub mod network;
mod parallel;
pub mod pg;
mod ports;
pub mod proxy;
pub mod quiet;
pub mod schema;
pub mod server;
mod spawn;
pub mod spock;
mod template;

pub use cluster::{Cluster, add_node};
pub use digest::{assert_same_content, digest};
pub use load::{Load, Report};
pub use network::Network;
pub use postgres;
pub use quiet::{wait_quiet, wait_quiet_within};
pub use server::{
    Auth, CallFailed, Called, Notice, Psql, Server, ServerOptions, explain, quote_literal,
};
