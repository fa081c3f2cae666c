//! From the network straight into a table: libpq's row buffers are the input of PostgreSQL's own
//! `COPY FROM`, as in the initial copy of logical replication.

use super::guard::guarded;
use super::shared::Slot;
use super::tables::Table;
use crate::error::{Error, Result};
use crate::libpq::{Chunk, CopyOut, Ready};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;

/// The rows of one remote copy as a stream of bytes.
pub struct Stream<'a> {
    copy: CopyOut<'a>,
    slot: &'a Slot,
    /// The row that has been received and not fully read, and how much of it has been.
    rest: Option<(Chunk, usize)>,
    ended: bool,
    /// Rows that have been counted while they arrived.
    counted: u64,
    error: Option<Error>,
}

thread_local! {
    // COPY's callback takes no argument of its own.
    static CURRENT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

impl<'a> Stream<'a> {
    pub fn new(copy: CopyOut<'a>, slot: &'a Slot) -> Self {
        Self {
            copy,
            slot,
            rest: None,
            ended: false,
            counted: 0,
            error: None,
        }
    }

    /// Fills `out` with what is there, waiting only until it holds `least` bytes. Less means the end.
    fn fill(&mut self, out: &mut [u8], least: usize) -> Result<usize> {
        let mut filled = 0;
        let mut rows = 0;
        loop {
            if let Some((chunk, read)) = &mut self.rest {
                let n = (chunk.len() - *read).min(out.len() - filled);
                out[filled..filled + n].copy_from_slice(&chunk[*read..*read + n]);
                filled += n;
                *read += n;
                if *read == chunk.len() {
                    self.rest = None;
                }
            }
            if filled == out.len() || self.ended {
                break;
            }
            let ready = match filled < least {
                true => self.copy.next()?.map_or(Ready::End, Ready::Row),
                false => self.copy.try_next()?,
            };
            match ready {
                Ready::Row(chunk) => {
                    rows += 1;
                    self.rest = Some((chunk, 0));
                }
                Ready::Wait => break,
                Ready::End => self.ended = true,
            }
        }
        self.counted += rows;
        self.slot.count(rows, filled as u64);
        Ok(filled)
    }

    /// Copies all rows into the table in the current transaction and returns their number. The
    /// current user must be allowed to run what its constraints and generated columns call.
    ///
    /// # Safety
    /// In a transaction with an active snapshot; `relation` is open and locked for writing.
    pub unsafe fn copy_into(mut self, relation: pg_sys::Relation, table: &Table) -> Result<u64> {
        CURRENT.set((&raw mut self).cast());
        // SAFETY: says the caller.
        let copied = guarded(|| unsafe { copy_from(relation, table) });
        CURRENT.set(null_mut());
        if let Some(error) = self.error.take() {
            return Err(error); // what went wrong remotely, not that the local end stopped
        }
        let copied = copied?;
        match self.copy.rows() {
            Some(sent) if sent == copied => {
                // The binary format ends with a message that is no row.
                self.slot.count(copied.wrapping_sub(self.counted), 0);
                Ok(copied)
            }
            sent => Err(Error::internal(format!(
                "{copied} rows were stored, but the source says that it sent {}",
                sent.map_or("no final result".into(), |n| n.to_string())
            ))),
        }
    }
}

/// # Safety
/// As [`Stream::copy_into`], with the stream as [`CURRENT`].
unsafe fn copy_from(relation: pg_sys::Relation, table: &Table) -> Result<u64> {
    // SAFETY: everything allocated here belongs to the transaction.
    unsafe {
        let mut columns: *mut pg_sys::List = null_mut();
        for column in &table.columns {
            columns = pg_sys::lappend(columns, string_node(&column.name)?);
        }
        let format = if table.is_binary() { "binary" } else { "text" };
        let format = pg_sys::makeDefElem(pstrdup("format")?, string_node(format)?.cast(), -1);
        let options = pg_sys::lappend(null_mut(), format.cast());

        let parse = pg_sys::make_parsestate(null_mut());
        pg_sys::addRangeTableEntryForRelation(
            parse,
            relation,
            pg_sys::RowExclusiveLock as c_int,
            null_mut(),
            false,
            false,
        );
        let state = pg_sys::BeginCopyFrom(
            parse,
            relation,
            null_mut(),
            std::ptr::null(),
            false,
            Some(read),
            columns,
            options,
        );
        let rows = pg_sys::CopyFrom(state);
        pg_sys::EndCopyFrom(state);
        Ok(rows)
    }
}

/// COPY's data source. An error is kept and raised here, so that it unwinds COPY itself.
#[pg_guard]
unsafe extern "C-unwind" fn read(out: *mut c_void, least: c_int, most: c_int) -> c_int {
    // SAFETY: set by `copy_into`, which is still running; COPY gives room for `most` bytes.
    let (stream, out) = unsafe {
        (
            &mut *CURRENT.get().cast::<Stream<'_>>(),
            std::slice::from_raw_parts_mut(out.cast::<u8>(), most as usize),
        )
    };
    match stream.fill(out, least as usize) {
        Ok(filled) => filled as c_int,
        Err(error) => {
            let report = ErrorReport::new(
                PgSqlErrorCode::from(error.sqlstate().pack()),
                error.to_string(),
                "read",
            );
            stream.error = Some(error);
            report.report(PgLogLevel::ERROR);
            0
        }
    }
}

unsafe fn string_node(text: &str) -> Result<*mut c_void> {
    // SAFETY: a copy in the current memory context.
    unsafe { Ok(pg_sys::makeString(pstrdup(text)?).cast()) }
}

unsafe fn pstrdup(text: &str) -> Result<*mut std::ffi::c_char> {
    let text = CString::new(text).map_err(|_| Error::internal("a name holds a zero byte"))?;
    // SAFETY: a C string.
    Ok(unsafe { pg_sys::pstrdup(text.as_ptr()) })
}
