//! Statements sent without waiting for the answers to those before.
//!
//! There is no point of synchronisation before the end: the server does one statement after the other, and
//! none any more after the first that fails. With one in between, it would go on behind it.

use super::conn::{Conn, idle_limit, statement};
use super::wait::Interest;
use crate::error::Result;
use pq_sys as pq;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null;
use std::rc::Rc;
use std::time::Instant;

/// After so many bytes the server is asked for the answers that it has.
const BATCH: usize = 32 * 1024;

/// No more bytes than that are sent ahead of their answers.
const AHEAD: usize = 4 * BATCH;

/// What a statement costs beside its values.
const OVERHEAD: usize = 64;

/// A value for a prepared statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Param {
    Null,
    Text(CString),
    /// A timestamptz, in microseconds since 2000.
    Time(i64),
}

/// A session whose statements are sent ahead. Dropped before [`Pipeline::finish`], what is under way is cancelled.
pub struct Pipeline<'a, T> {
    conn: &'a mut Conn,
    /// Those that have not been answered, in their order.
    sent: VecDeque<Sent<T>>,
    /// What those were about that have changed nothing.
    idle: Vec<T>,
    /// The bytes of those.
    ahead: usize,
    /// The bytes since the server was asked for answers.
    unasked: usize,
    /// When something came last.
    heard: Instant,
}

struct Sent<T> {
    sql: Rc<str>,
    bytes: usize,
    about: Option<T>,
}

impl<'a, T> Pipeline<'a, T> {
    pub fn begin(conn: &'a mut Conn) -> Result<Self> {
        conn.enter_pipeline()?;
        Ok(Self {
            conn,
            sent: VecDeque::new(),
            idle: vec![],
            ahead: 0,
            unasked: 0,
            heard: Instant::now(),
        })
    }

    /// Has the server parse `sql`, to be executed by its name.
    pub fn prepare(&mut self, name: &CStr, sql: &Rc<str>) -> Result<()> {
        let text = statement(sql)?;
        // SAFETY: libpq copies what it is given before it returns.
        let sent =
            unsafe { pq::PQsendPrepare(self.conn.raw(), name.as_ptr(), text.as_ptr(), 0, null()) };
        self.conn.require_sent(sent)?;
        self.sent(sql, sql.len(), None)
    }

    /// Executes what was prepared from `sql`. Waits as long as too much is unanswered; an error may be that of
    /// any statement before. What it is about is told by [`Self::take_idle`] if it changes nothing.
    pub fn execute(
        &mut self,
        name: &CStr,
        sql: &Rc<str>,
        params: &[Param],
        about: Option<T>,
    ) -> Result<()> {
        let times: Vec<[u8; 8]> = params
            .iter()
            .filter_map(|param| match param {
                Param::Time(time) => Some(time.to_be_bytes()),
                Param::Null | Param::Text(_) => None,
            })
            .collect();
        let mut times = times.iter();
        let mut bytes = 0;
        let mut values: Vec<*const c_char> = Vec::with_capacity(params.len());
        let mut lengths: Vec<c_int> = Vec::with_capacity(params.len());
        let mut formats: Vec<c_int> = Vec::with_capacity(params.len());
        for param in params {
            let (value, length, format) = match param {
                Param::Null => (null(), 0, 0),
                Param::Text(text) => (text.as_ptr(), text.count_bytes(), 0),
                Param::Time(_) => match times.next() {
                    Some(time) => (time.as_ptr().cast(), time.len(), 1),
                    None => (null(), 0, 1),
                },
            };
            bytes += length;
            values.push(value);
            // Looked at for what is binary only.
            lengths.push(length as c_int);
            formats.push(format);
        }
        // SAFETY: arrays of the same length, whose values live until libpq has copied them.
        let sent = unsafe {
            pq::PQsendQueryPrepared(
                self.conn.raw(),
                name.as_ptr(),
                params.len() as c_int,
                values.as_ptr(),
                lengths.as_ptr(),
                formats.as_ptr(),
                0,
            )
        };
        self.conn.require_sent(sent)?;
        self.sent(sql, bytes, about)
    }

    /// What the statements were about that have changed nothing since the last call.
    pub fn take_idle(&mut self) -> Vec<T> {
        std::mem::take(&mut self.idle)
    }

    /// Waits until everything has been done; the rest of [`Self::take_idle`].
    pub fn finish(mut self) -> Result<Vec<T>> {
        self.conn.synchronize()?;
        self.sent(&Rc::from("the end of a pipeline"), 0, None)?;
        while let Some(interest) = self.read()? {
            self.wait(interest)?;
        }
        self.conn.leave_pipeline()?;
        Ok(self.take_idle())
    }

    fn sent(&mut self, sql: &Rc<str>, bytes: usize, about: Option<T>) -> Result<()> {
        let bytes = bytes + OVERHEAD;
        self.sent.push_back(Sent {
            sql: sql.clone(),
            bytes,
            about,
        });
        self.ahead += bytes;
        self.unasked += bytes;
        if self.unasked < BATCH {
            return Ok(());
        }
        self.unasked = 0;
        // SAFETY: an open connection in pipeline mode.
        if unsafe { pq::PQsendFlushRequest(self.conn.raw()) } == 0 {
            return Err(self.conn.lost());
        }
        while let Some(interest) = self.read()?
            && self.ahead > AHEAD
        {
            self.wait(interest)?;
        }
        Ok(())
    }

    /// Takes the answers that are there; what to wait for, or `None` when there is nothing left to wait for.
    fn read(&mut self) -> Result<Option<Interest>> {
        loop {
            if let Some(interest) = self.conn.flush()? {
                return Ok(Some(interest));
            }
            let Some(first) = self.sent.front_mut() else {
                return Ok(None);
            };
            use pq::ExecStatusType as Status;
            let answered = match self.conn.result() {
                // What ends the answer to one statement.
                None => true,
                Some(result) => match result.status() {
                    Status::PGRES_PIPELINE_SYNC => self.conn.synchronized(),
                    Status::PGRES_COMMAND_OK => {
                        if result.affected() == 0 {
                            self.idle.extend(first.about.take());
                        }
                        false
                    }
                    Status::PGRES_TUPLES_OK | Status::PGRES_EMPTY_QUERY => false,
                    _ => return Err(self.conn.remote_error(&result, &first.sql)),
                },
            };
            if answered && let Some(done) = self.sent.pop_front() {
                self.ahead -= done.bytes;
            }
        }
    }

    fn wait(&mut self, interest: Interest) -> Result<()> {
        let idle_limit = idle_limit();
        let left = idle_limit.map(|s| s.saturating_sub(self.heard.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            let sql = self.sent.front().map_or("", |sent| &sent.sql);
            self.conn
                .check_stalled(idle_limit.unwrap_or_default(), sql)?;
            self.heard = Instant::now();
            return Ok(());
        }
        if self.conn.wait_within(interest, left)? {
            self.heard = Instant::now();
        }
        Ok(())
    }
}

impl<T> Drop for Pipeline<'_, T> {
    fn drop(&mut self) {
        self.conn.cancel_and_drain();
    }
}
