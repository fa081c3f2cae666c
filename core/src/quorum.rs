//! Whether enough members answer to change what all have to know.

/// What `reached` of some members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    Majority,
    Half,
    Minority,
}

impl Quorum {
    pub fn of(reached: usize, members: usize) -> Self {
        match (2 * reached).cmp(&members) {
            std::cmp::Ordering::Greater => Self::Majority,
            std::cmp::Ordering::Equal => Self::Half,
            std::cmp::Ordering::Less => Self::Minority,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quorum;

    #[test]
    fn half_is_no_majority() {
        assert_eq!(Quorum::of(1, 1), Quorum::Majority);
        assert_eq!(Quorum::of(1, 2), Quorum::Half);
        assert_eq!(Quorum::of(2, 3), Quorum::Majority);
        assert_eq!(Quorum::of(2, 4), Quorum::Half);
        assert_eq!(Quorum::of(2, 5), Quorum::Minority);
        assert_eq!(Quorum::of(3, 5), Quorum::Majority);
    }
}
