//! What `zodan.progress` reads.

use crate::encoding::shown;
use crate::progress::{self, Work};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

/// What session `pid` tells in the shared memory `handle`; no row if it has ended.
#[pg_extern(sql = "")]
fn progress_read(
    handle: i64,
    pid: i32,
) -> TableIterator<
    'static,
    (
        name!(run, Option<i64>),
        name!(command, String),
        name!(node, String),
        name!(phase, i32),
        name!(phases, i32),
        name!(phase_name, String),
        name!(step, Option<String>),
        name!(step_node, Option<String>),
        name!(activity, Option<String>),
        name!(tables, Vec<String>),
        name!(percent, f64),
        name!(bytes_done, Option<i64>),
        name!(bytes_total, Option<i64>),
        name!(rows_done, Option<i64>),
        name!(rows_total, Option<i64>),
        name!(bytes_per_second, Option<f64>),
        name!(time_left, Option<Interval>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(last_progress_at, Option<TimestampWithTimeZone>),
    ),
> {
    let state = u32::try_from(handle)
        .ok()
        .and_then(|handle| progress::read(handle, pid));
    let row = state.map(|state| {
        let of = |part: fn(&Work) -> u64| state.work.as_ref().map(|work| part(work) as i64);
        let at = |micros: i64| TimestampWithTimeZone::try_from(micros).ok();
        (
            state.run,
            state.command,
            state.node,
            state.phase as i32,
            state.phases as i32,
            state.phase_name,
            state.step,
            state.step_node,
            state.activity,
            state.tables.iter().map(|t| shown(t).into_owned()).collect(),
            state.percent,
            of(|work| work.bytes_done),
            of(|work| work.bytes_total),
            of(|work| work.rows_done),
            state
                .work
                .and_then(|work| work.rows_total)
                .map(|rows| rows as i64),
            state.rate,
            state
                .left_ms
                .map(|ms| Interval::from_micros((ms as i64).saturating_mul(1000))),
            at(state.started_at),
            at(state.moved_at),
        )
    });
    TableIterator::new(row)
}
