//! What the leader and its copy workers share: a segment of dynamic shared memory with the job, the
//! counter from which workers take tasks, a slot per worker for where it is or for its error, and counts
//! of what has arrived of each table.
//!
//! The job holds a connection string, so it travels in here and nowhere else: arguments and
//! `bgw_extra` of a background worker are not private.

use super::guard::guarded;
use super::plan::{Task, at_a_time};
use super::tables::Table;
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: u64 = 0x7a6f_6461_6e63_7079;
/// Room for the error of a worker. A message is rarely longer than some hundred bytes.
const ERROR_ROOM: usize = 8 * 1024;

/// What the workers have to know.
#[derive(Serialize, Deserialize)]
pub struct Job {
    pub node: String,
    pub dsn: String,
    pub snapshot: String,
    pub tables: Vec<Table>,
    pub tasks: Vec<Task>,
    pub origin: u16,
    /// Whose session holds the origin; the worker takes it itself where sharing is not possible.
    pub origin_holder: Option<i32>,
    pub search_path: String,
    /// The leader's setting, in milliseconds.
    pub connect_timeout: u64,
}

/// How a copy of one worker failed, small enough for its slot.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub state: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(error: &Error) -> Self {
        Self {
            state: error.sqlstate().as_str().to_owned(),
            message: error.to_string(),
            detail: error.detail(),
            hint: error.hint(),
        }
    }

    pub fn into_error(self) -> Error {
        Error::Local {
            state: SqlState::parse(&self.state),
            message: self.message,
            detail: self.detail,
            hint: self.hint,
        }
    }

    /// As JSON of at most `room` bytes: what is said first is also what matters most.
    fn encode(&self, room: usize) -> Vec<u8> {
        let mut limit = room / 4;
        loop {
            let short = |text: &String| shorten(text, limit);
            let cut = Self {
                state: self.state.clone(),
                message: short(&self.message),
                detail: self.detail.as_ref().map(short),
                hint: self.hint.as_ref().map(short),
            };
            match serde_json::to_vec(&cut) {
                Ok(json) if json.len() <= room => return json,
                Ok(_) if limit > 0 => limit /= 2, // escapes made it longer than it looked
                _ => return vec![],
            }
        }
    }
}

fn shorten(text: &str, limit: usize) -> String {
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    let dots = if end < text.len() { "..." } else { "" };
    format!("{}{dots}", &text[..end])
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not looked at its slot yet, and may never do so.
    Absent,
    Running,
    Done,
    Failed,
}

impl State {
    fn of(value: u32) -> Self {
        match value {
            1 => Self::Running,
            2 => Self::Done,
            3 => Self::Failed,
            _ => Self::Absent,
        }
    }
}

/// One worker's part of the segment. Only that worker writes to it.
#[repr(C)]
pub struct Slot {
    state: AtomicU32,
    /// The task it works on plus one, or zero.
    task: AtomicU32,
    /// The process that serves it on the source, or zero.
    server: AtomicU32,
    extension_rows: AtomicU64,
    error_len: AtomicU32,
    error: [std::cell::UnsafeCell<u8>; ERROR_ROOM],
}

impl Slot {
    pub fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    pub fn task(&self) -> Option<usize> {
        (self.task.load(Ordering::Relaxed) as usize).checked_sub(1)
    }

    pub fn begin(&self, task: usize) {
        self.task.store(task as u32 + 1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.task.store(0, Ordering::Relaxed);
    }

    /// The process on the source that serves this worker, once it is connected.
    pub fn server(&self) -> Option<u32> {
        Some(self.server.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    pub fn served_by(&self, pid: u32) {
        self.server.store(pid, Ordering::Relaxed);
    }

    /// Rows that were stored in a table of an extension.
    pub fn count_extension(&self, rows: u64) {
        self.extension_rows.fetch_add(rows, Ordering::Relaxed);
    }

    pub fn extension_rows(&self) -> u64 {
        self.extension_rows.load(Ordering::Relaxed)
    }

    pub fn finish(&self) {
        self.state.store(2, Ordering::Release);
    }

    pub fn fail(&self, error: &Error) {
        let json = Failure::new(error).encode(ERROR_ROOM);
        for (cell, byte) in self.error.iter().zip(&json) {
            // SAFETY: only this worker writes, and the leader reads only after the state says so.
            unsafe { *cell.get() = *byte };
        }
        self.error_len.store(json.len() as u32, Ordering::Relaxed);
        self.state.store(3, Ordering::Release);
    }

    /// What a worker in [`State::Failed`] has left.
    pub fn failure(&self) -> Failure {
        let len = (self.error_len.load(Ordering::Relaxed) as usize).min(ERROR_ROOM);
        // SAFETY: written before the state was set to failed, never after.
        let json: Vec<u8> = self.error[..len]
            .iter()
            .map(|cell| unsafe { *cell.get() })
            .collect();
        serde_json::from_slice(&json).unwrap_or_else(|_| Failure {
            state: SqlState::INTERNAL_ERROR.as_str().to_owned(),
            message: "a copy worker failed and could not say why".into(),
            detail: None,
            hint: None,
        })
    }
}

/// What has arrived of one table, by all workers.
#[repr(C)]
pub struct Count {
    rows: AtomicU64,
    bytes: AtomicU64,
    tasks: AtomicU64,
    /// Rows that were stored and thrown away.
    discarded: AtomicU64,
    again: AtomicU32,
    unproved: AtomicU32,
    unchecked: AtomicU32,
}

impl Count {
    /// The table is copied again as a whole: true for the one worker that is to do it.
    pub fn claim_again(&self) -> bool {
        self.again.swap(1, Ordering::AcqRel) == 0
    }

    /// One worker copies the whole table again, so that the other pieces of it are nobody's.
    pub fn is_again(&self) -> bool {
        self.again.load(Ordering::Acquire) == 1
    }

    /// What has arrived so far is thrown away.
    pub fn discard(&self) {
        let rows = self.rows.swap(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.discarded.fetch_add(rows, Ordering::Relaxed);
    }

    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// What has been counted of a piece that was not stored.
    pub fn take_back(&self, rows: u64, bytes: u64) {
        self.rows.fetch_sub(rows, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Rows of a piece that had been stored before it was given up.
    pub fn discard_stored(&self, rows: u64) {
        self.discarded.fetch_add(rows, Ordering::Relaxed);
    }

    /// Nobody looks at the CHECK constraints of the table any more.
    pub fn leave_unchecked(&self) {
        self.unchecked.store(1, Ordering::Release);
    }

    pub fn is_unchecked(&self) -> bool {
        self.unchecked.load(Ordering::Acquire) == 1
    }

    /// The source's file is another one, and what is in it the snapshot does not see.
    pub fn leave_unproved(&self) {
        self.unproved.store(1, Ordering::Release);
    }

    pub fn is_unproved(&self) -> bool {
        self.unproved.load(Ordering::Acquire) == 1
    }

    pub fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One of the tasks of the table is done.
    pub fn end_task(&self) {
        self.tasks.fetch_add(1, Ordering::Release);
    }

    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn tasks(&self) -> u64 {
        self.tasks.load(Ordering::Acquire)
    }
}

#[repr(C)]
struct Header {
    magic: u64,
    database: u32,
    user: u32,
    workers: u32,
    tables: u32,
    next_task: AtomicU64,
    job_len: u64,
}

/// A mapping of the segment: header, slots, counts, job.
pub struct Shared {
    segment: NonNull<pg_sys::dsm_segment>,
    base: NonNull<u8>,
}

impl Shared {
    /// Makes the segment. It goes when the last mapping goes.
    fn create(job: &Job, workers: usize) -> Result<Self> {
        let json = serde_json::to_vec(job)
            .map_err(|e| Error::internal(format!("the copy job cannot be written down: {e}")))?;
        let tables = job.tables.len();
        let size = Self::job_offset(workers, tables) + json.len();
        guarded(|| {
            // SAFETY: a fresh segment of `size` bytes, zeroed by the operating system or by us. The
            // mapping is pinned because the leader commits while it lives.
            unsafe {
                let segment = NonNull::new(pg_sys::dsm_create(size, 0))
                    .ok_or_else(|| Error::internal("no shared memory for the copy"))?;
                pg_sys::dsm_pin_mapping(segment.as_ptr());
                let base = NonNull::new(pg_sys::dsm_segment_address(segment.as_ptr()).cast::<u8>())
                    .ok_or_else(|| Error::internal("the shared memory has no address"))?;
                base.as_ptr()
                    .write_bytes(0, Self::job_offset(workers, tables));
                base.cast::<Header>().write(Header {
                    magic: MAGIC,
                    database: pg_sys::MyDatabaseId.to_u32(),
                    user: pg_sys::GetUserId().to_u32(),
                    workers: workers as u32,
                    tables: tables as u32,
                    next_task: AtomicU64::new(0),
                    job_len: json.len() as u64,
                });
                base.add(Self::job_offset(workers, tables))
                    .copy_from_nonoverlapping(NonNull::from(json.as_slice()).cast(), json.len());
                Ok(Self { segment, base })
            }
        })
    }

    /// Maps the segment of `handle`; `None` if its leader has gone meanwhile.
    pub fn attach(handle: u32) -> Option<Self> {
        // SAFETY: the segment is as `create` has made it, which the magic number confirms.
        unsafe {
            let segment = NonNull::new(pg_sys::dsm_attach(handle))?;
            pg_sys::dsm_pin_mapping(segment.as_ptr());
            let base = NonNull::new(pg_sys::dsm_segment_address(segment.as_ptr()).cast::<u8>())?;
            let shared = Self { segment, base };
            (shared.header().magic == MAGIC).then_some(shared)
        }
    }

    pub fn handle(&self) -> u32 {
        // SAFETY: a live mapping, here and below.
        unsafe { pg_sys::dsm_segment_handle(self.segment.as_ptr()) }
    }

    pub fn slots(&self) -> &[Slot] {
        let workers = self.header().workers as usize;
        // SAFETY: `create` laid out that many zeroed slots, and zero is a valid state of each field.
        unsafe {
            let first = self.base.add(Self::slots_offset()).cast::<Slot>();
            std::slice::from_raw_parts(first.as_ptr(), workers)
        }
    }

    /// The counts, in the order of the tables of the job.
    pub fn counts(&self) -> &[Count] {
        let header = self.header();
        // SAFETY: as above.
        unsafe {
            let offset = Self::counts_offset(header.workers as usize);
            let first = self.base.add(offset).cast::<Count>();
            std::slice::from_raw_parts(first.as_ptr(), header.tables as usize)
        }
    }

    /// The slot of the worker with this number, which has just arrived.
    pub fn claim(&self, number: usize) -> Option<&Slot> {
        let slot = self.slots().get(number)?;
        slot.state.store(1, Ordering::Release);
        Some(slot)
    }

    /// The numbers of the tasks that a worker does next; none when there is nothing left to do.
    pub fn take(&self, tasks: &[Task]) -> std::ops::Range<usize> {
        let (next, workers) = (&self.header().next_task, self.header().workers as usize);
        let end = |from: u64| {
            let from = tasks.len().min(from as usize);
            from + at_a_time(&tasks[from..], workers)
        };
        let take = |from| Some(end(from) as u64);
        let (Ok(from) | Err(from)) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        from as usize..end(from)
    }

    pub fn job(&self) -> Result<Job> {
        let header = self.header();
        // SAFETY: written by `create`, never changed.
        let json = unsafe {
            let start = self.base.add(self.own_job_offset());
            std::slice::from_raw_parts(start.as_ptr(), header.job_len as usize)
        };
        serde_json::from_slice(json).map_err(|_| Error::internal("the copy job cannot be read")) // its text is secret
    }

    pub fn database(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.header().database)
    }

    pub fn user(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.header().user)
    }

    fn header(&self) -> &Header {
        // SAFETY: written by `create`; only its atomics change.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    fn slots_offset() -> usize {
        size_of::<Header>().next_multiple_of(64)
    }

    fn counts_offset(workers: usize) -> usize {
        Self::slots_offset() + workers * size_of::<Slot>()
    }

    fn job_offset(workers: usize, tables: usize) -> usize {
        Self::counts_offset(workers) + tables * size_of::<Count>()
    }

    fn own_job_offset(&self) -> usize {
        let header = self.header();
        Self::job_offset(header.workers as usize, header.tables as usize)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped once.
        unsafe { pg_sys::dsm_detach(self.segment.as_ptr()) }
    }
}

/// The leader's mapping. Memory that is taken from `min_dynamic_shared_memory` is used again as it is,
/// so the connection string in it is wiped.
pub struct Owned(Shared);

impl Owned {
    pub fn create(job: &Job, workers: usize) -> Result<Self> {
        Shared::create(job, workers).map(Self)
    }
}

impl std::ops::Deref for Owned {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let header = self.header();
        // SAFETY: the job's own bytes. A worker that reads them now finds no job, which it reports to
        // nobody.
        unsafe {
            let job = self.base.add(self.own_job_offset());
            job.as_ptr().write_bytes(0, header.job_len as usize);
        }
    }
}

const _: () = assert!(align_of::<Slot>() <= 64 && size_of::<Slot>().is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_fit_whatever_their_length() {
        let long = Failure {
            state: "22021".into(),
            message: "é\"\\\n".repeat(10_000),
            detail: Some("x".repeat(1_000_000)),
            hint: None,
        };
        for room in [200, 1000, ERROR_ROOM] {
            let json = long.encode(room);
            assert!(json.len() <= room);
            let back: Failure = serde_json::from_slice(&json).unwrap();
            assert_eq!(back.state, "22021");
            assert!(back.message.starts_with("é\"") && back.message.ends_with("..."));
        }
        let short = Failure {
            message: "m".into(),
            ..long
        };
        let back: Failure = serde_json::from_slice(&short.encode(ERROR_ROOM)).unwrap();
        assert_eq!(back.message, "m");
    }
}
