//! Transactions of one node, read from what another node has kept of them, as statements for a third.

mod applier;
pub mod as_owner;
pub mod commit_position;
pub mod content;
pub mod share;
mod source;
mod statements;

pub use applier::Applier;
pub use source::{Decoding, Protocol, Transactions};
pub use statements::{About, Catalog, Rendering};
