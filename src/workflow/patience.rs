//! Waiting for something that happens elsewhere, for as long as it makes progress.

use crate::error::{Error, Result};
use crate::libpq::wait;
use crate::settings;
use std::time::{Duration, Instant};

/// What a look at the condition found.
pub enum Seen<T> {
    Done(T),
    /// Not yet. The text says how far it is: any change of it is progress.
    Pending(String),
}

/// Looks again and again until the condition holds. The looks are close together at first, since
/// most conditions hold within milliseconds, and at most 100 ms apart. Without a change in what is
/// seen for `zodan.no_progress_timeout` the wait ends with [`Error::Stalled`].
pub fn wait_until<T>(
    node: &str,
    what: &str,
    hint: &str,
    mut look: impl FnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let limit = settings::no_progress_timeout();
    let mut rest = Duration::from_millis(1);
    let mut last = String::new();
    let mut since = Instant::now();
    loop {
        match look()? {
            Seen::Done(value) => return Ok(value),
            Seen::Pending(state) if state != last => {
                last = state;
                since = Instant::now();
            }
            Seen::Pending(_) => {}
        }
        if let Some(limit) = limit
            && since.elapsed() > limit
        {
            return Err(Error::Stalled {
                node: node.to_owned(),
                what: what.to_owned(),
                seconds: limit.as_secs(),
                detail: last,
                hint: hint.to_owned(),
            });
        }
        wait::on_latch(rest)?;
        rest = (rest * 3 / 2).min(Duration::from_millis(100));
    }
}
