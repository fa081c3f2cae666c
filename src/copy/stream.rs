//! From the network straight into a table: libpq's row buffers are the input of PostgreSQL's own
//! `COPY FROM`, as in the initial copy of logical replication.

use super::guard::guarded;
use super::shared::Count;
use super::tables::Table;
use crate::encoding;
use crate::error::{Error, Result};
use crate::libpq::{Chunk, CopyOut, Ready};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// PostgreSQL's `COPY FROM` collects this many rows before it writes them. In the text format it also
/// stops at 64 kB, in the binary format it does not look at their size.
const COLLECTED_ROWS: u32 = 1000;
/// How many bytes it may collect of us. Only rows of more than some kB ever come to that.
const COLLECTED_BYTES: usize = 4 * 1024 * 1024;
/// What begins and ends the binary format: signature, flags, length of the header's extension; a row
/// of -1 fields.
const BINARY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_TRAILER: &[u8; 2] = b"\xff\xff";

/// The rows of one remote copy as a stream of bytes, for one `COPY FROM` or several.
pub struct Stream<'a> {
    copy: CopyOut<'a>,
    count: &'a Count,
    binary: bool,
    /// What has been received and not fully read, and how much of it has been.
    rest: Option<(Bytes, usize)>,
    phase: Phase,
    collected: Collected,
    /// Rows that have been counted while they arrived.
    counted: u64,
    counted_bytes: u64,
    error: Option<Error>,
}

enum Bytes {
    Received(Chunk),
    Ours(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Received(chunk) => chunk,
            Self::Ours(bytes) => bytes,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rows,
    /// So much has been collected that this `COPY FROM` has to end; the trailer is still to be read.
    Pausing,
    /// It has been told that this is the end.
    Paused,
    /// The source has said that this is the end.
    Ended,
}

/// What the running `COPY FROM` holds in memory.
#[derive(Default)]
struct Collected {
    rows: u32,
    bytes: usize,
}

impl Collected {
    /// Adds a row; true if it should be the last.
    fn add(&mut self, bytes: usize) -> bool {
        self.rows += 1;
        self.bytes += bytes;
        if self.rows == COLLECTED_ROWS {
            *self = Self::default();
        }
        self.bytes >= COLLECTED_BYTES
    }
}

thread_local! {
    // COPY's callback takes no argument of its own.
    static CURRENT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

impl<'a> Stream<'a> {
    pub fn new(copy: CopyOut<'a>, count: &'a Count, table: &Table) -> Self {
        Self {
            copy,
            count,
            binary: table.is_binary(),
            rest: None,
            phase: Phase::Rows,
            collected: Collected::default(),
            counted: 0,
            counted_bytes: 0,
            error: None,
        }
    }

    /// Fills `out` with what is there, waiting only until it holds `least` bytes. Less means the end.
    fn fill(&mut self, out: &mut [u8], least: usize) -> Result<usize> {
        let mut filled = 0;
        let (mut rows, mut bytes) = (0, 0);
        loop {
            if let Some((rest, read)) = &mut self.rest {
                let rest = rest.get();
                let n = (rest.len() - *read).min(out.len() - filled);
                out[filled..filled + n].copy_from_slice(&rest[*read..*read + n]);
                filled += n;
                *read += n;
                if *read == rest.len() {
                    self.rest = None;
                }
            }
            if filled == out.len() {
                break;
            }
            match self.phase {
                Phase::Rows => {}
                Phase::Pausing => {
                    self.rest = Some((Bytes::Ours(BINARY_TRAILER), 0));
                    self.phase = Phase::Paused;
                    continue;
                }
                Phase::Paused | Phase::Ended => break,
            }
            let ready = match filled < least {
                true => self.copy.next()?.map_or(Ready::End, Ready::Row),
                false => self.copy.try_next()?,
            };
            match ready {
                Ready::Row(chunk) => {
                    rows += 1;
                    bytes += chunk.len() as u64;
                    if self.collected.add(chunk.len()) && self.binary {
                        self.phase = Phase::Pausing;
                    }
                    self.rest = Some((Bytes::Received(chunk), 0));
                }
                Ready::Wait => break,
                Ready::End => self.phase = Phase::Ended,
            }
        }
        self.counted += rows;
        self.counted_bytes += bytes;
        self.count.add(rows, bytes);
        Ok(filled)
    }

    /// What it has brought is not stored.
    pub fn take_back(&self) {
        self.count.take_back(self.counted, self.counted_bytes);
    }

    /// After a pause: the next `COPY FROM` begins like the first.
    fn resume(&mut self) {
        self.phase = Phase::Rows;
        self.collected = Collected::default();
        self.rest = Some((Bytes::Ours(BINARY_HEADER), 0));
    }

    /// Copies all rows into the table in the current transaction and returns their number. The
    /// current user must be allowed to run what its constraints and generated columns call.
    ///
    /// # Safety
    /// In a transaction with an active snapshot; `relation` is open and locked for writing.
    pub unsafe fn copy_into(&mut self, relation: pg_sys::Relation, table: &Table) -> Result<u64> {
        let mut copied = 0;
        loop {
            CURRENT.set((&raw mut *self).cast());
            // SAFETY: says the caller.
            let rows = guarded(|| unsafe { copy_from(relation, table) });
            CURRENT.set(null_mut());
            if let Some(error) = self.error.take() {
                return Err(error); // what went wrong remotely, not that the local end stopped
            }
            copied += rows?;
            if self.phase != Phase::Paused {
                break;
            }
            self.resume();
        }
        match self.copy.rows() {
            Some(sent) if sent == copied => {
                // The binary format ends with a message that is no row.
                self.count.add(copied.wrapping_sub(self.counted), 0);
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
    // SAFETY: everything is allocated in a context of its own, which the transaction owns.
    unsafe {
        let outside = pg_sys::CurrentMemoryContext;
        let context = pg_sys::AllocSetContextCreateExtended(
            outside,
            c"zodan copy".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        pg_sys::MemoryContextSwitchTo(context);
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
        pg_sys::MemoryContextSwitchTo(outside);
        pg_sys::MemoryContextDelete(context);
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
    let text = encoding::to_server(text)?;
    // SAFETY: a C string.
    Ok(unsafe { pg_sys::pstrdup(text.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many rows of this size the first pause comes, if within `limit` rows.
    fn pause(bytes: usize, limit: u32) -> Option<u32> {
        let mut collected = Collected::default();
        (1..=limit).find(|_| collected.add(bytes))
    }

    #[test]
    fn only_big_rows_make_a_pause() {
        assert_eq!(pause(100, 1_000_000), None);
        assert_eq!(pause(4_000, 1_000_000), None);
        assert_eq!(pause(8_000, 1000), Some(525));
        assert_eq!(pause(1_000_000, 1000), Some(5));
        assert_eq!(pause(500_000_000, 1000), Some(1));
    }
}
