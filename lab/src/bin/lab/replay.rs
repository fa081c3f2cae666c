//! `lab bench-recover`: how fast a recovery replays transactions, beside PostgreSQL's own apply worker on the same
//! stream.

use crate::{Options, grouped};
use lab::{Cluster, Server, ServerOptions, assert_same_content, pg};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(3600);
/// What one transaction does: two rows inserted, one updated.
const ROWS: u64 = 3;

const CONTENT: &str = "
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, note text);
CREATE TABLE history (id bigint PRIMARY KEY, account int, amount int, at timestamptz DEFAULT now());
CREATE TABLE event (id bigint PRIMARY KEY, payload jsonb);
CREATE INDEX ON history (account);
INSERT INTO account SELECT i, 0, repeat('x', 80) FROM generate_series(1, 10000) i;
";

/// Runs the benchmark; true if everything arrived.
pub fn run(options: &Options) -> bool {
    let count = options.scale * 5_000;
    println!(
        "Four servers, {}; {} transactions of {ROWS} rows.",
        pg::version(),
        grouped(count)
    );
    let (mut applied, mut replayed) = (vec![], vec![]);
    for round in 1..=options.rounds {
        let (apply, replay) = once(count);
        println!(
            "round {round}: apply worker {}, recover_run {}",
            rate(count, apply),
            rate(count, replay)
        );
        applied.push(apply);
        replayed.push(replay);
    }
    let (apply, replay) = (median(applied), median(replayed));
    println!("\napply worker   {}", rate(count, apply));
    println!("recover_run    {}", rate(count, replay));
    println!(
        "recover_run takes {:.2} times as long\n\nThe contents were compared, and were the same.",
        replay.as_secs_f64() / apply.as_secs_f64()
    );
    true
}

/// The time of the apply worker, and of the recovery.
fn once(count: u64) -> (Duration, Duration) {
    let options = ServerOptions::default()
        .set("track_commit_timestamp", "on")
        .set("shared_preload_libraries", "zodan")
        .set("shared_buffers", "256MB")
        .set("max_wal_size", "4GB");
    let cluster = Cluster::start_with(4, &options);
    cluster.form_mesh(4, CONTENT);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    for node in cluster.all() {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
            "3",
        );
    }
    for node in [n2, n4] {
        let name = format!("sub_n1_{}", node.name());
        node.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
    }
    n1.sql(&format!(
        "DO $$ BEGIN FOR i IN 1..{count} LOOP
             UPDATE account SET balance = balance + i WHERE id = 1 + i % 10000;
             INSERT INTO history VALUES (i, 1 + i % 10000, i);
             INSERT INTO event VALUES (i, jsonb_build_object('id', i, 'what', 'moved'));
             COMMIT;
         END LOOP; END $$"
    ));
    let all = count.to_string();
    let arrived = |node: &Server| {
        let last = format!("SELECT count(*) FROM event WHERE id = {all}");
        node.wait_for_within(&last, "1", PATIENCE);
    };
    arrived(n3);
    let begun = Instant::now();
    n4.sql("ALTER SUBSCRIPTION sub_n1_n4 ENABLE");
    arrived(n4);
    let apply = begun.elapsed();
    n1.crash();
    let begun = Instant::now();
    if let Err(failed) = n2.call("CALL spock.recover_run('n1', 'n3', NULL, 'n2')") {
        panic!("{failed}");
    }
    let replay = begun.elapsed();
    assert_same_content(&[n2, n3, n4]);
    (apply, replay)
}

fn rate(count: u64, time: Duration) -> String {
    let per_second = |n: u64| grouped((n as f64 / time.as_secs_f64()) as u64);
    format!(
        "{:>7.2} s, {} transactions/s, {} rows/s",
        time.as_secs_f64(),
        per_second(count),
        per_second(count * ROWS)
    )
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
