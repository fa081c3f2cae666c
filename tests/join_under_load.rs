//! A node joins nodes that are being written to: no row is lost or doubled, no write fails.

use lab::load::LoadOptions;
use lab::server::Called;
use lab::{Cluster, Load, add_node, assert_same_content, load, schema, wait_quiet};
use std::thread;
use std::time::{Duration, Instant};

/// A mesh of `members`, with content and one empty server more.
fn cluster(members: usize, rows: u64) -> Cluster {
    let cluster = Cluster::start(members + 1);
    for node in cluster.all() {
        node.sql(schema::ROLES);
    }
    cluster.form_mesh(
        members,
        &format!("{};\n{}", load::SCHEMA, schema::kinds(rows)),
    );
    cluster
}

/// Joins the last server of `cluster` to the others while they are being written to, and proves that
/// all have the same content, which is what the writers were told was committed.
fn join_under_load(cluster: &Cluster, members: usize, rate: Option<u32>) -> (Called, f64) {
    let writers = cluster.first(members);
    let new = cluster.n(members + 1);
    let load = Load::start_with(&writers, &LoadOptions { writers: 2, rate });
    load.wait_commits(200);
    let joined = add_node(new, new.name(), cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    load.wait_commits(200);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        report.assert_present_on(node);
    }
    (joined, report.writes_per_second())
}

fn apply_pause_ms(cluster: &Cluster, node: usize) -> f64 {
    let pause = cluster.n(node).value(
        "SELECT apply_pause_ms FROM zodan.run WHERE state = 'done' ORDER BY id DESC LIMIT 1",
    );
    pause
        .parse()
        .unwrap_or_else(|_| panic!("apply_pause_ms is {pause:?}"))
}

#[test]
fn the_second_node() {
    let cluster = cluster(1, 20_000);
    join_under_load(&cluster, 1, Some(300));
}

#[test]
fn the_third_node() {
    let cluster = cluster(2, 20_000);
    join_under_load(&cluster, 2, Some(200));
}

#[test]
fn the_fourth_node_with_a_short_pause() {
    let cluster = cluster(3, 100_000);
    let (_, rate) = join_under_load(&cluster, 3, None);
    let pause = apply_pause_ms(&cluster, 4);
    eprintln!("{rate:.0} writes/s, apply paused for {pause} ms");
    assert!(pause > 0.0, "there were peers to pause");
}

#[test]
fn the_fifth_node() {
    let cluster = cluster(4, 20_000);
    join_under_load(&cluster, 4, Some(50));
}

/// A transaction on the source and one on a peer are open when the slots are made. Both write rows
/// that are older than the snapshot and are committed after it was asked for.
#[test]
fn long_transactions_on_the_source_and_on_a_peer() {
    let cluster = cluster(3, 20_000);
    let load = Load::start_with(
        &cluster.first(3),
        &LoadOptions {
            writers: 1,
            rate: Some(100),
        },
    );
    let hold = |number: usize, seconds: u64| {
        let mut client = cluster.n(number).client_named("holder");
        let lane = 990 + number as i64;
        client
            .batch_execute(&format!(
                "BEGIN; INSERT INTO lab.marker VALUES (gen_random_uuid(), 'held {lane}')"
            ))
            .unwrap();
        thread::spawn(move || {
            client
                .batch_execute(&format!("SELECT pg_sleep({seconds}); COMMIT"))
                .unwrap();
            Instant::now()
        })
    };
    let source = hold(1, 15);
    let peer = hold(2, 6);
    let new = cluster.n(4);
    let joined = add_node(new, "n4", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    let ended = Instant::now();
    assert!(
        source.join().unwrap() < ended,
        "the join waited for the source's transaction"
    );
    assert!(
        peer.join().unwrap() < ended,
        "the join waited for the peer's transaction"
    );
    let said: Vec<&str> = joined.notices.iter().map(|n| n.message.as_str()).collect();
    let said = said.join("\n");
    for node in ["n1", "n2"] {
        assert!(
            said.contains(&format!(
                "waiting for a write transaction on node \"{node}\": pid "
            )),
            "{said}"
        );
    }
    assert!(said.contains("application \"holder\""), "{said}");
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    // The pause did not grow with them.
    let pause = apply_pause_ms(&cluster, 4);
    assert!(
        pause < Duration::from_secs(3).as_secs_f64() * 1000.0,
        "{pause} ms"
    );
}

#[test]
fn ten_joins_in_a_row() {
    for _ in 0..10 {
        let cluster = cluster(3, 10_000);
        join_under_load(&cluster, 3, Some(200));
    }
}
