//! What replicates the cluster: what every engine owes the workflow, and the engines.

mod contract;
pub mod division;
mod native;
mod registry;
mod spock;
mod triggers;

pub use contract::*;
pub use registry::{Registry, SequencePolicy, parse_dsn, registered_members};
pub use zodan_core::names;

use crate::error::Result;
use crate::node::Node;
use std::ffi::CStr;

/// The engine that the source's cluster replicates with.
pub fn detect(source: &mut Node) -> Result<Box<dyn Engine>> {
    Ok(match spock::is_node(source)? {
        true => Box::new(spock::Spock::default()),
        false => Box::new(native::Native::default()),
    })
}

/// How a database tells without a session which member it is, and how it reaches itself.
pub struct LocalMember {
    /// Without it it is none.
    pub table: &'static str,
    /// Name and connection string; no row where it is none.
    pub question: &'static str,
}

/// By each engine, the first that knows it.
pub const LOCAL_MEMBER: [LocalMember; 2] = [spock::LOCAL_MEMBER, native::LOCAL_MEMBER];

/// Tables, by schema and name, of which one has a row where the database is a node. That of the native engine gets it near
/// the end of a join.
pub const NODE_TABLES: [(&CStr, &CStr); 2] = [spock::NODE_TABLE, native::NODE_TABLE];

/// The functions of the workers that apply, by engine.
pub const APPLY_WORKERS: [&[&str]; 2] = [&native::APPLY_WORKERS, &spock::APPLY_WORKERS];

/// Whether an output plugin of an engine sends the tables that were chosen for it, and nothing of ours.
pub fn filters_tables(plugin: &str) -> bool {
    plugin == spock::PLUGIN
}

/// The checks that the engines make before a join.
#[cfg(test)]
pub fn all_checks() -> [&'static [EngineCheck]; 2] {
    [&spock::CHECKS, &native::CHECKS]
}

/// And on every member.
#[cfg(test)]
pub fn all_member_checks() -> Vec<MemberCheck> {
    spock::member_checks()
}
