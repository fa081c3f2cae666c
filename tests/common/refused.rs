//! Joins that are refused before the first change, and what is compared around them.

use super::{Call, Fingerprint, assert_failed, fingerprint, runs};
use lab::postgres::Client;
use lab::{CallFailed, Cluster, Server, add_node};
use std::time::Duration;

/// What a join makes, on one node, as one text.
fn traces(node: &Server) -> String {
    node.value(
        "SELECT concat_ws('; ',
            (SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots),
            (SELECT string_agg(sub_name || ' ' || sub_enabled, ',' ORDER BY sub_name) FROM spock.subscription),
            (SELECT string_agg(roname, ',' ORDER BY roname) FROM pg_replication_origin),
            (SELECT string_agg(node_name, ',' ORDER BY node_name) FROM spock.node),
            (SELECT string_agg(if_name || ' ' || if_dsn, ',' ORDER BY if_name) FROM spock.node_interface),
            (SELECT string_agg(set_name, ',' ORDER BY set_name) FROM spock.replication_set),
            (SELECT count(*) FROM spock.local_sync_status),
            (SELECT string_agg(c.oid::regclass::text, ',' ORDER BY c.oid::regclass::text) FROM pg_class c
              WHERE c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace,
                                           'information_schema'::regnamespace)
                AND c.relnamespace::regnamespace::text NOT LIKE 'pg_%'),
            (SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'),
            (SELECT string_agg(p.oid::regprocedure::text, ',' ORDER BY p.oid::regprocedure::text) FROM pg_proc p
              WHERE pronamespace = 'public'::regnamespace),
            (SELECT string_agg(setconfig::text, ',') FROM pg_db_role_setting))",
    )
}

pub fn all_traces(cluster: &Cluster) -> Vec<String> {
    cluster.all().iter().map(|node| traces(node)).collect()
}

/// The join of `new` fails before it changes anything, with this state and message in the error.
pub fn assert_refused(cluster: &Cluster, new: &Server, code: &str, message: &str, hint: &str) {
    let before = all_traces(cluster);
    let failed = fails(new, cluster.n(1));
    assert_eq!(failed.code(), code, "{failed}");
    let text = format!("{}\n{}", failed.message(), failed.detail());
    assert!(text.contains(message), "no {message:?} in {failed}");
    assert!(failed.hint().contains(hint), "no hint {hint:?} in {failed}");
    assert_eq!(all_traces(cluster), before);
    assert_eq!(
        new.value("SELECT count(*) FROM zodan.step"),
        "0",
        "not a step"
    );
}

pub fn fails(new: &Server, source: &Server) -> CallFailed {
    match add_node(new, new.name(), source, source.name()) {
        Ok(called) => panic!("this was expected to fail: {called:?}"),
        Err(failed) => failed,
    }
}

pub fn joins(new: &Server, source: &Server) {
    add_node(new, new.name(), source, source.name()).unwrap_or_else(|e| panic!("{e}"));
}

/// What is compared around every refusal.
pub struct Before<'a> {
    servers: Vec<&'a Server>,
    fingerprint: Fingerprint,
    runs: Vec<Vec<Option<String>>>,
}

impl<'a> Before<'a> {
    pub fn of(servers: Vec<&'a Server>) -> Before<'a> {
        Before {
            fingerprint: fingerprint(&servers),
            runs: runs(&servers),
            servers,
        }
    }

    /// Panics unless nothing has changed since.
    pub fn still(&self) {
        self.fingerprint.assert_same_now(&self.servers);
        assert_eq!(
            self.runs,
            runs(&self.servers),
            "a refusal is no run, so it has no place in the journal"
        );
    }

    /// Runs `call` on `new`, which must refuse it with nothing changed.
    pub fn refuses(&self, new: &Server, call: &Call, code: &str, message: &str, hint: &str) {
        let failed = call.fails_on(new);
        assert_failed(&failed, code, message, hint);
        self.still();
    }
}

pub fn text(value: impl Into<String>) -> Option<String> {
    Some(value.into())
}

/// Runs a statement that is to fail in a session that is there already.
pub fn fails_in(client: &mut Client, sql: &str) -> CallFailed {
    let error = client.simple_query(sql).expect_err(sql);
    CallFailed {
        error,
        notices: vec![],
        elapsed: Duration::ZERO,
    }
}
