//! The session on this server inside a function: it reads, in the caller's transaction.

use super::procedure;
use crate::environment;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Rows;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::marker::PhantomData;

/// The right to read on this server, within one function call.
#[derive(Clone)]
pub struct Reader(PhantomData<*mut ()>);

impl Reader {
    /// Refuses a transaction that has written: what is asked of other servers may wait for it, for ever.
    pub fn enter(function: &str) -> Result<Self> {
        // SAFETY: reads backend state.
        if unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId {
            return Err(Error::refused(
                SqlState::ACTIVE_SQL_TRANSACTION,
                format!("{function} cannot run in a transaction that has written something"),
                "Commit first, or run it in a session of its own.",
            ));
        }
        Ok(Self(PhantomData))
    }

    pub fn query(&self, sql: &str, params: &[&str]) -> Result<Rows> {
        // An error of the server goes through to the caller: there is nothing to take back.
        // SAFETY: in the transaction of the function.
        Spi::connect(|_| unsafe { environment::within(|| procedure::run(sql, params, true)) })
    }
}
