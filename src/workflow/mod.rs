//! What happens, and in which order. No SQL text and no libpq call in here: what a statement says is
//! the business of `engine` and `node`.

mod checks;
mod clocks;
mod cluster;
mod division;
mod estimate;
pub mod findings;
pub mod health;
mod hold;
pub mod join;
pub mod last_update;
mod liveness;
mod lost_wal;
mod markers;
pub mod members;
mod membership;
mod name_conflicts;
pub mod node_copy;
pub mod node_worker;
mod pause;
pub mod plan;
mod readers;
pub mod recover;
pub mod refresh;
mod refusal;
mod registries;
pub mod remove;
pub mod removed;
mod report;
pub mod status;
mod summary;
mod topology;
mod undo;
mod unfinished;
pub mod verify;

pub use members::own_session;
