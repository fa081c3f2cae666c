//! Whatever goes wrong, at whatever point of a join or a removal: the other nodes go on taking writes, no row is
//! lost or doubled, what the call says is true, and the next call finishes or cleans up without help.

mod common;
mod fault_matrix;
#[path = "fault_matrix/membership.rs"]
mod membership;

use common::quick;
use lab::{Cluster, Server};
use membership::{Engine, try_all};
use std::collections::BTreeSet;

struct Native {
    /// The join divides the sequences of all members, once and for good.
    divides: bool,
}

impl Engine for Native {
    fn clusters(&self) -> usize {
        2
    }

    fn start(&self, content: &str) -> Cluster {
        let cluster = Cluster::start_each(4, |name| match name {
            "n2" => quick().proxy(),
            "n4" if self.divides => quick().set("zodan.sequence_policy", "stride"),
            _ => quick(),
        });
        cluster.form_mesh(3, content);
        cluster
    }

    fn wait_replicating(&self, members: &[&Server]) {
        for server in members {
            server.wait_for(
                "SELECT count(*) FROM pg_subscription s
                  WHERE subenabled AND subname ~ '^sub_n[123]_n[123]$' AND NOT EXISTS (
                      SELECT FROM pg_stat_subscription w
                       WHERE w.subid = s.oid AND w.pid IS NOT NULL AND w.received_lsn IS NOT NULL)",
                "0",
            );
        }
    }

    fn paths(&self, peers: usize) -> (&'static str, String) {
        let counted = "SELECT concat_ws(' ',
            (SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND relid IS NULL),
            (SELECT count(*) FROM pg_subscription WHERE subenabled),
            (SELECT count(*) FROM pg_subscription),
            (SELECT count(*) FROM pg_replication_slots WHERE active),
            (SELECT count(*) FROM pg_replication_slots),
            (SELECT count(*) FROM pg_replication_origin),
            (SELECT count(*) - 1 FROM zodan.node))";
        (counted, [&*peers.to_string(); 7].join(" "))
    }

    fn membership(&self) -> &'static str {
        "SELECT registry::text FROM zodan.registry()"
    }

    fn left(&self) -> &'static str {
        "SELECT concat_ws(' ',
            (SELECT string_agg(subname, ' ') FROM pg_subscription),
            (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots),
            (SELECT string_agg(roname, ' ') FROM pg_replication_origin),
            (SELECT string_agg(pubname, ' ') FROM pg_publication),
            (SELECT string_agg(n::text, ' ') FROM zodan.node n),
            (SELECT string_agg(n::text, ' ') FROM zodan.local_node n),
            (SELECT string_agg(s::text, ' ') FROM pg_db_role_setting s))"
    }

    fn renew(&self, server: &Server) {
        let mut admin = server.client_as("postgres", "template1");
        for statement in [
            "DROP DATABASE postgres WITH (FORCE)",
            "CREATE DATABASE postgres",
        ] {
            admin.batch_execute(statement).expect("renew the database");
        }
        server.sql("CREATE EXTENSION zodan");
    }

    fn changes_members(&self) -> bool {
        self.divides
    }

    fn assert_joined(&self, members: &[&Server]) {
        if !self.divides {
            return;
        }
        let drawn = |server: &&Server| server.value("SELECT nextval('number') % 32");
        let parts: BTreeSet<String> = members.iter().map(drawn).collect();
        assert_eq!(parts.len(), members.len(), "{parts:?}");
        for server in members {
            let step =
                server.value("SELECT increment_by FROM pg_sequences WHERE sequencename = 'number'");
            assert_eq!(step, "32", "{}", server.name());
        }
    }
}

#[test]
fn join_survives_every_fault_while_sequences_are_divided() {
    try_all(&Native { divides: true }, Some(&["divide"]));
}

#[test]
fn joins_and_removals_survive_every_fault_at_every_point() {
    try_all(&Native { divides: false }, None);
}
