//! A node joins nodes that are being written to, whatever the cluster replicates with: no row is lost, doubled or
//! stale, no write fails.

mod common;

use common::engines::{On, on_both_engines};
use common::joining::{apply_pause_ms, assert_no_conflict, cluster, join_under_load};
use lab::load::LoadOptions;
use lab::{Load, add_node, assert_same_content, wait_quiet};
use std::thread;
use std::time::{Duration, Instant};

on_both_engines! {
    second_node_joins_under_load,
    third_node_joins_under_load,
    fourth_node_joins_under_load_with_apply_paused,
    fifth_node_joins_under_load,
    ten_joins_under_load_lose_nothing,
    idle_join_copies_everything,
    long_transactions_are_waited_for_without_a_longer_pause,
}

fn second_node_joins_under_load(on: On) {
    join_under_load(on, &cluster(on, 1, 20_000), 1, Some(300));
}

fn third_node_joins_under_load(on: On) {
    join_under_load(on, &cluster(on, 2, 20_000), 2, Some(200));
}

fn fourth_node_joins_under_load_with_apply_paused(on: On) {
    let (rows, rate) = match on {
        On::Native => (100_000, None),
        On::Spock => (50_000, Some(150)),
    };
    let cluster = cluster(on, 3, rows);
    let rate = join_under_load(on, &cluster, 3, rate);
    let pause = apply_pause_ms(cluster.n(4));
    eprintln!("{rate:.0} writes/s, apply paused for {pause} ms");
    assert!(pause > 0.0, "there were peers to pause");
}

fn fifth_node_joins_under_load(on: On) {
    join_under_load(on, &cluster(on, 4, 20_000), 4, Some(50));
}

fn ten_joins_under_load_lose_nothing(on: On) {
    let (rows, rate) = match on {
        On::Native => (10_000, 200),
        On::Spock => (5_000, 150),
    };
    for _ in 0..10 {
        join_under_load(on, &cluster(on, 3, rows), 3, Some(rate));
    }
}

fn idle_join_copies_everything(on: On) {
    let cluster = cluster(on, 3, 20_000);
    let joined = add_node(cluster.n(4), "n4", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    eprintln!("an idle join took {:.1?}", joined.elapsed);
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        assert_no_conflict(on, node);
    }
}

/// A transaction on the source and one on a peer are open when the slots are made. Both write rows
/// that are older than the snapshot and are committed after it was asked for, both later than Spock keeps its workers
/// paused.
fn long_transactions_are_waited_for_without_a_longer_pause(on: On) {
    let cluster = cluster(on, 3, 20_000);
    let load = Load::start_with(
        &cluster.first(3),
        &LoadOptions {
            writers: 1,
            rate: Some(100),
        },
    );
    load.wait_commits(50);
    let hold = |number: usize, seconds: u64| {
        let mut client = cluster.n(number).client_named("holder");
        client
            .batch_execute(&format!(
                "BEGIN; INSERT INTO lab.marker VALUES (gen_random_uuid(), 'held {number}')"
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
    for node in cluster.all() {
        report.assert_present_on(node);
        assert_no_conflict(on, node);
    }
    // The pause did not grow with them.
    let pause = apply_pause_ms(new);
    assert!(
        pause < Duration::from_secs(3).as_secs_f64() * 1000.0,
        "{pause} ms"
    );
}
