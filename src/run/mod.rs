//! A run: its steps, what they leave behind, the journal of both, and who continues or undoes it if it is interrupted.

pub mod action;
pub mod effect;
pub mod interrupted;
mod journal;

pub use action::{Action, Step};
pub use effect::Effect;
pub use interrupted::{Command, Interrupted};
pub use journal::{Begun, Journal, RunHeader, RunState};
