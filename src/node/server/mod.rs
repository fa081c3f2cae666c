//! What every engine asks of a PostgreSQL server, by what it is about.

mod contents;
mod facts;
mod locks;
mod origins;
mod replay;
mod retained;
mod sessions;
mod settings;
mod slots;
mod subscriptions;
mod unfinished;
mod wal;

pub use contents::*;
pub use facts::*;
pub use locks::*;
pub use origins::*;
pub use replay::*;
pub use retained::*;
pub use sessions::*;
pub use settings::*;
pub use slots::*;
pub use subscriptions::*;
pub use unfinished::*;
pub use wal::*;
