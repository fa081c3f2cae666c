//! The safe wrapper over libpq. Nothing outside this folder calls a `PQ` function.
//!
//! The rules are those of PostgreSQL's `libpq/libpq-be-fe-helpers.h`: reserve an external file
//! descriptor before connecting, never block inside libpq, wait on our latch *and* the socket, check
//! for interrupts. Beyond them: an interrupt comes back as a value, so that the caller can undo what
//! it did on other nodes before the error is raised; notices are queued inside libpq and raised only
//! after it has returned; and what runs remotely is cancelled when a session is dropped in the middle.

mod batch;
mod cancel;
mod conn;
mod copy_out;
mod dsn;
mod open;
mod pipeline;
pub mod poll;
mod rows;
mod streaming;
pub mod wait;

pub use batch::{Answered, Command, Job, Limit, run_batch};
pub use conn::{Conn, idle_limit, require_alive};
pub use copy_out::{Chunk, CopyOut, Ready};
pub use dsn::{Dsn, scrub};
pub use pipeline::{Param, Pipeline};
pub use rows::{Row, Rows};
