//! Names of subscriptions and slots, the same in join, removal and recovery. Subscriptions are a database's own; slots
//! are shared by all databases of a server, so theirs contain the database.

/// Extensions, and their schemas, that each node has of its own: zodan's, and those of the engines. Whatever replicates a
/// cluster, what is in them is not its users'.
pub const OWN_EXTENSIONS: [&str; 2] = ["spock", "zodan"];

/// The same for a condition in SQL.
pub const OWN_SCHEMAS: &str = "('zodan', 'spock')";

/// The longest name PostgreSQL keeps.
pub const NAME_MAX: usize = 63;

/// `sub_<provider>_<subscriber>`, in the characters that replication slots allow.
///
/// Names of plain lower-case letters, digits and underscores that fit are taken as they are. Of any
/// other the plain part stays readable and a hash of the exact names makes it unique: `n-3` and
/// `n_3` never share a slot.
pub fn subscription(provider: &str, subscriber: &str) -> String {
    let plain = format!("sub_{provider}_{subscriber}");
    if is_plain(&plain) {
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

/// The name of one of several subscriptions of a node to another one: of the first as [`subscription`], then with a
/// letter behind.
pub fn nth_subscription(provider: &str, subscriber: &str, nth: usize) -> String {
    let first = subscription(provider, subscriber);
    if nth == 0 {
        return first;
    }
    let letter = match u8::try_from(nth) {
        Ok(n @ 0..26) => format!("_{}", char::from(b'a' + n)),
        _ => format!("_n{nth}"),
    };
    if first.len() + letter.len() <= NAME_MAX {
        return first + &letter;
    }
    let tail = format!(
        "_{:016x}{letter}",
        fnv1a(&[provider.as_bytes(), subscriber.as_bytes()])
    );
    readable(&first, NAME_MAX - tail.len()) + &tail
}

const GENERATION: &str = "_gen";

/// The name of a subscription between nodes that have followed others of their names: `<name>_gen2` after one removal.
/// Spock takes no slot whose name ends so for one of a group.
pub fn of_generation(name: &str, generation: u32) -> String {
    if generation < 2 {
        return name.to_owned();
    }
    let tail = format!("{GENERATION}{generation}");
    if name.len() + tail.len() <= NAME_MAX {
        return format!("{name}{tail}");
    }
    let tail = format!("_{:016x}{tail}", fnv1a(&[name.as_bytes()]));
    readable(name, NAME_MAX - tail.len()) + &tail
}

/// The name without that, and the generation that it tells.
pub fn generation(name: &str) -> (&str, u32) {
    let numbered = name.rsplit_once(GENERATION).and_then(|(stem, numbered)| {
        let plain = !stem.is_empty() && !numbered.starts_with(['0', '+']);
        let generation = numbered.parse().ok().filter(|g| plain && *g > 1)?;
        Some((stem, generation))
    });
    numbered.unwrap_or((name, 1))
}

/// Whether a slot can have the name as it is.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(is_slot_byte)
}

/// A node and its number in the registry of a cluster, which no other node of the cluster has had.
#[derive(Clone, Copy)]
pub struct Numbered<'a> {
    pub name: &'a str,
    pub number: i32,
}

/// `sub_<provider>_<subscriber>_<database>_<hash>`: the slot in the provider's `database`. The hash is of these, of
/// the cluster, which is made up with its first member, and of both numbers: a server that was removed and comes back
/// finds no slot of its successor, and nobody takes it for its successor, whatever they are called and wherever they
/// answer.
pub fn slot(cluster: &str, provider: Numbered, subscriber: Numbered, database: &str) -> String {
    let numbers = [provider.number, subscriber.number].map(|number| number.to_string());
    let parts = [provider.name, subscriber.name, database];
    let all = [cluster, &numbers[0], &numbers[1]];
    let bytes = all.iter().chain(&parts).map(|part| part.as_bytes());
    let hash = fnv1a(&bytes.collect::<Vec<_>>());
    readable_parts(
        "sub",
        &parts,
        &format!("_{:08x}", (hash ^ (hash >> 32)) as u32),
    )
}

/// What the names of recovery slots and of their copies begin with.
pub const RECOVERY_SLOTS: &str = "spk_recovery_";

/// `spk_recovery_<database>`: the slot that keeps what other nodes may still need of the nodes that this one
/// subscribes to.
pub fn recovery_slot(database: &str) -> String {
    let like_a_copy = database.rsplit_once(COPY).is_some_and(|(_, run)| {
        let run = run.strip_suffix("_t").unwrap_or(run);
        !run.is_empty() && run.bytes().all(|b| b.is_ascii_digit())
    });
    hashed_unless(
        !like_a_copy && !ends_in_hash(database),
        "spk_recovery",
        &[database],
    )
}

const COPY: &str = "_clone_";

/// The copy of a recovery slot that is read by `run`. Two bytes are left for the copy of that.
pub fn recovery_copy(slot: &str, run: i64) -> String {
    let plain = format!("{slot}{COPY}{run}");
    if plain.len() + 2 <= NAME_MAX {
        return plain;
    }
    let hash = fnv1a(&[slot.as_bytes()]);
    format!("spk_recovery_{hash:016x}{COPY}{run}")
}

/// The parts behind `kind`, plain if that is `clear`, fits and has characters of slots only. Otherwise a hash of the
/// exact parts follows.
fn hashed_unless(clear: bool, kind: &str, parts: &[&str]) -> String {
    let plain = format!("{kind}_{}", parts.join("_"));
    if clear && is_plain(&plain) {
        return plain;
    }
    let bytes: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    readable_parts(kind, parts, &format!("_{:016x}", fnv1a(&bytes)))
}

/// The parts between `kind` and `tail` in characters of slots, the longest cut until all fit.
fn readable_parts(kind: &str, parts: &[&str], tail: &str) -> String {
    let mut parts: Vec<String> = parts.iter().map(|p| readable(p, NAME_MAX)).collect();
    let room = NAME_MAX - kind.len() - parts.len() - tail.len();
    while parts.iter().map(String::len).sum::<usize>() > room {
        if let Some(longest) = parts.iter_mut().max_by_key(|part| part.len()) {
            longest.pop();
        }
    }
    format!("{kind}_{}{tail}", parts.join("_"))
}

/// Whether it could be taken for one that was given a hash.
fn ends_in_hash(name: &str) -> bool {
    let is_hash = |tail: &str| tail.len() == 16 && tail.bytes().all(|b| b.is_ascii_hexdigit());
    name.rsplit_once('_')
        .map_or(is_hash(name), |(_, tail)| is_hash(tail))
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

    fn numbered(name: &str, number: i32) -> Numbered<'_> {
        Numbered { name, number }
    }

    #[test]
    fn schemas_of_our_own_are_those_of_the_extensions() {
        for name in OWN_EXTENSIONS {
            assert!(OWN_SCHEMAS.contains(&format!("'{name}'")), "{name}");
        }
    }

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

    #[test]
    fn generations_stay_apart() {
        assert_eq!(of_generation("sub_n1_n3", 1), "sub_n1_n3");
        assert_eq!(of_generation("sub_n1_n3", 2), "sub_n1_n3_gen2");
        assert_eq!(generation("sub_n1_n3_b_gen12"), ("sub_n1_n3_b", 12));
        for plain in [
            "sub_n1_n3",
            "_gen2",
            "n1_gen",
            "n1_gen1",
            "n1_gen02",
            "n1_gen+2",
            "n1_gen2x",
        ] {
            assert_eq!(generation(plain), (plain, 1));
        }
        let long = "x".repeat(62);
        let names = [2, 3, 20].map(|g| of_generation(&long, g));
        for (name, expected) in names.iter().zip([2, 3, 20]) {
            assert!(is_plain(name) && generation(name).1 == expected, "{name}");
        }
        assert_ne!(of_generation(&format!("{long}y"), 2), names[0]);
    }

    #[test]
    fn slots_name_their_database() {
        let name = slot("c", numbered("n1", 0), numbered("n4", 3), "inventory");
        let (readable, hash) = name.rsplit_once('_').unwrap();
        assert_eq!(readable, "sub_n1_n4_inventory");
        assert!(
            hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
            "{name}"
        );
        assert_eq!(recovery_slot("my_db"), "spk_recovery_my_db");
        assert_eq!(
            recovery_copy("spk_recovery_my_db", 5),
            "spk_recovery_my_db_clone_5"
        );
        assert!(recovery_slot("my-db").starts_with("spk_recovery_my_db_"));
    }

    #[test]
    fn no_other_membership_has_the_name_of_a_slot() {
        let name = |cluster, provider, subscriber| {
            let (provider, subscriber) = (numbered("n1", provider), numbered("n2", subscriber));
            slot(cluster, provider, subscriber, "db")
        };
        let all = [
            name("c", 0, 1),
            name("d", 0, 1),
            name("c", 0, 2),
            name("c", 2, 1),
        ];
        let apart: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(apart.len(), all.len(), "{all:?}");
        assert_eq!(name("c", 0, 1), all[0]);
    }

    #[test]
    fn slots_of_one_server_stay_apart() {
        let long = "d".repeat(63);
        let longer = format!("{}e", "d".repeat(62));
        let hash = recovery_slot("my-db").split_off("spk_recovery_".len());
        let databases = [
            "my_db",
            "my-db",
            "My_db",
            "my db",
            "mÿ_db",
            "db",
            "b_db",
            "x_clone_5",
            "x",
            "x_clone_5_t",
            &hash,
            &long,
            &longer,
        ];
        let nodes = ["n1", "n_1", "1", "a", "a_b", "n-1", "b", "n"];
        let mut seen = std::collections::HashSet::new();
        for database in databases {
            let recovery = recovery_slot(database);
            let copies = [1, 5, i64::MAX].map(|run| recovery_copy(&recovery, run));
            for name in copies.into_iter().chain([recovery]) {
                assert!(
                    name.len() <= NAME_MAX && name.bytes().all(is_slot_byte),
                    "{name}"
                );
                assert!(seen.insert(name.clone()), "{name} twice");
            }
            for provider in nodes {
                for subscriber in nodes {
                    for number in 1..4 {
                        let (provider, subscriber) =
                            (numbered(provider, 0), numbered(subscriber, number));
                        let name = slot("c", provider, subscriber, database);
                        assert!(
                            name.len() <= NAME_MAX && name.bytes().all(is_slot_byte),
                            "{name}"
                        );
                        assert!(seen.insert(name.clone()), "{name} twice");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_slot_has_a_name_that_it_may_have(provider in "\\PC{1,63}", subscriber in "\\PC{1,63}", database in "\\PC{1,63}", run in 1..i64::MAX) {
            let recovery = recovery_slot(&database);
            let copy = format!("{}_t", recovery_copy(&recovery, run));
            let slot = slot("c", numbered(&provider, i32::MAX), numbered(&subscriber, i32::MAX), &database);
            for name in [slot, recovery, copy] {
                prop_assert!(name.len() <= NAME_MAX && name.bytes().all(is_slot_byte), "{name}");
            }
        }

        #[test]
        fn no_two_databases_share_a_slot(nodes in "[ab_]{1,4}", others in "[ab_]{1,4}", a in "[ab1_\\-]{1,5}", b in "[ab1_\\-]{1,5}", n in 0..20, m in 0..20) {
            prop_assume!(a != b);
            let slot = |provider, subscriber, number, database| {
                slot("c", numbered(provider, 0), numbered(subscriber, number), database)
            };
            prop_assert_ne!(slot(&nodes, &others, n, &a), slot(&nodes, &others, m, &b));
            prop_assert_ne!(slot("a", &nodes, n, &a), slot("a", &others, m, &b));
            prop_assert_ne!(slot(&nodes, "a", n, &a), slot(&others, "a", m, &b));
            prop_assert_ne!(recovery_slot(&a), recovery_slot(&b));
        }

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
