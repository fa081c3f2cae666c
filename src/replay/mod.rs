//! Transactions of one node, read from what another node has kept of them, as statements for a third.

mod applier;
pub mod content;
pub mod pgoutput;
#[cfg(test)]
mod properties;
mod reader;
mod source;
mod spock_output;
mod statements;

pub use applier::Applier;
pub use source::{Decoding, Protocol, Transactions};
pub use statements::{Catalog, Rendering};
