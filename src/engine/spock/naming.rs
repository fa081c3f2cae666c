//! How a cluster names its subscriptions: what is left of their names without those of the two nodes, where that is the
//! same for every pair of nodes.

use super::former::Former;
use crate::engine::{Path, names};
use std::collections::BTreeMap;

/// A name with places for those of provider and subscriber.
#[derive(Clone, Debug, PartialEq)]
struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Provider,
    Subscriber,
}

impl Pattern {
    /// The patterns that `name` may be of: one that has both nodes in it, else the provider.
    fn all_of(name: &str, provider: &str, subscriber: &str) -> Vec<Self> {
        let places = |node: &str| -> Vec<usize> {
            let begins = (0..name.len()).filter(|&i| name.is_char_boundary(i));
            begins.filter(|&i| name[i..].starts_with(node)).collect()
        };
        let text = |from: usize, to: usize| {
            Some(&name[from..to])
                .filter(|text| !text.is_empty())
                .map(|text| Part::Text(text.to_owned()))
        };
        let mut all = vec![];
        for p in places(provider) {
            let p_end = p + provider.len();
            for s in places(subscriber) {
                let s_end = s + subscriber.len();
                let parts = if p_end <= s {
                    [
                        text(0, p),
                        Some(Part::Provider),
                        text(p_end, s),
                        Some(Part::Subscriber),
                        text(s_end, name.len()),
                    ]
                } else if s_end <= p {
                    [
                        text(0, s),
                        Some(Part::Subscriber),
                        text(s_end, p),
                        Some(Part::Provider),
                        text(p_end, name.len()),
                    ]
                } else {
                    continue;
                };
                all.push(Self(parts.into_iter().flatten().collect()));
            }
        }
        if all.is_empty() {
            for p in places(provider) {
                let parts = [
                    text(0, p),
                    Some(Part::Provider),
                    text(p + provider.len(), name.len()),
                ];
                all.push(Self(parts.into_iter().flatten().collect()));
            }
        }
        all
    }

    fn of(&self, provider: &str, subscriber: &str) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Provider => provider,
            Part::Subscriber => subscriber,
        });
        parts.collect()
    }
}

/// Spock takes a slot whose name ends so for one of a group that shares the transactions of the rest of the name, and its
/// worker waits for those that another one is to apply: where there are several to the same node, for ever.
pub(super) fn is_of_a_group(slot: &str) -> bool {
    let mut end = slot.bytes().rev();
    end.next().is_some_and(|b| b.is_ascii_digit()) && end.next() == Some(b'_')
}

/// The patterns of a cluster: every pair of nodes has a subscription of each.
#[derive(Debug, Default)]
pub(super) struct Naming {
    patterns: Vec<Pattern>,
    former: Former,
}

impl Naming {
    /// As `paths` have it, by provider and subscriber.
    pub fn of(paths: &BTreeMap<(String, String), Vec<Path>>, former: &Former) -> Self {
        let mut naming = Self {
            patterns: vec![],
            former: former.clone(),
        };
        let Some((_, first)) = paths.first_key_value() else {
            return naming;
        };
        for path in first {
            let all = Pattern::all_of(naming.stem(path), &path.provider, &path.subscriber);
            let followed = |pattern: &Pattern| {
                paths.iter().all(|((provider, subscriber), paths)| {
                    let name = pattern.of(provider, subscriber);
                    paths.iter().any(|path| naming.stem(path) == name)
                })
            };
            let pattern = all.into_iter().find(followed);
            naming.patterns.extend(pattern);
        }
        naming
    }

    fn stem<'p>(&self, path: &'p Path) -> &'p str {
        let Path {
            provider,
            subscriber,
            subscription,
            ..
        } = path;
        self.former.stem(subscription, provider, subscriber)
    }

    /// The names of all subscriptions of `subscriber` to `provider`, of which nothing is known but that they are
    /// members; without generations.
    pub fn of_members(&self, provider: &str, subscriber: &str) -> Vec<String> {
        let names = self.patterns.iter().map(|p| p.of(provider, subscriber));
        match names.collect::<Vec<_>>() {
            none if none.is_empty() => vec![names::subscription(provider, subscriber)],
            names => names,
        }
    }

    /// The name of the subscription of `subscriber` to `provider` that is made as `model`, the `nth` of those of another
    /// pair of nodes: by the rule, or at least as that one's where both nodes are in it; without generation.
    pub fn like(
        &self,
        model: Option<&Path>,
        provider: &str,
        subscriber: &str,
        nth: usize,
        several: bool,
    ) -> String {
        let name = model.and_then(|model| {
            let (from, to) = (&model.provider, &model.subscriber);
            let stem = self.stem(model);
            let of_model = |p: &&Pattern| p.of(from, to) == stem;
            let its_own = Pattern::all_of(stem, from, to);
            let its_own = match &its_own[..] {
                [only] if only.0.contains(&Part::Subscriber) => Some(only),
                _ => None,
            };
            let pattern = self.patterns.iter().find(of_model).or(its_own)?;
            Some(pattern.of(provider, subscriber)).filter(|name| names::is_plain(name))
        });
        let mut name = name.unwrap_or_else(|| names::nth_subscription(provider, subscriber, nth));
        if several && is_of_a_group(&name) {
            name.truncate(names::NAME_MAX - 1);
            name.push('x');
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(provider: &str, subscriber: &str, subscription: &str) -> Path {
        Path {
            subscription: subscription.into(),
            ..Path::by_rule(provider, subscriber)
        }
    }

    fn naming(all: &[(&str, &str, &str)]) -> Naming {
        let mut paths: BTreeMap<(String, String), Vec<Path>> = BTreeMap::new();
        for (provider, subscriber, name) in all {
            let ends = ((*provider).to_owned(), (*subscriber).to_owned());
            paths
                .entry(ends)
                .or_default()
                .push(path(provider, subscriber, name));
        }
        Naming::of(&paths, &Former::default())
    }

    #[test]
    fn the_rule_of_a_cluster_goes_on() {
        let naming = naming(&[
            ("n1", "n2", "n2_from_n1"),
            ("n1", "n2", "n2_from_n1_big"),
            ("n2", "n1", "n1_from_n2"),
            ("n2", "n1", "n1_from_n2_big"),
        ]);
        let like = |name, nth| naming.like(Some(&path("n1", "n2", name)), "n1", "n3", nth, true);
        assert_eq!(like("n2_from_n1", 0), "n3_from_n1");
        assert_eq!(like("n2_from_n1_big", 1), "n3_from_n1_big");
        assert_eq!(
            naming.of_members("n2", "n3"),
            ["n3_from_n2", "n3_from_n2_big"]
        );
        let odd = naming.like(Some(&path("n1", "n2", "n2_from_n1")), "n1", "N-3", 0, true);
        assert_eq!(odd, names::subscription("n1", "N-3"));
    }

    #[test]
    fn names_by_hand_are_no_rule() {
        let naming = naming(&[
            ("n1", "n2", "from_berlin"),
            ("n2", "n1", "from_paris"),
            ("n2", "n1", "big_from_paris"),
            ("n2", "n1", "n2_to_n1"),
        ]);
        let like = |name, nth| naming.like(Some(&path("n2", "n1", name)), "n2", "n3", nth, true);
        assert_eq!(like("from_paris", 1), "sub_n2_n3_b");
        assert_eq!(like("big_from_paris", 0), "sub_n2_n3");
        assert_eq!(like("n2_to_n1", 2), "n2_to_n3");
        assert_eq!(naming.of_members("n2", "n3"), ["sub_n2_n3"]);
    }

    #[test]
    fn no_slot_looks_like_one_of_a_group() {
        let naming = naming(&[
            ("db_1", "db_2", "db_2_from_db_1_1"),
            ("db_1", "db_2", "db_2_from_db_1_2"),
        ]);
        let like = |nth, several| {
            let name = format!("db_2_from_db_1_{}", nth + 1);
            naming.like(
                Some(&path("db_1", "db_2", &name)),
                "db_1",
                "db_3",
                nth,
                several,
            )
        };
        assert_eq!(like(0, true), "db_3_from_db_1_1x");
        assert_eq!(like(1, true), "db_3_from_db_1_2x");
        assert_eq!(like(1, false), "db_3_from_db_1_2");
    }

    #[test]
    fn a_name_that_comes_back_is_no_other_rule() {
        let mut paths = BTreeMap::new();
        for (p, s, name) in [
            ("n1", "n2", "n2_from_n1"),
            ("n2", "n1", "n1_from_n2"),
            ("n1", "n3", "n3_from_n1_gen2"),
            ("n3", "n1", "n1_from_n3_gen2"),
        ] {
            paths.insert((p.to_owned(), s.to_owned()), vec![path(p, s, name)]);
        }
        let naming = Naming::of(&paths, &Former::of(&[("n3", 1)]));
        let model = path("n1", "n3", "n3_from_n1_gen2");
        assert_eq!(
            naming.like(Some(&model), "n1", "n4", 0, false),
            "n4_from_n1"
        );
        assert_eq!(naming.of_members("n3", "n4"), ["n4_from_n3"]);
        let by_hand = Naming::of(&paths, &Former::default());
        assert_eq!(by_hand.of_members("n3", "n4"), ["sub_n3_n4"]);
    }

    #[test]
    fn a_name_that_holds_another_one() {
        let naming = naming(&[("n1", "n11", "sub_n1_n11"), ("n11", "n1", "sub_n11_n1")]);
        assert_eq!(naming.of_members("n11", "n2"), ["sub_n11_n2"]);
        let one_way = self::naming(&[("a", "b", "from_a"), ("b", "a", "from_b")]);
        assert_eq!(one_way.of_members("c", "a"), ["from_c"]);
    }
}
