//! Names of nodes that come back to a Spock cluster: what it remembers of them, and the names of subscriptions.

mod common;

use common::Running;
use lab::cluster::add_node_call;
use lab::spock::{self, Mesh, Subscription};
use lab::{Cluster, Server, add_node};

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

/// It wrote nothing: what some may lack of it are its commits of what it got.
fn remove_dead(here: &Server, target: &str) {
    here.call(&format!(
        "CALL spock.remove_node('{target}', force := true)"
    ))
    .unwrap_or_else(|failed| panic!("{failed}"));
}

fn remove(here: &Server, target: &str) {
    here.call(&format!("CALL spock.remove_node('{target}')"))
        .unwrap_or_else(|failed| panic!("{failed}"));
}

/// The subscriptions of the node by name.
fn subscriptions(server: &Server) -> String {
    server.value("SELECT string_agg(sub_name, ' ' ORDER BY sub_name) FROM spock.subscription")
}

fn slots(server: &Server) -> String {
    server.value(
        "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name !~ 'recovery'",
    )
}

fn remembered(server: &Server) -> String {
    server
        .value("SELECT string_agg(name || ' ' || times, ', ' ORDER BY name) FROM zodan.former_node")
}

fn fails(server: &Server, point: &str, call: &str) {
    let error = format!("SET zodan.failpoint = 'error {point}'");
    let failed = Running::start_after(server, &error, call).fails();
    assert!(failed.message().contains(point), "{failed}");
}

/// A node that comes under a name that was removed has subscriptions and slots of new names.
#[test]
fn successor_of_a_name_has_subscriptions_of_a_new_generation() {
    let Some(mut cluster) = spock::mesh(3, CONTENT) else {
        return;
    };
    spock::grow(&mut cluster, "n5");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for (round, of_new) in ["_gen2", "_gen3"].into_iter().enumerate() {
        let (old, new) = (cluster.n(round + 3), cluster.n(round + 4));
        old.crash();
        remove_dead(n1, "n3");
        for node in [n1, n2] {
            let other = if node.name() == "n1" { "n2" } else { "n1" };
            let name = node.name();
            assert_eq!(
                slots(node),
                format!("spk_postgres_{name}_sub_{name}_{other}")
            );
            assert_eq!(remembered(node), format!("n3 {}", round + 1));
        }
        add_node(new, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
        assert_eq!(remembered(new), format!("n3 {}", round + 1));
        assert_eq!(
            subscriptions(new),
            format!("sub_n1_n3{of_new} sub_n2_n3{of_new}")
        );
        assert_eq!(subscriptions(n1), format!("sub_n2_n1 sub_n3_n1{of_new}"));
        assert_eq!(
            slots(new),
            format!("spk_postgres_n3_sub_n3_n1{of_new} spk_postgres_n3_sub_n3_n2{of_new}")
        );
    }
}

/// A removal that is gone on with is one, wherever it was cut off.
#[test]
fn removal_that_is_called_again_is_counted_once() {
    let Some(cluster) = spock::mesh(5, CONTENT) else {
        return;
    };
    let n1 = cluster.n(1);
    for (target, points) in [
        (
            "n5",
            &["pending cleanup is recorded", "the name is remembered"][..],
        ),
        ("n4", &["slots are dropped"]),
        (
            "n3",
            &[
                "the node has ceased to be one",
                "the other nodes have forgotten",
            ],
        ),
    ] {
        for point in points {
            let call = format!("CALL spock.remove_node('{target}')");
            fails(n1, &format!("within {point}"), &call);
        }
        remove(n1, target);
    }
    for node in [n1, cluster.n(2)] {
        assert_eq!(remembered(node), "n3 1, n4 1, n5 1");
    }
    // What was half added is not counted.
    let new = cluster.n(6);
    let call = add_node_call(new, "n4", n1, "n1");
    fails(new, "within it is proved", &call);
    add_node(new, "n4", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(subscriptions(new), "sub_n1_n4_gen2 sub_n2_n4_gen2");
    for node in [n1, cluster.n(2), new] {
        assert_eq!(remembered(node), "n3 1, n4 1, n5 1");
    }
}

/// A cluster that names its subscriptions otherwise goes on with that, also for others than the one that came back.
#[test]
fn naming_rule_of_a_cluster_is_kept_when_a_name_returns() {
    if spock::announced().is_none() {
        return;
    }
    let mesh = Mesh {
        content: CONTENT,
        subscriptions: &[Subscription {
            name: "{s}_from_{p}",
            sets: "{default,default_insert_only,ddl_sql}",
            arguments: "",
        }],
        ..Mesh::default()
    };
    let mut cluster: Cluster = mesh.start_with_extension(3);
    spock::grow(&mut cluster, "n5");
    let [n1, n2, n3, n4, n5] = [1, 2, 3, 4, 5].map(|i| cluster.n(i));
    remove(n3, "n3");
    add_node(n4, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(subscriptions(n4), "n3_from_n1_gen2 n3_from_n2_gen2");
    assert_eq!(subscriptions(n1), "n1_from_n2 n1_from_n3_gen2");
    add_node(n5, "n5", n2, "n2").unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(subscriptions(n5), "n5_from_n1 n5_from_n2 n5_from_n3");
    assert_eq!(
        subscriptions(n4),
        "n3_from_n1_gen2 n3_from_n2_gen2 n3_from_n5"
    );
    // Nothing of it is left where it cannot be asked.
    n4.crash();
    remove_dead(n1, "n3");
    assert_eq!(subscriptions(n2), "n2_from_n1 n2_from_n5");
    assert_eq!(
        slots(n1),
        "spk_postgres_n1_n2_from_n1 spk_postgres_n1_n5_from_n1"
    );
    for node in [n1, n2, n5] {
        assert_eq!(remembered(node), "n3 2");
    }
}
