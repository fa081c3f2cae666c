//! Where a call tells how far it is: a segment of dynamic shared memory, and a shared advisory lock whose
//! number is the segment's. So other sessions find it in `pg_locks`, on every version of the server and
//! without a preloaded library, and both go with the session however it ends.

use super::State;
use crate::sqlstate;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// The class of the lock; `zodb` in ASCII. `zodan.progress_rows` looks for it.
const LOCK: i32 = 2_054_120_546;
const MAGIC: u64 = 0x7a6f_6461_6e62_6f61;
/// Room for what is told, as JSON.
const ROOM: usize = 8 * 1024;
/// So many names of tables are told at most; each is of 133 bytes at most, quotes apart.
const TABLES: usize = 16;
/// Longer texts are cut.
const TEXT: usize = 800;
/// A writer needs microseconds. One that was killed in the middle of it takes the whole server with it.
const TRIES: usize = 1000;

#[repr(C)]
struct Page {
    magic: u64,
    /// Odd while it is being written.
    version: AtomicU64,
    len: AtomicU32,
    text: [AtomicU8; ROOM],
}

/// The writer's side. It has no destructor: where the session ends in the middle of a call, the server
/// has taken everything back before destructors of the process run.
pub struct Published {
    segment: NonNull<pg_sys::dsm_segment>,
    page: NonNull<Page>,
}

impl Published {
    /// `None` where the server has no room for another segment or another lock.
    pub fn publish() -> Option<Self> {
        caught(|| {
            // SAFETY: a fresh segment, of which nobody else knows before the lock is taken. Its mapping
            // outlives the commits of the run.
            unsafe {
                let flags = pg_sys::DSM_CREATE_NULL_IF_MAXSEGMENTS as i32;
                let segment = NonNull::new(pg_sys::dsm_create(size_of::<Page>(), flags))?;
                pg_sys::dsm_pin_mapping(segment.as_ptr());
                let page =
                    NonNull::new(pg_sys::dsm_segment_address(segment.as_ptr()).cast::<Page>())?;
                page.as_ptr().cast::<u8>().write_bytes(0, size_of::<Page>());
                (*page.as_ptr()).magic = MAGIC;
                let published = Self { segment, page };
                let taken = pgrx::direct_function_call::<bool>(
                    pg_sys::pg_try_advisory_lock_shared_int4,
                    &published.key(),
                );
                (taken == Some(true)).then_some(published)
            }
        })
    }

    fn key(&self) -> [Option<pg_sys::Datum>; 2] {
        // SAFETY: a live mapping.
        let handle = unsafe { pg_sys::dsm_segment_handle(self.segment.as_ptr()) };
        [LOCK.into_datum(), handle.cast_signed().into_datum()]
    }

    pub fn unpublish(self) {
        caught(|| {
            // SAFETY: releases what `publish` took, and unmaps what it has mapped.
            unsafe {
                pgrx::direct_function_call::<bool>(
                    pg_sys::pg_advisory_unlock_shared_int4,
                    &self.key(),
                );
                pg_sys::dsm_detach(self.segment.as_ptr());
            }
            Some(())
        });
    }

    pub fn write(&self, state: &State) {
        let json = encode(state);
        // SAFETY: a live mapping; we are the only writer.
        let page = unsafe { self.page.as_ref() };
        let version = page.version.load(Ordering::Relaxed);
        page.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (to, from) in page.text.iter().zip(&json) {
            to.store(*from, Ordering::Relaxed);
        }
        page.len.store(json.len() as u32, Ordering::Relaxed);
        page.version.store(version + 2, Ordering::Release);
    }
}

/// What session `pid` tells in the segment `handle`; `None` if it has ended meanwhile.
pub fn read(handle: u32, pid: i32) -> Option<State> {
    // SAFETY: the segment is looked at only if it has the size and the mark of ours; any session can take
    // a lock of any number. It is mapped for the time of this call, if it was not before.
    let state = unsafe {
        let mapped = NonNull::new(pg_sys::dsm_find_mapping(handle));
        let segment = match mapped {
            Some(segment) => segment,
            None => NonNull::new(pg_sys::dsm_attach(handle))?,
        };
        let page = pg_sys::dsm_segment_address(segment.as_ptr()).cast::<Page>();
        let fits = pg_sys::dsm_segment_map_length(segment.as_ptr()) >= size_of::<Page>();
        let state = match fits && (*page).magic == MAGIC {
            true => read_page(&*page),
            false => None,
        };
        if mapped.is_none() {
            pg_sys::dsm_detach(segment.as_ptr());
        }
        state
    };
    state.filter(|state| state.pid == pid)
}

fn read_page(page: &Page) -> Option<State> {
    for _ in 0..TRIES {
        let before = page.version.load(Ordering::Acquire);
        let len = (page.len.load(Ordering::Relaxed) as usize).min(ROOM);
        let json: Vec<u8> = page.text[..len]
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect();
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && page.version.load(Ordering::Relaxed) == before {
            return serde_json::from_slice(&json).ok();
        }
        std::hint::spin_loop();
    }
    None
}

/// As JSON that fits, without what is secret.
fn encode(state: &State) -> Vec<u8> {
    let cut = |text: &String| -> String {
        let text = crate::libpq::scrub(text);
        text.chars().take(TEXT / 4).collect()
    };
    let shown = State {
        phase_name: cut(&state.phase_name),
        step: state.step.as_ref().map(cut),
        activity: state.activity.as_ref().map(cut),
        tables: state.tables.iter().take(TABLES).cloned().collect(),
        ..state.clone()
    };
    match serde_json::to_vec(&shown) {
        Ok(json) if json.len() <= ROOM => json,
        // Escapes made it longer than it looked.
        _ => serde_json::to_vec(&State {
            tables: vec![],
            activity: None,
            ..shown
        })
        .unwrap_or_default(),
    }
}

/// What fails here is nothing to fail a run for.
fn caught<T>(body: impl FnOnce() -> Option<T>) -> Option<T> {
    let body = AssertUnwindSafe(body);
    sqlstate::watch(|| {
        PgTryBuilder::new(AssertUnwindSafe(move || {
            let body = body;
            Ok((body.0)())
        }))
        .catch_others(|cause| Err(sqlstate::caught(cause)))
        .execute()
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_told_fits() {
        let state = State {
            node: "\u{1}".repeat(63),
            step_node: Some("\"".repeat(63)),
            phase_name: "\\".repeat(5000),
            step: Some("é\"".repeat(5000)),
            activity: Some("\u{1}".repeat(100_000)),
            tables: vec!["\"\\\"".repeat(60); 1000],
            ..State::default()
        };
        let json = encode(&state);
        assert!(json.len() <= ROOM, "{}", json.len());
        let back: State = serde_json::from_slice(&json).unwrap();
        assert_eq!(back.node, state.node);
    }
}
