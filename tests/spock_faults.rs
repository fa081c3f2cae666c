//! As tests/faults.rs, on Spock.

mod common;
mod fault_matrix;
#[path = "fault_matrix/membership.rs"]
mod membership;

use lab::spock::{self, Mesh};
use lab::{Cluster, Server, quote_literal, wait_quiet};
use membership::{Engine, try_all};

/// Short enough for Spock to leave names of slots as they are.
const READER: &str = "n5";

struct Spock {
    /// A node that only reads subscribes to the members, and is given to the join.
    reads: bool,
}

impl Engine for Spock {
    /// Most of a round is waiting: Spock starts its workers again after a while.
    fn clusters(&self) -> usize {
        if self.reads { 2 } else { 4 }
    }

    fn start(&self, content: &str) -> Cluster {
        let mesh = Mesh {
            content,
            proxied: &["n2"],
            ..Mesh::default()
        };
        let mut cluster = mesh.start_with_extension(3);
        if self.reads {
            spock::grow(&mut cluster, READER);
            let [n1, reader] = [1, 5].map(|i| cluster.n(i));
            spock::copy(n1, reader);
            reader.sql(&format!(
                "SELECT spock.node_create({}, {})",
                quote_literal(READER),
                quote_literal(&reader.dsn())
            ));
            for provider in cluster.first(3) {
                spock::subscribe(reader, provider, &format!("reads_{}", provider.name()));
            }
        }
        cluster
    }

    fn reader(&self) -> Option<&'static str> {
        self.reads.then_some(READER)
    }

    fn part_reader(&self, reader: &Server) {
        reader.sql("SELECT spock.sub_drop(sub_name, true) FROM spock.subscription WHERE sub_name ~ '^sub_n4_'");
    }

    fn assert_joined(&self, members: &[&Server]) {
        if !self.reads {
            return;
        }
        members[3].sql("INSERT INTO parent (id) VALUES (1000)");
        let rows = "SELECT concat_ws(' ', (SELECT md5(string_agg(x::text, ',' ORDER BY x::text)) FROM load.account x),
                                     (SELECT md5(string_agg(x::text, ',' ORDER BY x::text)) FROM load.event x),
                                     (SELECT count(*) FROM parent))";
        members[4].wait_for(rows, &members[3].value(rows));
        members[3].sql("DELETE FROM parent WHERE id = 1000");
        wait_quiet(&members[..4]);
    }

    fn wait_replicating(&self, members: &[&Server]) {
        for server in members {
            server.wait_for(
                "SELECT count(*) FROM spock.subscription s
                  WHERE sub_enabled AND sub_name ~ '^(sub_n[123]|reads)_n[123]' AND NOT EXISTS (
                      SELECT FROM pg_stat_activity a, pg_database d
                       WHERE d.datname = current_database()
                         AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)
                         AND a.wait_event IS NOT NULL)",
                "0",
            );
        }
    }

    fn paths(&self, peers: usize) -> (&'static str, String) {
        let counted = "SELECT concat_ws(' ',
            (SELECT count(*) FROM spock.sub_show_status() WHERE status = 'replicating'),
            (SELECT count(*) FROM spock.subscription WHERE sub_enabled),
            (SELECT count(*) FROM spock.subscription),
            (SELECT count(*) FROM pg_replication_slots WHERE active),
            (SELECT count(*) FROM pg_replication_slots),
            (SELECT count(*) FROM pg_replication_origin),
            (SELECT count(*) - 1 FROM spock.node))";
        // Each has one more slot that the reader reads.
        let slots = peers + usize::from(self.reads);
        (
            counted,
            format!("{peers} {peers} {peers} {slots} {slots} {peers} {peers}"),
        )
    }

    fn membership(&self) -> &'static str {
        "SELECT string_agg(node_name, ' ' ORDER BY node_name) FROM spock.node"
    }

    fn left(&self) -> &'static str {
        "SELECT concat_ws(' ',
            (SELECT string_agg(sub_name, ' ') FROM spock.subscription),
            (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots),
            (SELECT string_agg(roname, ' ') FROM pg_replication_origin),
            (SELECT string_agg(node_name, ' ') FROM spock.node),
            (SELECT string_agg(s::text, ' ') FROM pg_db_role_setting s))"
    }

    fn renew(&self, server: &Server) {
        server.sql(
            "SET spock.enable_ddl_replication = off;
             DROP EXTENSION zodan;
             DROP SCHEMA load, lab CASCADE;
             DROP TABLE parent, child CASCADE;
             DROP SEQUENCE number;
             CREATE EXTENSION zodan",
        );
    }
}

#[test]
fn joins_and_removals_survive_every_fault_at_every_point() {
    if spock::announced().is_some() {
        try_all(&Spock { reads: false }, None);
    }
}

/// Where a join does something for a node that only reads, and where it ends.
#[test]
fn every_fault_while_a_reader_is_subscribed_is_survived() {
    if spock::announced().is_some() {
        try_all(
            &Spock { reads: true },
            Some(&[READER, "every member has a subscription", "proved", "done"]),
        );
    }
}
