//! The session on this server: SPI inside the running procedure.

use super::queryable::Queryable;
use super::{Procedure, procedure};
use crate::error::Result;
use crate::libpq::{Rows, wait};
use std::cell::RefCell;
use std::rc::Rc;

/// A handle on the running procedure, shared by everything in the run that works locally.
#[derive(Clone)]
pub struct Local(Rc<RefCell<Procedure>>);

impl Local {
    pub fn new(procedure: Procedure) -> Self {
        Self(Rc::new(RefCell::new(procedure)))
    }

    /// Runs and commits one statement.
    pub fn query(&self, sql: &str, params: &[&str]) -> Result<Rows> {
        wait::without_echo(|| self.0.borrow_mut().execute(sql, params))
    }

    /// Runs and commits `body` with the rights of `owner` and no others.
    pub fn act_as<T>(
        &self,
        owner: u32,
        search_path: &str,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let owner = pgrx::pg_sys::Oid::from(owner);
        wait::without_echo(|| self.0.borrow_mut().act_as(owner, search_path, body))
    }

    /// Runs and commits one statement with the rights of `owner` and no others.
    pub fn query_as(&self, owner: u32, search_path: &str, sql: &str) -> Result<Rows> {
        self.act_as(owner, search_path, || procedure::run(sql, &[], false))
    }
}

impl Queryable for &Local {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query(sql, params)
    }
}

/// The OID of the database of this session.
pub fn own_database() -> u32 {
    // SAFETY: set when the backend starts.
    unsafe { pgrx::pg_sys::MyDatabaseId }.to_u32()
}
