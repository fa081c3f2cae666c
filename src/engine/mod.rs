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

/// The engine that the source's cluster replicates with.
pub fn detect(source: &mut Node) -> Result<Box<dyn Engine>> {
    Ok(match spock::is_node(source)? {
        true => Box::new(spock::Spock::default()),
        false => Box::new(native::Native::default()),
    })
}

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
