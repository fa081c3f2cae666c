//! What SQL can call: arguments in, checked, and on to the workflow. The declarations are in `sql/`,
//! one file per procedure.

#![allow(clippy::result_large_err)] // the error type is that of pgrx, and made once per call
#![allow(clippy::too_many_arguments, clippy::type_complexity)] // the interface is given, and its columns are types

mod add_node;
mod arguments;
mod entry;
mod health;
mod last_update;
mod launcher;
mod native;
mod plan;
mod progress;
mod recover;
mod recovery_slot;
mod refresh;
mod remove_node;
mod status;
mod verify;

pub use launcher::start_launcher;
