//! Cancelling what runs remotely, also when the backend is being terminated.

use super::wait;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pq_sys as pq;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null;
use std::time::{Duration, Instant};

thread_local! {
    // FATAL (pg_terminate_backend) does not unwind, so destructors do not run: the exit hook walks
    // this list instead. Raw pointers, because a `Conn` here would be dropped after the server's
    // memory is gone.
    static OPEN: RefCell<Vec<*mut pq::PGconn>> = const { RefCell::new(Vec::new()) };
    static HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// Remembers an open connection for the exit hook.
pub fn remember(conn: *mut pq::PGconn) {
    if !HOOKED.replace(true) {
        // SAFETY: the callback lives as long as the library, which is never unloaded.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
    }
    OPEN.with_borrow_mut(|open| open.push(conn));
}

pub fn forget(conn: *mut pq::PGconn) {
    OPEN.with_borrow_mut(|open| open.retain(|c| *c != conn));
}

#[pg_guard]
extern "C-unwind" fn at_exit(_code: c_int, _arg: pg_sys::Datum) {
    for conn in OPEN.take() {
        // SAFETY: only open connections are in the list.
        let status = unsafe { pq::PQtransactionStatus(conn) };
        if status == pq::PGTransactionStatusType::PQTRANS_ACTIVE {
            request(conn, Duration::from_millis(500));
        }
    }
}

/// Asks the server to cancel what `conn` runs. False if it was silent until `limit`. Never raises and never
/// waits longer: it is called from destructors and from the exit hook.
///
/// `PQcancelCreate` came with libpq 17. It is looked up at run time, so that one build also loads
/// beside an older libpq. There is only `PQcancel` there, which waits for as long as the network says nothing: a session
/// of its own asks instead.
pub fn request(conn: *mut pq::PGconn, limit: Duration) -> bool {
    use pq::PostgresPollingStatusType as Polling;
    type Create = unsafe extern "C" fn(*mut pq::PGconn) -> *mut pq::PGcancelConn;
    type Step = unsafe extern "C" fn(*mut pq::PGcancelConn) -> c_int;
    type Poll = unsafe extern "C" fn(*mut pq::PGcancelConn) -> Polling;
    type Finish = unsafe extern "C" fn(*mut pq::PGcancelConn);

    // SAFETY: the types are those of libpq-fe.h; the connection is open; the cancel handle is freed
    // on every path.
    unsafe {
        let (Some(create), Some(start), Some(poll), Some(socket), Some(finish)) = (
            symbol::<Create>(c"PQcancelCreate"),
            symbol::<Step>(c"PQcancelStart"),
            symbol::<Poll>(c"PQcancelPoll"),
            symbol::<Step>(c"PQcancelSocket"),
            symbol::<Finish>(c"PQcancelFinish"),
        ) else {
            return by_another_session(conn, limit);
        };
        let handle = create(conn);
        if handle.is_null() {
            return true;
        }
        let mut heard = true;
        let deadline = Instant::now() + limit;
        if start(handle) != 0 {
            loop {
                let events = match poll(handle) {
                    Polling::PGRES_POLLING_READING => libc::POLLIN,
                    Polling::PGRES_POLLING_WRITING => libc::POLLOUT,
                    _ => break,
                };
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    heard = false;
                    break;
                }
                wait::undisturbed(socket(handle), events, left);
            }
        }
        finish(handle);
        heard
    }
}

/// As [`request`], by a session that begins for that, to the same address.
fn by_another_session(conn: *mut pq::PGconn, limit: Duration) -> bool {
    use pq::PostgresPollingStatusType as Polling;

    let deadline = Instant::now() + limit;
    // SAFETY: the connection is open, and its options live until they are freed; what libpq has copied of them outlives
    // that. The other connection is closed on every path.
    unsafe {
        let options = pq::PQconninfo(conn);
        if options.is_null() {
            return true;
        }
        let here: [(&CStr, *const c_char); 5] = [
            (c"host", pq::PQhost(conn)),
            (c"hostaddr", pq::PQhostaddr(conn)),
            (c"port", pq::PQport(conn)),
            (c"replication", null()),
            (c"target_session_attrs", null()),
        ];
        let (mut keywords, mut values) = (vec![], vec![]);
        let mut option = options;
        while !(*option).keyword.is_null() {
            let keyword = CStr::from_ptr((*option).keyword);
            let ours = here.iter().find(|(name, _)| *name == keyword);
            let value = ours.map_or((*option).val.cast_const(), |(_, value)| *value);
            if !value.is_null() && *value != 0 {
                keywords.push((*option).keyword.cast_const());
                values.push(value);
            }
            option = option.add(1);
        }
        keywords.push(null());
        values.push(null());
        let other = pq::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0);
        pq::PQconninfoFree(options);
        let wait_for = |events| {
            let left = deadline.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                wait::undisturbed(pq::PQsocket(other), events, left);
            }
            !left.is_zero()
        };
        let mut heard = true;
        let mut next = Polling::PGRES_POLLING_WRITING;
        while heard {
            heard = match next {
                Polling::PGRES_POLLING_READING => wait_for(libc::POLLIN),
                Polling::PGRES_POLLING_WRITING => wait_for(libc::POLLOUT),
                _ => break,
            };
            next = pq::PQconnectPoll(other);
        }
        if heard && next == Polling::PGRES_POLLING_OK {
            let sql = format!(
                "SELECT pg_catalog.pg_cancel_backend({})\0",
                pq::PQbackendPID(conn)
            );
            pq::PQsendQuery(other, sql.as_ptr().cast());
            while heard && pq::PQisBusy(other) != 0 {
                heard = wait_for(libc::POLLIN);
                if pq::PQconsumeInput(other) == 0 {
                    break;
                }
            }
        }
        pq::PQfinish(other);
        heard
    }
}

/// # Safety
/// `F` must be the type of the C function `name`.
unsafe fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: dlsym with a C string; a non-null answer is a function of type F, says the caller.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (!address.is_null()).then(|| std::mem::transmute_copy(&address))
    }
}
