//! `lab bench-wan`: calls between servers that are far from each other, beside the same where they are near.

use crate::Options;
use lab::{Cluster, Network, Server, ServerOptions, assert_same_content, pg, quiet, wait_quiet};
use std::time::{Duration, Instant};

/// Between two regions of a continent.
const ROUND_TRIP: Duration = Duration::from_millis(40);

const ROWS: u32 = 20_000;

/// A call, and how long it took.
type Times = Vec<(&'static str, Duration)>;

/// Runs the benchmark; true if all contents were the same.
pub fn run(options: &Options) -> bool {
    println!(
        "Four servers, {}; round trip 0 and {ROUND_TRIP:?}.\n",
        pg::version()
    );
    println!("{:<26}{:>10}{:>10}{:>14}", "", "near", "far", "round trips");
    let (mut near, mut far): (Vec<Times>, Vec<Times>) = (vec![], vec![]);
    for _ in 0..options.rounds {
        near.push(calls(Duration::ZERO));
        far.push(calls(ROUND_TRIP));
    }
    for i in 0..near[0].len() {
        let median = |rounds: &[Times]| {
            let mut times: Vec<Duration> = rounds.iter().map(|times| times[i].1).collect();
            times.sort();
            times[times.len() / 2].as_secs_f64()
        };
        let (near_by, far_off) = (median(&near), median(&far));
        println!(
            "{:<26}{near_by:>8.2} s{far_off:>8.2} s{:>14.0}",
            near[0][i].0,
            (far_off - near_by) / ROUND_TRIP.as_secs_f64()
        );
    }
    true
}

fn calls(round_trip: Duration) -> Times {
    let mut times = few_tables(round_trip);
    times.push(("join 1 -> 2, 200 tables", many_tables(round_trip)));
    times
}

/// A join of a fourth node, the status, and its removal.
fn few_tables(round_trip: Duration) -> Times {
    let network = Network::start_far(4, round_trip, |_| ServerOptions::default());
    let cluster = &network.cluster;
    begin(cluster, 20, ROWS);
    for number in 2..=3 {
        join(&network, cluster.n(number));
    }
    let joined = join(&network, cluster.n(4));
    let nodes = cluster.first(4);
    wait_quiet(&nodes);
    assert_same_content(&nodes);
    let status = timed(cluster.n(1), "SELECT * FROM spock.cluster_status()");
    let removed = timed(cluster.n(4), "CALL spock.remove_node('n4')");
    vec![
        ("join 3 -> 4, 20 tables", joined),
        ("status of 4", status),
        ("removal from 4", removed),
    ]
}

fn many_tables(round_trip: Duration) -> Duration {
    let network = Network::start_far(2, round_trip, |_| ServerOptions::default());
    begin(&network.cluster, 200, 20);
    let joined = join(&network, network.cluster.n(2));
    let nodes = network.cluster.first(2);
    wait_quiet(&nodes);
    assert_same_content(&nodes);
    joined
}

/// Tables on the first server.
fn begin(cluster: &Cluster, tables: u32, rows: u32) {
    cluster.create_extension();
    let mut sql = quiet::SCHEMA.to_owned();
    for number in 1..=tables {
        sql += &format!(
            "CREATE TABLE t{number} (id bigint PRIMARY KEY, body text NOT NULL);
             INSERT INTO t{number} SELECT i, md5(i::text) FROM generate_series(1, {rows}) i;"
        );
    }
    cluster.n(1).sql(&sql);
}

fn join(network: &Network, new: &Server) -> Duration {
    timed(new, &network.add_node_call(new, network.cluster.n(1)))
}

fn timed(on: &Server, call: &str) -> Duration {
    let began = Instant::now();
    if let Err(failed) = on.call(call) {
        panic!("{}: {failed}", on.name());
    }
    began.elapsed()
}
