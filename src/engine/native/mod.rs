//! PostgreSQL's own logical replication, `origin = none`, as the cluster's engine.

use super::names::{self, Numbered};
use super::registry::parse_dsn;
use super::{
    CopyPlan, Engine, EngineCheck, EngineFindings, Excluded, Identity, On, Path, PendingCleanup,
    Registry, Survey, identities, questions,
};
use crate::copy;
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, Row};
use crate::lsn::Lsn;
use crate::node::{Member, Node, Statement, ask_all, own_database, server};
use crate::replay::{Decoding, Protocol};
use std::collections::BTreeMap;

const SERVER: &str = "server of the engine";
const PUBLICATION: &str = "publication zodan";
const EXTENSION: &str = "extension zodan";

pub(super) const CHECKS: [EngineCheck; 3] = [
    EngineCheck {
        name: SERVER,
        wanted: "PostgreSQL 16 or newer",
        on: On::Every,
    },
    EngineCheck {
        name: PUBLICATION,
        wanted: "zodan's own, or none",
        on: On::Every,
    },
    EngineCheck {
        name: EXTENSION,
        wanted: "installed, in the version of the new node",
        on: On::Every,
    },
];

#[derive(Default)]
pub struct Native {
    /// The database of each node.
    databases: BTreeMap<String, String>,
    /// Which one it is, by its newest registry; made up for one that is to be is_member.
    cluster: String,
    /// The number of each node in that registry.
    numbers: BTreeMap<String, i32>,
    /// That of the next one to join.
    next_number: i32,
    /// Whether triggers fire on the source for what it applies.
    source_has_triggers: bool,
    /// By subscriber and subscription, the slots that existing subscriptions read. They keep their names, also where a
    /// database has got another name since. Of a node that cannot be asked, those that its providers have.
    slots: BTreeMap<(String, String), String>,
}

/// `origin = none`, without which changes would go round in circles, came with PostgreSQL 16.
const OLDEST_SERVER: u32 = 160_000;

impl Engine for Native {
    fn label(&self) -> &'static str {
        "native"
    }

    fn uses_logical_workers(&self) -> bool {
        true
    }

    fn plugin(&self) -> &'static str {
        "pgoutput"
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

    fn cluster(&self) -> Option<&str> {
        Some(&self.cluster)
    }

    fn survey(&self, source: &mut Node) -> Result<Survey> {
        let installed = source.query(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'zodan')",
            &[],
        )?;
        if !installed.one()?.bool(0) {
            return Err(Error::Checks(vec![extension_missing(&source.name)]));
        }
        let rows = source.query(
            "SELECT n.name, n.dsn, n.name = (SELECT l.name FROM zodan.local_node l)
               FROM zodan.node n ORDER BY n.joined_at, n.name",
            &[],
        )?;
        if rows.is_empty() {
            return Ok(Survey {
                members: vec![source.member()],
                is_member: false,
            });
        }
        let mut members = vec![];
        let mut own = None;
        for row in &rows {
            let name = row.text(0).to_owned();
            if row.bool(2) {
                own = Some(name.clone());
            }
            let dsn = parse_dsn(&name, row.text(1))?;
            members.push(Member { name, dsn });
        }
        match own {
            Some(own) if own == source.name => Ok(Survey {
                members,
                is_member: true,
            }),
            Some(own) => Err(Error::Argument {
                argument: "src_node_name",
                problem: format!(
                    "is \"{}\", but src_dsn leads to the node \"{own}\"",
                    source.name
                ),
                hint: format!(
                    "Give \"{own}\", or the connection string of \"{}\".",
                    source.name
                ),
                state: SqlState::INVALID_PARAMETER_VALUE,
            }),
            None => Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the database behind src_dsn has members in zodan.node, but is none of them itself: {}",
                    members
                        .iter()
                        .map(|m| m.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                "See zodan.local_node and zodan.node there, and delete what does not belong to it.",
            )),
        }
    }

    fn checks(&self) -> &'static [EngineCheck] {
        &CHECKS
    }

    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings> {
        let (mut servers, mut publications, mut extensions) = (vec![], vec![], vec![]);
        let mut nodes: Vec<&mut Node> = members.iter_mut().map(|n| &mut **n).collect();
        nodes.push(new);
        let answers = ask_all(
            nodes.iter_mut().map(|n| &mut **n),
            "SELECT current_setting('server_version_num'),
                    (SELECT extversion FROM pg_extension WHERE extname = 'zodan'),
                    EXISTS (SELECT FROM pg_publication WHERE pubname = 'zodan')",
            &[],
        )?;
        let mut versions = vec![];
        for (node, rows) in nodes.iter_mut().zip(&answers) {
            let row = rows.one()?;
            if row.parse::<u32>(0)? < OLDEST_SERVER {
                servers.push(Finding::new(
                    &node.name,
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!(
                        "the native engine needs PostgreSQL 16 or newer, the server is {}",
                        row.parse::<u32>(0)? / 10_000
                    ),
                    "Upgrade the server, or use Spock, which replicates older versions.",
                ));
            }
            if row.bool(2) && row.get(1).is_some() && self.members().run(node)?.is_empty() {
                publications.push(Finding::new(
                    &node.name,
                    SqlState::DUPLICATE_OBJECT,
                    "publication zodan exists already, and the database is not a cluster node",
                    "It was not made by zodan. ALTER PUBLICATION zodan RENAME TO another name, and have the subscriptions that name it follow.",
                ));
            }
            match row.get(1) {
                None => extensions.push(extension_missing(&node.name)),
                Some(version) => versions.push(version.to_owned()),
            }
        }
        let ours = versions.last().cloned().unwrap_or_default();
        for (node, version) in nodes.iter().zip(&versions) {
            if *version != ours {
                extensions.push(Finding::new(
                    &node.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!("the extension zodan is {version} here and {ours} on the new node"),
                    "Run ALTER EXTENSION zodan UPDATE where it is older.",
                ));
            }
        }
        Ok(vec![
            (SERVER, servers),
            (PUBLICATION, publications),
            (EXTENSION, extensions),
        ])
    }

    fn local_name(&self, node: &mut Node) -> Result<Option<String>> {
        let known = node.query("SELECT to_regclass('zodan.local_node') IS NOT NULL", &[])?;
        if !known.one()?.bool(0) {
            return Ok(None);
        }
        let rows = node.query("SELECT name FROM zodan.local_node", &[])?;
        Ok(rows.first().map(|row| row.text(0).to_owned()))
    }

    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()> {
        let known = members.iter().all(|m| self.databases.contains_key(&m.name));
        if known && absent.is_empty() {
            return Ok(());
        }
        let found = ask_all(
            members.iter_mut().map(|m| &mut **m),
            "SELECT current_database(), s.subname, s.subslotname, to_regclass('zodan.membership') IS NOT NULL,
                    (SELECT string_agg(r.slot_name, ',') FROM pg_replication_slots r
                      WHERE r.slot_type = 'logical' AND r.database = current_database())
               FROM pg_database d
               LEFT JOIN pg_subscription s ON s.subdbid = d.oid AND s.subslotname IS NOT NULL
                                          AND 'zodan' = ANY (s.subpublications)
              WHERE d.datname = current_database()",
            &[],
        )?;
        let mut there: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut with_registry = vec![];
        for (member, rows) in members.iter_mut().zip(&found) {
            for row in rows {
                let database = row.text(0).to_owned();
                self.databases.insert(member.name.clone(), database);
                let slots = row.get(4).unwrap_or_default().split(',');
                there.insert(member.name.clone(), slots.map(str::to_owned).collect());
                if let (Some(subscription), Some(slot)) = (row.get(1), row.get(2)) {
                    let key = (member.name.clone(), subscription.to_owned());
                    self.slots.insert(key, slot.to_owned());
                }
            }
            if rows.first().is_some_and(|row| row.bool(3)) {
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
            for (provider, slots) in &there {
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

    fn unload_paths(&mut self) {
        *self = Self::default();
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
        if let Some(source) = members.first_mut() {
            let rows = questions::triggers_of_apply().run(source)?;
            self.source_has_triggers = rows.one()?.bool(0);
        }
        let database = new.query("SELECT current_database()", &[])?;
        let database = database.one()?.text(0).to_owned();
        self.databases.insert(new.name.clone(), database);
        if self.cluster.is_empty() {
            self.cluster = server::unique_id().run(new)?.one()?.text(0).to_owned();
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

    fn probe(&self, dsn: &str) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT server, database FROM zodan.probe($1)",
            &[dsn],
        )]
    }

    fn strangers(&self, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
        let found = self.readers(leaving, members)?.into_iter().map(|(slot, who)| {
            Finding::new(
                &leaving.name,
                SqlState::OBJECT_IN_USE,
                format!("{who} streams from slot {slot} by publication zodan, and is not a member of the cluster"),
                "The publication goes with the node: drop its subscription first.",
            )
        });
        Ok(found.collect())
    }

    fn warnings(&self, members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        let names: Vec<String> = members.iter().map(|m| m.name.clone()).collect();
        let mut findings = vec![];
        for member in members.iter_mut() {
            let readers = self.readers(member, &names)?.into_iter();
            findings.extend(readers.map(|(slot, who)| {
                Finding::new(
                    &member.name,
                    SqlState::OK,
                    format!("{who} reads from slot {slot} by publication zodan, is not a member of the cluster, and does not get what is written on the new node"),
                    "If it is to have all, add it with spock.add_node, or let it subscribe to the new node too when that has joined.",
                )
            }));
        }
        Ok(findings)
    }

    fn create_node(&self, identity: &Identity) -> Vec<Statement> {
        vec![
            Statement::new("CREATE PUBLICATION zodan FOR ALL TABLES", &[]),
            Statement::new(
                "INSERT INTO zodan.local_node (name) SELECT $1 FROM zodan.unreplicated()",
                &[&identity.member.name],
            ),
        ]
    }

    fn drop_node(&self) -> Vec<Statement> {
        // One transaction: a node or none, never half of one.
        vec![Statement::new(
            "DROP PUBLICATION IF EXISTS zodan;
             DELETE FROM zodan.marker USING zodan.unreplicated();
             DELETE FROM zodan.node USING zodan.unreplicated();
             DELETE FROM zodan.membership USING zodan.unreplicated();
             DELETE FROM zodan.sequence USING zodan.unreplicated();
             DELETE FROM zodan.local_node USING zodan.unreplicated()",
            &[],
        )]
    }

    fn unfit_identities(&self, unsent: bool) -> Option<Statement> {
        Some(identities::unfit(unsent))
    }

    fn registry(&self) -> Option<Statement> {
        Some(Statement::new(
            "SELECT local_name, registry FROM zodan.registry()",
            &[],
        ))
    }

    fn apply_registry(&self, registry: &Registry) -> Result<Option<Statement>> {
        Ok(Some(Statement::new(
            "SELECT zodan.apply_registry($1::jsonb)",
            &[&registry.to_text()?],
        )))
    }

    fn forget_node(&self, name: &str) -> Vec<Statement> {
        [
            "DELETE FROM zodan.marker USING zodan.unreplicated() WHERE node = $1",
            "DELETE FROM zodan.pending_cleanup USING zodan.unreplicated() WHERE member = $1",
            // One that comes back under the name is another.
            "DELETE FROM zodan.recovery_slot USING zodan.unreplicated() WHERE provider = $1",
        ]
        .map(|sql| Statement::new(sql, &[name]))
        .to_vec()
    }

    fn last_update_wins(&self, table: &str, wanted: bool) -> Option<Statement> {
        Some(Statement::new(
            "SELECT zodan.set_last_update_wins($1::regclass, $2::boolean)",
            &[table, if wanted { "true" } else { "false" }],
        ))
    }

    fn record_cleanup(&self, cleanup: &PendingCleanup) -> Option<Statement> {
        Some(Statement::new(
            "INSERT INTO zodan.pending_cleanup (member, dsn, removed, effect)
             SELECT $1, $2, $3, $4::jsonb FROM zodan.unreplicated() ON CONFLICT DO NOTHING",
            &[
                &cleanup.member.name,
                &cleanup.member.dsn.reveal(),
                &cleanup.removed,
                &cleanup.effect,
            ],
        ))
    }

    fn pending_cleanups(&self, node: &mut Node) -> Result<Vec<PendingCleanup>> {
        let rows = node.query(
            "SELECT o.member, coalesce(n.dsn, o.dsn), o.effect, o.removed
               FROM zodan.pending_cleanup o LEFT JOIN zodan.node n ON n.name = o.member
              ORDER BY o.recorded_at, o.effect",
            &[],
        )?;
        rows.iter()
            .map(|row| {
                let dsn = Dsn::parse(row.text(1)).map_err(|bad| {
                    Error::internal(format!("zodan.pending_cleanup.dsn {}", bad.problem()))
                })?;
                Ok(PendingCleanup {
                    member: Member {
                        name: row.text(0).to_owned(),
                        dsn,
                    },
                    removed: row.text(3).to_owned(),
                    effect: row.text(2).to_owned(),
                })
            })
            .collect()
    }

    fn cleaned_up(&self, removed: &str, member: &str) -> Option<Statement> {
        Some(Statement::new(
            "DELETE FROM zodan.pending_cleanup USING zodan.unreplicated() WHERE removed = $1 AND member = $2",
            &[removed, member],
        ))
    }

    fn members(&self) -> Statement {
        Statement::new(
            "SELECT n.name, n.location, n.country, n.dsn, n.system_identifier, n.database, n.info, n.joined_at, NULL,
                    n.number, m.cluster
               FROM zodan.node n, zodan.membership m ORDER BY n.joined_at, n.name",
            &[],
        )
    }

    fn emit_marker(&self, id: &str, provider: &str) -> Vec<Statement> {
        vec![Statement::new(
            "INSERT INTO zodan.marker (id, node) VALUES ($1, $2) RETURNING id",
            &[id, provider],
        )]
    }

    fn marker_seen(&self, _path: &Path, token: &str) -> Statement {
        Statement::new(
            "SELECT EXISTS (SELECT FROM zodan.marker WHERE id = $1)",
            &[token],
        )
    }

    fn forget_markers(&self, provider: &str) -> Option<Statement> {
        Some(Statement::new(
            "DELETE FROM zodan.marker WHERE node = $1",
            &[provider],
        ))
    }

    fn forget_marker(&self, token: &str) -> Option<Statement> {
        Some(Statement::new(
            "DELETE FROM zodan.marker WHERE id = $1",
            &[token],
        ))
    }

    fn subscriptions(&self) -> Statement {
        Statement::new(
            "SELECT s.subname, s.subenabled, w.pid IS NOT NULL, coalesce(e.apply_error_count, 0),
                    o.remote_lsn, NULL
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
               LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
                                               AND to_jsonb(w) ->> 'leader_pid' IS NULL
               LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
               LEFT JOIN pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid
              WHERE 'zodan' = ANY (s.subpublications)
              ORDER BY s.subname",
            &[],
        )
    }

    fn subscription_details(&self) -> Statement {
        // What an error was is in no catalog; that there was one is counted. A walsender that has nothing to send
        // greets its reader with a keepalive.
        Statement::new(
            format!(
                "SELECT x.name AS subscription, NULL::text AS provider, s.subslotname::text AS slot,
                        CASE WHEN NOT x.enabled THEN 'disabled' WHEN NOT x.working THEN 'down'
                             WHEN EXISTS (SELECT FROM pg_subscription_rel r
                                           WHERE r.srsubid = s.oid AND r.srsubstate NOT IN ('r', 's'))
                             THEN 'syncing' ELSE 'replicating' END AS status,
                        (SELECT bool_or(w.received_lsn IS NOT NULL) FROM pg_stat_subscription w
                          WHERE w.subid = s.oid AND w.relid IS NULL) AS received,
                        s.subpublications::text[] AS replication_sets,
                        CASE WHEN x.errors > 0
                             THEN format('errors of the apply worker so far: %s (see the log of the subscriber)',
                                    x.errors) END AS last_error,
                        {} AS tables, x.applied::text
                   FROM ({}) AS x (name, enabled, working, errors, applied, skipped_change)
                   JOIN pg_database d ON d.datname = current_database()
                   JOIN pg_subscription s ON s.subdbid = d.oid AND s.subname = x.name",
                questions::known(),
                self.subscriptions().sql
            ),
            &[],
        )
    }

    fn worker_error(&self, path: &Path) -> Option<Statement> {
        // What an error was is in the log alone; PostgreSQL 18 counts conflicts by their kind.
        Some(Statement::new(
            "SELECT format('Subscription %s: %s errors of its apply worker so far%s. The log of that server says what they were%s.',
                           s.subname, coalesce(e.apply_error_count, 0),
                           (SELECT ', conflicts: ' || string_agg(format('%s %s', substr(c.key, 7), c.value), ', ' ORDER BY c.key)
                              FROM jsonb_each_text(to_jsonb(e)) c
                             WHERE c.key LIKE 'confl\\_%' AND c.value <> '0'),
                           ': ' || pg_current_logfile())
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
               LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
              WHERE s.subname = $1",
            &[&path.subscription],
        ))
    }

    fn sent_tables(&self) -> Option<String> {
        Some(questions::sent())
    }

    fn passed_over(&self) -> Option<Statement> {
        // Counted since PostgreSQL 18. Deletes say nothing: those of markers come without their rows.
        Some(Statement::new(
            "SELECT NULL, NULL
               FROM (SELECT to_jsonb(s) AS counted FROM pg_stat_subscription_stats s JOIN pg_subscription u ON u.oid = s.subid
                      WHERE u.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())) s
             HAVING sum((counted ->> 'confl_update_missing')::bigint) > 0",
            &[],
        ))
    }

    fn start_watchdog(&self, limit_ms: u128) -> Option<Statement> {
        // The lock is taken first, so that the worker has something to wait for.
        Some(Statement::new(
            format!(
                "SELECT pg_advisory_lock({PAUSE_LOCK}, pg_backend_pid());
                 SELECT zodan.start_pause_watchdog(pg_backend_pid(), {limit_ms})"
            ),
            &[],
        ))
    }

    fn stop_watchdog(&self) -> Option<Statement> {
        Some(Statement::new(
            format!("SELECT pg_advisory_unlock({PAUSE_LOCK}, pg_backend_pid())"),
            &[],
        ))
    }

    fn pause(&self, subscriptions: &[String]) -> Statement {
        // Names of subscriptions are made by `names` and hold no comma.
        Statement::new(
            "SELECT zodan.pause_apply(string_to_array($1, ','))",
            &[&subscriptions.join(",")],
        )
    }

    fn resume(&self) -> Statement {
        Statement::new("SELECT zodan.resume_apply()", &[])
    }

    fn resume_orphaned(&self) -> Option<Statement> {
        // Whoever pauses has the lock before there is anything to resume.
        Some(Statement::new(
            format!(
                "SELECT zodan.resume_apply()
                  WHERE EXISTS (SELECT FROM zodan.paused_subscription)
                    AND NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                                     WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted
                                       AND l.classid = {PAUSE_LOCK} AND d.datname = current_database())"
            ),
            &[],
        ))
    }

    fn pause_state(&self) -> Statement {
        Statement::new(
            "SELECT (SELECT count(*) FROM zodan.paused_subscription),
                    (SELECT count(*) FROM pg_stat_subscription w
                       JOIN pg_subscription s ON s.oid = w.subid
                       JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                       JOIN zodan.paused_subscription p ON p.name = s.subname
                      WHERE w.pid IS NOT NULL)",
            &[],
        )
    }

    fn subscribe(&self, path: &Path, provider: &Member) -> Statement {
        Statement::new(
            "SELECT zodan.create_subscription($1, $2, $3)",
            &[&path.subscription, &provider.dsn.reveal(), &path.slot],
        )
    }

    fn source_sends_all(&self) -> bool {
        // Every publication is for all tables.
        !self.source_has_triggers
    }

    fn forward(&self, path: &Path, others_too: bool) -> Statement {
        let name = crate::quote::ident(&path.subscription);
        let origin = if others_too { "any" } else { "none" };
        // Changes of the provider's own zodan tables found no rows: they cast doubt on nothing.
        let forget = match others_too {
            true => String::new(),
            false => format!(
                "; SELECT pg_stat_reset_subscription_stats(s.oid) FROM pg_subscription s
                     JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                    WHERE s.subname = {}",
                crate::quote::literal(&path.subscription)
            ),
        };
        Statement::new(
            format!("ALTER SUBSCRIPTION {name} SET (origin = {origin}){forget}"),
            &[],
        )
    }

    fn start_at(&self, path: &Path, lsn: Lsn) -> Statement {
        Statement::new(
            "SELECT pg_replication_origin_advance('pg_' || s.oid, $2::pg_lsn)
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1",
            &[&path.subscription, &lsn.to_string()],
        )
    }

    fn enable(&self, path: &Path) -> Statement {
        Statement::new(
            format!(
                "ALTER SUBSCRIPTION {} ENABLE",
                crate::quote::ident(&path.subscription)
            ),
            &[],
        )
    }

    fn start_replication(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT format('START_REPLICATION SLOT %I LOGICAL 0/0 (proto_version ''1'', publication_names %L)',
                           subslotname, (SELECT string_agg(quote_ident(p), ',') FROM unnest(subpublications) p))
               FROM pg_subscription
              WHERE subname = $1 AND subslotname IS NOT NULL
                AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[&path.subscription],
        )
    }

    fn idle_address(&self, path: &Path) -> Option<Statement> {
        Some(Statement::new(
            "SELECT s.subconninfo FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1 AND s.subenabled
                AND NOT EXISTS (SELECT FROM pg_stat_subscription w
                                 WHERE w.subid = s.oid AND w.relid IS NULL AND w.received_lsn IS NOT NULL)",
            &[&path.subscription],
        ))
    }

    fn disable(&self, path: &Path) -> Statement {
        let name = crate::quote::ident(&path.subscription);
        Statement::new(format!("ALTER SUBSCRIPTION {name} DISABLE"), &[])
    }

    fn refresh(&self, path: &Path) -> Option<Statement> {
        let name = crate::quote::ident(&path.subscription);
        Some(Statement::new(
            format!("ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = false)"),
            &[],
        ))
    }

    fn origin(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT 'pg_' || s.oid FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1",
            &[&path.subscription],
        )
    }

    fn decoding(&self) -> Decoding {
        Decoding {
            plugin: "pgoutput",
            options: r#"'proto_version', '1', 'publication_names', '"zodan"', 'origin', 'any'"#,
            protocol: Protocol::Pgoutput,
        }
    }

    fn stopping_workers(&self) -> Statement {
        Statement::new(
            "SELECT count(*) FROM pg_stat_subscription w JOIN pg_subscription s ON s.oid = w.subid
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE w.pid IS NOT NULL AND NOT s.subenabled",
            &[],
        )
    }

    fn end_connecting_workers(&self) -> Option<Statement> {
        Some(Statement::new(
            "SELECT pg_terminate_backend(w.pid) FROM pg_stat_subscription w JOIN pg_subscription s ON s.oid = w.subid
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE w.pid IS NOT NULL AND NOT s.subenabled
                AND w.received_lsn IS NULL AND w.relid IS NULL AND w.leader_pid IS NULL",
            &[],
        ))
    }

    fn own_schemas(&self) -> &'static [&'static str] {
        &["zodan"]
    }

    fn unsubscribe(&self, subscription: &str) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT zodan.drop_subscription($1)",
            &[subscription],
        )]
    }

    fn end_subscriptions(&self) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT zodan.drop_subscription(s.subname)
               FROM pg_subscription s
              WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND 'zodan' = ANY (s.subpublications)",
            &[],
        )]
    }

    fn stop_subscriptions(&self) -> Statement {
        Statement::new("SELECT zodan.stop_subscriptions()", &[])
    }

    fn apply_runs_statements(&self, source: &mut Node) -> Result<bool> {
        // Triggers that fire for replicated rows may run any, and so may those that fire when subscriptions connect.
        let triggers = questions::triggers_of_apply().run(source)?;
        let rows = source.query(
            "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D')",
            &[],
        )?;
        Ok(triggers.one()?.bool(0) || rows.one()?.bool(0))
    }

    fn apply_role(&self) -> Statement {
        Statement::new("SELECT current_user", &[])
    }

    fn copy_plan(&self, source: &mut Node, _new: &str, snapshot: &str) -> Result<CopyPlan> {
        let source = copy::Source {
            node: &source.name,
            dsn: &source.dsn,
            snapshot,
        };
        Ok(CopyPlan {
            // Origins belong to the server.
            origin: format!("zodan_copy_{}", own_database()),
            timestamp: None,
            names_follow: false,
            preexisting: vec![],
            tables: copy::tables(&source, &[])?,
            structure_only: vec![],
            settings: vec![],
            excluded: Excluded::default(),
        })
    }

    fn copy_replication_sets(&self, _source: &mut Node, _new: &mut Node) -> Result<Vec<String>> {
        Ok(vec![]) // the publication is for all tables
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
        let answers = ask_all(
            members.iter_mut().map(|m| &mut **m),
            "SELECT m.generation, (extract(epoch FROM m.changed_at) * 1000000)::bigint, m.next_number,
                    n.name, n.number, n.database, m.cluster
               FROM zodan.membership m CROSS JOIN zodan.node n",
            &[],
        )?;
        let mut newest = None;
        for rows in &answers {
            let Some(row) = rows.first() else { continue };
            let age: (i64, i64) = (row.parse(0)?, row.parse(1)?);
            if newest.is_none_or(|(known, _)| age > known) {
                newest = Some((age, rows));
            }
        }
        self.next_number = self.next_number.max(1);
        let mut databases = BTreeMap::new();
        for row in newest.iter().flat_map(|(_, rows)| rows.iter()) {
            self.next_number = row.parse(2)?;
            row.text(6).clone_into(&mut self.cluster);
            self.numbers.insert(row.text(3).to_owned(), row.parse(4)?);
            databases.insert(row.text(3).to_owned(), row.text(5).to_owned());
        }
        Ok(databases)
    }
}

/// The class of the advisory lock that says "the coordinator of this pause lives"; `zodp` in ASCII.
/// `zodan.watch_pause` waits for it.
const PAUSE_LOCK: i32 = 2_054_120_560;

impl Native {
    /// By slot, who streams what the node publishes for its cluster, and is none of `members`.
    fn readers(&self, node: &mut Node, members: &[String]) -> Result<Vec<(String, String)>> {
        let rows = node.query(
            "SELECT s.slot_name, concat_ws(' ', r.application_name, r.client_addr::text)
               FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
               JOIN pg_stat_activity a ON a.pid = s.active_pid
              WHERE s.plugin = 'pgoutput' AND s.database = current_database()
                AND a.query ~ 'publication_names .*\"zodan\"'
                AND s.slot_name !~ '^pg_[0-9]+_sync_'
              ORDER BY 1",
            &[],
        )?;
        let ours: Vec<String> = members
            .iter()
            .map(|member| self.path(&node.name, member).slot)
            .collect();
        let reader = |row: &Row| (row.text(0).to_owned(), row.text(1).to_owned());
        let readers = rows.iter().map(reader);
        Ok(readers.filter(|(slot, _)| !ours.contains(slot)).collect())
    }
}

fn extension_missing(node: &str) -> Finding {
    Finding::new(
        node,
        SqlState::UNDEFINED_OBJECT,
        "the extension zodan is not installed in the database",
        "Run CREATE EXTENSION zodan in the database of every member and of the new node.",
    )
    .fixed_by("CREATE EXTENSION zodan")
}
