//! How the paths between nodes are called.

use super::Native;
use crate::engine::names::Numbered;
use crate::engine::{Path, Paths, names, triggers};
use crate::error::Result;
use crate::node::{Member, Node, Query, ask_all, server};
use std::collections::BTreeMap;

/// What a member has of its paths: a row for each of its subscriptions, one at least.
struct Known {
    database: String,
    /// A subscription, and the slot that it reads.
    reads: Option<(String, String)>,
    has_registry: bool,
    /// The slots of the database, with commas between them.
    slots: String,
}

/// A member by the registry of another one.
struct Registered {
    /// Of the registry: its generation, and when it was changed.
    age: (i64, i64),
    next_number: i32,
    name: String,
    number: i32,
    database: String,
    cluster: String,
}

impl Paths for Native {
    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()> {
        let known = members.iter().all(|m| self.databases.contains_key(&m.name));
        if known && absent.is_empty() {
            return Ok(());
        }
        let known = Query::new(include_str!("read_slots.sql"), &[], |row| {
            let subscription: Option<String> = row.get("subname")?;
            Ok(Known {
                database: row.get("database")?,
                reads: subscription.zip(row.get("subslotname")?),
                has_registry: row.get("has_registry")?,
                slots: row.get("slots")?,
            })
        });
        let asked = members.iter_mut().map(|m| &mut **m);
        let (found, triggers): (Vec<_>, Vec<_>) = ask_all(asked, &(known, triggers::of_apply()))?
            .into_iter()
            .unzip();
        // The source of a join is the first.
        self.source_has_triggers = triggers.first().is_some_and(|fire| fire.contains(&true));
        let mut present: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut with_registry = vec![];
        for (member, rows) in members.iter_mut().zip(&found) {
            for known in rows {
                let database = known.database.clone();
                self.databases.insert(member.name.clone(), database);
                let slots = known.slots.split(',').map(str::to_owned);
                present.insert(member.name.clone(), slots.collect());
                if let Some((subscription, slot)) = &known.reads {
                    let key = (member.name.clone(), subscription.clone());
                    self.slots.insert(key, slot.clone());
                }
            }
            if rows.first().is_some_and(|known| known.has_registry) {
                with_registry.push(&mut **member);
            }
        }
        let registered = self.learn_numbers(&mut with_registry)?;
        for gone in absent {
            // As libpq defaults it.
            let given = gone.dsn.get("dbname").or(gone.dsn.get("user"));
            let database = registered.get(&gone.name).map(String::as_str).or(given);
            let database = database.unwrap_or("postgres").to_owned();
            self.databases.insert(gone.name.clone(), database);
            // A join that did not come to registering it has used the next number.
            let number = self.number(&gone.name);
            self.numbers.insert(gone.name.clone(), number);
            for (provider, slots) in &present {
                let databases = [self.databases.get(provider), registered.get(provider)];
                let databases: Vec<&String> = databases.into_iter().flatten().collect();
                // One that was left by an interrupted join before others used the next numbers has an older one.
                let slot = std::iter::once(number)
                    .chain((0..=self.next_number).rev())
                    .flat_map(|number| databases.iter().map(move |d| (number, d)))
                    .map(|(number, database)| self.slot(provider, &gone.name, number, database))
                    .find(|name| slots.contains(name));
                let path = Path::by_rule(provider, &gone.name);
                let key = (path.subscriber, path.subscription);
                match slot {
                    Some(slot) => self.slots.insert(key, slot),
                    None => self.slots.remove(&key),
                };
            }
        }
        Ok(())
    }

    fn load_paths_with(&mut self, members: &mut [&mut Node], new: &mut Node) -> Result<()> {
        self.unload_paths();
        self.load_paths(members, &[])?;
        if members.iter().any(|member| member.name == new.name) {
            return Ok(()); // the checks refuse the name
        }
        // A subscription that stands in the way of one to be made is somebody else's.
        for member in members.iter() {
            let path = Path::by_rule(&new.name, &member.name);
            self.slots.remove(&(path.subscriber, path.subscription));
        }
        let database = server::identity().one(new)?.database;
        self.databases.insert(new.name.clone(), database);
        if self.cluster.is_empty() {
            self.cluster = server::unique_id().one(new)?;
        }
        // The first member of a cluster is is_member with number 0.
        if let [first] = members
            && self.numbers.is_empty()
        {
            self.numbers.insert(first.name.clone(), 0);
        }
        self.numbers.insert(new.name.clone(), self.next_number);
        Ok(())
    }

    fn unload_paths(&mut self) {
        *self = Self::default();
    }

    fn path(&self, provider: &str, subscriber: &str) -> Path {
        let mut path = Path::by_rule(provider, subscriber);
        let key = (subscriber.to_owned(), path.subscription.clone());
        path.slot = match self.slots.get(&key) {
            Some(slot) => slot.clone(),
            None => {
                let database = self.databases.get(provider).map_or("", String::as_str);
                let slot = self.slot(provider, subscriber, self.number(subscriber), database);
                // Somebody may have given it another name: what it reads tells which one it is.
                let reads = |((of, _), read): &(&(String, String), &String)| {
                    of == subscriber && **read == slot
                };
                match self.slots.iter().find(reads) {
                    Some(((_, renamed), read)) => {
                        path.subscription.clone_from(renamed);
                        read.clone()
                    }
                    None => slot,
                }
            }
        };
        path
    }

    fn slot_by_rule(
        &self,
        cluster: &str,
        provider: Numbered,
        subscriber: Numbered,
        database: &str,
    ) -> Option<String> {
        Some(names::slot(cluster, provider, subscriber, database))
    }
}

impl Native {
    /// That of a node that has not been registered is the next one.
    fn number(&self, name: &str) -> i32 {
        self.numbers.get(name).copied().unwrap_or(self.next_number)
    }

    fn slot(&self, provider: &str, subscriber: &str, number: i32, database: &str) -> String {
        let provider = Numbered {
            name: provider,
            number: self.number(provider),
        };
        let subscriber = Numbered {
            name: subscriber,
            number,
        };
        names::slot(&self.cluster, provider, subscriber, database)
    }

    /// Learns the numbers of the newest registry of `members`; what the databases of its members were called when they
    /// joined.
    fn learn_numbers(&mut self, members: &mut [&mut Node]) -> Result<BTreeMap<String, String>> {
        let numbered = Query::new(
            "SELECT m.generation, (extract(epoch FROM m.changed_at) * 1000000)::bigint AS changed_at, m.next_number,
                    n.name, n.number, n.database, m.cluster
               FROM zodan.membership m CROSS JOIN zodan.node n",
            &[],
            |row| {
                Ok(Registered {
                    age: (row.get("generation")?, row.get("changed_at")?),
                    next_number: row.get("next_number")?,
                    name: row.get("name")?,
                    number: row.get("number")?,
                    database: row.get("database")?,
                    cluster: row.get("cluster")?,
                })
            },
        );
        let answers = ask_all(members.iter_mut().map(|m| &mut **m), &numbered)?;
        let mut newest = None;
        for rows in &answers {
            let Some(Registered { age, .. }) = rows.first() else {
                continue;
            };
            if newest.is_none_or(|(known, _)| age > known) {
                newest = Some((age, rows));
            }
        }
        self.next_number = self.next_number.max(1);
        let mut databases = BTreeMap::new();
        for row in newest.iter().flat_map(|(_, rows)| rows.iter()) {
            self.next_number = row.next_number;
            self.cluster.clone_from(&row.cluster);
            self.numbers.insert(row.name.clone(), row.number);
            databases.insert(row.name.clone(), row.database.clone());
        }
        Ok(databases)
    }
}
