//! A node leaves, whatever the cluster replicates with: all that it wrote is on every other node, nothing of it remains
//! there, and the others go on. Alive, dead or half added, called on itself or on any other node.

mod common;

use common::engines::{On, on_both_engines};
use common::removal::{
    assert_equal, assert_no_node, assert_no_trace, call, content, join, kill_join_of_n4, remove,
    remove_by_force, remove_fails,
};
use common::{assert_failed, fingerprint};
use lab::load::LoadOptions;
use lab::{Cluster, Load, Server, add_node, assert_same_content, quote_literal, wait_quiet};
use std::time::Duration;

on_both_engines! {
    living_node_is_removed_under_load_without_a_loss,
    idle_node_is_removed_within_two_seconds,
    dead_node_is_removed_from_any_survivor,
    cluster_grows_to_four_nodes_and_shrinks_to_one,
    removed_node_can_be_added_again_under_its_name,
    removal_of_a_node_of_another_cluster_is_refused,
    removal_is_refused_unless_forced_while_a_survivor_does_not_apply,
    half_added_node_is_removed_from_a_member_and_from_itself,
    half_added_node_that_is_dead_is_removed_from_the_members,
}

/// A mesh of `members`, and `spare` servers more.
fn mesh(on: On, members: usize, spare: usize) -> Cluster {
    on.start(members, spare, &content())
}

/// The rows that the writers of one node left, as another node has them.
fn rows_of(writer: usize, server: &Server) -> String {
    let low = writer * 100 * 1_000_000_000;
    let high = (writer + 1) * 100 * 1_000_000_000;
    let tables = ["load.account", "load.event", "load.document"];
    let of = |table: &str| {
        server.value(&format!(
            "SELECT count(*) || ' ' || md5(coalesce(string_agg(t::text, ',' ORDER BY id), '')) FROM {table} t
              WHERE id >= {low} AND id < {high}"
        ))
    };
    tables.map(of).join(" ")
}

/// The last server of a mesh of four leaves while all are written to.
fn leave_under_load(on: On, cluster: &Cluster, here: usize) {
    let leaving = cluster.n(4);
    let load = Load::start_with(
        &cluster.first(4),
        &LoadOptions {
            writers: 2,
            rate: Some(150),
        },
    );
    load.wait_commits(50);
    remove(cluster.n(here), leaving);
    let report = load.stop();
    // Whoever wrote on it has been told; nobody else has noticed.
    for failure in &report.failures {
        assert_eq!(failure.node, "n4", "{report}");
    }
    assert_eq!(report.failures.len(), 2, "{report}");
    let rest = cluster.first(3);
    wait_quiet(&rest);
    assert_same_content(&rest);
    for node in &rest {
        report.assert_present_on(node);
        assert_no_trace(on, node, "n4", 3);
    }
    assert_no_node(on, leaving);
    assert_eq!(rows_of(4, leaving), rows_of(4, cluster.n(1)));
    leaving.sql("INSERT INTO load.account (id, version, owner, balance) VALUES (-1, 1, 'late', 0)");
}

fn living_node_is_removed_under_load_without_a_loss(on: On) {
    for run in 0..10 {
        leave_under_load(on, &mesh(on, 4, 0), 1 + run % 4);
    }
}

fn idle_node_is_removed_within_two_seconds(on: On) {
    let cluster = mesh(on, 4, 0);
    let removed = remove(cluster.n(2), cluster.n(4));
    assert!(removed.elapsed < Duration::from_secs(2), "{removed:?}");
    let said: Vec<&str> = removed.notices.iter().map(|n| n.message.as_str()).collect();
    let last = said.last().copied().unwrap_or_default();
    assert!(
        last.starts_with("node \"n4\" has left: 3 nodes remain, "),
        "{said:?}"
    );
    assert!(
        said.iter()
            .any(|s| s.contains("sub_n1_n2") && s.contains("replicating")),
        "{said:?}"
    );
}

fn dead_node_is_removed_from_any_survivor(on: On) {
    for here in 1..=3 {
        let cluster = mesh(on, 4, 0);
        let load = Load::start(&cluster.first(4));
        load.wait_commits(20);
        let report = load.stop();
        assert!(report.failures.is_empty(), "{report}");
        wait_quiet(&cluster.first(4));
        cluster.n(4).crash();
        let load = Load::start(&cluster.first(3));
        load.wait_commits(5);
        remove(cluster.n(here), cluster.n(4));
        load.wait_commits(5);
        let report = load.stop();
        assert!(report.failures.is_empty(), "{report}");
        let rest = cluster.first(3);
        wait_quiet(&rest);
        assert_same_content(&rest);
        for node in rest {
            assert_no_trace(on, node, "n4", 3);
        }
        // It comes back, still thinking that it is a node: called on itself it leaves too.
        cluster.n(4).boot();
        remove(cluster.n(4), cluster.n(4));
        assert_no_node(on, cluster.n(4));
        assert_no_trace(on, cluster.n(1), "n4", 3);
    }
}

/// Takes away what was copied to `server`, so that its node can be added again.
fn empty(on: On, server: &Server) {
    match on {
        On::Native => renew(server),
        On::Spock => server.sql(
            "SET spock.enable_ddl_replication = off; SET client_min_messages = error;
             DROP TABLE gate; DROP FUNCTION pass; DROP SCHEMA IF EXISTS load, lab CASCADE",
        ),
    }
}

/// An empty database in place of the one that there is.
fn renew(server: &Server) {
    let name = server.database();
    let mut admin = server.client_as("postgres", "template1");
    for statement in ["DROP DATABASE", "CREATE DATABASE"] {
        let force = if statement.starts_with("DROP") {
            " WITH (FORCE)"
        } else {
            ""
        };
        admin
            .batch_execute(&format!(
                "{statement} {}{force}",
                lab::server::quote_ident(name)
            ))
            .expect("renew the database");
    }
    server.sql("CREATE EXTENSION zodan");
}

fn cluster_grows_to_four_nodes_and_shrinks_to_one(on: On) {
    let cluster = mesh(on, 1, 3);
    for number in 2..=4 {
        join(&cluster, number);
        assert_equal(&cluster.first(number));
    }
    for number in [4, 3, 2] {
        // In turn on itself and on the first.
        let here = if number == 3 { 3 } else { 1 };
        remove(cluster.n(here), cluster.n(number));
        assert_no_node(on, cluster.n(number));
        assert_no_trace(on, cluster.n(1), &format!("n{number}"), number - 1);
        cluster.n(1).sql(&format!(
            "INSERT INTO load.account (id, version, owner, balance) VALUES (-{number}, 1, 'x', 0)"
        ));
    }
    let nodes = "SELECT string_agg(node_name, ' ') FROM spock.get_nodes()";
    assert_eq!(cluster.n(1).value(nodes), "n1");
    empty(on, cluster.n(2));
    join(&cluster, 2);
    assert_equal(&cluster.first(2));
    remove(cluster.n(1), cluster.n(2));
    remove(cluster.n(1), cluster.n(1));
    assert_no_node(on, cluster.n(1));
    assert_eq!(cluster.n(1).value("SELECT count(*) FROM load.account"), "3");
}

fn removed_node_can_be_added_again_under_its_name(on: On) {
    let cluster = mesh(on, 2, 1);
    for round in 0..3 {
        join(&cluster, 3);
        cluster.n(3).sql(&format!(
            "INSERT INTO load.account (id, version, owner, balance) VALUES ({round}, 1, 'x', 0)"
        ));
        assert_equal(&cluster.first(3));
        let here = 1 + round % 3;
        remove(cluster.n(here), cluster.n(3));
        empty(on, cluster.n(3));
    }
    assert_eq!(cluster.n(2).value("SELECT count(*) FROM load.account"), "3");
    assert_equal(&cluster.first(2));
}

fn removal_of_a_node_of_another_cluster_is_refused(on: On) {
    let cluster = mesh(on, 3, 2);
    let [n1, n2, n3, stranger] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let other = cluster.n(5);
    // Another cluster that has a node of the same name.
    match on {
        On::Native => {
            stranger.sql("CREATE TABLE theirs (id int PRIMARY KEY)");
            add_node(other, "n3", stranger, "s").unwrap_or_else(|failed| panic!("{failed}"));
        }
        On::Spock => other.sql(&format!(
            "SELECT spock.node_create('n3', {})",
            quote_literal(&other.dsn())
        )),
    }
    let before = fingerprint(&cluster.all());

    assert_failed(
        &remove_fails(n1, "n9", None),
        "42704",
        "argument target_node_name is \"n9\", which is not a node of this cluster and has left nothing in it",
        "The nodes are: n1, n2, n3.",
    );
    assert_failed(
        &remove_fails(n1, "n3", Some(&n2.dsn())),
        "22023",
        "argument target_node_dsn leads to node \"n2\", not to \"n3\"",
        "Give the connection string of \"n3\".",
    );
    assert_failed(
        &remove_fails(n1, "n3", Some(&n1.dsn())),
        "22023",
        "argument target_node_dsn leads to this node, which is \"n1\", not \"n3\"",
        "Give the connection string of \"n3\".",
    );
    assert_failed(
        &remove_fails(n1, "n3", Some(&other.dsn())),
        "22023",
        "argument target_node_dsn leads to another node \"n3\" than this cluster's",
        "Give the connection string of \"n3\".",
    );
    // A Spock mesh of the lab has no other database that can be connected to.
    if on == On::Native {
        let elsewhere = n3
            .dsn()
            .replace(&format!("dbname={}", n3.database()), "dbname=template1");
        assert_failed(
            &remove_fails(n1, "n3", Some(&elsewhere)),
            "22023",
            "argument target_node_dsn leads to a database that is not a cluster node",
            "Give the connection string of \"n3\".",
        );
    }
    assert_failed(
        &remove_fails(n3, "n3", Some(&n2.dsn())),
        "22023",
        "leads to another database than the one that the CALL runs in",
        "Correct it",
    );
    // n3 is dead, and what answers is the other cluster's.
    n3.crash();
    assert_failed(
        &remove_fails(n1, "n3", Some(&other.dsn())),
        "22023",
        "argument target_node_dsn leads to another node \"n3\" than this cluster's",
        "Give the connection string of \"n3\".",
    );
    n3.boot();
    on.wait_mesh(&[n1, n2, n3]);
    before.assert_same_now(&cluster.all());
}

fn removal_is_refused_unless_forced_while_a_survivor_does_not_apply(on: On) {
    let cluster = mesh(on, 3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    on.suspend(n2, n3);
    let before = fingerprint(&cluster.all());
    assert_failed(
        &remove_fails(n1, "n3", None),
        "55000",
        "node \"n2\": subscription sub_n3_n2 is disabled, so what \"n3\" wrote may be missing there",
        "give up what is missing with force := true",
    );
    before.assert_same_now(&cluster.all());
    let forced = remove_by_force(n1, "n3");
    assert!(
        forced
            .notices
            .iter()
            .any(|n| n.severity == "WARNING" && n.message.contains("sub_n3_n2 is disabled")),
        "{forced:?}"
    );
    for node in [n1, n2] {
        assert_no_trace(on, node, "n3", 2);
    }
    assert_no_node(on, n3);
}

fn half_added_node_is_removed_from_a_member_and_from_itself(on: On) {
    for here in [2, 4] {
        let cluster = mesh(on, 3, 1);
        let before = fingerprint(&cluster.all());
        kill_join_of_n4(&cluster);
        assert_eq!(
            cluster
                .n(1)
                .value("SELECT count(*) FROM pg_replication_slots"),
            "3"
        );
        cluster
            .n(here)
            .call(&call("n4", Some(&cluster.n(4).dsn()), ""))
            .unwrap_or_else(|failed| panic!("{failed}"));
        before.assert_same_now(&cluster.all());
        join(&cluster, 4);
        assert_equal(&cluster.all());
    }
}

fn half_added_node_that_is_dead_is_removed_from_the_members(on: On) {
    let cluster = mesh(on, 3, 1);
    let before = fingerprint(&cluster.first(3));
    kill_join_of_n4(&cluster);
    cluster.n(4).crash();
    cluster
        .n(2)
        .call(&call("n4", None, ""))
        .unwrap_or_else(|failed| panic!("{failed}"));
    before.assert_same_now(&cluster.first(3));
    assert_eq!(remove_fails(cluster.n(2), "n4", None).code(), "42704");
}
