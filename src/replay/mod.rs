//! Transactions of one node, read from what another node has kept of them, as statements for a third.

pub mod pgoutput;
mod source;
mod statements;

pub use source::{Transaction, Transactions};
pub use statements::{Catalog, Rendering};
