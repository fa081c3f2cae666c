//! How far a CALL is, for any other session to read while it runs: its phase, its step, what it waits
//! for, and of a copy what is done of what there is to do. Kept in shared memory, since the commits of a
//! run are for what an undo needs and far between.

mod shared;

pub use shared::read;

use pgrx::pg_sys;
use serde::{Deserialize, Serialize};
use shared::Published;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::{Duration, Instant};
use zodan_core::pace::Pace;

/// What is told of a call. Times are in microseconds since 2000.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub pid: i32,
    pub command: String,
    /// The node that the call is about.
    pub node: String,
    pub run: Option<i64>,
    pub phase: usize,
    pub phases: usize,
    pub phase_name: String,
    pub step: Option<String>,
    pub step_node: Option<String>,
    /// What it does or waits for within the step.
    pub activity: Option<String>,
    /// Tables in hand, quoted.
    pub tables: Vec<String>,
    pub work: Option<Work>,
    /// Bytes in a second.
    pub rate: Option<f64>,
    pub left_ms: Option<u64>,
    pub percent: f64,
    pub started_at: i64,
    /// When anything last moved.
    pub moved_at: i64,
}

/// What is done of what there is to do, where that can be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub rows_done: u64,
    /// `None` where nobody knows.
    pub rows_total: Option<u64>,
}

impl Work {
    fn fraction(&self) -> f64 {
        match self.bytes_total {
            0 => 0.0,
            total => (self.bytes_done as f64 / total as f64).min(1.0),
        }
    }
}

/// As long as this lives, the call is told of.
pub struct Call(PhantomData<*mut ()>);

impl Call {
    /// Begins to tell of `command` about `node`. Of its `phases`, the one with the number `long` is the
    /// one that takes its time.
    pub fn begin(command: &str, node: &str, phases: usize, long: usize) -> Self {
        let now = now();
        let state = State {
            // SAFETY: set when the backend starts.
            pid: unsafe { pg_sys::MyProcPid },
            command: command.to_owned(),
            node: node.to_owned(),
            phases,
            started_at: now,
            moved_at: now,
            ..State::default()
        };
        let reporter = Reporter {
            published: Published::publish(),
            state,
            long,
            pace: Pace::default(),
        };
        REPORTER.set(Some(reporter));
        Self(PhantomData)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(published) = REPORTER.take().and_then(|reporter| reporter.published) {
            published.unpublish();
        }
    }
}

struct Reporter {
    /// `None` where the server has no room for it: the call goes on untold.
    published: Option<Published>,
    state: State,
    long: usize,
    pace: Pace,
}

thread_local! {
    static REPORTER: RefCell<Option<Reporter>> = const { RefCell::new(None) };
}

fn update(change: impl FnOnce(&mut Reporter)) {
    REPORTER.with_borrow_mut(|reporter| {
        let Some(reporter) = reporter else { return };
        change(reporter);
        reporter.state.percent = reporter.percent().max(reporter.state.percent);
        if let Some(published) = &reporter.published {
            published.write(&reporter.state);
        }
    });
}

impl Reporter {
    fn moved(&mut self) {
        self.state.moved_at = now();
    }

    /// Each of the short phases counts for one of a hundred, the long one for the rest.
    fn percent(&self) -> f64 {
        let (phase, phases) = (self.state.phase.max(1), self.state.phases.max(1));
        let long = 100.0 - (phases - 1) as f64;
        let fraction = self.state.work.map_or(0.0, |work| work.fraction());
        let before = (phase - 1) as f64;
        match phase.cmp(&self.long) {
            std::cmp::Ordering::Less => before,
            std::cmp::Ordering::Equal => before + long * fraction,
            std::cmp::Ordering::Greater => before - 1.0 + long,
        }
    }
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The journal has given the call its number.
pub fn run(number: i64) {
    update(|t| t.state.run = Some(number));
}

pub fn phase(number: usize, name: &str) {
    update(|t| {
        t.state.phase = number;
        t.state.phase_name = name.to_owned();
        t.state.step = None;
        t.state.step_node = None;
        t.state.activity = None;
        t.moved();
    });
}

pub fn step(node: &str, what: &str) {
    update(|t| {
        t.state.step = Some(what.to_owned());
        t.state.step_node = Some(node.to_owned());
        t.state.activity = None;
        t.moved();
    });
}

/// What is done, or what a wait has seen; `None` when that is over.
pub fn activity(what: Option<String>) {
    update(|t| {
        t.state.activity = what;
        t.moved();
    });
}

/// Something is done of what can be counted. `later` of the bytes are still to be done in another way,
/// which will take about that long.
pub fn work(work: Work, later: (u64, Duration), tables: Vec<String>) {
    update(|t| {
        if t.state.work != Some(work) {
            t.moved();
        }
        t.pace.add(Instant::now(), work.bytes_done);
        let left = work.bytes_total.saturating_sub(work.bytes_done + later.0);
        t.state.rate = t.pace.rate();
        t.state.left_ms = t
            .pace
            .time_for(left)
            .map(|time| (time + later.1).as_millis() as u64);
        t.state.work = Some(work);
        t.state.tables = tables;
    });
}

/// What is counted from here on goes at another pace.
pub fn new_pace() {
    update(|t| {
        t.pace = Pace::default();
        t.state.rate = None;
    });
}

/// All that could be counted is done.
pub fn worked() {
    update(|t| {
        t.state.tables = vec![];
        t.state.rate = None;
        t.state.left_ms = None;
    });
}

/// The call has done what it was called for.
pub fn finished() {
    update(|t| {
        t.state.percent = 100.0;
        t.state.left_ms = Some(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(phase: usize, done: u64) -> f64 {
        let state = State {
            phase,
            phases: 9,
            work: Some(Work {
                bytes_done: done,
                bytes_total: 1000,
                ..Work::default()
            }),
            ..State::default()
        };
        let reporter = Reporter {
            published: None,
            state,
            long: 6,
            pace: Pace::default(),
        };
        reporter.percent()
    }

    #[test]
    fn percent_never_goes_back_from_phase_to_phase() {
        let all = [
            percent(1, 0),
            percent(5, 0),
            percent(6, 0),
            percent(6, 500),
            percent(6, 1000),
            percent(7, 1000),
            percent(9, 1000),
        ];
        assert_eq!(all, [0.0, 4.0, 5.0, 51.0, 97.0, 97.0, 99.0]);
    }
}
