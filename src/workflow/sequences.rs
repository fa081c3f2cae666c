//! Whether sequences of different members give the same values.

use crate::error::Result;
use crate::libpq::Row;

/// The values that a sequence may still give.
#[derive(Clone, Debug)]
pub struct Ahead {
    pub name: String,
    next: i128,
    step: i128,
    low: i128,
    high: i128,
}

impl Ahead {
    /// A row of `server::sequences`.
    pub fn parse(row: &Row) -> Result<Self> {
        let (next, step) = (row.parse(1)?, row.parse::<i128>(2)?);
        let (mut low, mut high) = (row.parse(3)?, row.parse(4)?);
        if !row.bool(5) {
            match step > 0 {
                true => low = next,
                false => high = next,
            }
        }
        Ok(Self {
            name: row.text(0).to_owned(),
            next,
            step,
            low,
            high,
        })
    }

    /// Whether some value is ahead of both.
    pub fn meets(&self, other: &Self) -> bool {
        let overlap = self.low.max(other.low) <= self.high.min(other.high);
        let common = gcd(self.step.abs(), other.step.abs());
        overlap && common != 0 && (self.next - other.next) % common == 0
    }
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libpq::Rows;

    fn ahead(next: i64, step: i64, low: i64, high: i64, cycles: bool) -> Ahead {
        let cycles = if cycles { "t" } else { "f" };
        let numbers = [next, step, low, high].map(|n| Some(n.to_string()));
        let mut row = vec![Some("s".into())];
        row.extend(numbers);
        row.push(Some(cycles.into()));
        Ahead::parse(Rows::new(vec![row], 0).one().unwrap()).unwrap()
    }

    #[test]
    fn sequences_meet_where_values_are_common() {
        let plain = |next| ahead(next, 1, 1, i64::MAX, false);
        assert!(plain(1).meets(&plain(1_000)));
        // Strides of three members.
        let stride = |next| ahead(next, 3, 1, i64::MAX, false);
        assert!(!stride(1).meets(&stride(5)) && !stride(2).meets(&stride(6)));
        assert!(stride(1).meets(&stride(7)) && stride(1).meets(&plain(9)));
        assert!(ahead(1, 4, 1, 99, false).meets(&ahead(3, 6, 1, 99, false)));
        // Ranges of their own.
        let range = |low, high| ahead(low, 1, low, high, false);
        assert!(!range(1, 100).meets(&range(101, 200)));
        assert!(range(1, 101).meets(&range(101, 200)));
        // What one has behind it is ahead of it again if it cycles.
        assert!(!ahead(50, 1, 1, 99, false).meets(&ahead(40, -1, 1, 99, false)));
        assert!(ahead(50, 1, 1, 99, true).meets(&ahead(40, -1, 1, 99, false)));
        assert!(plain(i64::MAX).meets(&plain(1)));
    }
}
