//! The codes of errors.

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub const OK: Self = Self(*b"00000");
    pub const WARNING: Self = Self(*b"01000");
    pub const NULL_VALUE_NOT_ALLOWED: Self = Self(*b"22004");
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    pub const NAME_TOO_LONG: Self = Self(*b"42622");
    pub const INVALID_NAME: Self = Self(*b"42602");
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub const UNABLE_TO_CONNECT: Self = Self(*b"08001");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    pub const UNDEFINED_TABLE: Self = Self(*b"42P01");
    pub const UNDEFINED_COLUMN: Self = Self(*b"42703");
    pub const FOREIGN_KEY_VIOLATION: Self = Self(*b"23503");
    pub const CHECK_VIOLATION: Self = Self(*b"23514");
    pub const WRONG_OBJECT_TYPE: Self = Self(*b"42809");
    pub const UNDEFINED_FUNCTION: Self = Self(*b"42883");
    pub const OBJECT_IN_USE: Self = Self(*b"55006");
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    pub const LOCK_NOT_AVAILABLE: Self = Self(*b"55P03");
    pub const ACTIVE_SQL_TRANSACTION: Self = Self(*b"25001");
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    pub const DISK_FULL: Self = Self(*b"53100");
    pub const OUT_OF_MEMORY: Self = Self(*b"53200");
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self(*b"54000");
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    pub const EXTERNAL_ROUTINE_EXCEPTION: Self = Self(*b"38000");
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");
    /// zodan's own: a change of the membership that a minority would make.
    pub const NO_MAJORITY: Self = Self(*b"ZD001");

    /// The state a server sent; anything that is not five characters of `[0-9A-Z]` becomes XX000.
    pub fn parse(text: &str) -> Self {
        match <[u8; 5]>::try_from(text.as_bytes()) {
            Ok(code)
                if code
                    .iter()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) =>
            {
                Self(code)
            }
            _ => Self::INTERNAL_ERROR,
        }
    }

    /// PostgreSQL's `MAKE_SQLSTATE`: five 6-bit characters, the first in the lowest bits.
    pub fn pack(self) -> i32 {
        (0..5).fold(0, |n, i| {
            n | (i32::from(self.0[i] - b'0') & 0x3f) << (6 * i)
        })
    }

    /// The inverse of [`SqlState::pack`].
    pub fn unpack(packed: i32) -> Self {
        Self(std::array::from_fn(|i| {
            ((packed >> (6 * i)) & 0x3f) as u8 + b'0'
        }))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// Not a code of success, a warning or no data.
    pub fn is_error(self) -> bool {
        !matches!(&self.0, [b'0', b'0'..=b'2', ..])
    }

    /// "Already gone": what an undo may meet and call done.
    pub fn is_undefined(self) -> bool {
        matches!(
            &self.0,
            b"42704" | b"42P01" | b"3F000" | b"42883" | b"3D000"
        )
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sqlstate_survives_packing() {
        for text in ["42P01", "08006", "57014", "XX000", "22004"] {
            assert_eq!(
                SqlState::unpack(SqlState::parse(text).pack()).as_str(),
                text
            );
        }
        assert_eq!(SqlState::parse("4250"), SqlState::INTERNAL_ERROR);
        assert_eq!(SqlState::parse("42é0"), SqlState::INTERNAL_ERROR);
    }

    proptest! {
        #[test]
        fn whatever_code_a_peer_sends_is_one(text in any::<String>(), code in "[0-9A-Z]{5}", packed in any::<i32>()) {
            prop_assert_eq!(SqlState::parse(&text).as_str().len(), 5);
            let unpacked = SqlState::unpack(SqlState::parse(&code).pack());
            prop_assert_eq!(unpacked.as_str(), code);
            let _ = SqlState::unpack(packed).to_string();
        }
    }
}
