//! As tests/faults.rs, on Spock.

mod common;
mod fault_matrix;
#[path = "fault_matrix/membership.rs"]
mod membership;

use lab::spock::{self, Mesh};
use lab::{Cluster, Server};
use membership::{Engine, try_all};

struct Spock;

impl Engine for Spock {
    /// Most of a round is waiting: Spock starts its workers again after a while.
    fn clusters(&self) -> usize {
        4
    }

    fn start(&self, content: &str) -> Cluster {
        let mesh = Mesh {
            content,
            proxied: &["n2"],
            ..Mesh::default()
        };
        mesh.start_with_extension(3)
    }

    fn wait_replicating(&self, members: &[&Server]) {
        for server in members {
            server.wait_for(
                "SELECT count(*) FROM spock.subscription s
                  WHERE sub_enabled AND sub_name ~ '^sub_n[123]_n[123]' AND NOT EXISTS (
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
        (counted, [&*peers.to_string(); 7].join(" "))
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
        try_all(&Spock, None);
    }
}
