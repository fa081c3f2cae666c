//! How the paths between nodes are called.

use super::checks::not_installed;
use super::naming::Naming;
use super::sets::{Names, Sets, Subscription};
use super::ways::Way;
use super::{Spock, non_members, set_tables, sets, ways};
use crate::engine::{ByTable, Excluded, Path, PathTables, Paths, names, no_reader, triggers};
use crate::error::{Error, Result};
use crate::node::{Member, Node, ask_all, server};
use std::collections::{BTreeMap, BTreeSet};

impl Paths for Spock {
    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()> {
        self.sets = Sets::of(members)?;
        self.former.load_paths(members)?;
        // Somebody else may have chosen them.
        let mut found: BTreeMap<(String, String), Vec<Path>> = BTreeMap::new();
        for member in members.iter_mut() {
            let rows = member.query(
                "SELECT n.node_name, s.sub_name, s.sub_slot_name,
                        array_to_string(ARRAY(SELECT unnest(s.sub_replication_sets) ORDER BY 1), ', ') AS part
                   FROM spock.subscription s JOIN spock.node n ON n.node_id = s.sub_origin
                  ORDER BY s.sub_name",
                &[],
            )?;
            for row in &rows {
                let path = Path {
                    provider: row.get("node_name")?,
                    subscriber: member.name.clone(),
                    subscription: row.get("sub_name")?,
                    slot: row.get("sub_slot_name")?,
                };
                let part = (path.subscriber.clone(), path.subscription.clone());
                self.parts.insert(part, row.get("part")?);
                let ends = (path.provider.clone(), path.subscriber.clone());
                found.entry(ends).or_default().push(path);
            }
        }
        self.seen.extend(found.keys().cloned());
        self.paths.append(&mut found);
        let ids = ask_all(members.iter_mut().map(|m| &mut **m), &server::identity())?;
        let ids = members.iter().zip(ids.into_iter().flatten());
        let known: Vec<(String, String)> = ids
            .map(|(member, id)| (member.name.clone(), id.database))
            .collect();
        let mut wanted = vec![];
        // A removal that was cut off may have dropped one end of a path.
        for (subscriber, database) in &known {
            let providers = known.iter().filter(|(name, _)| name != subscriber);
            wanted
                .extend(providers.map(|(p, _)| (p.clone(), subscriber.clone(), database.clone())));
        }
        for gone in absent {
            // As libpq defaults it.
            let its_database = gone.dsn.get("dbname").or(gone.dsn.get("user"));
            let its_database = its_database.unwrap_or("postgres");
            for (member, database) in &known {
                wanted.push((member.clone(), gone.name.clone(), its_database.to_owned()));
                wanted.push((gone.name.clone(), member.clone(), database.clone()));
            }
        }
        wanted.retain(|(p, s, _)| !self.paths.contains_key(&(p.clone(), s.clone())));
        let names = known.iter().map(|(name, _)| name);
        let naming = self.naming(names.chain(absent.iter().map(|gone| &gone.name)));
        for (provider, subscriber, database) in wanted {
            let names = naming.of_members(&provider, &subscriber);
            let paths = self.unseen_paths(members, &provider, &subscriber, &database, &names)?;
            self.paths.insert((provider, subscriber), paths);
        }
        Ok(())
    }

    fn load_paths_with(&mut self, members: &mut [&mut Node], new: &mut Node) -> Result<()> {
        // Nothing can be asked of the new node's Spock before it is there.
        let installed = "SELECT FROM pg_extension WHERE extname = 'spock'";
        if new.query(installed, &[])?.is_empty() {
            return Err(Error::Checks(vec![not_installed(&new.name)]));
        }
        self.load_paths(members, &[])?;
        let new_database = database(new)?;
        let Some(source) = members.first_mut() else {
            return Ok(());
        };
        self.failover = has_failover_slots(source)?;
        self.excluded = left_out(source)?;
        let source = source.name.clone();
        let naming = self.naming(members.iter().map(|m| &m.name));
        for member in members.iter_mut() {
            if member.name != source {
                let tables = set_tables(member)?;
                self.of_peers.insert(member.name.clone(), tables);
            }
            let its_database = database(member)?;
            let name = member.name.clone();
            let inbound = self.sets.of_new(&source, &member.name);
            let outbound = self.sets.of_member(&source, &member.name);
            let generation = self.former.joining(&new.name, &member.name);
            for (provider, subscriber, database, wanted) in [
                (&name, &new.name, &new_database, inbound),
                (&new.name, &name, &its_database, outbound),
            ] {
                let several = wanted.len() > 1;
                let like = |(nth, wanted): (usize, &Subscription)| {
                    let name = naming.like(self.model(wanted), provider, subscriber, nth, several);
                    names::of_generation(&name, generation)
                };
                let names = wanted.iter().enumerate().map(like).collect();
                let paths = named_paths(member, provider, subscriber, database, names)?;
                let ends = (provider.clone(), subscriber.clone());
                self.paths.insert(ends.clone(), paths);
                self.to_make.insert(ends, wanted);
            }
        }
        self.source_sends_all = self.sends_all(members, &new.name)?;
        let options = "SELECT to_regprocedure('spock.sub_alter_options(name,jsonb)') IS NOT NULL";
        self.alters_options = new.query(options, &[])?.one()?.only()?;
        Ok(())
    }

    fn load_reader_paths(
        &mut self,
        members: &mut [&mut Node],
        new: &mut Node,
        reader: &mut Node,
    ) -> Result<()> {
        let taken = non_members::providers(reader)?;
        if let Some(forwarded) = taken.iter().find(|p| p.forwarded) {
            return Err(no_reader(
                format!(
                    "node \"{}\", which takes by subscription {} what node \"{}\" has from others, and so what the new node writes without that",
                    reader.name, forwarded.subscription, forwarded.node.name
                ),
                "Leave it out.",
            ));
        }
        let names = members.iter().map(|m| &m.name);
        let mut models = names.filter(|name| taken.iter().any(|p| p.node.name == **name));
        let source = members.first().map(|m| m.name.clone()).unwrap_or_default();
        let Some(model) = models.next() else {
            return Err(no_reader(
                format!("node \"{}\", which takes changes of no member", reader.name),
                "Give connection strings of nodes that subscribe to members.",
            ));
        };
        let all = Sets::of(&mut [&mut *reader])?;
        let wanted = self
            .sets
            .had(all.subscriptions(model, &reader.name).to_vec(), &source);
        let wanted: Vec<Subscription> = wanted.into_iter().filter(|s| !s.sets.is_empty()).collect();
        if wanted.is_empty() {
            return Err(no_reader(
                format!(
                    "node \"{}\", whose subscriptions to node \"{model}\" name no replication set that the new node is going to have",
                    reader.name
                ),
                format!("It gets the sets of node \"{source}\"."),
            ));
        }
        let naming = self.naming(members.iter().map(|m| &m.name));
        for member in members.iter() {
            let theirs = all.subscriptions(&member.name, &reader.name);
            let names = theirs.iter().map(|s| s.name.clone()).collect();
            let database = database(reader)?;
            let paths = named_paths(reader, &member.name, &reader.name.clone(), &database, names)?;
            if !paths.is_empty() {
                let ends = (member.name.clone(), reader.name.clone());
                self.paths.insert(ends, paths);
            }
        }
        let several = wanted.len() > 1;
        let generation = self.former.joining(&new.name, &reader.name);
        let like = |(nth, wanted): (usize, &Subscription)| {
            let name = naming.like(self.model(wanted), &new.name, &reader.name, nth, several);
            names::of_generation(&name, generation)
        };
        let names = wanted.iter().enumerate().map(like).collect();
        let database = database(reader)?;
        let name = reader.name.clone();
        let paths = named_paths(reader, &new.name, &name, &database, names)?;
        let ends = (new.name.clone(), name);
        self.paths.insert(ends.clone(), paths);
        self.to_make.insert(ends, wanted);
        Ok(())
    }

    fn path(&self, provider: &str, subscriber: &str) -> Path {
        let mut paths = self.paths(provider, subscriber);
        paths.swap_remove(0)
    }

    fn paths(&self, provider: &str, subscriber: &str) -> Vec<Path> {
        let ends = (provider.to_owned(), subscriber.to_owned());
        match self.paths.get(&ends) {
            Some(paths) => paths.clone(),
            None => vec![Path::by_rule(provider, subscriber)],
        }
    }

    fn may_be_slot_of(&self, path: &Path, slot: &str) -> bool {
        let end = format!("_{}", path.subscription);
        names::generation(slot).0.ends_with(&end)
    }

    fn origin_wanted<'p>(&self, path: &'p Path) -> Option<&'p str> {
        Some(&path.slot)
    }

    fn part(&self, path: &Path) -> String {
        let key = (path.subscriber.clone(), path.subscription.clone());
        self.parts.get(&key).cloned().unwrap_or_default()
    }

    fn tables_of(&self, nodes: &mut [&mut Node], paths: &[Path]) -> Result<Vec<PathTables>> {
        let contents = sets::contents(nodes)?;
        let of = |path: &Path| {
            let all = self.sets.subscriptions(&path.provider, &path.subscriber);
            let named = all.iter().find(|s| s.name == path.subscription);
            let named = named.map(|s| s.sets.clone()).unwrap_or_default();
            let entries = contents.iter().flat_map(|(tables, _)| tables);
            let ours = entries.filter(|entry| named.contains(&entry.set));
            let has = |set: &String| contents.iter().any(|(_, kinds)| kinds.contains_key(set));
            PathTables {
                tables: ours.map(|t| (t.schema.clone(), t.name.clone())).collect(),
                known: named.iter().all(has),
            }
        };
        Ok(paths.iter().map(of).collect())
    }
}

impl Spock {
    /// The sets of each subscription of `subscriber` to `provider`, also where there is none yet.
    pub(super) fn subscriptions_of(&self, provider: &str, subscriber: &str) -> Vec<Names> {
        let key = (provider.to_owned(), subscriber.to_owned());
        let subscriptions = match self.to_make.get(&key) {
            Some(wanted) => wanted,
            None => self.sets.subscriptions(provider, subscriber),
        };
        subscriptions.iter().map(|s| s.sets.clone()).collect()
    }

    /// Whether the source, the first of `members`, sends the new node whatever any of them sends it: one subscription to
    /// each, without delay, with the same sets, in which the same is of every table.
    fn sends_all(&self, members: &mut [&mut Node], new: &str) -> Result<bool> {
        if let Some(source) = members.first_mut()
            && triggers::of_apply().one(source)?
        {
            return Ok(false);
        }
        let known = sets::contents(members)?;
        let mut ways: Option<(Names, ByTable<Way>)> = None;
        for (member, (tables, kinds)) in members.iter().zip(&known) {
            let ends = (member.name.clone(), new.to_owned());
            let [only] = self.to_make.get(&ends).map_or(&[][..], Vec::as_slice) else {
                return Ok(false);
            };
            let these = (
                only.sets.clone(),
                ways::of_subscription(tables, kinds, &only.sets),
            );
            if only.is_delayed()
                || !these.1.values().all(Way::is_the_same_beyond)
                || ways.as_ref().is_some_and(|ways| *ways != these)
            {
                return Ok(false);
            }
            ways = Some(these);
        }
        Ok(true)
    }

    /// The paths of a pair of which no subscription was seen: where the provider has slots of any generation those, else
    /// as they would be called now.
    fn unseen_paths(
        &mut self,
        members: &mut [&mut Node],
        provider: &str,
        subscriber: &str,
        database: &str,
        stems: &[String],
    ) -> Result<Vec<Path>> {
        let newest = self.former.newest(provider, subscriber);
        let Some(asked) = members.first_mut() else {
            return Ok(vec![]);
        };
        let mut of_generation = |generation| {
            let names = stems
                .iter()
                .map(|stem| names::of_generation(stem, generation));
            named_paths(asked, provider, subscriber, database, names.collect())
        };
        let now = of_generation(newest)?;
        let mut all = now.clone();
        for generation in (1..newest).rev() {
            all.extend(of_generation(generation)?);
        }
        let Some(provider) = members.iter_mut().find(|m| m.name == provider) else {
            return Ok(now);
        };
        let slots: Vec<String> = all.iter().map(|path| path.slot.clone()).collect();
        let present = server::slots_named(&slots).on(provider)?;
        all.retain(|path| present.iter().any(|s| s.is_own && s.name == path.slot));
        let Some(path) = all.first() else {
            return Ok(now);
        };
        let ends = (path.provider.clone(), path.subscriber.clone());
        self.seen.insert(ends);
        Ok(all)
    }

    /// How the subscriptions between these nodes are named, whatever others there are.
    fn naming<'a>(&self, members: impl Iterator<Item = &'a String>) -> Naming {
        let members: BTreeSet<&String> = members.collect();
        let between = |(p, s): &(String, String)| members.contains(p) && members.contains(s);
        let paths = self.paths.iter().filter(|(ends, _)| between(ends));
        Naming::of(
            &paths
                .map(|(ends, paths)| (ends.clone(), paths.clone()))
                .collect(),
            &self.former,
        )
    }

    /// The path between members of this subscription.
    fn model(&self, subscription: &Subscription) -> Option<&Path> {
        let mut paths = self.paths.get(&subscription.ends)?.iter();
        paths.find(|path| path.subscription == subscription.name)
    }
}

/// The paths of these subscriptions, whose slots Spock itself names, also those of the database of a subscriber that
/// cannot be asked.
fn named_paths(
    asked: &mut Node,
    provider: &str,
    subscriber: &str,
    database: &str,
    subscriptions: Vec<String>,
) -> Result<Vec<Path>> {
    let path = |subscription: String| {
        let rows = asked.query(
            "SELECT spock.spock_gen_slot_name($1::name, $2::name, $3::name)",
            &[database, provider, &subscription],
        )?;
        Ok(Path {
            provider: provider.to_owned(),
            subscriber: subscriber.to_owned(),
            subscription,
            slot: rows.one()?.only()?,
        })
    };
    subscriptions.into_iter().map(path).collect()
}

/// Whether the cluster's slots have the flag `failover`: as those that there are, else as Spock itself
/// would make them on this server.
fn has_failover_slots(source: &mut Node) -> Result<bool> {
    let rows = source.query(
        "SELECT current_setting('server_version_num')::integer >= 170000
                AND coalesce((SELECT bool_or((to_jsonb(s) ->> 'failover')::boolean)
                                FROM pg_replication_slots s
                               WHERE plugin = 'spock_output' AND database = current_database()),
                             current_setting('spock.use_native_failover_slots', true)::boolean,
                             true)",
        &[],
    )?;
    rows.one()?.only()
}

/// What Spock leaves out of the structure that it copies itself.
fn left_out(source: &mut Node) -> Result<Excluded> {
    let known = source.query(
        "SELECT to_regclass('spock.reserved_object') IS NOT NULL",
        &[],
    )?;
    if !known.one()?.only::<bool>()? {
        // Before 6.0 these are fixed.
        return Ok(Excluded {
            schemas: vec!["pgedge_ace".into()],
            extensions: vec![],
        });
    }
    let rows = source.query(
        "SELECT kind, name FROM spock.reserved_object
          WHERE exclude_from_dump AND name NOT IN ('spock', 'zodan') ORDER BY 1, 2",
        &[],
    )?;
    let mut excluded = Excluded::default();
    for row in &rows {
        match row.get("kind")? {
            "schema" => excluded.schemas.push(row.get("name")?),
            "extension" => excluded.extensions.push(row.get("name")?),
            _ => {}
        }
    }
    Ok(excluded)
}

fn database(node: &mut Node) -> Result<String> {
    Ok(server::identity().one(node)?.database)
}
