//! `COPY ... TO STDOUT`, a row at a time, never waiting where Ctrl-C could not end it.

use super::conn::PgResult;
use super::{Conn, Rows};
use crate::error::{Error, Result};
use pq_sys as pq;
use pq_sys::ExecStatusType as Status;
use std::ffi::c_char;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

/// A running copy. Dropped before its end, it is cancelled and the session stays usable.
pub struct CopyOut<'a> {
    conn: &'a mut Conn,
    sql: Rc<str>,
    finished: Option<u64>,
    /// Other statements follow in the same message.
    one_of_several: bool,
}

/// Statements that were sent with one message, copies among them. Dropped before its end, what is left of it is cancelled.
pub struct Copies<'a> {
    conn: &'a mut Conn,
    sql: Rc<str>,
}

/// One message of the copy, as libpq received it: a whole row in the text and binary formats.
pub struct Chunk {
    data: NonNull<c_char>,
    len: usize,
}

impl Conn {
    /// Starts `COPY ... TO STDOUT`.
    pub fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        CopyOut::start(self, sql)
    }

    /// Starts several statements. Their rows and copies are taken in their order.
    pub fn copies(&mut self, sql: &str) -> Result<Copies<'_>> {
        self.send(sql, &[])?;
        Ok(Copies {
            conn: self,
            sql: Rc::from(sql),
        })
    }
}

impl Copies<'_> {
    /// The answer of the next statement that is a query.
    pub fn rows(&mut self) -> Result<Rows> {
        self.until(Status::PGRES_TUPLES_OK)
            .map(|result| result.rows())
    }

    /// The next copy, when the one before it has come to its end.
    pub fn next(&mut self) -> Result<CopyOut<'_>> {
        self.until(Status::PGRES_COPY_OUT)?;
        Ok(CopyOut {
            conn: self.conn,
            sql: Rc::clone(&self.sql),
            finished: None,
            one_of_several: true,
        })
    }

    /// All statements are done.
    pub fn end(self) -> Result<()> {
        loop {
            while let Some(interest) = self.conn.flush()? {
                self.conn.wait(interest)?;
            }
            let Some(result) = self.conn.next_result() else {
                return Ok(());
            };
            if result.status() != Status::PGRES_COMMAND_OK {
                return Err(self.conn.remote_error(&result, &self.sql));
            }
        }
    }

    /// Passes over commands.
    fn until(&mut self, wanted: Status) -> Result<PgResult> {
        loop {
            while let Some(interest) = self.conn.flush()? {
                self.conn.wait(interest)?;
            }
            let result = self.conn.next_result();
            let result = result.ok_or_else(|| Error::internal("a statement has no result"))?;
            match result.status() {
                status if status == wanted => return Ok(result),
                Status::PGRES_COMMAND_OK => {}
                _ => return Err(self.conn.remote_error(&result, &self.sql)),
            }
        }
    }
}

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        self.conn.cancel_and_drain();
    }
}

impl<'a> CopyOut<'a> {
    pub(super) fn start(conn: &'a mut Conn, sql: &str) -> Result<Self> {
        conn.send(sql, &[])?;
        while let Some(interest) = conn.flush()? {
            conn.wait(interest)?;
        }
        loop {
            let result = conn
                .next_result()
                .ok_or_else(|| Error::internal("COPY without a result"))?;
            match result.status() {
                pq::ExecStatusType::PGRES_COPY_OUT => break,
                // Of a statement before it.
                pq::ExecStatusType::PGRES_COMMAND_OK => {}
                _ => {
                    let error = conn.remote_error(&result, sql);
                    drop(result);
                    conn.cancel_and_drain();
                    return Err(error);
                }
            }
            while let Some(interest) = conn.flush()? {
                conn.wait(interest)?;
            }
        }
        Ok(Self {
            conn,
            sql: Rc::from(sql),
            finished: None,
            one_of_several: false,
        })
    }

    /// The next row, or `None` after the server has said that the copy path_to_successor.
    #[allow(clippy::should_implement_trait)] // it can fail, and lends nothing
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            match self.try_next()? {
                Ready::Row(chunk) => return Ok(Some(chunk)),
                Ready::End => return Ok(None),
                Ready::Wait => self.conn.wait(super::wait::Interest::READ)?,
            }
        }
    }

    /// The next row if it has arrived already.
    pub fn try_next(&mut self) -> Result<Ready> {
        if self.finished.is_some() {
            return Ok(Ready::End);
        }
        let mut buffer: *mut c_char = null_mut();
        // SAFETY: asynchronous mode: returns 0 instead of waiting. The buffer is ours to free.
        let len = unsafe { pq::PQgetCopyData(self.conn.raw(), &mut buffer, 1) };
        match (len, NonNull::new(buffer)) {
            (1.., Some(data)) => Ok(Ready::Row(Chunk {
                data,
                len: len as usize,
            })),
            (0, _) => Ok(Ready::Wait),
            (-1, _) => self.finish().map(|()| Ready::End),
            _ if !self.conn.is_usable() => Err(self.conn.lost()),
            // libpq refuses a row that it has no memory for, and stays where it is.
            _ => Err(Conn::no_memory(self.conn.message())),
        }
    }

    /// Rows sent, as the server's command tag says; known at the end.
    pub fn rows(&self) -> Option<u64> {
        self.finished
    }

    /// The data has ended; whether the copy path_to_successor is in the result after it.
    fn finish(&mut self) -> Result<()> {
        let mut rows = 0;
        let mut error = None;
        loop {
            while let Some(interest) = self.conn.flush()? {
                self.conn.wait(interest)?;
            }
            let Some(result) = self.conn.next_result() else {
                break;
            };
            match result.status() {
                pq::ExecStatusType::PGRES_COMMAND_OK => {
                    rows = result.affected();
                    if self.one_of_several {
                        break;
                    }
                }
                _ => error = error.or_else(|| Some(self.conn.remote_error(&result, &self.sql))),
            }
        }
        self.finished = Some(rows);
        error.map_or(Ok(()), Err)
    }
}

/// What [`CopyOut::try_next`] found.
pub enum Ready {
    Row(Chunk),
    Wait,
    End,
}

impl Drop for CopyOut<'_> {
    fn drop(&mut self) {
        if self.finished.is_none() || !self.one_of_several {
            self.conn.cancel_and_drain();
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: libpq gave this pointer with this length; it is freed only in drop.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.len) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated by libpq, freed once.
        unsafe { pq::PQfreemem(self.data.as_ptr().cast()) }
    }
}
