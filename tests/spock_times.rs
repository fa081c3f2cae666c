//! Under last-update-wins a copied row keeps its place in time: an older change of a peer that arrives after the copy
//! does not win over it on the new node alone.

mod common;

use common::{CHASED_TABLE, Running, StopOnDrop, rounds, while_nodes_change_each_others_rows};
use lab::cluster::add_node_call;
use lab::spock::{self, Mesh, Subscription};
use lab::{Cluster, Server, add_node, assert_same_content, quote_literal, wait_quiet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

const CONTENT: &str = "
CREATE TABLE hot (id bigint PRIMARY KEY, v text, big text, twice text GENERATED ALWAYS AS (v || v) STORED,
                  n bigint GENERATED ALWAYS AS IDENTITY);
INSERT INTO hot (id, v, big) SELECT i, 'old', repeat(md5(i::text), 100) FROM generate_series(1, 20) i";

/// What each member applies of the others comes later by `delay`.
fn cluster(delay: &str) -> Option<Cluster> {
    spock::announced()?;
    let mesh = Mesh {
        content: CONTENT,
        subscriptions: &[Subscription {
            name: "sub_{p}_{s}",
            sets: "{default,default_insert_only,ddl_sql}",
            arguments: &format!(", apply_delay := '{delay}'"),
        }],
        ..Mesh::default()
    };
    Some(mesh.start(2))
}

/// All of `nodes` change the same rows, and insert the same keys.
fn under_conflicts<T>(nodes: &[&Server], keys: &AtomicI64, meanwhile: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&over);
        for (seed, node) in nodes.iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                let mut client = node.client();
                let mut random = seed as u64 + 1;
                while !over.load(Ordering::Relaxed) {
                    // xorshift64, https://www.jstatsoft.org/article/view/v008i14
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let (row, what) = (1 + random % 20, random % 1_000_000);
                    // The same moment would be another matter: one of two workers that insert the same key fails then.
                    let new = 1000 + keys.fetch_add(1, Ordering::Relaxed) / 2 - 150 * seed as i64;
                    client
                        .batch_execute(&format!(
                            "UPDATE hot SET v = 'of {node} {what}' WHERE id = {row};
                             INSERT INTO hot (id, v) VALUES ({new}, 'by {node}') ON CONFLICT (id) DO NOTHING",
                            node = node.name(),
                        ))
                        .unwrap_or_else(|e| panic!("{}: {}", node.name(), lab::explain(&e)));
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let outcome = meanwhile();
        drop(end);
        outcome
    })
}

/// `joins` one after the other of the same node, each time by the other member.
fn no_join_differs(delay: &str, joins: usize) {
    let Some(cluster) = cluster(delay) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let keys = AtomicI64::new(0);
    for i in 0..joins {
        let source = [n1, n2][i % 2];
        under_conflicts(&[n1, n2], &keys, || {
            add_node(n3, "n3", source, source.name()).unwrap_or_else(|e| panic!("{e}"));
        });
        wait_quiet(&[n1, n2, n3]);
        assert_same_content(&[n1, n2, n3]);
        n3.call("CALL spock.remove_node('n3')")
            .unwrap_or_else(|e| panic!("{e}"));
        n3.sql("SET spock.enable_ddl_replication = off; DROP SCHEMA lab CASCADE; DROP TABLE hot");
    }
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_keeps_up() {
    no_join_differs("0", rounds(12));
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_lags_by_a_second() {
    no_join_differs("1 s", rounds(6));
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_lags_by_five_seconds() {
    no_join_differs("5 s", rounds(3));
}

/// The newest value is that of the source, and an older one of the peer is still on its way.
#[test]
fn older_change_of_a_peer_does_not_replace_a_newer_one() {
    let Some(cluster) = cluster("3 s") else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let join = Running::start(n3, &add_node_call(n3, "n3", n1, "n1"));
    join.wait_notice("phase 4 of 9");
    // The marker of n2 is behind this one for n1, which lags.
    n2.sql("UPDATE hot SET v = 'n2 early' WHERE id = 1; INSERT INTO hot (id, v) VALUES (50, 'n2 early')");
    n1.sql(
        "UPDATE hot SET v = 'n1 late' WHERE id = 1; INSERT INTO hot (id, v) VALUES (50, 'n1 late')",
    );
    join.succeeds();
    wait_quiet(&cluster.all());
    for node in cluster.all() {
        let values =
            node.value("SELECT string_agg(v, ', ' ORDER BY id) FROM hot WHERE id IN (1, 50)");
        assert_eq!(values, "n1 late, n1 late", "{}", node.name());
    }
    let who = format!(
        "SELECT DISTINCT n.node_name::text || ' ' || (c.timestamp > now() - interval '1 hour')
           FROM hot, pg_xact_commit_timestamp_origin(hot.xmin) c JOIN spock.node n ON n.node_id = c.roident
          WHERE id = 1 AND v = {}",
        quote_literal("n1 late")
    );
    assert_eq!(n3.value(&who), "n1 true");
}

/// The members change the rows of each other. From each member by its own, such a change could come before its row.
#[test]
fn changes_of_peers_find_their_rows_on_the_new_node() {
    if spock::announced().is_none() {
        return;
    }
    let content = format!(
        "{CHASED_TABLE};
         CREATE TABLE filler (id bigint PRIMARY KEY, v text);
         INSERT INTO filler SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 100000) i"
    );
    let mesh = Mesh {
        content: &content,
        ..Mesh::default()
    };
    let cluster = mesh.start(3);
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    for round in 0..3 {
        let joined = while_nodes_change_each_others_rows([n3, n2, n1], round, || {
            add_node(n4, "n4", n1, "n1")
        });
        joined.unwrap_or_else(|e| panic!("{e}"));
        eprintln!(
            "apply paused for {} ms",
            n4.value(
                "SELECT apply_pause_ms FROM zodan.run WHERE state = 'done' ORDER BY id DESC LIMIT 1"
            )
        );
        wait_quiet(&[n1, n2, n3, n4]);
        assert_same_content(&[n1, n4]);
        n4.call("CALL spock.remove_node('n4')")
            .unwrap_or_else(|e| panic!("{e}"));
        n4.sql("SET spock.enable_ddl_replication = off; DROP SCHEMA lab CASCADE; DROP TABLE chased, filler");
    }
}
