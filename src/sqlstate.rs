//! SQLSTATEs as they are. pgrx knows those of PostgreSQL by name and makes XX000 of all others, but
//! a trigger of a user may raise any. The server calls error context callbacks while it makes up an
//! error, and lets them read and set its code.

use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

unsafe extern "C-unwind" {
    fn geterrcode() -> c_int;
    fn errcode(code: c_int) -> c_int;
}

thread_local! {
    static SEEN: Cell<c_int> = const { Cell::new(0) };
    // The server points to it until the error has been caught, which is after we have returned.
    static STAMP: UnsafeCell<pg_sys::ErrorContextCallback> =
        const { UnsafeCell::new(frame(null_mut(), None)) };
}

const fn frame(
    arg: *mut c_void,
    callback: Option<unsafe extern "C-unwind" fn(*mut c_void)>,
) -> pg_sys::ErrorContextCallback {
    pg_sys::ErrorContextCallback {
        previous: null_mut(),
        callback,
        arg,
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn remember(_arg: *mut c_void) {
    // SAFETY: called by the server with a message in the making.
    let code = unsafe { geterrcode() };
    // What is said while the error is being dealt with is no error.
    if SqlState::unpack(code).is_error() {
        SEEN.set(code);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stamp(code: *mut c_void) {
    // SAFETY: as above.
    unsafe { errcode(code.addr() as c_int) };
}

/// Runs `body`, which catches errors of the server, and says what the last one's code was.
pub fn watch<T>(body: impl FnOnce() -> T) -> T {
    let mut own = frame(null_mut(), Some(remember));
    SEEN.set(0);
    // SAFETY: a frame of this stack, taken off before it goes, however `body` ends.
    unsafe {
        own.previous = pg_sys::error_context_stack;
        let _restored = Restored(own.previous);
        pg_sys::error_context_stack = &raw mut own;
        body()
    }
}

struct Restored(*mut pg_sys::ErrorContextCallback);

impl Drop for Restored {
    fn drop(&mut self) {
        // SAFETY: frames of our callers, which are still there.
        unsafe { pg_sys::error_context_stack = self.0 };
    }
}

/// The error that was caught within [`watch`], with its own code.
pub fn caught(cause: CaughtError) -> Error {
    let raised_by_server = matches!(cause, CaughtError::PostgresError(_));
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic {
        ereport: report, ..
    }) = cause;
    Error::Local {
        state: match SEEN.get() {
            code if raised_by_server && code != 0 => SqlState::unpack(code),
            _ => SqlState::unpack(report.sql_error_code() as i32),
        },
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
    }
}

/// Gives the error that is raised next, on the return to the server, this code.
pub fn keep(state: SqlState) {
    STAMP.with(|cell| {
        // SAFETY: one thread; the server reads the frame only while it raises, and forgets it when
        // the error is caught.
        unsafe {
            let own = cell.get();
            *own = frame(
                null_mut::<c_void>().with_addr(state.pack() as usize),
                Some(stamp),
            );
            (*own).previous = pg_sys::error_context_stack;
            pg_sys::error_context_stack = own;
        }
    });
}
