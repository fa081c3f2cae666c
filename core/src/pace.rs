//! How fast something goes, and how long the rest will take at that pace.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A pace is that of so much time before: long enough for an estimate that does not jump, short enough
/// to notice that the network has become slower.
const WINDOW: Duration = Duration::from_secs(30);
/// Looks closer together than this tell nothing more.
const APART: Duration = Duration::from_millis(200);
/// In less than this nothing can be said.
const LEAST: Duration = Duration::from_secs(1);

/// Looks at how much was done when, the oldest first.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    pub fn add(&mut self, at: Instant, done: u64) {
        let looks = &mut self.0;
        // The last look is moved on until it is far enough from the one before it.
        let last = looks.len().saturating_sub(1);
        if last > 0 && looks[last].0 - looks[last - 1].0 < APART {
            looks.pop_back();
        }
        looks.push_back((at, done));
        while looks.len() > 2 && at - looks[1].0 >= WINDOW {
            looks.pop_front();
        }
    }

    /// So much in a second; `None` as long as it cannot be told.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let time = last.0 - first.0;
        (time >= LEAST).then(|| last.1.saturating_sub(first.1) as f64 / time.as_secs_f64())
    }

    /// `None` as well where nothing moves.
    pub fn time_for(&self, left: u64) -> Option<Duration> {
        if left == 0 {
            return Some(Duration::ZERO);
        }
        let rate = self.rate().filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(begin: Instant, speeds: &[(u64, u64)]) -> Pace {
        let (mut pace, mut at, mut done) = (Pace::default(), begin, 0);
        pace.add(at, done);
        for (seconds, speed) in speeds {
            for _ in 0..seconds * 10 {
                at += Duration::from_millis(100);
                done += speed / 10;
                pace.add(at, done);
            }
        }
        pace
    }

    #[test]
    fn nothing_is_said_too_early() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.rate(), None);
        pace.add(begin, 0);
        pace.add(begin + Duration::from_millis(900), 900);
        assert_eq!(pace.rate(), None);
        assert_eq!(pace.time_for(0), Some(Duration::ZERO));
        pace.add(begin + Duration::from_millis(1000), 1000);
        assert_eq!(pace.rate(), Some(1000.0));
        assert_eq!(pace.time_for(500), Some(Duration::from_millis(500)));
    }

    #[test]
    fn an_even_pace_is_met_exactly_and_a_changed_one_soon() {
        let begin = Instant::now();
        let even = walk(begin, &[(100, 5000)]);
        assert_eq!(even.rate().map(f64::round), Some(5000.0));
        assert!(even.0.len() < 200, "{}", even.0.len());
        let slower = walk(begin, &[(100, 5000), (40, 1000)]);
        assert_eq!(slower.rate().map(f64::round), Some(1000.0));
        let stuck = walk(begin, &[(10, 5000), (40, 0)]);
        assert_eq!(stuck.time_for(1), None);
    }
}
