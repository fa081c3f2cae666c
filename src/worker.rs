//! How background workers begin, and how they end: as PostgreSQL's own do, at the next look for interrupts. What has to
//! be done at the end is not done in a signal handler.

use crate::environment;
use pgrx::pg_sys;
use std::ffi::c_int;

unsafe extern "C-unwind" {
    // PostgreSQL's own handlers. The bindings of the same names are Rust functions around them, which a signal handler
    // must not be.
    fn die(signal: c_int);
    fn SignalHandlerForConfigReload(signal: c_int);
}

/// The first thing that a background worker does, before it connects.
pub fn begin() {
    // SAFETY: in a background worker whose signals are blocked still. Both handlers set flags and the latch.
    unsafe {
        handle(pg_sys::SIGTERM as c_int, die);
        handle(pg_sys::SIGHUP as c_int, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    environment::adopt();
}

unsafe fn handle(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int)) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
    }
}

/// Takes over settings that have been changed.
pub fn reload() {
    // SAFETY: a flag of this process that its handler sets; outside of a transaction.
    unsafe {
        let pending = &raw mut pg_sys::ConfigReloadPending;
        if pending.read_volatile() != 0 {
            pending.write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}
