//! What zodan decides and names, apart from PostgreSQL: nothing here needs a server, waits or reads a setting. Its tests
//! run in seconds, `cargo test -p zodan-core`.

pub mod copy_plan;
pub mod decoding;
mod error;
pub mod lsn;
pub mod names;
pub mod pace;
pub mod quorum;
pub mod quote;
pub mod registry;
pub mod samples;
pub mod selection;
pub mod sequences;
pub mod sqlstate;
pub mod subscription;
pub mod topology;

pub use error::{Error, Result};
