//! What has to end with this backend. A destructor is not enough: `pg_terminate_backend` raises FATAL,
//! and FATAL leaves the process without unwinding.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::ffi::c_int;

type Action = Box<dyn FnOnce()>;

thread_local! {
    static PENDING: RefCell<Vec<(u64, Action)>> = const { RefCell::new(Vec::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// As long as this lives, its action runs if the backend exits. Dropping it forgets the action.
pub struct OnExit(u64);

impl OnExit {
    /// `action` runs in a `before_shmem_exit` callback: it must neither raise nor wait long.
    pub fn run(action: impl FnOnce() + 'static) -> Self {
        let id = NEXT.replace(NEXT.get() + 1);
        if id == 0 {
            // SAFETY: the callback lives as long as the library, which is never unloaded.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
        }
        PENDING.with_borrow_mut(|pending| pending.push((id, Box::new(action))));
        Self(id)
    }
}

impl Drop for OnExit {
    fn drop(&mut self) {
        PENDING.with_borrow_mut(|pending| pending.retain(|(id, _)| *id != self.0));
    }
}

#[pg_guard]
extern "C-unwind" fn at_exit(_code: c_int, _arg: pg_sys::Datum) {
    for (_, action) in PENDING.take() {
        action();
    }
}
