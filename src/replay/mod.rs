//! Transactions of one node, read from what another node has kept of them, as statements for a third.

pub mod content;
pub mod pgoutput;
mod source;
mod statements;

pub use source::{Origin, Transaction, Transactions};
pub use statements::{Catalog, Rendering};
