//! Progress that moves with a commit and with nothing else.
//!
//! `pg_replication_origin_xact_setup` sets the position of the transaction under way for the whole session, and
//! since PostgreSQL 16 an abort moves the progress of the origin there too (`RecordTransactionAbort`, for the sake of
//! streamed transactions). A session that is cancelled or loses its client between that call and its COMMIT would so
//! leave a transaction that is never brought again. Here the position is kept apart until the commit can hardly fail
//! any more.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Of the transaction under way: the position and the commit timestamp that it is going to have.
    static WANTED: Cell<Option<(u64, i64)>> = const { Cell::new(None) };
}

/// What the transaction under way is to be committed with.
pub fn set(position: u64, timestamp: i64) {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback lives as long as the library, which is never unloaded.
        unsafe { pg_sys::RegisterXactCallback(Some(at_end), null_mut()) };
    }
    WANTED.set(Some((position, timestamp)));
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => {
            if let Some((position, timestamp)) = WANTED.take() {
                // SAFETY: the session's variables that the commit record takes them from.
                unsafe {
                    pg_sys::replorigin_session_origin_lsn = position;
                    pg_sys::replorigin_session_origin_timestamp = timestamp;
                }
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => WANTED.set(None),
        _ => {}
    }
}
