//! What Spock lets through of a table. In one subscription the row filters of all its sets apply together, and where
//! any of them has a column list, the listed columns are all that is sent; a row that any of several subscriptions
//! brings is there. As `get_table_replication_info` and `spock_change_filter` of Spock 5.0 and 6.0 have it.

use super::sets::{Names, SetKinds, SetTable};
use crate::engine::ByTable;
use crate::replay::share::{Kinds, ORIGIN, Share};
use std::collections::{BTreeMap, BTreeSet};

type Name = (String, String);

/// By which a table gets from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// What a row has to meet on its provider.
    filter: Option<String>,
    /// The same on a node that has got the row: without what looks at columns that it has not got.
    beyond: Option<String>,
    columns: Option<BTreeSet<String>>,
    kinds: Kinds,
}

impl Way {
    /// Whether a node that has got a row by it decides about it as its author does.
    pub fn is_the_same_beyond(&self) -> bool {
        self.filter == self.beyond
    }
}

/// The ways of every table by one subscription, of which `tables` and `kinds` are the provider's.
pub(super) fn of_subscription(
    tables: &[SetTable],
    kinds: &SetKinds,
    subscription: &Names,
) -> ByTable<Way> {
    let mut entries: ByTable<Vec<&SetTable>> = BTreeMap::new();
    for table in tables.iter().filter(|t| subscription.contains(&t.set)) {
        let name = (table.schema.clone(), table.name.clone());
        entries.entry(name).or_default().push(table);
    }
    let way = |entries: Vec<&SetTable>| {
        let listed: BTreeSet<String> = entries.iter().flat_map(|t| t.columns.clone()).collect();
        let columns = Some(listed).filter(|listed| !listed.is_empty());
        let sent = |name: &String| columns.as_ref().is_none_or(|listed| listed.contains(name));
        let filtered = |all: bool| {
            let known = |t: &&&SetTable| all || t.filter_columns.iter().all(sent);
            let filters = entries.iter().filter(known);
            joined(filters.filter_map(|t| t.filter.clone()), " AND ")
        };
        let any = |of: fn(&Kinds) -> bool| {
            let known = |t: &&SetTable| kinds.get(&t.set).copied().unwrap_or(Kinds::ALL);
            entries.iter().map(known).any(|k| of(&k))
        };
        Way {
            filter: filtered(true),
            beyond: filtered(false),
            kinds: Kinds {
                inserts: any(|k| k.inserts),
                updates: any(|k| k.updates),
                deletes: any(|k| k.deletes),
                truncates: any(|k| k.truncates),
            },
            columns,
        }
    };
    let ways = entries.into_iter();
    ways.map(|(name, entries)| (name, way(entries))).collect()
}

/// The tables that somebody who names these sets gets, and what a row has to meet for that.
pub(super) fn filters(tables: &[SetTable], sets: &Names) -> ByTable<Option<String>> {
    let ways = of_subscription(tables, &SetKinds::new(), sets).into_iter();
    ways.map(|(name, way)| (name, way.filter)).collect()
}

/// Every different condition once; `None` where there is none.
fn joined(conditions: impl Iterator<Item = String>, by: &str) -> Option<String> {
    let conditions: BTreeSet<String> = conditions.collect();
    let mut quoted = conditions.iter().map(|c| format!("({c})"));
    match conditions.len() {
        0 => None,
        1 => conditions.first().cloned(),
        _ => quoted
            .next()
            .map(|first| quoted.fold(first, |all, next| all + by + &next)),
    }
}

/// The rows that any of the conditions lets through, of which `None` lets all.
fn any(conditions: impl Iterator<Item = Option<String>>) -> Option<String> {
    let conditions: Option<Vec<String>> = conditions.collect();
    match conditions {
        Some(none) if none.is_empty() => Some("false".into()),
        conditions => joined(conditions?.into_iter(), " OR "),
    }
}

/// How the rows of a node get to another one.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// Those that were written on it.
    own: ByTable<Vec<Way>>,
    /// Those that it has got from others, of whom the other one gets them too.
    received: ByTable<Vec<Way>>,
}

impl Ways {
    pub fn add_own(&mut self, tables: &[SetTable], kinds: &SetKinds, subscriptions: &[Names]) {
        add(&mut self.own, tables, kinds, subscriptions);
    }

    pub fn add_received(&mut self, tables: &[SetTable], kinds: &SetKinds, subscriptions: &[Names]) {
        add(&mut self.received, tables, kinds, subscriptions);
    }

    pub fn tables(&self) -> BTreeSet<Name> {
        self.own
            .keys()
            .chain(self.received.keys())
            .cloned()
            .collect()
    }

    fn of(&self, name: &Name) -> (&[Way], &[Way]) {
        (
            self.own.get(name).map_or(&[], Vec::as_slice),
            self.received.get(name).map_or(&[], Vec::as_slice),
        )
    }

    /// What the other node gets of a table: rows by columns, of which `None` is all.
    fn conditions(&self, name: &Name) -> Vec<(Option<String>, Option<BTreeSet<String>>)> {
        let (own, received) = self.of(name);
        let mut all: Vec<_> = own
            .iter()
            .map(|w| (w.filter.clone(), w.columns.clone()))
            .collect();
        for way in received {
            let covers = |w: &Way| {
                (w.columns.is_none() || w.columns == way.columns)
                    && (w.filter.is_none() || w.filter == way.beyond)
            };
            if own.iter().any(covers) {
                continue;
            }
            let of_others = match &way.filter {
                // Nobody knows any more: as far as its columns tell.
                Some(filter) => {
                    format!("({ORIGIN} <> 0 OR {ORIGIN} IS NULL AND ({filter}) IS NOT FALSE)")
                }
                None => format!("{ORIGIN} IS DISTINCT FROM 0"),
            };
            let beyond = way.beyond.iter().map(|f| format!("({f}) AND "));
            let filter = beyond.collect::<String>() + &of_others;
            all.push((Some(filter), way.columns.clone()));
        }
        all
    }

    /// What is to be copied of a table, none of its rows twice: which rows, and which of their columns.
    pub fn to_copy(&self, name: &Name) -> Vec<(Option<String>, Option<BTreeSet<String>>)> {
        let mut by_columns: BTreeMap<Option<BTreeSet<String>>, Vec<Option<String>>> =
            BTreeMap::new();
        for (filter, columns) in self.conditions(name) {
            by_columns.entry(columns).or_default().push(filter);
        }
        let groups: Vec<_> = by_columns
            .into_iter()
            .map(|(columns, filters)| (any(filters.into_iter()), columns))
            .collect();
        if groups.len() <= 1 {
            return groups;
        }
        // A row has the columns of every way that brings it.
        let mut pieces = vec![];
        for chosen in 1..1_usize << groups.len() {
            let mut conditions = vec![];
            let mut columns = Some(BTreeSet::new());
            let mut possible = true;
            for (i, (filter, listed)) in groups.iter().enumerate() {
                let is = chosen & 1 << i != 0;
                match filter {
                    Some(filter) if is => conditions.push(format!("({filter}) IS TRUE")),
                    Some(filter) => conditions.push(format!("({filter}) IS NOT TRUE")),
                    None => possible &= is,
                }
                if is {
                    columns = columns.zip(listed.as_ref()).map(|(mut all, listed)| {
                        all.extend(listed.iter().cloned());
                        all
                    });
                }
            }
            if possible {
                pieces.push((joined(conditions.into_iter(), " AND "), columns));
            }
        }
        pieces
    }

    /// Which rows of a table the other node is to have.
    fn rows(&self, name: &Name) -> Option<String> {
        any(self.conditions(name).into_iter().map(|(filter, _)| filter))
    }
}

fn add(to: &mut ByTable<Vec<Way>>, tables: &[SetTable], kinds: &SetKinds, subscriptions: &[Names]) {
    for subscription in subscriptions {
        for (name, way) in of_subscription(tables, kinds, subscription) {
            let ways = to.entry(name).or_default();
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
    }
}

/// What the two nodes are to have alike, of which `left` and `right` are the ways from each to the other.
pub(super) fn shares(left: &Ways, right: &Ways) -> ByTable<Share> {
    let share = |name: &Name| {
        let (own_left, own_right) = (left.of(name).0, right.of(name).0);
        let all: Vec<&Way> = [left, right]
            .iter()
            .flat_map(|ways| {
                let (own, received) = ways.of(name);
                own.iter().chain(received)
            })
            .collect();
        // What one of the ways leaves out is not alike on both.
        let mut columns: Option<BTreeSet<String>> = None;
        for listed in all.iter().filter_map(|w| w.columns.as_ref()) {
            columns = Some(match columns {
                Some(columns) => columns.intersection(listed).cloned().collect(),
                None => listed.clone(),
            });
        }
        let deleted: BTreeSet<String> = all.iter().filter_map(|w| w.filter.clone()).collect();
        Share {
            rows: [left.rows(name), right.rows(name)],
            deleted: deleted.into_iter().collect(),
            columns,
            kinds: Kinds {
                inserts: all.iter().any(|w| w.kinds.inserts),
                updates: all.iter().all(|w| w.kinds.updates),
                deletes: all.iter().all(|w| w.kinds.deletes),
                truncates: all.iter().all(|w| w.kinds.truncates),
            },
            both_ways: !own_left.is_empty() && !own_right.is_empty(),
            orphaned: false,
        }
    };
    let names = left.tables().into_iter().chain(right.tables());
    names.map(|name| (name.clone(), share(&name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: (&str, &str) = ("public", "t");

    fn name() -> Name {
        (T.0.into(), T.1.into())
    }

    fn entry(set: &str, columns: &[&str], filter: Option<(&str, &str)>) -> SetTable {
        SetTable {
            set: set.into(),
            schema: T.0.into(),
            name: T.1.into(),
            columns: columns.iter().map(|&c| c.into()).collect(),
            column_list: String::new(),
            filter: filter.map(|(f, _)| f.into()),
            filter_columns: filter
                .map(|(_, column)| column.into())
                .into_iter()
                .collect(),
        }
    }

    fn names(of: &[&str]) -> Names {
        of.iter().map(|&s| s.into()).collect()
    }

    /// A source whose peer has the same in its sets.
    fn ways(entries: &[SetTable], subscriptions: &[Names]) -> Ways {
        let mut ways = Ways::default();
        ways.add_own(entries, &SetKinds::new(), subscriptions);
        ways.add_received(entries, &SetKinds::new(), subscriptions);
        ways
    }

    fn copied(ways: &Ways) -> Vec<(String, String)> {
        let listed = |columns: BTreeSet<String>| columns.into_iter().collect::<Vec<_>>().join(",");
        ways.to_copy(&name())
            .into_iter()
            .map(|(filter, columns)| {
                let filter = filter.unwrap_or_default().replace(ORIGIN, "origin");
                (filter, columns.map_or("*".into(), listed))
            })
            .collect()
    }

    fn sent(filter: &str, columns: &str) -> (String, String) {
        (filter.into(), columns.into())
    }

    const EU: Option<(&str, &str)> = Some(("region = 'eu'", "region"));
    const BIG: Option<(&str, &str)> = Some(("size > 1", "size"));

    #[test]
    fn in_one_subscription_all_filters_and_any_list() {
        let entries = [
            entry("a", &[], None),
            entry("b", &["id", "region"], EU),
            entry("c", &["size"], BIG),
        ];
        let one = |sets: &[&str]| copied(&ways(&entries, &[names(sets)]));
        assert_eq!(one(&["a"]), [sent("", "*")]);
        assert_eq!(one(&["a", "b"]), [sent("region = 'eu'", "id,region")]);
        assert_eq!(
            one(&["a", "b", "c"]),
            [sent("(region = 'eu') AND (size > 1)", "id,region,size")]
        );
        assert!(one(&["d"]).is_empty());
    }

    #[test]
    fn of_several_subscriptions_any() {
        let entries = [
            entry("a", &[], EU),
            entry("b", &[], BIG),
            entry("c", &["id"], None),
        ];
        let all = |sets: &[&[&str]]| {
            let subscriptions: Vec<Names> = sets.iter().map(|s| names(s)).collect();
            copied(&ways(&entries, &subscriptions))
        };
        assert_eq!(
            all(&[&["a"], &["b"]]),
            [sent("(region = 'eu') OR (size > 1)", "*")]
        );
        // A row that both bring has what either brings of it.
        assert_eq!(
            all(&[&["a"], &["c"]]),
            [
                sent("(region = 'eu') IS NOT TRUE", "id"),
                sent("(region = 'eu') IS TRUE", "*"),
            ]
        );
    }

    #[test]
    fn what_a_receiver_has_not_got_does_not_keep_its_rows() {
        let entries = [entry("a", &["id"], EU)];
        assert_eq!(
            copied(&ways(&entries, &[names(&["a"])])),
            [sent(
                "((origin <> 0 OR origin IS NULL AND (region = 'eu') IS NOT FALSE)) OR (region = 'eu')",
                "id"
            )]
        );
    }

    #[test]
    fn rows_of_others_come_by_the_sets_of_others() {
        let mut ways = Ways::default();
        let all = [names(&["a"])];
        ways.add_received(&[entry("a", &[], None)], &SetKinds::new(), &all);
        assert_eq!(copied(&ways), [sent("origin IS DISTINCT FROM 0", "*")]);
        ways.add_own(&[entry("a", &[], EU)], &SetKinds::new(), &all);
        assert_eq!(
            copied(&ways),
            [sent("(origin IS DISTINCT FROM 0) OR (region = 'eu')", "*")]
        );
    }

    #[test]
    fn what_two_nodes_are_to_have_alike() {
        let entries = [entry("a", &["id", "v"], EU)];
        let no_updates = Kinds {
            updates: false,
            ..Kinds::ALL
        };
        let kinds = SetKinds::from([("a".into(), no_updates)]);
        let all = [names(&["a"])];
        let (mut left, mut right) = (Ways::default(), Ways::default());
        left.add_own(&entries, &kinds, &all);
        right.add_received(&entries, &kinds, &all);
        let share = shares(&left, &right).remove(&name()).unwrap();
        assert_eq!(share.rows[0].as_deref(), Some("region = 'eu'"));
        assert_eq!(share.deleted, ["region = 'eu'"]);
        assert_eq!(share.columns, Some(names(&["id", "v"])));
        assert_eq!(share.kinds, no_updates);
        assert!(!share.both_ways);
        let whole = ways(&[entry("a", &[], None)], &all);
        assert!(shares(&whole, &whole)[&name()].is_whole());
    }
}
