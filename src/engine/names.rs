//! Names of subscriptions, the same in join, removal and recovery.

/// The longest name PostgreSQL keeps.
pub const NAME_MAX: usize = 63;

/// `sub_<provider>_<subscriber>`, in the characters that replication slots allow.
///
/// Names of plain lower-case letters, digits and underscores that fit are taken as they are. Of any
/// other the plain part stays readable and a hash of the exact names makes it unique: `n-3` and
/// `n_3` never share a slot.
pub fn subscription(provider: &str, subscriber: &str) -> String {
    let plain = format!("sub_{provider}_{subscriber}");
    if plain.len() <= NAME_MAX && plain.bytes().all(is_slot_byte) {
        return plain;
    }
    let hash = fnv1a(&[provider.as_bytes(), subscriber.as_bytes()]);
    let tail = format!("_{hash:016x}");
    // "sub_" + provider + "_" + subscriber + tail
    let room = (NAME_MAX - "sub__".len() - tail.len()) / 2;
    format!(
        "sub_{}_{}{tail}",
        readable(provider, room),
        readable(subscriber, room)
    )
}

fn is_slot_byte(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'
}

fn readable(name: &str, room: usize) -> String {
    name.chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| {
            if c.is_ascii() && is_slot_byte(c as u8) {
                c
            } else {
                '_'
            }
        })
        .take(room)
        .collect()
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): stable across versions and
/// machines, which the standard library's hashers do not promise.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_names_stay() {
        assert_eq!(subscription("n1", "n4"), "sub_n1_n4");
    }

    #[test]
    fn odd_names_become_valid_and_stay_apart() {
        let long = "x".repeat(60);
        let names = [
            "n-3",
            "n_3",
            "N3",
            "n3",
            "n 3",
            "n'3",
            "n\"3",
            "ñ3",
            long.as_str(),
        ];
        let mut seen = std::collections::HashSet::new();
        for provider in names {
            for subscriber in names {
                let name = subscription(provider, subscriber);
                assert!(name.len() <= NAME_MAX, "{name}");
                assert!(name.bytes().all(is_slot_byte), "{name}");
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
        assert!(subscription("n-3", "n4").starts_with("sub_n_3_n4_"));
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_a_slot_may_have(provider in "\\PC{1,63}", subscriber in "\\PC{1,63}") {
            let name = subscription(&provider, &subscriber);
            prop_assert!(name.len() <= NAME_MAX && name.bytes().all(is_slot_byte), "{name}");
        }

        /// A server has the slots of one provider and the subscriptions of one subscriber.
        #[test]
        fn no_two_paths_of_a_server_share_a_name(own in "[a-zN_\\-é]{1,40}", a in "[a-cN_\\-é]{1,40}", b in "[a-cN_\\-é]{1,40}") {
            prop_assume!(a != b);
            prop_assert_ne!(subscription(&own, &a), subscription(&own, &b));
            prop_assert_ne!(subscription(&a, &own), subscription(&b, &own));
        }
    }
}
