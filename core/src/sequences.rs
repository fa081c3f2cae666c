//! Whether sequences of different members give the same values.

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
    /// Of a sequence that gives `next`, then goes on by `step` between `low` and `high`.
    pub fn new(name: &str, next: i128, step: i128, limits: (i128, i128), cycles: bool) -> Self {
        let (mut low, mut high) = limits;
        if !cycles {
            match step > 0 {
                true => low = next,
                false => high = next,
            }
        }
        Self {
            name: name.to_owned(),
            next,
            step,
            low,
            high,
        }
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

    fn ahead(next: i64, step: i64, low: i64, high: i64, cycles: bool) -> Ahead {
        Ahead::new(
            "s",
            next.into(),
            step.into(),
            (low.into(), high.into()),
            cycles,
        )
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
