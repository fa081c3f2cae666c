//! Everything that a join touches, so that a test can tell whether anything was changed.

use super::wait_no_sessions;
use lab::postgres::{Client, SimpleQueryMessage};
use lab::{Server, digest, explain};
use std::collections::BTreeMap;

/// Everything of some nodes that a join touches, without what changes by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, Vec<String>>);

/// Topic and the query for its lines. The zodan tables are asked for only where they exist.
const TOPICS: &[(&str, &str)] = &[
    (
        "slots",
        "SELECT to_jsonb(s) - '{active,active_pid,xmin,catalog_xmin,restart_lsn,confirmed_flush_lsn,
                safe_wal_size,wal_status,inactive_since,conflicting,invalidation_reason,two_phase_at}'::text[]
           FROM pg_replication_slots s",
    ),
    ("subscriptions", "SELECT to_jsonb(s) FROM pg_subscription s"),
    ("tables of subscriptions", "SELECT to_jsonb(s) FROM pg_subscription_rel s"),
    ("publications", "SELECT to_jsonb(p) FROM pg_publication p"),
    ("tables of publications", "SELECT to_jsonb(p) FROM pg_publication_rel p"),
    ("schemas of publications", "SELECT to_jsonb(p) FROM pg_publication_namespace p"),
    ("origins", "SELECT roname FROM pg_replication_origin"),
    (
        "settings of databases and roles",
        "SELECT to_jsonb(s) FROM pg_db_role_setting s",
    ),
    ("databases", "SELECT to_jsonb(d) - '{datfrozenxid,datminmxid}'::text[] FROM pg_database d"),
    ("roles", "SELECT rolname FROM pg_roles"),
    ("schemas", "SELECT to_jsonb(n) FROM pg_namespace n WHERE nspname !~ '^pg_(temp|toast_temp)_'"),
    (
        "relations",
        "SELECT to_jsonb(c) - '{relfilenode,relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,
                relminmxid,relhasindex}'::text[] || jsonb_build_object('name', c.oid::regclass::text)
           FROM pg_class c WHERE oid >= 16384",
    ),
    (
        "columns",
        "SELECT to_jsonb(a) FROM pg_attribute a WHERE attrelid >= 16384",
    ),
    ("defaults", "SELECT to_jsonb(d) FROM pg_attrdef d WHERE oid >= 16384"),
    ("sequences", "SELECT to_jsonb(s) FROM pg_sequence s WHERE seqrelid >= 16384"),
    ("constraints", "SELECT to_jsonb(c) FROM pg_constraint c WHERE oid >= 16384"),
    ("triggers", "SELECT to_jsonb(t) FROM pg_trigger t WHERE oid >= 16384"),
    ("rules", "SELECT to_jsonb(r) FROM pg_rewrite r WHERE oid >= 16384"),
    ("policies", "SELECT to_jsonb(p) FROM pg_policy p"),
    ("routines", "SELECT to_jsonb(p) FROM pg_proc p WHERE oid >= 16384"),
    ("types", "SELECT to_jsonb(t) FROM pg_type t WHERE oid >= 16384"),
    ("event triggers", "SELECT to_jsonb(e) FROM pg_event_trigger e"),
    ("extensions", "SELECT to_jsonb(e) FROM pg_extension e"),
    ("default privileges", "SELECT to_jsonb(d) FROM pg_default_acl d"),
    ("foreign servers", "SELECT to_jsonb(f) FROM pg_foreign_server f"),
    ("large objects", "SELECT to_jsonb(l) FROM pg_largeobject_metadata l"),
    (
        "prepared transactions",
        "SELECT gid FROM pg_prepared_xacts",
    ),
    (
        "advisory locks",
        "SELECT format('%s %s', classid, objid) FROM pg_locks WHERE locktype = 'advisory'",
    ),
    (
        "scratch files",
        "SELECT 'base/pgsql_tmp/' || f FROM pg_ls_dir('base/pgsql_tmp', true, false) f",
    ),
];

const RECORDS: [&str; 12] = [
    "spock.node",
    "spock.node_interface",
    "spock.local_node",
    "spock.subscription",
    "spock.replication_set",
    "spock.replication_set_table",
    "spock.replication_set_seq",
    "zodan.node",
    "zodan.local_node",
    "zodan.marker",
    "zodan.sequence",
    "zodan.paused_subscription",
];

/// The fingerprint of `servers`, taken when the product's sessions have ended and the removal of its markers
/// has arrived everywhere. The writers must stand still.
pub fn fingerprint(servers: &[&Server]) -> Fingerprint {
    wait_no_sessions(servers);
    for server in servers {
        if !server
            .value("SELECT to_regclass('zodan.marker')")
            .is_empty()
        {
            server.wait_for("SELECT string_agg(m::text, ' ') FROM zodan.marker m", "");
        }
    }
    fingerprint_meanwhile(servers)
}

/// The fingerprint of `servers` while the product may be at work.
pub fn fingerprint_meanwhile(servers: &[&Server]) -> Fingerprint {
    let mut all = BTreeMap::new();
    for server in servers {
        let mut client = server.client();
        let name = |topic: &str| format!("{topic} of {}", server.name());
        for (topic, query) in TOPICS {
            all.insert(name(topic), lines(server, &mut client, query));
        }
        for table in RECORDS {
            let exists = format!("SELECT to_regclass('{table}')");
            if !lines(server, &mut client, &exists)[0].is_empty() {
                let query = format!("SELECT to_jsonb(t) FROM {table} t");
                all.insert(name(table), lines(server, &mut client, &query));
            }
        }
        let content = digest(server)
            .iter()
            .map(|(table, digest)| format!("{table} {digest:?}"))
            .collect();
        all.insert(name("content"), content);
    }
    Fingerprint(all)
}

fn lines(server: &Server, client: &mut Client, query: &str) -> Vec<String> {
    let messages = client
        .simple_query(query)
        .unwrap_or_else(|e| panic!("{}: {}\n{query}", server.name(), explain(&e)));
    let mut lines: Vec<String> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().into()),
            _ => None,
        })
        .collect();
    lines.sort();
    lines
}

impl Fingerprint {
    /// The part of it that is about `servers`.
    pub fn of(&self, servers: &[&Server]) -> Fingerprint {
        let about = |topic: &str| {
            let is = |s: &&Server| topic.ends_with(&format!(" of {}", s.name()));
            servers.iter().any(is)
        };
        let kept = self.0.iter().filter(|(topic, _)| about(topic));
        Fingerprint(kept.map(|(t, l)| (t.clone(), l.clone())).collect())
    }

    /// The same without a topic.
    pub fn without(mut self, topic: &str) -> Fingerprint {
        self.0
            .retain(|t, _| !t.starts_with(&format!("{topic} of ")));
        self
    }

    /// Panics with the differences unless `servers` are now as they were.
    pub fn assert_same_now(&self, servers: &[&Server]) {
        self.assert_same(&fingerprint(servers));
    }

    /// Panics with the differences.
    pub fn assert_same(&self, now: &Fingerprint) {
        let mut differences = String::new();
        let topics: std::collections::BTreeSet<&String> =
            self.0.keys().chain(now.0.keys()).collect();
        for topic in topics {
            let none = vec![];
            let (before, after) = (
                self.0.get(topic).unwrap_or(&none),
                now.0.get(topic).unwrap_or(&none),
            );
            for (sign, from, other) in [("-", before, after), ("+", after, before)] {
                for line in from.iter().filter(|line| !other.contains(line)) {
                    differences += &format!("{topic}: {sign} {line}\n");
                }
            }
            if differences.is_empty() && before.len() != after.len() {
                differences += &format!("{topic}: {before:?} became {after:?}\n");
            }
        }
        assert!(differences.is_empty(), "something changed\n{differences}");
    }
}
