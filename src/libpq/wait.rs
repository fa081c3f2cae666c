//! The one place where the backend waits: on its latch, on any number of descriptors, for a time.

use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::cell::Cell;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// What a descriptor is waited on for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
}

/// Waits until a descriptor is ready, the latch is set or the time has passed, and checks for
/// interrupts. The answer says for each descriptor whether it is ready; all `false` means that the
/// latch was set or the time has passed.
pub fn on_fds(fds: &[(RawFd, Interest)], timeout: Option<Duration>) -> Result<Vec<bool>> {
    let mut ready = vec![false; fds.len()];
    let mut events = vec![empty_event(); fds.len() + 2];
    // At least 1 ms, or a rest of some microseconds would make the caller spin.
    let millis = timeout.map_or(-1, |t| {
        t.as_micros().div_ceil(1000).clamp(1, 3_600_000) as i64
    });
    // SAFETY: plain calls into the wait event API. The set is freed before anything can raise: the
    // interrupts are only looked at below.
    let count = unsafe {
        let set = create_set(fds.len() as i32 + 2);
        pg_sys::AddWaitEventToSet(
            set,
            pg_sys::WL_LATCH_SET,
            pg_sys::PGINVALID_SOCKET,
            pg_sys::MyLatch,
            std::ptr::null_mut(),
        );
        pg_sys::AddWaitEventToSet(
            set,
            pg_sys::WL_EXIT_ON_PM_DEATH,
            pg_sys::PGINVALID_SOCKET,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        for (i, (fd, interest)) in fds.iter().enumerate() {
            let mut mask = 0;
            if interest.read {
                mask |= pg_sys::WL_SOCKET_READABLE;
            }
            if interest.write {
                mask |= pg_sys::WL_SOCKET_WRITEABLE;
            }
            pg_sys::AddWaitEventToSet(
                set,
                mask,
                *fd,
                std::ptr::null_mut(),
                i as *mut std::ffi::c_void,
            );
        }
        let count = pg_sys::WaitEventSetWait(
            set,
            millis as _,
            events.as_mut_ptr(),
            events.len() as i32,
            wait_event(),
        );
        pg_sys::FreeWaitEventSet(set);
        count
    };
    for event in &events[..count as usize] {
        if event.events & pg_sys::WL_LATCH_SET != 0 {
            // SAFETY: our own latch.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        } else if event.events & (pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE) != 0 {
            ready[event.user_data as usize] = true;
        }
    }
    check_interrupts()?;
    Ok(ready)
}

/// Waits for the latch or for `timeout`, whichever is first.
pub fn on_latch(timeout: Duration) -> Result<()> {
    on_fds(&[], Some(timeout)).map(|_| ())
}

/// `CHECK_FOR_INTERRUPTS` with the error as a value. A `FATAL` (termination) still ends the process.
pub fn check_interrupts() -> Result<()> {
    forget_echo();
    PgTryBuilder::new(|| {
        check_for_interrupts!();
        Ok(())
    })
    .catch_others(|cause| {
        note_interrupt();
        Err(interrupted(cause))
    })
    .execute()
}

thread_local! {
    /// When the last interrupt was seen.
    static INTERRUPTED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// One Ctrl-C signals the process and then its process group, so twice. Where the second signal comes
/// after the first has been answered, it would end the undo that the first one asked for.
const ECHO: Duration = Duration::from_millis(200);

/// Remembers that an interrupt has been answered.
fn note_interrupt() {
    INTERRUPTED.set(Some(Instant::now()));
}

fn just_answered() -> bool {
    INTERRUPTED.get().is_some_and(|at| at.elapsed() < ECHO)
}

/// Forgets a cancel request that is the second signal of one that has been answered.
fn forget_echo() {
    // SAFETY: flags that signal handlers set. A request that comes while they are read is either
    // forgotten as an echo or stays.
    unsafe {
        if just_answered() && pg_sys::ProcDiePending == 0 {
            pg_sys::QueryCancelPending = 0;
        }
    }
}

/// Waits until `fd` is ready for `events` (of poll) or `limit` has passed, whatever interrupts arrive:
/// for what has to be done after one. While the second signal of that one may come, it waits in
/// slices, so that the signal is known for what it is.
pub fn undisturbed(fd: RawFd, events: i16, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        forget_echo();
        let left = deadline.saturating_duration_since(Instant::now());
        let slice = match just_answered() {
            true => left.min(ECHO / 4),
            false => left,
        };
        let mut waited = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        // SAFETY: one descriptor in a valid array of one. Rounded up, or the rest of a millisecond
        // would be spent spinning.
        let ready = unsafe { libc::poll(&mut waited, 1, slice.as_micros().div_ceil(1000) as i32) };
        if ready > 0 || left.is_zero() {
            return;
        }
    }
}

/// Runs something local, which a cancel request may end, but not the second signal of one that has
/// been answered.
pub fn without_echo<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let answer = if just_answered() {
        forget_echo();
        let answer = uncancelled(body);
        forget_echo();
        answer
    } else {
        body()
    };
    if let Err(error) = &answer
        && error.sqlstate() == SqlState::QUERY_CANCELED
    {
        note_interrupt();
    }
    answer
}

/// Runs something that the server follows with a look for interrupts, which would raise there what
/// the next wait gets as a value.
pub fn uncancelled<T>(body: impl FnOnce() -> T) -> T {
    struct Held(u32);
    impl Drop for Held {
        fn drop(&mut self) {
            // SAFETY: as it was before. Not counted down, since an error sets it to 0.
            unsafe { pg_sys::QueryCancelHoldoffCount = self.0 };
        }
    }
    // SAFETY: what HOLD_CANCEL_INTERRUPTS counts up.
    let _held = unsafe {
        let held = Held(pg_sys::QueryCancelHoldoffCount);
        pg_sys::QueryCancelHoldoffCount += 1;
        held
    };
    body()
}

fn interrupted(cause: CaughtError) -> Error {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic {
        ereport: report, ..
    }) = cause;
    Error::Interrupted {
        state: SqlState::unpack(report.sql_error_code() as i32),
        message: report.message().to_string(),
    }
}

unsafe fn create_set(events: i32) -> *mut pg_sys::WaitEventSet {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: freed by the caller before the context can be.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::CurrentMemoryContext, events)
    }
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: no resource owner: the caller frees it.
    unsafe {
        pg_sys::CreateWaitEventSet(std::ptr::null_mut(), events)
    }
}

fn empty_event() -> pg_sys::WaitEvent {
    // SAFETY: a C struct of integers and pointers, filled by WaitEventSetWait.
    unsafe { std::mem::zeroed() }
}

/// What `pg_stat_activity.wait_event` shows: `ZodanRemote`, before PostgreSQL 17 `Extension`.
fn wait_event() -> u32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        pg_sys::PG_WAIT_EXTENSION
    }
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    {
        thread_local! {
            static EVENT: Cell<u32> = const { Cell::new(0) };
        }
        EVENT.with(|event| {
            if event.get() == 0 {
                // SAFETY: registers the name once per backend.
                event.set(unsafe { pg_sys::WaitEventExtensionNew(c"ZodanRemote".as_ptr()) });
            }
            event.get()
        })
    }
}
