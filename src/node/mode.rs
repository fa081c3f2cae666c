//! The session on this server, whoever asks: a CALL, which changes things, or a function, which looks.

use super::{Local, Reader, Session};

#[derive(Clone)]
pub enum Mode {
    Execute(Local),
    DryRun(Reader),
}

impl Mode {
    pub fn session(&self) -> Session {
        match self {
            Self::Execute(local) => Session::Local(local.clone()),
            Self::DryRun(reader) => Session::Reader(reader.clone()),
        }
    }

    /// Whether something is going to be changed.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Execute(_))
    }
}
