//! Positions in a WAL stream. An LSN means nothing without the node whose WAL it counts, so the two
//! are one type and positions of different nodes cannot be compared.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A byte position in some node's WAL, in PostgreSQL's `X/Y` notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before all WAL: the progress where nothing has been applied.
    pub const ZERO: Self = Self(0);
    /// After all WAL: the progress where nothing can be lacking.
    pub const MAX: Self = Self(u64::MAX);
}

impl FromStr for Lsn {
    type Err = ();
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let part = |p: &str| {
            // The parser of numbers would take a sign.
            if !(1..=8).contains(&p.len()) || !p.bytes().all(|b| b.is_ascii_hexdigit()) {
                Err(())
            } else {
                u64::from_str_radix(p, 16).map_err(|_| ())
            }
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A position in the WAL of `node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    node: String,
    lsn: Lsn,
}

impl Position {
    pub fn new(node: &str, lsn: Lsn) -> Self {
        Self {
            node: node.to_owned(),
            lsn,
        }
    }

    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The LSN, for a statement that takes it as one of `node`.
    pub fn of(&self, node: &str) -> Result<Lsn> {
        match self.node == node {
            true => Ok(self.lsn),
            false => Err(Error::NotOfNode(self.to_string(), node.to_owned())),
        }
    }

    /// Another position of the same node.
    pub fn at(&self, lsn: Lsn) -> Self {
        Self::new(&self.node, lsn)
    }

    /// The later of two positions of the same node.
    pub fn max(self, other: &Self) -> Result<Self> {
        Ok(if self.reaches(other)? {
            self
        } else {
            other.clone()
        })
    }

    /// True when everything before `other` is also before this position.
    pub fn reaches(&self, other: &Self) -> Result<bool> {
        if self.node != other.node {
            return Err(Error::OtherNode(self.to_string(), other.to_string()));
        }
        Ok(self.lsn >= other.lsn)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on \"{}\"", self.lsn, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notation() {
        assert_eq!(
            "16/B374D848".parse::<Lsn>().unwrap().to_string(),
            "16/B374D848"
        );
        assert_eq!("0/0".parse::<Lsn>(), Ok(Lsn(0)));
        for bad in ["", "0", "/1", "0/", "0/123456789", "x/1", "0/+0"] {
            assert_eq!(bad.parse::<Lsn>(), Err(()), "{bad}");
        }
        assert!("1/0".parse::<Lsn>().unwrap() > "0/FFFFFFFF".parse().unwrap());
    }

    #[test]
    fn positions_of_two_nodes_cannot_be_mixed() {
        let a = Position::new("n1", Lsn(10));
        let b = Position::new("n2", Lsn(20));
        assert_eq!(
            a.reaches(&b).unwrap_err().to_string(),
            "position 0/A on \"n1\" was about to be compared with 0/14 on \"n2\""
        );
        assert!(a.clone().max(&b).is_err());
        assert_eq!(a.of("n1").unwrap(), Lsn(10));
        assert_eq!(
            a.of("n2").unwrap_err().to_string(),
            "position 0/A on \"n1\" was about to be used as one of node \"n2\""
        );
        let later = Position::new("n1", Lsn(11));
        assert_eq!(a.clone().max(&later).unwrap(), later);
        assert!(later.reaches(&a).unwrap() && !a.reaches(&later).unwrap());
    }

    proptest! {
        #[test]
        fn every_position_is_read_as_it_is_written(lsn in any::<u64>()) {
            prop_assert_eq!(Lsn(lsn).to_string().parse::<Lsn>(), Ok(Lsn(lsn)));
        }

        #[test]
        fn what_is_no_position_is_refused(text in "\\PC{0,20}|[0-9A-Fa-f+-]{0,9}/[0-9A-Fa-f+-]{0,9}") {
            let digits = |part: &str| {
                (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
            };
            let valid = text.split_once('/').is_some_and(|(high, low)| digits(high) && digits(low));
            prop_assert_eq!(text.parse::<Lsn>().is_ok(), valid, "{}", text);
        }
    }
}
