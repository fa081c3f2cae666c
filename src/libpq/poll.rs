//! Waiting for something that happens elsewhere, for as long as it makes progress.

use super::wait;
use crate::error::{Error, Result, SqlState};
use crate::progress;
use crate::settings;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// What a check at the condition found.
pub enum Poll<T> {
    Ready(T),
    /// Not yet. The text says how far it is: any change of it is progress.
    Pending(String),
}

/// What ends a wait for something that does not come.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// So long without any change in what is seen; `None` waits for ever.
    Progress(Option<Duration>),
    /// So long in all, as a setting of the engine demands.
    Whole { seconds: u64, setting: &'static str },
}

/// Looks again and again until the condition holds. The looks are close together at first, since
/// most conditions hold within milliseconds, and at most 100 ms apart. Without a change in what is
/// seen for `zodan.no_progress_timeout` the wait ends with [`Error::Stalled`].
pub fn wait_until<T>(
    node: &str,
    what: &str,
    hint: &str,
    check: impl FnMut() -> Result<Poll<T>>,
) -> Result<T> {
    let limit = Limit::Progress(settings::no_progress_timeout());
    wait_naming(limit, &RefCell::new((node.to_owned(), what)), hint, check)
}

/// As [`wait_until`], with a limit of its own. For which node and for what is waited is told by the check.
pub fn wait_naming<T>(
    limit: Limit,
    at: &RefCell<(String, &str)>,
    hint: &str,
    mut check: impl FnMut() -> Result<Poll<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut interval = Duration::from_millis(1);
    let mut last = String::new();
    let mut since = Instant::now();
    loop {
        match check()? {
            Poll::Ready(value) => {
                if !last.is_empty() {
                    progress::activity(None);
                }
                return Ok(value);
            }
            Poll::Pending(state) if state != last => {
                let (node, what) = &*at.borrow();
                progress::activity(Some(format!("node \"{node}\": {what}: {state}")));
                last = state;
                since = Instant::now();
            }
            Poll::Pending(_) => {}
        }
        let (node, what) = &*at.borrow();
        match limit {
            Limit::Progress(Some(limit)) if since.elapsed() > limit => {
                return Err(Error::Stalled {
                    node: node.clone(),
                    what: (*what).to_owned(),
                    seconds: limit.as_secs(),
                    detail: last,
                    hint: hint.to_owned(),
                });
            }
            Limit::Whole { seconds, setting } if began.elapsed().as_secs() >= seconds => {
                return Err(Error::Refused {
                    state: SqlState::NOT_IN_PREREQUISITE_STATE,
                    message: format!(
                        "node \"{node}\": {what} took longer than {setting}, {seconds} s"
                    ),
                    detail: Some(last),
                    hint: format!("Raise {setting}, or set it to 0. {hint}"),
                });
            }
            _ => {}
        }
        wait::on_latch(interval)?;
        interval = (interval * 3 / 2).min(Duration::from_millis(100));
    }
}

/// Whether the condition comes to hold within `limit`. The looks are at most 10 ms apart: something stands still for it.
pub fn holds_within(limit: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let mut interval = Duration::from_millis(1);
    loop {
        if check()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        wait::on_latch(interval)?;
        interval = (interval * 2).min(Duration::from_millis(10));
    }
}

/// Attempts that are given up and made again.
pub struct Attempts {
    last: String,
    since: Instant,
}

impl Attempts {
    pub fn new() -> Self {
        Self {
            last: String::new(),
            since: Instant::now(),
        }
    }

    /// One was given up. How long it has been for the same reason, if that is longer than `zodan.no_progress_timeout`.
    pub fn given_up(&mut self, why: &str) -> Option<Duration> {
        if why != self.last {
            why.clone_into(&mut self.last);
            self.since = Instant::now();
            return None;
        }
        let limit = settings::no_progress_timeout()?;
        Some(self.since.elapsed()).filter(|elapsed| *elapsed > limit)
    }
}
