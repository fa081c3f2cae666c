//! Replication sets are each node's own: what every member provides, what the others take of it, and what is
//! in a set.

use crate::engine::SetDifference;
use crate::error::{Error, Result};
use crate::node::{Node, Query, Statement, ask_all};
use crate::replay::share::Kinds;
use std::collections::{BTreeMap, BTreeSet};

/// The kinds of changes that the sets of a node replicate.
pub(super) type SetKinds = BTreeMap<String, Kinds>;

/// Sets of the local node.
pub(super) const LOCAL_SETS: &str =
    "spock.replication_set s JOIN spock.local_node l ON l.node_id = s.set_nodeid";

/// Names of sets, in their order.
pub(super) type Names = BTreeSet<String>;

/// One of the subscriptions of a node to another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Subscription {
    /// Provider and subscriber.
    pub ends: (String, String),
    pub name: String,
    pub sets: Names,
    /// By how much it stays behind, as an interval.
    pub delay: String,
}

impl Subscription {
    pub fn is_delayed(&self) -> bool {
        self.delay.bytes().any(|b| matches!(b, b'1'..=b'9'))
    }
}

/// The sets of the members, and what their subscriptions name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sets {
    /// The sets that each member has.
    provided: BTreeMap<String, Names>,
    /// The subscriptions of a (provider, subscriber), in the order of their names.
    taken: BTreeMap<(String, String), Vec<Subscription>>,
}

impl Sets {
    /// As `members` have it now.
    pub fn of(members: &mut [&mut Node]) -> Result<Self> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let mut sets = Self::default();
        let provided = format!("SELECT s.set_name FROM {LOCAL_SETS}");
        let provided = Query::<String>::new(provided, &[], |row| row.only());
        let provided = ask_all(members.iter_mut().map(|m| &mut **m), &provided)?;
        for (name, provided) in names.iter().zip(&provided) {
            sets.provides(name, provided.iter().map(String::as_str));
        }
        let taken = Statement::new(
            "SELECT n.node_name, coalesce(to_json(s.sub_replication_sets), '[]') AS sets, s.sub_name,
                    s.sub_apply_delay
               FROM spock.subscription s
               JOIN spock.local_node l ON l.node_id = s.sub_target
               JOIN spock.node n ON n.node_id = s.sub_origin
              ORDER BY s.sub_name",
            &[],
        );
        let taken = ask_all(members.iter_mut().map(|m| &mut **m), &taken)?;
        for (name, rows) in names.iter().zip(&taken) {
            for row in rows {
                sets.takes(Subscription {
                    ends: (row.get("node_name")?, name.clone()),
                    name: row.get("sub_name")?,
                    sets: names_in(row.get("sets")?, "spock.subscription")?
                        .into_iter()
                        .collect(),
                    delay: row.get("sub_apply_delay")?,
                });
            }
        }
        Ok(sets)
    }

    fn provides<'a>(&mut self, provider: &str, names: impl IntoIterator<Item = &'a str>) {
        let all = self.provided.entry(provider.to_owned()).or_default();
        all.extend(names.into_iter().map(str::to_owned));
    }

    fn takes(&mut self, subscription: Subscription) {
        let ends = subscription.ends.clone();
        self.taken.entry(ends).or_default().push(subscription);
    }

    /// What the subscriptions of a node name.
    pub fn all_taken_by(&self, subscriber: &str) -> Names {
        let own = self.taken.iter().filter(|((_, s), _)| s == subscriber);
        own.flat_map(|(_, subscriptions)| named(subscriptions))
            .collect()
    }

    /// The subscriptions of `subscriber` to `provider`.
    pub fn subscriptions(&self, provider: &str, subscriber: &str) -> &[Subscription] {
        let key = (provider.to_owned(), subscriber.to_owned());
        self.taken.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Those of `provider` that somebody takes; `None` where nobody subscribes to it.
    pub fn taken_of(&self, provider: &str) -> Option<Names> {
        let mut all: Option<Names> = None;
        for (_, subscriptions) in self.taken.iter().filter(|((p, _), _)| p == provider) {
            all.get_or_insert_default().extend(named(subscriptions));
        }
        all
    }

    /// Those of `provider` that nobody takes although somebody subscribes to it.
    pub fn untaken_of(&self, provider: &str) -> Names {
        let taken = self.taken_of(provider);
        let provided = self.provided.get(provider).into_iter().flatten();
        provided
            .filter(|set| taken.as_ref().is_some_and(|taken| !taken.contains(*set)))
            .cloned()
            .collect()
    }

    /// The subscriptions to `provider` of a node that joins by way of `source`: as the source has them; and to the
    /// source as the other members have them. A source that nobody subscribes to yet gives all that it has.
    pub fn of_new(&self, source: &str, provider: &str) -> Vec<Subscription> {
        match provider == source {
            true => self.to_source(source),
            false => self.had(self.subscriptions(provider, source).to_vec(), provider),
        }
    }

    /// The subscriptions of `member` to the new node, which has the sets of the source: as it has them to the source.
    /// The source itself takes what the others take from it, and what it takes from them.
    pub fn of_member(&self, source: &str, member: &str) -> Vec<Subscription> {
        if member != source {
            return self.had(self.subscriptions(source, member).to_vec(), source);
        }
        let mut all = self.to_source(source);
        let own = self.all_taken_by(source);
        self.add(&mut all, own, source);
        all
    }

    /// The subscriptions that a further member has to `source`: those of the one that takes most, and what only others
    /// take with the first of them.
    fn to_source(&self, source: &str) -> Vec<Subscription> {
        let others = self.taken.iter().filter(|((p, _), _)| p == source);
        let most = others
            .rev()
            .max_by_key(|(_, subscriptions)| named(subscriptions).count());
        let mut all = match most {
            Some((_, subscriptions)) => self.had(subscriptions.clone(), source),
            None => vec![Subscription::default()],
        };
        let provided = self.provided.get(source);
        let rest = self.taken_of(source).or_else(|| provided.cloned());
        self.add(&mut all, rest.unwrap_or_default(), source);
        all
    }

    /// Lets the first of them take what none of them takes yet and `provider` has.
    fn add(&self, to: &mut [Subscription], sets: Names, provider: &str) {
        let taken: Names = named(to).collect();
        let provided = self.provided.get(provider);
        let more = sets
            .into_iter()
            .filter(|set| provided.is_some_and(|p| p.contains(set)) && !taken.contains(set));
        if let Some(first) = to.first_mut() {
            first.sets.extend(more);
        }
    }

    /// Without sets that `provider` has not: it refuses a subscriber that names such a one.
    pub fn had(&self, mut subscriptions: Vec<Subscription>, provider: &str) -> Vec<Subscription> {
        let provided = self.provided.get(provider);
        for subscription in &mut subscriptions {
            subscription
                .sets
                .retain(|set| provided.is_some_and(|p| p.contains(set)));
        }
        subscriptions
    }
}

/// The sets that they name.
fn named(subscriptions: &[Subscription]) -> impl Iterator<Item = String> {
    subscriptions.iter().flat_map(|s| s.sets.iter().cloned())
}

/// An array literal of names.
pub(super) fn array<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let quoted: Vec<String> = names
        .into_iter()
        .map(|s| format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    format!("{{{}}}", quoted.join(","))
}

/// A table in a replication set of the local node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SetTable {
    pub set: String,
    pub schema: String,
    pub name: String,
    /// Empty for all.
    pub columns: Vec<String>,
    /// The same as an array literal.
    pub column_list: String,
    pub filter: Option<String>,
    /// The columns that the filter looks at; "*" for the row as a whole.
    pub filter_columns: Vec<String>,
}

/// The tables in the sets of a node.
pub(super) fn set_tables() -> Query<SetTable> {
    Query::new(
        include_str!("set_tables.sql").replace(":local_sets", LOCAL_SETS),
        &[],
        |row| {
            Ok(SetTable {
                set: row.get("set_name")?,
                schema: row.get("nspname")?,
                name: row.get("relname")?,
                column_list: row.get("column_list")?,
                columns: names_in(row.get("columns")?, "spock.replication_set_table")?,
                filter: row.get("filter")?,
                filter_columns: names_in(
                    row.get("filter_columns")?,
                    "spock.replication_set_table",
                )?,
            })
        },
    )
}

/// What is in the sets of each of `nodes`, and what the sets replicate.
pub(super) fn contents(nodes: &mut [&mut Node]) -> Result<Vec<(Vec<SetTable>, SetKinds)>> {
    let tables = ask_all(nodes.iter_mut().map(|n| &mut **n), &set_tables())?;
    let kinds = format!(
        "SELECT s.set_name, s.replicate_insert, s.replicate_update, s.replicate_delete, s.replicate_truncate FROM {LOCAL_SETS}"
    );
    let kinds = Query::new(kinds, &[], |row| {
        let kinds = Kinds {
            inserts: row.get("replicate_insert")?,
            updates: row.get("replicate_update")?,
            deletes: row.get("replicate_delete")?,
            truncates: row.get("replicate_truncate")?,
        };
        Ok((row.get("set_name")?, kinds))
    });
    let kinds = ask_all(nodes.iter_mut().map(|n| &mut **n), &kinds)?.into_iter();
    let kinds = kinds.map(|kinds| kinds.into_iter().collect());
    Ok(tables.into_iter().zip(kinds).collect())
}

/// The names in a JSON array.
fn names_in(json: &str, whence: &str) -> Result<Vec<String>> {
    serde_json::from_str(json).map_err(|e| Error::internal(format!("{whence}: {e}: {json}")))
}

/// Entry by entry where the sets of the new node are not the source's, and what to run.
pub(super) fn differences(
    of_source: &[SetTable],
    of_new: &[SetTable],
    source: &str,
    new: &str,
) -> Vec<SetDifference> {
    let named = |table: &SetTable| crate::quote::qualified(&table.schema, &table.name);
    let same =
        |a: &SetTable, b: &SetTable| (&a.set, &a.schema, &a.name) == (&b.set, &b.schema, &b.name);
    let call = |function: &str, table: &SetTable| {
        format!(
            "SELECT spock.{function}({}, {})",
            crate::quote::literal(&table.set),
            crate::quote::literal(&named(table))
        )
    };
    let mut found = vec![];
    for table in of_source.iter().filter(|t| !of_new.contains(t)) {
        found.push(match of_new.iter().find(|h| same(h, table)) {
            Some(_) => SetDifference {
                what: format!(
                    "table {} in replication set {} has other columns or another row filter on node \"{new}\" than on \"{source}\"",
                    named(table),
                    table.set
                ),
                remedy: format!(
                    "Run on node \"{new}\": {}; and add it again as it is on \"{source}\".",
                    call("repset_remove_table", table)
                ),
            },
            None => SetDifference {
                what: format!(
                    "table {} is in replication set {} of node \"{source}\" and not of \"{new}\"",
                    named(table),
                    table.set
                ),
                remedy: format!(
                    "Create it on node \"{new}\" if it is not there, run there: {}; and spock.sub_resync_table for its rows.",
                    call("repset_add_table", table)
                ),
            },
        });
    }
    for table in of_new
        .iter()
        .filter(|h| !of_source.iter().any(|t| same(t, h)))
    {
        found.push(SetDifference {
            what: format!(
                "table {} is in replication set {} of node \"{new}\" and no longer of \"{source}\"",
                named(table),
                table.set
            ),
            remedy: format!(
                "Run on node \"{new}\": {}",
                call("repset_remove_table", table)
            ),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{SetTable, Sets, Subscription, array, differences};

    /// Members with a set of their own each, beside the one that all have and take.
    fn mesh() -> Sets {
        let mut sets = Sets::default();
        for member in ["n1", "n2", "n3"] {
            let own = format!("{member} own");
            sets.provides(member, ["default", own.as_str()]);
            for other in ["n1", "n2", "n3"].into_iter().filter(|o| *o != member) {
                sets.takes(subscription(member, other, &["default"]));
            }
        }
        sets
    }

    fn subscription(provider: &str, subscriber: &str, sets: &[&str]) -> Subscription {
        Subscription {
            ends: (provider.into(), subscriber.into()),
            sets: sets.iter().map(|&s| s.into()).collect(),
            ..Subscription::default()
        }
    }

    fn names(subscriptions: Vec<Subscription>) -> Vec<String> {
        let names = |s: Subscription| s.sets.into_iter().collect::<Vec<_>>().join(", ");
        subscriptions.into_iter().map(names).collect()
    }

    #[test]
    fn what_nobody_takes_the_new_node_does_not_take() {
        let sets = mesh();
        for provider in ["n1", "n2", "n3"] {
            assert_eq!(names(sets.of_new("n1", provider)), ["default"]);
            assert_eq!(names(sets.of_member("n1", provider)), ["default"]);
        }
        assert_eq!(
            sets.untaken_of("n1").into_iter().collect::<Vec<_>>(),
            ["n1 own"]
        );
    }

    #[test]
    fn the_new_node_has_the_subscriptions_of_the_source() {
        let mut sets = mesh();
        sets.takes(subscription("n2", "n1", &["n2 own"]));
        sets.takes(subscription("n1", "n3", &["n1 own"]));
        assert_eq!(names(sets.of_new("n1", "n1")), ["default", "n1 own"]);
        assert_eq!(names(sets.of_new("n1", "n2")), ["default", "n2 own"]);
        assert_eq!(names(sets.of_new("n1", "n3")), ["default"]);
        // The new node has the sets of n1.
        assert_eq!(names(sets.of_member("n1", "n1")), ["default", "n1 own"]);
        assert_eq!(names(sets.of_member("n1", "n2")), ["default"]);
        assert_eq!(names(sets.of_member("n1", "n3")), ["default", "n1 own"]);
    }

    #[test]
    fn what_only_another_member_takes_comes_with_the_first() {
        let mut sets = Sets::default();
        sets.provides("n1", ["a", "b", "c"]);
        sets.takes(subscription("n1", "n2", &["a"]));
        sets.takes(subscription("n1", "n2", &["b"]));
        sets.takes(subscription("n1", "n3", &["c"]));
        assert_eq!(names(sets.of_new("n1", "n1")), ["a, c", "b"]);
        assert_eq!(names(sets.of_member("n1", "n1")), ["a, c", "b"]);
        assert_eq!(names(sets.of_member("n1", "n3")), ["c"]);
    }

    #[test]
    fn a_source_alone_gives_all() {
        let mut sets = Sets::default();
        sets.provides("n1", ["default", "more"]);
        assert_eq!(names(sets.of_new("n1", "n1")), ["default, more"]);
        assert_eq!(names(sets.of_member("n1", "n1")), ["default, more"]);
        assert!(sets.untaken_of("n1").is_empty());
    }

    #[test]
    fn a_set_that_is_gone_is_not_named() {
        let mut sets = mesh();
        sets.takes(subscription("n2", "n1", &["dropped", "n2 own"]));
        assert_eq!(names(sets.of_new("n1", "n2")), ["default", "n2 own"]);
    }

    #[test]
    fn names_in_an_array() {
        let names = ["a,b", "{}", "q\"", "back\\slash"].map(str::to_owned);
        assert_eq!(array(&names), r#"{"a,b","{}","q\"","back\\slash"}"#);
        assert_eq!(array(&[]), "{}");
    }

    fn entry(set: &str, name: &str, filter: Option<&str>) -> SetTable {
        SetTable {
            set: set.into(),
            schema: "public".into(),
            name: name.into(),
            columns: vec![],
            column_list: "{}".into(),
            filter: filter.map(str::to_owned),
            filter_columns: vec![],
        }
    }

    #[test]
    fn drift_is_told_by_entry() {
        let of_source = [
            entry("a", "kept", None),
            entry("a", "more", None),
            entry("b", "x", Some("i > 1")),
        ];
        let of_new = [
            entry("a", "kept", None),
            entry("b", "x", None),
            entry("c", "old", None),
        ];
        let found = differences(&of_source, &of_new, "n1", "n2");
        let what: Vec<&str> = found.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(
            what,
            [
                "table \"public\".\"more\" is in replication set a of node \"n1\" and not of \"n2\"",
                "table \"public\".\"x\" in replication set b has other columns or another row filter on node \"n2\" than on \"n1\"",
                "table \"public\".\"old\" is in replication set c of node \"n2\" and no longer of \"n1\"",
            ]
        );
        assert!(
            found[2]
                .remedy
                .contains("SELECT spock.repset_remove_table('c', '\"public\".\"old\"')")
        );
        assert!(differences(&of_source, &of_source, "n1", "n2").is_empty());
    }
}
