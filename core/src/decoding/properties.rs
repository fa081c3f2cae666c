//! What comes from a server's output plugin is either read or refused, whatever it is.

use super::{pgoutput, spock_output};
use proptest::prelude::*;

/// Bytes that begin like a message of either plugin, so that they get past its first letter.
fn like_a_message() -> impl Strategy<Value = Vec<u8>> {
    let letter = prop::sample::select(b"BCORYIUDTM".to_vec());
    let rest = prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..80);
    (letter, rest).prop_map(|(letter, rest)| [vec![letter], rest].concat())
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop_oneof![like_a_message(), prop::collection::vec(any::<u8>(), 0..80)]) {
        let _ = pgoutput::parse(&bytes);
        let _ = spock_output::parse(&bytes);
    }

    /// A length from elsewhere is no reason to ask for that much memory.
    #[test]
    fn a_length_that_is_too_long_is_refused(length in 1_000_000u32.., kind in prop::sample::select(b"tb".to_vec())) {
        let mut insert = vec![b'I', 0, 0, 0, 7, b'N', 0, 1, kind];
        insert.extend(length.to_be_bytes());
        prop_assert!(pgoutput::parse(&insert).is_err());
        prop_assert!(spock_output::parse(&insert).is_err());
    }
}
