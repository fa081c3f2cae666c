//! A run: its steps, what they leave behind, the journal of both, and who continues or undoes it if it is interrupted.

pub mod action;
pub mod interrupted;
mod journal;
mod plan;
pub mod revert;

pub use action::{Act, Action};
pub use interrupted::{Command, Interrupted};
pub use journal::{Announced, Begun, Journal, RunHeader, RunState, Running};
pub use plan::{Plan, Step};
