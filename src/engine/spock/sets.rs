//! Replication sets are each node's own: what every member provides, what the others take of it, and what is
//! in a set.

use super::ways::SetKinds;
use super::{Drift, LOCAL_SETS};
use crate::error::{Error, Result};
use crate::libpq::{Row, Rows};
use crate::node::{Node, Statement, ask_all};
use crate::replay::share::Kinds;
use std::collections::{BTreeMap, BTreeSet};

/// Names of sets, in their order.
pub(super) type Names = BTreeSet<String>;

/// The sets of the members, and what their subscriptions name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sets {
    /// The sets that each member has.
    provided: BTreeMap<String, Names>,
    /// What a (provider, subscriber) has in each of its subscriptions.
    taken: BTreeMap<(String, String), Vec<Names>>,
}

impl Sets {
    /// As `members` have it now.
    pub fn of(members: &mut [&mut Node]) -> Result<Self> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let mut sets = Self::default();
        let question = format!("SELECT s.set_name FROM {LOCAL_SETS}");
        let provided = ask_all(members.iter_mut().map(|m| &mut **m), &question, &[])?;
        for (name, rows) in names.iter().zip(&provided) {
            sets.provides(name, rows.iter().map(|r| r.text(0)));
        }
        let question = "SELECT n.node_name, coalesce(to_json(s.sub_replication_sets), '[]')
                          FROM spock.subscription s
                          JOIN spock.local_node l ON l.node_id = s.sub_target
                          JOIN spock.node n ON n.node_id = s.sub_origin";
        let taken = ask_all(members.iter_mut().map(|m| &mut **m), question, &[])?;
        for (name, rows) in names.iter().zip(&taken) {
            for row in rows {
                let named = names_in(row.text(1), "spock.subscription")?;
                sets.takes(row.text(0), name, named.iter().map(String::as_str));
            }
        }
        Ok(sets)
    }

    fn provides<'a>(&mut self, provider: &str, names: impl IntoIterator<Item = &'a str>) {
        let all = self.provided.entry(provider.to_owned()).or_default();
        all.extend(names.into_iter().map(str::to_owned));
    }

    fn takes<'a>(
        &mut self,
        provider: &str,
        subscriber: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) {
        let key = (provider.to_owned(), subscriber.to_owned());
        let subscriptions = self.taken.entry(key).or_default();
        subscriptions.push(names.into_iter().map(str::to_owned).collect());
    }

    /// What the subscriptions of a node name.
    pub fn all_taken_by(&self, subscriber: &str) -> Names {
        let own = self.taken.iter().filter(|((_, s), _)| s == subscriber);
        own.flat_map(|(_, subscriptions)| subscriptions.iter().flatten().cloned())
            .collect()
    }

    /// The sets of each subscription of `subscriber` to `provider`.
    pub fn subscriptions(&self, provider: &str, subscriber: &str) -> &[Names] {
        let key = (provider.to_owned(), subscriber.to_owned());
        self.taken.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Those of `provider` that somebody takes; `None` where nobody subscribes to it.
    pub fn taken_of(&self, provider: &str) -> Option<Names> {
        let mut all: Option<Names> = None;
        for (_, subscriptions) in self.taken.iter().filter(|((p, _), _)| p == provider) {
            let names = subscriptions.iter().flatten().cloned();
            all.get_or_insert_default().extend(names);
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

    /// What a node that joins by way of `source` takes from `provider`: what the source takes from it; and from the
    /// source what the other members take. A source that nobody subscribes to yet gives all that it has.
    pub fn of_new(&self, source: &str, provider: &str) -> Vec<String> {
        let wanted = match provider == source {
            true => self.taken_of(source),
            false => Some(self.taken_by(provider, source)),
        };
        self.had(provider, wanted)
    }

    /// What `member` takes from the new node, which has the sets of the source: what it takes from the source. The
    /// source itself takes what the others take from it, and what it takes from them.
    pub fn of_member(&self, source: &str, member: &str) -> Vec<String> {
        let wanted = match member == source {
            true => self.taken_of(source).map(|mut all| {
                let own = self.taken.iter().filter(|((_, s), _)| s == source);
                all.extend(own.flat_map(|(_, names)| names.iter().flatten().cloned()));
                all
            }),
            false => Some(self.taken_by(source, member)),
        };
        self.had(source, wanted)
    }

    fn taken_by(&self, provider: &str, subscriber: &str) -> Names {
        let subscriptions = self.subscriptions(provider, subscriber);
        subscriptions.iter().flatten().cloned().collect()
    }

    /// Of `wanted`, or of all, what `provider` has: it refuses a subscriber that names another one.
    fn had(&self, provider: &str, wanted: Option<Names>) -> Vec<String> {
        let provided = self.provided.get(provider).into_iter().flatten();
        provided
            .filter(|set| wanted.as_ref().is_none_or(|wanted| wanted.contains(*set)))
            .cloned()
            .collect()
    }
}

/// An array literal of names.
pub(super) fn array(names: &[String]) -> String {
    let quoted: Vec<String> = names
        .iter()
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
pub(super) fn set_tables() -> Statement {
    Statement::new(
        format!(
            "SELECT s.set_name, n.nspname, c.relname, coalesce(t.set_att_list, '{{}}'),
                    coalesce(to_json(t.set_att_list), '[]'), pg_get_expr(t.set_row_filter, t.set_reloid),
                    coalesce((SELECT json_agg(DISTINCT coalesce(a.attname, '*'))
                                FROM regexp_matches(t.set_row_filter::text, ':varattno (-?[0-9]+)', 'g') v (no)
                                LEFT JOIN pg_attribute a ON a.attrelid = t.set_reloid AND a.attnum = v.no[1]::integer), '[]')
               FROM {LOCAL_SETS} JOIN spock.replication_set_table t ON t.set_id = s.set_id
               JOIN pg_class c ON c.oid = t.set_reloid JOIN pg_namespace n ON n.oid = c.relnamespace
              ORDER BY 1, 2, 3"
        ),
        &[],
    )
}

/// Parses the answer of [`set_tables`].
pub(super) fn parse(rows: &Rows) -> Result<Vec<SetTable>> {
    rows.iter()
        .map(|row| {
            Ok(SetTable {
                set: row.text(0).to_owned(),
                schema: row.text(1).to_owned(),
                name: row.text(2).to_owned(),
                column_list: row.text(3).to_owned(),
                columns: names_in(row.text(4), "spock.replication_set_table")?,
                filter: row.get(5).map(str::to_owned),
                filter_columns: names_in(row.text(6), "spock.replication_set_table")?,
            })
        })
        .collect()
}

/// What is in the sets of each of `nodes`, and what the sets replicate.
pub(super) fn contents(nodes: &mut [&mut Node]) -> Result<Vec<(Vec<SetTable>, SetKinds)>> {
    let tables = ask_all(nodes.iter_mut().map(|n| &mut **n), &set_tables().sql, &[])?;
    let question = format!(
        "SELECT s.set_name, s.replicate_insert, s.replicate_update, s.replicate_delete, s.replicate_truncate FROM {LOCAL_SETS}"
    );
    let kinds = ask_all(nodes.iter_mut().map(|n| &mut **n), &question, &[])?;
    let of = |row: &Row| Kinds {
        inserts: row.bool(1),
        updates: row.bool(2),
        deletes: row.bool(3),
        truncates: row.bool(4),
    };
    tables
        .iter()
        .zip(&kinds)
        .map(|(tables, kinds)| {
            let kinds = kinds.iter().map(|row| (row.text(0).to_owned(), of(row)));
            Ok((parse(tables)?, kinds.collect()))
        })
        .collect()
}

/// The names in a JSON array.
fn names_in(json: &str, whence: &str) -> Result<Vec<String>> {
    serde_json::from_str(json).map_err(|e| Error::internal(format!("{whence}: {e}: {json}")))
}

/// Entry by entry where the sets of the new node are not the source's, and what to run.
pub(super) fn differences(
    there: &[SetTable],
    here: &[SetTable],
    source: &str,
    new: &str,
) -> Vec<Drift> {
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
    for table in there.iter().filter(|t| !here.contains(t)) {
        found.push(match here.iter().find(|h| same(h, table)) {
            Some(_) => Drift {
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
            None => Drift {
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
    for table in here.iter().filter(|h| !there.iter().any(|t| same(t, h))) {
        found.push(Drift {
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
    use super::{SetTable, Sets, array, differences};

    /// Members with a set of their own each, beside the one that all have and take.
    fn mesh() -> Sets {
        let mut sets = Sets::default();
        for member in ["n1", "n2", "n3"] {
            let own = format!("{member} own");
            sets.provides(member, ["default", own.as_str()]);
            for other in ["n1", "n2", "n3"].into_iter().filter(|o| *o != member) {
                sets.takes(member, other, ["default"]);
            }
        }
        sets
    }

    #[test]
    fn what_nobody_takes_the_new_node_does_not_take() {
        let sets = mesh();
        for provider in ["n1", "n2", "n3"] {
            assert_eq!(sets.of_new("n1", provider), ["default"]);
            assert_eq!(sets.of_member("n1", provider), ["default"]);
        }
        assert_eq!(
            sets.untaken_of("n1").into_iter().collect::<Vec<_>>(),
            ["n1 own"]
        );
    }

    #[test]
    fn the_new_node_takes_what_the_source_takes() {
        let mut sets = mesh();
        sets.takes("n2", "n1", ["n2 own"]);
        sets.takes("n1", "n3", ["n1 own"]);
        assert_eq!(sets.of_new("n1", "n1"), ["default", "n1 own"]);
        assert_eq!(sets.of_new("n1", "n2"), ["default", "n2 own"]);
        assert_eq!(sets.of_new("n1", "n3"), ["default"]);
        // The new node has the sets of n1.
        assert_eq!(sets.of_member("n1", "n1"), ["default", "n1 own"]);
        assert_eq!(sets.of_member("n1", "n2"), ["default"]);
        assert_eq!(sets.of_member("n1", "n3"), ["default", "n1 own"]);
    }

    #[test]
    fn a_source_alone_gives_all() {
        let mut sets = Sets::default();
        sets.provides("n1", ["default", "more"]);
        assert_eq!(sets.of_new("n1", "n1"), ["default", "more"]);
        assert_eq!(sets.of_member("n1", "n1"), ["default", "more"]);
        assert!(sets.untaken_of("n1").is_empty());
    }

    #[test]
    fn a_set_that_is_gone_is_not_named() {
        let mut sets = mesh();
        sets.takes("n2", "n1", ["dropped"]);
        assert_eq!(sets.of_new("n1", "n2"), ["default"]);
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
        let there = [
            entry("a", "kept", None),
            entry("a", "more", None),
            entry("b", "x", Some("i > 1")),
        ];
        let here = [
            entry("a", "kept", None),
            entry("b", "x", None),
            entry("c", "old", None),
        ];
        let told = differences(&there, &here, "n1", "n2");
        let what: Vec<&str> = told.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(
            what,
            [
                "table \"public\".\"more\" is in replication set a of node \"n1\" and not of \"n2\"",
                "table \"public\".\"x\" in replication set b has other columns or another row filter on node \"n2\" than on \"n1\"",
                "table \"public\".\"old\" is in replication set c of node \"n2\" and no longer of \"n1\"",
            ]
        );
        assert!(
            told[2]
                .remedy
                .contains("SELECT spock.repset_remove_table('c', '\"public\".\"old\"')")
        );
        assert!(differences(&there, &there, "n1", "n2").is_empty());
    }
}
