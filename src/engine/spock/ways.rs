//! What Spock lets through of a table. In one subscription the row filters of all its sets apply together, and where
//! any of them has a column list, the listed columns are all that is sent; a row that any of several subscriptions
//! brings is there. As `get_table_replication_info` and `spock_change_filter` of Spock 5.0 and 6.0 have it.

use super::sets::{Names, SetTable};
use crate::replay::share::{Kinds, ORIGIN, Share};
use std::collections::{BTreeMap, BTreeSet};

/// A table by schema and name.
pub(super) type Name = (String, String);

/// The kinds of changes that the sets of a node replicate.
pub(super) type SetKinds = BTreeMap<String, Kinds>;

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

/// The ways of every table by one subscription, of which `tables` and `kinds` are the provider's.
fn of_subscription(
    tables: &[SetTable],
    kinds: &SetKinds,
    subscription: &Names,
) -> BTreeMap<Name, Way> {
    let mut entries: BTreeMap<Name, Vec<&SetTable>> = BTreeMap::new();
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
    own: BTreeMap<Name, Vec<Way>>,
    /// Those that it has got from others, of whom the other one gets them too.
    received: BTreeMap<Name, Vec<Way>>,
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
            let beyond = way.beyond.iter().map(|f| format!("({f}) AND "));
            // It is not the node's own, or nobody knows.
            let filter = beyond.collect::<String>() + ORIGIN + " IS DISTINCT FROM 0";
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

    fn rows(&self, name: &Name) -> Option<String> {
        any(self.conditions(name).into_iter().map(|(filter, _)| filter))
    }
}

fn add(
    to: &mut BTreeMap<Name, Vec<Way>>,
    tables: &[SetTable],
    kinds: &SetKinds,
    subscriptions: &[Names],
) {
    for subscription in subscriptions {
        for (name, way) in of_subscription(tables, kinds, subscription) {
            let ways = to.entry(name).or_default();
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
    }
}

/// What the two nodes are to have alike, of which `here` and `there` are the ways from each to the other.
pub(super) fn shares(here: &Ways, there: &Ways) -> BTreeMap<Name, Share> {
    let share = |name: &Name| {
        let (own_here, own_there) = (here.of(name).0, there.of(name).0);
        let all: Vec<&Way> = [here, there]
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
            rows: [here.rows(name), there.rows(name)],
            deleted: deleted.into_iter().collect(),
            columns,
            kinds: Kinds {
                inserts: all.iter().any(|w| w.kinds.inserts),
                updates: all.iter().all(|w| w.kinds.updates),
                deletes: all.iter().all(|w| w.kinds.deletes),
                truncates: all.iter().all(|w| w.kinds.truncates),
            },
            both_ways: !own_here.is_empty() && !own_there.is_empty(),
        }
    };
    let names = here.tables().into_iter().chain(there.tables());
    names.map(|name| (name.clone(), share(&name))).collect()
}
