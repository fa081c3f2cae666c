//! pgEdge Spock as the cluster's engine: its public SQL only, and nothing of ours on the members but what those remember
//! that have our extension.

mod checks;
mod filled_twice;
mod former;
mod naming;
mod sets;
mod strangers;
mod ways;

pub(super) use self::checks::{BEFORE_A_JOIN as CHECKS, of_members as member_checks};
use super::{
    ByTable, CopyPlan, Engine, EngineCheck, EngineFindings, Excluded, Identity, MemberCheck, Path,
    PathTables, Provider, SetDifference, Survey, names, no_reader, questions, subscription_states,
};
use crate::copy;
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::Dsn;
use crate::lsn::Lsn;
use crate::node::{Member, Node, Statement, ask_all, server};
use crate::replay::share::Share;
use crate::replay::{Decoding, Protocol};
use crate::settings;
use former::Former;
use naming::Naming;
use sets::{Names, SetTable, Sets, Subscription, array, differences};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use ways::{SetKinds, Way, Ways};

/// The Unix epoch in microseconds since 2000: older than any change of an application, so that
/// under last-update-wins every change wins over a copied row, as with Spock's own copy. Rows that may be newer than one
/// that is still on its way get their own times later, by [`Engine::origins_of_copied_rows`].
const UNIX_EPOCH: i64 = -946_684_800_000_000;

/// The version of Spock's protocol that 5.0 and 6.0 speak.
const PROTOCOL: &str = "4";

/// Replication sets that every node has.
const BUILT_IN: [&str; 3] = ["default", "default_insert_only", "ddl_sql"];

#[derive(Default)]
pub struct Spock {
    /// By provider and subscriber.
    paths: BTreeMap<(String, String), Vec<Path>>,
    /// Those of them that are there, as far as their subscriber or their provider was asked.
    seen: BTreeSet<(String, String)>,
    former: Former,
    /// The replication sets that a (subscriber, subscription) names.
    parts: BTreeMap<(String, String), String>,
    /// The replication sets of the members, and who takes which.
    sets: Sets,
    /// The subscriptions of a (provider, subscriber) with the new node at one end, which are to be made, in the order of
    /// `paths`.
    to_make: BTreeMap<(String, String), Vec<Subscription>>,
    /// What is in the sets of the source's peers.
    of_peers: BTreeMap<String, Vec<SetTable>>,
    /// The tables in the source's sets, as the snapshot of the copy has them. What is added later has rows that
    /// are not copied.
    copied: RefCell<Option<Vec<SetTable>>>,
    /// Whether the cluster's slots have the flag.
    failover: bool,
    excluded: Excluded,
    /// As of [`Engine::source_sends_all`].
    source_sends_all: bool,
    /// Whether what a subscription forwards can be changed by a function of Spock's.
    alters_options: bool,
}

/// Whether the database is a node of a Spock cluster.
pub fn is_node(node: &mut Node) -> Result<bool> {
    let installed = node.query(
        "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'spock')",
        &[],
    )?;
    if !installed.one()?.bool(0) {
        return Ok(false);
    }
    let rows = node.query("SELECT EXISTS (SELECT FROM spock.local_node)", &[])?;
    Ok(rows.one()?.bool(0))
}

/// Sets of the local node.
const LOCAL_SETS: &str =
    "spock.replication_set s JOIN spock.local_node l ON l.node_id = s.set_nodeid";

impl Engine for Spock {
    fn label(&self) -> &'static str {
        "spock"
    }

    fn uses_logical_workers(&self) -> bool {
        false
    }

    fn plugin(&self) -> &'static str {
        "spock_output"
    }

    fn failover(&self) -> bool {
        self.failover
    }

    fn survey(&self, source: &mut Node) -> Result<Survey> {
        let rows = source.query(
            "SELECT n.node_name, i.if_dsn, l.node_id IS NOT NULL
               FROM spock.node n
               LEFT JOIN spock.local_node l ON l.node_id = n.node_id
               LEFT JOIN spock.subscription s ON s.sub_origin = n.node_id
               JOIN spock.node_interface i
                 ON i.if_id = coalesce(l.node_local_interface, s.sub_origin_if)
              ORDER BY 1",
            &[],
        )?;
        let mut members: Vec<Member> = vec![];
        for row in &rows {
            let name = row.text(0).to_owned();
            if row.bool(2) && name != source.name {
                return Err(Error::Argument {
                    argument: "src_node_name",
                    problem: format!(
                        "is \"{}\", but src_dsn leads to the node \"{name}\"",
                        source.name
                    ),
                    hint: format!(
                        "Give \"{name}\", or the connection string of \"{}\".",
                        source.name
                    ),
                    state: SqlState::INVALID_PARAMETER_VALUE,
                });
            }
            let dsn = Dsn::parse(row.text(1)).map_err(|bad| {
                Error::refused(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("the connection string of node \"{name}\" {}", bad.problem()),
                    "See spock.node_interface on the source.",
                )
            })?;
            if !members.iter().any(|m| m.name == name) {
                members.push(Member { name, dsn });
            }
        }
        Ok(Survey {
            members,
            is_member: true,
        })
    }

    fn local_name(&self, node: &mut Node) -> Result<Option<String>> {
        if !is_node(node)? {
            return Ok(None);
        }
        let rows = node.query(
            "SELECT n.node_name FROM spock.node n JOIN spock.local_node USING (node_id)",
            &[],
        )?;
        Ok(rows.first().map(|row| row.text(0).to_owned()))
    }

    fn providers(&self, node: &mut Node) -> Result<Option<Vec<Provider>>> {
        match is_node(node)? {
            true => strangers::providers(node).map(Some),
            false => Ok(None),
        }
    }

    fn has_removed(&self, other: &mut Node, me: &mut Node) -> Result<bool> {
        if !Former::is_remembered(other, &me.name)? {
            return Ok(false);
        }
        let read = me.query("SELECT sub_slot_name FROM spock.subscription", &[])?;
        let read: Vec<&str> = read.iter().map(|row| row.text(0)).collect();
        let rows = other.query(
            "SELECT NOT EXISTS (SELECT FROM spock.node WHERE node_name = $1)
                AND NOT EXISTS (SELECT FROM pg_replication_slots
                                 WHERE database = current_database()
                                   AND slot_name = ANY (string_to_array($2, ',')))",
            &[&me.name, &read.join(",")],
        )?;
        Ok(rows.one()?.bool(0))
    }

    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()> {
        self.sets = Sets::of(members)?;
        self.former.load_paths(members)?;
        // Somebody else may have chosen them.
        let mut found: BTreeMap<(String, String), Vec<Path>> = BTreeMap::new();
        for member in members.iter_mut() {
            let rows = member.query(
                "SELECT n.node_name, s.sub_name, s.sub_slot_name,
                        array_to_string(ARRAY(SELECT unnest(s.sub_replication_sets) ORDER BY 1), ', ')
                   FROM spock.subscription s JOIN spock.node n ON n.node_id = s.sub_origin
                  ORDER BY s.sub_name",
                &[],
            )?;
            for row in &rows {
                let path = Path {
                    provider: row.text(0).to_owned(),
                    subscriber: member.name.clone(),
                    subscription: row.text(1).to_owned(),
                    slot: row.text(2).to_owned(),
                };
                let part = (path.subscriber.clone(), path.subscription.clone());
                self.parts.insert(part, row.text(3).to_owned());
                let ends = (path.provider.clone(), path.subscriber.clone());
                found.entry(ends).or_default().push(path);
            }
        }
        self.seen.extend(found.keys().cloned());
        self.paths.append(&mut found);
        let databases = ask_all(
            members.iter_mut().map(|m| &mut **m),
            "SELECT current_database()",
            &[],
        )?;
        let mut known = vec![];
        for (member, rows) in members.iter().zip(&databases) {
            known.push((member.name.clone(), rows.one()?.text(0).to_owned()));
        }
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
        self.alters_options = new.query(options, &[])?.one()?.bool(0);
        Ok(())
    }

    fn load_reader_paths(
        &mut self,
        members: &mut [&mut Node],
        new: &mut Node,
        reader: &mut Node,
    ) -> Result<()> {
        let taken = strangers::providers(reader)?;
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

    fn strangers(&self, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
        strangers::strangers(&self.paths, leaving, members)
    }

    fn unclaimed_slots(&self, node: &mut Node) -> Result<Vec<(String, bool)>> {
        strangers::unclaimed_slots(&self.paths, node)
    }

    fn checks(&self) -> &'static [EngineCheck] {
        &CHECKS
    }

    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings> {
        let (mut installed, mut timestamps) = (vec![], vec![]);
        let mut nodes: Vec<&mut Node> = members.iter_mut().map(|n| &mut **n).collect();
        nodes.push(new);
        let answers = ask_all(
            nodes.iter_mut().map(|n| &mut **n),
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'spock'),
                    current_setting('track_commit_timestamp'),
                    current_setting('shared_preload_libraries') ~ '\\yspock\\y',
                    to_regprocedure('spock.pause_apply_workers()') IS NOT NULL",
            &[],
        )?;
        let mut versions: Vec<(String, Version)> = vec![];
        for (node, rows) in nodes.iter().zip(&answers) {
            let row = rows.one()?;
            let Some(version) = row.get(0) else {
                installed.push(not_installed(&node.name));
                continue;
            };
            let finding =
                |state, message: String, hint: &str| Finding::new(&node.name, state, message, hint);
            if row.text(1) != "on" {
                timestamps.push(finding(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    "track_commit_timestamp is off".into(),
                    "Set track_commit_timestamp = on and restart the server.",
                ));
            }
            if !row.bool(2) {
                installed.push(finding(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    "spock is not in shared_preload_libraries".into(),
                    "Add it and restart the server.",
                ));
            }
            if !row.bool(3) {
                installed.push(finding(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!("Spock {version} cannot pause its apply workers"),
                    "Upgrade Spock to 5.0.7 or newer on every node.",
                ));
            }
            versions.push((node.name.clone(), Version::parse(version)));
        }
        let ours = versions.last().map(|(_, v)| v.clone());
        if let Some(ours) = ours
            && versions.iter().any(|(_, v)| !v.fits(&ours))
        {
            let list: Vec<String> = versions
                .iter()
                .map(|(n, v)| format!("\"{n}\" {}", v.text))
                .collect();
            installed.push(Finding::new(
                nodes.last().map_or("", |n| &n.name),
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("Spock versions are not compatible: {}", list.join(", ")),
                "Install the same major and minor version of Spock everywhere.",
            ));
        }
        let mut found = vec![
            (checks::INSTALLED, installed),
            (checks::TIMESTAMPS, timestamps),
        ];
        if let Some((new, members)) = nodes.split_last_mut() {
            let [mut groups, mut slots, mut extensions, mut ids] = [(); 4].map(|()| vec![]);
            self.check_groups(&mut groups);
            found.push((checks::GROUPS, groups));
            if versions.len() == members.len() + 1 {
                found.extend(checks::before_the_first_change(self, members, new)?);
            }
            self.check_slots(members, &mut slots)?;
            found.push((checks::SLOTS, slots));
            if let Some(source) = members.first_mut() {
                self.check_extensions(source, new, &mut extensions)?;
                found.push((checks::EXTENSIONS, extensions));
            }
            check_node_ids(members, new, &mut ids)?;
            if is_node(new)? {
                ids.push(Finding::new(
                    &new.name,
                    SqlState::OBJECT_IN_USE,
                    "the database is a Spock node already",
                    "Remove it from its cluster first.",
                ));
            }
            found.push((checks::NODE, ids));
        }
        Ok(found)
    }

    fn member_checks(&self) -> Vec<MemberCheck> {
        member_checks()
    }

    fn origin_wanted<'p>(&self, path: &'p Path) -> Option<&'p str> {
        Some(&path.slot)
    }

    fn addresses(&self, asked: &str) -> String {
        format!("spock.node_interface of node \"{asked}\"")
    }

    fn worker_error(&self, path: &Path) -> Option<Statement> {
        Some(checks::worker_error(&path.subscription))
    }

    fn warnings(&self, members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        let Some(source) = members.first_mut() else {
            return Ok(vec![]);
        };
        let untaken = self.sets.untaken_of(&source.name);
        let tables = set_tables(source)?;
        let named = |t: &SetTable| crate::quote::qualified(&t.schema, &t.name);
        let taken: BTreeSet<String> = tables
            .iter()
            .filter(|t| !untaken.contains(&t.set))
            .chain(self.peers_tables(&source.name))
            .map(named)
            .collect();
        let mut findings = vec![];
        for set in &untaken {
            let alone = tables.iter().filter(|t| t.set == *set).map(named);
            let alone: Vec<String> = alone.filter(|t| !taken.contains(t)).collect();
            if alone.is_empty() {
                continue;
            }
            let (shown, more) = alone.split_at(alone.len().min(10));
            let more = match more.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            findings.push(Finding::new(
                &source.name,
                SqlState::OK,
                format!(
                    "no member subscribes to replication set {set}, so the new node does not either, and gets no rows of {}{more}",
                    shown.join(", ")
                ),
                "Where the rows are wanted, make every member subscribe to the set first: spock.sub_add_repset.",
            ));
        }
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        for member in members.iter_mut() {
            findings.extend(strangers::sources(member, &names)?);
            findings.extend(strangers::readers(&self.paths, member)?);
        }
        Ok(findings)
    }

    fn probe(&self, dsn: &str) -> Vec<Statement> {
        // A subscription of PostgreSQL's own that connects and is rolled back: nothing else that a
        // server without extensions of ours has connects to another one.
        vec![
            // Whatever is said about the attempt has the statement in its context, and so the
            // connection string with its password.
            Statement::new("SET log_min_messages = panic", &[]),
            Statement::new("SELECT set_config('zodan_probe.dsn', $1, false)", &[dsn]),
            Statement::new(
                "DO $do$
                 BEGIN
                     PERFORM set_config('client_min_messages', 'error', true);
                     PERFORM set_config('spock.enable_ddl_replication', 'off', true);
                     EXECUTE format('CREATE SUBSCRIPTION zodan_probe CONNECTION %L PUBLICATION zodan_probe '
                                    'WITH (create_slot = false, slot_name = NONE, enabled = false)',
                                    current_setting('zodan_probe.dsn'));
                     RAISE EXCEPTION USING ERRCODE = 'ZODAN', MESSAGE = 'reached';
                 EXCEPTION WHEN SQLSTATE 'ZODAN' THEN NULL;
                 END
                 $do$",
                &[],
            ),
            Statement::new("RESET log_min_messages", &[]),
            Statement::new(
                "SELECT 1 WHERE set_config('zodan_probe.dsn', '', false) IS NULL",
                &[],
            ),
        ]
    }

    fn create_node(&self, identity: &Identity) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT spock.node_create(node_name := $1::name, dsn := $2, location := $3,
                                      country := $4, info := $5::jsonb)",
            &[
                &identity.member.name,
                &identity.member.dsn.reveal(),
                &identity.location,
                &identity.country,
                &identity.info,
            ],
        )]
    }

    fn drop_node(&self) -> Vec<Statement> {
        // The others first: the local node is the last to go.
        vec![
            Statement::new(
                "SELECT spock.node_drop(node_name, true) FROM spock.node
                  WHERE node_id NOT IN (SELECT node_id FROM spock.local_node)",
                &[],
            ),
            Statement::new(
                "SELECT spock.node_drop(n.node_name, true)
                   FROM spock.node n JOIN spock.local_node USING (node_id)",
                &[],
            ),
        ]
    }

    fn forget_node(&self, name: &str) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT spock.node_drop($1::name, true)",
            &[name],
        )]
    }

    fn members(&self) -> Statement {
        Statement::new(
            "SELECT DISTINCT ON (n.node_name) n.node_name, n.location, n.country, i.if_dsn,
                    '', '', n.info, '', n.node_id, NULL, NULL
               FROM spock.node n JOIN spock.node_interface i ON i.if_nodeid = n.node_id
              WHERE EXISTS (SELECT FROM spock.local_node)
              ORDER BY n.node_name,
                    i.if_id IN (SELECT node_local_interface FROM spock.local_node
                                 UNION ALL SELECT sub_origin_if FROM spock.subscription) DESC,
                    i.if_name <> n.node_name",
            &[],
        )
    }

    fn emit_marker(&self, _id: &str, _provider: &str) -> Vec<Statement> {
        // The commit is what the lag is told from. It is not waited for: before 6.0 a commit without
        // rows moves the origin up to a second late. The other kind moves it at once.
        vec![
            Statement::new("SELECT spock.sync_event(true)", &[]),
            Statement::new("SELECT spock.sync_event(false)", &[]),
        ]
    }

    fn marker_seen(&self, path: &Path, token: &str) -> Statement {
        Statement::new(
            "SELECT coalesce((SELECT remote_lsn >= $2::pg_lsn FROM pg_replication_origin_status
                               WHERE external_id = $1), false)",
            &[&path.slot, token],
        )
    }

    fn forget_markers(&self, _provider: &str) -> Option<Statement> {
        None
    }

    fn forget_marker(&self, _token: &str) -> Option<Statement> {
        None
    }

    fn subscriptions(&self) -> Statement {
        // Spock's own status also says "replicating" of a worker that is registered and does not run,
        // and "down" of one that runs and that Spock has lost: such a subscription does not start
        // again. Errors of a worker that reach nothing but the log are not counted: no SQL shows them.
        // Given up is not what a conflict of the applications makes any member give up, an update of
        // a row that is gone, nor the rows of a table that was made during the join: the drift tells.
        Statement::new(
            "SELECT s.sub_name, s.sub_enabled,
                    s.sub_enabled AND t.status = 'replicating'
                    AND EXISTS (SELECT FROM pg_stat_activity a, pg_database d
                                 WHERE d.datname = current_database()
                                   AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)),
                    0, o.remote_lsn,
                    (SELECT concat_ws(': ', nullif(concat_ws(' ', e.operation, e.table_schema || '.' || e.table_name), ''),
                                      e.error_message)
                       FROM spock.exception_log e
                      WHERE e.retry_errored_at >= (to_jsonb(s) ->> 'sub_created_at')::timestamptz
                        AND e.error_message !~ '^unavailable|did not find row to be updated|find relation$'
                        AND (e.remote_origin = s.sub_origin
                             OR e.remote_origin = 0 AND e.operation = 'SUB_DISABLE'
                                AND strpos(e.error_message, format(' %s ', s.sub_name)) > 0)
                      ORDER BY e.operation = 'SUB_DISABLE', e.retry_errored_at DESC LIMIT 1)
               FROM spock.subscription s
               JOIN spock.local_node l ON l.node_id = s.sub_target
               LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name
               LEFT JOIN pg_replication_origin_status o ON o.external_id = s.sub_slot_name
              ORDER BY s.sub_name",
            &[],
        )
    }

    fn subscription_details(&self) -> Statement {
        Statement::new(
            format!(
                "SELECT x.name AS subscription, n.node_name::text AS provider, s.sub_slot_name::text AS slot,
                        CASE WHEN NOT x.enabled THEN 'disabled' WHEN x.working THEN 'replicating'
                             WHEN t.status IN ('initializing', 'syncing', 'synchronizing') THEN t.status
                             ELSE 'down' END AS status,
                        NULL::boolean AS received, s.sub_replication_sets AS replication_sets, x.skipped_change AS last_error,
                        {} AS left_out, x.applied::text
                   FROM ({}) AS x (name, enabled, working, errors, applied, skipped_change)
                   JOIN spock.subscription s ON s.sub_name = x.name
                   JOIN spock.local_node l ON l.node_id = s.sub_target
                   JOIN spock.node n ON n.node_id = s.sub_origin
                   LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name",
                checks::left_out_of(),
                self.subscriptions().sql
            ),
            &[],
        )
    }

    fn passed_over(&self) -> Option<Statement> {
        Some(Statement::new(
            "SELECT DISTINCT e.table_schema, e.table_name
               FROM spock.exception_log e
               JOIN spock.subscription s ON s.sub_origin = e.remote_origin
               JOIN spock.local_node l ON l.node_id = s.sub_target
              WHERE e.error_message ~ 'did not find row'
                AND e.retry_errored_at >= (to_jsonb(s) ->> 'sub_created_at')::timestamptz",
            &[],
        ))
    }

    fn times_removed(&self, name: &str, begun: Option<u32>) -> Option<u32> {
        let known = self.former.times(name);
        let (Some(begun), None) = (begun, begun.and_then(|times| self.named_after(name, times)))
        else {
            return Some(known + 1);
        };
        Some(begun.max(known))
    }

    fn remember_removed(&self, node: &mut Node, name: &str, times: u32) -> Result<()> {
        Former::remember(node, name, times)
    }

    fn inherit_removed(&self, new: &mut Node) -> Result<()> {
        self.former.inherit(new)
    }

    fn path_to_successor(&self, nodes: &mut [&mut Node]) -> Result<Option<Path>> {
        for node in nodes {
            for path in self.of_later_pairs(&node.name) {
                let there = server::slots_named(std::slice::from_ref(&path.slot)).run(node)?;
                if !there.iter().any(|row| row.bool(2)) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    fn start_watchdog(&self, _limit_ms: u128) -> Option<Statement> {
        None // spock.pause_timeout
    }

    fn stop_watchdog(&self) -> Option<Statement> {
        None
    }

    fn pause(&self, _subscriptions: &[String]) -> Statement {
        Statement::new("SELECT spock.pause_apply_workers()", &[])
    }

    fn resume(&self) -> Statement {
        Statement::new("SELECT spock.resume_apply_workers()", &[])
    }

    fn pause_state(&self) -> Statement {
        // Spock itself takes a worker for paused that is in a transaction and has not written yet. It
        // would write and commit during the pause, so it is waited for.
        // That the pause holds cannot be asked. Where it ended by itself, progress has moved or nothing
        // was committed, and both readings of it tell which.
        Statement::new(
            "SELECT (SELECT count(*) FROM spock.subscription WHERE sub_enabled),
                    (SELECT count(*) FROM pg_stat_activity a
                       JOIN pg_database d ON d.datname = current_database()
                      WHERE starts_with(a.backend_type, format('spock apply %s:', d.oid))
                        AND a.xact_start IS NOT NULL)",
            &[],
        )
    }

    fn block_writes(&self, new: &mut Node, database: &str) -> Result<Option<[Statement; 2]>> {
        // Not where somebody has decided otherwise for the database, and not before 6.0, where it
        // would hold off superusers too: the next CALL, if this one is killed.
        let rows = new.query(
            "SELECT EXISTS (SELECT FROM pg_settings WHERE name = 'spock.readonly' AND 'local' = ANY (enumvals))
                    AND NOT EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                                           unnest(s.setconfig) c
                                     WHERE d.datname = current_database() AND s.setrole = 0
                                       AND c LIKE 'spock.readonly=%')",
            &[],
        )?;
        let database = crate::quote::ident(database);
        Ok(rows.one()?.bool(0).then(|| {
            ["SET spock.readonly = 'local'", "RESET spock.readonly"]
                .map(|what| Statement::new(format!("ALTER DATABASE {database} {what}"), &[]))
        }))
    }

    fn apply_runs_statements(&self, _source: &mut Node) -> Result<bool> {
        // DDL that is replicated, and before 6.0 batches of rows.
        Ok(true)
    }

    fn apply_role(&self) -> Statement {
        // Its workers name no role, which makes them the bootstrap superuser.
        Statement::new("SELECT rolname FROM pg_roles WHERE oid = 10", &[])
    }

    fn copy_plan(&self, source: &mut Node, new: &str, snapshot: &str) -> Result<CopyPlan> {
        let preexisting: Vec<String> = extension_tables(source)?
            .into_iter()
            .map(|(table, _)| table)
            .collect();
        let from = copy::Source {
            node: &source.name,
            dsn: &source.dsn,
            snapshot,
        };
        checks::in_sync(
            &source.name,
            &copy::in_snapshot(&from, &checks::unsynced())?,
        )?;
        let in_sets = sets::parse(&copy::in_snapshot(&from, &sets::set_tables())?)?;
        self.copied.replace(Some(in_sets.clone()));
        // What nobody will send is not copied either: it would be of one moment, for good.
        let mut ways = Ways::default();
        let no_kinds = SetKinds::new();
        ways.add_own(
            &in_sets,
            &no_kinds,
            &self.subscriptions_of(&source.name, new),
        );
        for (peer, tables) in &self.of_peers {
            ways.add_received(tables, &no_kinds, &self.subscriptions_of(peer, new));
        }
        let (mut tables, mut structure_only) = (vec![], vec![]);
        for table in copy::tables(&from, &preexisting)? {
            let pieces = ways.to_copy(&(table.schema.clone(), table.name.clone()));
            let brought = !table.extension && !self.excluded.schemas.contains(&table.schema);
            if pieces.is_empty() && brought {
                structure_only.push(table.label());
            }
            let apart = pieces.len() > 1;
            for (filter, columns) in pieces {
                let mut piece = table.clone();
                if let Some(columns) = columns {
                    piece.keep_columns(&columns);
                }
                // What an extension's script stores itself is there already.
                piece.filter = match (filter, piece.filter.take()) {
                    (Some(filter), Some(own)) => Some(format!("({filter}) AND ({own})")),
                    (filter, own) => filter.or(own),
                };
                if apart {
                    piece.share();
                }
                tables.push(piece);
            }
        }
        Ok(CopyPlan {
            origin: self.path(&source.name, new).slot,
            timestamp: Some(UNIX_EPOCH),
            names_follow: true,
            tables,
            structure_only,
            preexisting,
            settings: vec![
                ("spock.enable_ddl_replication", "off"),
                ("spock.include_ddl_repset", "off"),
                ("spock.readonly", "off"),
            ],
            excluded: self.excluded.clone(),
        })
    }

    fn copy_replication_sets(&self, source: &mut Node, new: &mut Node) -> Result<Vec<String>> {
        let sets = format!(
            "SELECT s.set_name, s.replicate_insert, s.replicate_update, s.replicate_delete,
                    s.replicate_truncate FROM {LOCAL_SETS} ORDER BY 1"
        );
        let sets = source.query(&sets, &[])?;
        for row in &sets {
            let verb = match BUILT_IN.contains(&row.text(0)) {
                true => "repset_alter",
                false => "repset_create",
            };
            new.query(
                &format!(
                    "SELECT spock.{verb}($1::name, $2::boolean, $3::boolean, $4::boolean, $5::boolean)"
                ),
                &[row.text(0), row.text(1), row.text(2), row.text(3), row.text(4)],
            )?;
        }
        let wanted = match self.copied.take() {
            Some(tables) => tables,
            None => set_tables(source)?,
        };
        for table in set_tables(new)? {
            if !wanted.contains(&table) {
                new.query(
                    "SELECT spock.repset_remove_table($1::name, $2::regclass, false)",
                    &[
                        &table.set,
                        &crate::quote::qualified(&table.schema, &table.name),
                    ],
                )?;
            }
        }
        let there = set_tables(new)?;
        for table in wanted.iter().filter(|t| !there.contains(t)) {
            if !exists(new, &table.schema, &table.name)? {
                continue; // made during the join; told as drift
            }
            new.query(
                "SELECT spock.repset_add_table($1::name, $2::regclass, false,
                            nullif($3, '{}')::text[], nullif($4, ''), false)",
                &[
                    &table.set,
                    &crate::quote::qualified(&table.schema, &table.name),
                    &table.column_list,
                    table.filter.as_deref().unwrap_or(""),
                ],
            )?;
        }
        let sequences = format!(
            "SELECT s.set_name, n.nspname, c.relname
               FROM {LOCAL_SETS} JOIN spock.replication_set_seq q ON q.set_id = s.set_id
               JOIN pg_class c ON c.oid = q.set_seqoid JOIN pg_namespace n ON n.oid = c.relnamespace"
        );
        let there = new.query(&sequences, &[])?;
        for row in &source.query(&sequences, &[])? {
            if !there.iter().any(|t| t == row) && exists(new, row.text(1), row.text(2))? {
                new.query(
                    "SELECT spock.repset_add_seq($1::name, $2::regclass, false)",
                    &[
                        row.text(0),
                        &crate::quote::qualified(row.text(1), row.text(2)),
                    ],
                )?;
            }
        }
        Ok(vec![format!(
            "{} replication sets mirrored, {} tables in them",
            sets.len(),
            wanted.len()
        )])
    }

    fn replication_set_differences(
        &self,
        source: &mut Node,
        new: &mut Node,
    ) -> Result<Vec<SetDifference>> {
        let (there, here) = (set_tables(source)?, set_tables(new)?);
        Ok(differences(&there, &here, &source.name, &new.name))
    }

    fn lag(&self) -> Option<Statement> {
        Some(Statement::new(
            "SELECT origin_name, receiver_name, coalesce(commit_timestamp::text, ''),
                    coalesce(replication_lag_bytes::text, ''), coalesce(replication_lag::text, '')
               FROM spock.lag_tracker WHERE origin_name IS NOT NULL
              ORDER BY 1, 2",
            &[],
        ))
    }

    fn subscribe(&self, path: &Path, provider: &Member) -> Statement {
        // forward_origins stays empty: a node sends on nothing but its own changes.
        let wanted = self.wanted(path);
        Statement::new(
            "SELECT spock.sub_create(subscription_name := $1::name, provider_dsn := $2,
                        replication_sets := $3::text[], synchronize_structure := false,
                        synchronize_data := false, enabled := false,
                        apply_delay := coalesce(nullif($4, ''), '0')::interval)",
            &[
                &path.subscription,
                &provider.dsn.reveal(),
                &array(&wanted.sets),
                &wanted.delay,
            ],
        )
    }

    fn source_sends_all(&self) -> bool {
        self.source_sends_all
    }

    fn forward(&self, path: &Path, others_too: bool) -> Statement {
        let wanted = if others_too { "all" } else { "" };
        if self.alters_options {
            return Statement::new(
                "SELECT spock.sub_alter_options($1::name,
                            jsonb_build_object('forward_origins', string_to_array($2, ',')))",
                &[&path.subscription, wanted],
            );
        }
        // Before 6.0 nothing but sub_create sets it. The worker reads it when it starts.
        Statement::new(
            "UPDATE spock.subscription SET sub_forward_origins = nullif(string_to_array($2, ','), '{}')
              WHERE sub_name = $1 AND NOT sub_enabled",
            &[&path.subscription, wanted],
        )
    }

    fn start_at(&self, path: &Path, lsn: Lsn) -> Statement {
        Statement::new(
            "SELECT pg_replication_origin_advance($1, $2::pg_lsn)",
            &[&path.slot, &lsn.to_string()],
        )
    }

    fn enable(&self, path: &Path) -> Statement {
        Statement::new("SELECT spock.sub_enable($1::name)", &[&path.subscription])
    }

    fn start_replication(&self, path: &Path) -> Statement {
        Statement::new(
            format!(
                "SELECT format('START_REPLICATION SLOT %I LOGICAL 0/0 (startup_params_format %L, expected_encoding %L, '
                               'min_proto_version %L, max_proto_version %L, spock_version %L, spock_version_num %L, '
                               '\"spock.forward_origins\" %L, \"spock.replication_set_names\" %L)',
                               s.sub_slot_name, '1', getdatabaseencoding(), '{PROTOCOL}', '{PROTOCOL}',
                               spock.spock_version(), spock.spock_version_num(),
                               coalesce((SELECT string_agg(quote_ident(f), ',') FROM unnest(s.sub_forward_origins) f), ''),
                               coalesce((SELECT string_agg(quote_ident(r), ',') FROM unnest(s.sub_replication_sets) r), ''))
                   FROM spock.subscription s WHERE s.sub_name = $1"
            ),
            &[&path.subscription],
        )
    }

    fn disable(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT spock.sub_disable(sub_name, true) FROM spock.subscription WHERE sub_name = $1",
            &[&path.subscription],
        )
    }

    fn disable_if_idle(&self, path: &Path) -> Option<Statement> {
        // A worker that is told to end in the middle of a transaction leaves that as one that has failed,
        // and the next worker discards it. One that loses its connection does not, and stays away for
        // spock.restart_delay_default.
        Some(Statement::new(
            "SELECT spock.sub_disable($1::name, true)
              WHERE NOT EXISTS (
                    SELECT FROM spock.subscription s, pg_database d, pg_stat_activity a
                     WHERE s.sub_name = $1 AND d.datname = current_database()
                       AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id))",
            &[&path.subscription],
        ))
    }

    fn origin(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT sub_slot_name FROM spock.subscription WHERE sub_name = $1",
            &[&path.subscription],
        )
    }

    fn decoding(&self) -> Decoding {
        // PostgreSQL's own plugin does not tell Spock's origins, which are in no catalog of its, and its
        // publications would forbid updates of tables without a key.
        Decoding {
            plugin: "spock_output",
            options: "'startup_params_format', '1', 'min_proto_version', '4', 'max_proto_version', '4',
                      'expected_encoding', 'UTF8', 'proto_format', 'native',
                      'spock_version', spock.spock_version(),
                      'spock_version_num', spock.spock_version_num()::text, 'spock.forward_origins', 'all',
                      'spock.replication_set_names',
                      (SELECT string_agg(quote_ident(s.set_name), ',') FROM spock.replication_set s
                         JOIN spock.local_node l ON l.node_id = s.set_nodeid
                        WHERE EXISTS (SELECT FROM spock.subscription u
                                       WHERE u.sub_target = l.node_id AND s.set_name = ANY (u.sub_replication_sets))
                           OR NOT EXISTS (SELECT FROM spock.replication_set_table t
                                           WHERE t.set_id = s.set_id
                                             AND (t.set_row_filter IS NOT NULL OR t.set_att_list IS NOT NULL)))",
            protocol: Protocol::Spock,
        }
    }

    fn decoded_tables(&self, node: &mut Node) -> Result<Option<ByTable<Option<String>>>> {
        let tables = set_tables(node)?;
        // As the options of the slot have it.
        let subscribed = self.sets.all_taken_by(&node.name);
        let whole = |set: &str| {
            let mut entries = tables.iter().filter(|t| t.set == set);
            entries.all(|t| t.filter.is_none() && t.columns.is_empty())
        };
        let sets = tables.iter().map(|t| t.set.clone());
        let sets: Names = sets
            .filter(|s| subscribed.contains(s) || whole(s))
            .collect();
        Ok(Some(ways::filters(&tables, &sets)))
    }

    fn stopping_workers(&self) -> Statement {
        Statement::new(
            "SELECT count(*) FROM spock.subscription s, pg_database d, pg_stat_activity a
              WHERE NOT s.sub_enabled AND d.datname = current_database()
                AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)",
            &[],
        )
    }

    fn row_origin(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT node_id FROM spock.node WHERE node_name = $1",
            &[&path.provider],
        )
    }

    fn shares(
        &self,
        nodes: &mut [&mut Node],
        here: usize,
        there: usize,
    ) -> Result<Option<ByTable<Share>>> {
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        let known = sets::contents(nodes)?;
        let ways = |from: usize, to: usize| {
            let mut ways = Ways::default();
            let (mine, others) = (&names[from], &names[to]);
            for (provider, (tables, kinds)) in names.iter().zip(&known) {
                let subscriptions = match provider == others {
                    true => self.subscriptions_of(provider, mine),
                    false => self.subscriptions_of(provider, others),
                };
                match provider == mine {
                    true => ways.add_own(tables, kinds, &subscriptions),
                    false => ways.add_received(tables, kinds, &subscriptions),
                }
            }
            ways
        };
        Ok(Some(ways::shares(&ways(here, there), &ways(there, here))))
    }

    fn set_commit_origin(&self, origin: &str) -> Option<Statement> {
        Some(Statement::new(
            "SELECT zodan.session_origin(node_id::integer) FROM spock.node WHERE node_name = $1",
            &[origin],
        ))
    }

    fn origins_of_copied_rows(&self, source: &mut Node) -> Result<Option<Vec<(u32, Statement)>>> {
        let rows = source.query(
            "SELECT CASE WHEN l.node_id IS NULL THEN n.node_id ELSE 0 END, n.node_id
               FROM spock.node n LEFT JOIN spock.local_node l USING (node_id)",
            &[],
        )?;
        let author = |row: &crate::libpq::Row| {
            let set_commit_origin =
                Statement::new("SELECT zodan.session_origin($1::integer)", &[row.text(1)]);
            Ok((row.parse(0)?, set_commit_origin))
        };
        rows.iter().map(author).collect::<Result<_>>().map(Some)
    }

    fn own_schemas(&self) -> &'static [&'static str] {
        &["zodan", "spock"]
    }

    fn enable_all(&self, paths: &[Path]) -> Vec<Statement> {
        // With one commit: after the first one Spock is busy with its worker, and the next waits.
        let names: Vec<&str> = paths.iter().map(|p| p.subscription.as_str()).collect();
        vec![Statement::new(
            "SELECT spock.sub_enable(name::name) FROM unnest(string_to_array($1, ',')) name",
            &[&names.join(",")],
        )]
    }

    fn wake_launcher(&self, idle: &Path) -> Option<Statement> {
        // Spock's manager starts its workers one by one and does not see for a second that one has
        // started, unless it is woken. Meanwhile it holds a lock that other changes of subscriptions
        // wait for; those of the sets do not, and every one of them wakes it.
        Some(Statement::new(
            "SELECT spock.sub_remove_repset(s.sub_name, s.sub_replication_sets[1]::name),
                    spock.sub_add_repset(s.sub_name, s.sub_replication_sets[1]::name)
               FROM spock.subscription s WHERE s.sub_name = $1 AND NOT s.sub_enabled",
            &[&idle.subscription],
        ))
    }

    fn map_error(&self, error: Error) -> Error {
        match error {
            // Spock itself connects to a provider that a node is to subscribe to.
            Error::Remote(mut remote)
                if remote.state == SqlState::INTERNAL_ERROR
                    && remote
                        .message
                        .starts_with("could not connect to the postgresql server") =>
            {
                remote.state = SqlState::UNABLE_TO_CONNECT;
                Error::Remote(remote)
            }
            other => other,
        }
    }

    fn drops_node_with_last_subscription(&self) -> bool {
        true // sub_drop drops the provider's node, too, if no other subscription is to it
    }

    fn sync_timeout(&self) -> Option<(&'static str, u64)> {
        // Since 6.0; 0 leaves it to the procedure.
        let seconds = settings::integer(c"spock.sync_timeout")?;
        (seconds > 0).then_some(("spock.sync_timeout", seconds.unsigned_abs()))
    }

    fn end_subscriptions(&self) -> Vec<Statement> {
        // To drop one would drop the slot on its provider: an address without a server keeps it from that.
        vec![
            Statement::new(
                "UPDATE spock.node_interface SET if_dsn = 'host=/nowhere'
                  WHERE if_nodeid NOT IN (SELECT node_id FROM spock.local_node)",
                &[],
            ),
            Statement::new(
                "SELECT spock.sub_drop(sub_name, true) FROM spock.subscription",
                &[],
            ),
        ]
    }

    fn stop_subscriptions(&self) -> Statement {
        Statement::new(
            "SELECT spock.sub_disable(sub_name, true) FROM spock.subscription WHERE sub_enabled",
            &[],
        )
    }

    fn unsubscribe(&self, subscription: &str) -> Vec<Statement> {
        // A subscription that is still copying waits for its own copy for ever, and with it Spock's
        // manager: the copy is ended first.
        vec![
            Statement::new(
                "SELECT spock.sub_disable(sub_name, false) FROM spock.subscription WHERE sub_name = $1",
                &[subscription],
            ),
            Statement::new(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE application_name = $1 || '_copy' AND datname = current_database()",
                &[subscription],
            ),
            Statement::new("SELECT spock.sub_drop($1::name, true)", &[subscription]),
        ]
    }
}

impl Spock {
    /// The sets of each subscription of `subscriber` to `provider`, also where there is none yet.
    fn subscriptions_of(&self, provider: &str, subscriber: &str) -> Vec<Names> {
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
            && questions::triggers_of_apply().run(source)?.one()?.bool(0)
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

    /// A path of a node that joined when nodes of its name had been removed so often.
    fn named_after(&self, name: &str, times: u32) -> Option<&Path> {
        let of_it = |(p, s): &&(String, String)| p == name || s == name;
        let paths = self.seen.iter().filter(of_it);
        let mut paths = paths.filter_map(|ends| self.paths.get(ends)).flatten();
        paths.find(|path| {
            let other = match path.provider == name {
                true => &path.subscriber,
                false => &path.provider,
            };
            names::generation(&path.subscription).1 > times + self.former.times(other)
        })
    }

    /// Those from `provider` to nodes to which it has paths of earlier generations only. Both directions of a pair have
    /// the same, but where somebody has given a name by hand.
    fn of_later_pairs(&self, provider: &str) -> Vec<Path> {
        let newest = |ends: &(String, String)| {
            let paths = self.seen.contains(ends).then(|| self.paths.get(ends));
            let paths = paths.flatten().into_iter().flatten();
            let generations = paths.map(|path| (names::generation(&path.subscription).1, path));
            generations.max_by_key(|(generation, _)| *generation)
        };
        let later = |ends: &(String, String)| {
            let (from, to) = (ends.1.clone(), ends.0.clone());
            let ((to_it, path), (from_it, _)) = (newest(ends)?, newest(&(from, to))?);
            (to_it > from_it).then(|| path.clone())
        };
        let ends = self.seen.iter().filter(|(from, _)| from == provider);
        ends.filter_map(later).collect()
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
        let there = server::slots_named(&slots).run(provider)?;
        all.retain(|path| {
            there
                .iter()
                .any(|row| row.bool(2) && row.text(0) == path.slot)
        });
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

    /// Tables that the source gets from its peers.
    fn peers_tables(&self, source: &str) -> impl Iterator<Item = &SetTable> {
        self.of_peers.iter().flat_map(move |(peer, tables)| {
            let taken = self.sets.subscriptions(peer, source);
            let taken = move |t: &&SetTable| taken.iter().any(|s| s.sets.contains(&t.set));
            tables.iter().filter(taken)
        })
    }

    /// What a subscription with the new node at one end is to be like.
    fn wanted(&self, path: &Path) -> Subscription {
        let ends = (path.provider.clone(), path.subscriber.clone());
        let nth = self.paths(&path.provider, &path.subscriber);
        let nth = nth.iter().position(|p| p == path).unwrap_or_default();
        let all = self.to_make.get(&ends);
        all.and_then(|all| all.get(nth))
            .cloned()
            .unwrap_or_default()
    }

    /// A subscription beside another one whose worker would wait for ever.
    fn check_groups(&self, findings: &mut Vec<Finding>) {
        let several = self
            .paths
            .iter()
            .filter(|(ends, paths)| paths.len() > 1 && !self.to_make.contains_key(*ends));
        for path in several.flat_map(|(_, paths)| paths) {
            if naming::is_of_a_group(&path.slot) {
                findings.push(Finding::new(
                    &path.subscriber,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "subscription {} is one of several to node \"{}\", and its name ends in an underscore and a digit: Spock lets its worker wait for transactions that the others bring",
                        path.subscription, path.provider
                    ),
                    "Give it another name: drop it and make it anew when both nodes have the same rows of its tables.",
                ));
            }
        }
    }

    /// Somebody streams from the slot of every subscription between the members. The subscriber alone
    /// cannot tell: a worker that fails and starts again every few seconds looks well from there.
    fn check_slots(&self, members: &mut [&mut Node], findings: &mut Vec<Finding>) -> Result<()> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let streamed = ask_all(
            members.iter_mut().map(|n| &mut **n),
            "SELECT slot_name FROM pg_replication_slots WHERE active AND database = current_database()",
            &[],
        )?;
        let subscribed = ask_all(
            members.iter_mut().map(|n| &mut **n),
            &self.subscriptions().sql,
            &[],
        )?;
        for (provider, streamed) in names.iter().zip(&streamed) {
            for (subscriber, rows) in names.iter().zip(&subscribed) {
                let key = (provider.clone(), subscriber.clone());
                let working = subscription_states(rows)?.into_iter().filter(|s| s.working);
                let working: Vec<String> = working.map(|s| s.name).collect();
                for path in self.paths.get(&key).into_iter().flatten() {
                    if !working.contains(&path.subscription)
                        || streamed.iter().any(|r| r.text(0) == path.slot)
                    {
                        continue;
                    }
                    findings.push(Finding::new(
                        provider,
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "replication slot {} is inactive, but node \"{subscriber}\" subscribes through it",
                            path.slot
                        ),
                        "Make every subscription of the cluster replicate before a node is added; the log of the subscriber says why one does not.",
                    ));
                }
            }
        }
        Ok(())
    }

    /// What the structure leaves out must be there already. So must an extension whose own tables are
    /// replicated, as those of lolor: their rows come, and nobody knows what its script stores itself.
    fn check_extensions(
        &self,
        source: &mut Node,
        new: &mut Node,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let installed = "SELECT extname FROM pg_extension WHERE extname <> 'spock'";
        let here = new.query(installed, &[])?;
        for row in &source.query(installed, &[])? {
            let name = row.text(0);
            let left_out = self.excluded.extensions.iter().any(|e| e == name);
            if left_out && !here.iter().any(|r| r.text(0) == name) {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::UNDEFINED_OBJECT,
                    format!(
                        "extension {name} is not installed, which node \"{}\" has and which Spock reserves to each node",
                        source.name
                    ),
                    format!("Run CREATE EXTENSION {} there.", crate::quote::ident(name)),
                )
                .fixed_by(format!("CREATE EXTENSION {}", crate::quote::ident(name))));
            }
        }
        for (table, extension) in extension_tables(source)? {
            let quoted = crate::quote::ident(&extension);
            let there = "SELECT to_regclass($1) IS NOT NULL";
            if !new.query(there, &[&table])?.one()?.bool(0) {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::UNDEFINED_TABLE,
                    format!("table {table} does not exist, which is replicated and belongs to extension {extension}"),
                    format!("Run CREATE EXTENSION {quoted} there, in the version of node \"{}\".", source.name),
                ));
                continue;
            }
            let has_rows = format!("SELECT EXISTS (SELECT FROM {table})");
            if new.query(&has_rows, &[])?.one()?.bool(0) {
                findings.push(Finding::new(
                    &new.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("table {table} of extension {extension} has rows"),
                    format!(
                        "Run TRUNCATE {table} there: its rows come from node \"{}\".",
                        source.name
                    ),
                ));
            }
        }
        Ok(())
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
            slot: rows.one()?.text(0).to_owned(),
        })
    };
    subscriptions.into_iter().map(path).collect()
}

/// Spock numbers a node by 16 bits of a hash of its name, and marks the rows that come from it with that number.
/// Two of these numbers mean something else to PostgreSQL: no origin, and not to be sent on.
fn check_node_ids(
    members: &mut [&mut Node],
    new: &mut Node,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let id = "hashtext($1::name::text COLLATE \"C\") & 65535";
    let question = format!(
        "SELECT {id}, (SELECT node_name FROM spock.node
                        WHERE node_id = ({id})::oid AND node_name <> $1::name LIMIT 1)"
    );
    let name = new.name.clone();
    for node in members.iter_mut().map(|m| &mut **m).chain([&mut *new]) {
        let answer = node.query(&question, &[&name])?;
        let row = answer.one()?;
        let message = match (row.text(0), row.get(1)) {
            (id, Some(other)) => format!(
                "Spock gives the name \"{name}\" the number {id}, which node \"{other}\" has"
            ),
            (id @ ("0" | "65535"), None) => format!(
                "Spock gives the name \"{name}\" the number {id}, which PostgreSQL keeps for itself"
            ),
            _ => continue,
        };
        findings.push(Finding::new(
            &node.name,
            SqlState::DUPLICATE_OBJECT,
            message,
            "Choose another name for the new node.",
        ));
        // The others know the same.
        break;
    }
    Ok(())
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
    Ok(rows.one()?.bool(0))
}

fn not_installed(node: &str) -> Finding {
    Finding::new(
        node,
        SqlState::UNDEFINED_OBJECT,
        "the extension spock is not installed in the database",
        "Run CREATE EXTENSION spock there.",
    )
    .fixed_by("CREATE EXTENSION spock")
}

/// What Spock leaves out of the structure that it copies itself.
fn left_out(source: &mut Node) -> Result<Excluded> {
    let known = source.query(
        "SELECT to_regclass('spock.reserved_object') IS NOT NULL",
        &[],
    )?;
    if !known.one()?.bool(0) {
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
    let of = |kind: &str| {
        let named = rows.iter().filter(|r| r.text(0) == kind);
        named.map(|r| r.text(1).to_owned()).collect()
    };
    Ok(Excluded {
        schemas: of("schema"),
        extensions: of("extension"),
    })
}

/// Tables in replication sets that belong to extensions, and to which.
fn extension_tables(node: &mut Node) -> Result<Vec<(String, String)>> {
    let members = format!(
        "SELECT DISTINCT format('%I.%I', n.nspname, c.relname), e.extname
           FROM {LOCAL_SETS} JOIN spock.replication_set_table t ON t.set_id = s.set_id
           JOIN pg_class c ON c.oid = t.set_reloid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
           JOIN pg_extension e ON e.oid = d.refobjid ORDER BY 1"
    );
    let rows = node.query(&members, &[])?;
    let named = |row: &crate::libpq::Row| (row.text(0).to_owned(), row.text(1).to_owned());
    Ok(rows.iter().map(named).collect())
}

fn exists(node: &mut Node, schema: &str, name: &str) -> Result<bool> {
    let name = crate::quote::qualified(schema, name);
    let rows = node.query("SELECT to_regclass($1) IS NOT NULL", &[&name])?;
    Ok(rows.one()?.bool(0))
}

fn set_tables(node: &mut Node) -> Result<Vec<SetTable>> {
    sets::parse(&sets::set_tables().run(node)?)
}

fn database(node: &mut Node) -> Result<String> {
    let rows = node.query("SELECT current_database()", &[])?;
    Ok(rows.one()?.text(0).to_owned())
}

/// A version of Spock, compared by number: '5.0.10' is newer than '5.0.4'.
#[derive(Clone, Debug)]
struct Version {
    text: String,
    numbers: (u32, u32),
}

impl Version {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(['.', '-']).map(|p| p.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self {
            text: text.to_owned(),
            numbers: (next(), next()),
        }
    }

    /// Nodes work together where major and minor are the same.
    fn fits(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::Version;
    use proptest::prelude::*;

    #[test]
    fn versions_fit_by_major_and_minor() {
        let fits = |a, b| Version::parse(a).fits(&Version::parse(b));
        assert!(fits("5.0.10", "5.0.7"));
        assert!(fits("6.0.0-devel", "6.0.1"));
        assert!(!fits("5.0.11", "6.0.0"));
        assert!(!fits("5.1.0", "5.0.9"));
    }

    proptest! {
        #[test]
        fn every_version_is_compared_by_number(major in any::<u32>(), minor in any::<u32>(), rest in "(\\.\\PC{0,8}|-\\PC{0,8})?") {
            let version = Version::parse(&format!("{major}.{minor}{rest}"));
            prop_assert_eq!(version.numbers, (major, minor));
        }

        #[test]
        fn no_text_makes_the_version_fall_over(text in any::<String>()) {
            let version = Version::parse(&text);
            prop_assert!(version.fits(&version));
        }
    }
}
