//! Where the later of two updates stays, a node that joins gets the same rows as the others, however far the source is
//! behind its peers. As tests/spock_times.rs has it for Spock.

mod common;

use common::{StopOnDrop, quick, rounds, wait_mesh};
use lab::{Cluster, Server, add_node, assert_same_content, wait_quiet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CONTENT: &str = "
CREATE TABLE hot (id bigint PRIMARY KEY, v text, big text);
INSERT INTO hot SELECT i, 'old', repeat(md5(i::text), 100) FROM generate_series(1, 20) i;
CREATE TABLE slow (node text PRIMARY KEY, n integer);
INSERT INTO slow VALUES ('n1', 0), ('n2', 0)";

/// Whoever applies a change of `slow` is held up by `delay` seconds. Where there is no delay, there is no trigger, and a
/// node that joins catches up from the source.
fn cluster(delay: f64) -> Cluster {
    let cluster = Cluster::start_with(3, &quick().set("track_commit_timestamp", "on"));
    let mut content = format!(
        "{CONTENT};
         CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN PERFORM pg_catalog.pg_sleep({delay}); RETURN NULL; END $$;"
    );
    if delay > 0.0 {
        content +=
            "CREATE TRIGGER hold_up AFTER UPDATE ON slow FOR EACH ROW EXECUTE FUNCTION hold_up();
                    ALTER TABLE slow ENABLE REPLICA TRIGGER hold_up";
    }
    cluster.form_mesh(2, &content);
    wait_mesh(&cluster.first(2));
    cluster
        .n(1)
        .value("SELECT spock.enable_last_update_wins('hot')");
    wait_quiet(&cluster.first(2));
    cluster
}

/// Both of `nodes` change the same rows, and hold each other up.
fn under_conflicts<T>(nodes: [&Server; 2], delay: f64, meanwhile: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&over);
        for (seed, node) in nodes.into_iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                let mut client = node.client();
                let mut random = seed as u64 + 1;
                let pause = Duration::from_secs_f64(delay * 1.3);
                let mut held_up: Option<Instant> = None;
                while !over.load(Ordering::Relaxed) {
                    // xorshift64, https://www.jstatsoft.org/article/view/v008i14
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let (row, what) = (1 + random % 20, random % 1_000_000);
                    let name = node.name();
                    let mut run = |sql: String| {
                        client
                            .batch_execute(&sql)
                            .unwrap_or_else(|e| panic!("{name}: {}", lab::explain(&e)));
                    };
                    run(format!(
                        "UPDATE hot SET v = 'of {name} {what}' WHERE id = {row}"
                    ));
                    if delay > 0.0 && held_up.is_none_or(|at| at.elapsed() > pause) {
                        held_up = Some(Instant::now());
                        run(format!("UPDATE slow SET n = n + 1 WHERE node = '{name}'"));
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let outcome = meanwhile();
        drop(end);
        outcome
    })
}

fn no_join_differs(delay: f64, joins: usize) {
    let cluster = cluster(delay);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    for i in 0..joins {
        let (source, peer) = [(n1, n2), (n2, n1)][i % 2];
        // What holds the source up.
        let own = format!("SELECT (SELECT n FROM slow WHERE node = '{}')", peer.name());
        let before = peer.value(&own);
        let took = under_conflicts([n1, n2], delay, || {
            if delay > 0.0 {
                peer.wait_for(&format!("{own} > {before}"), "t");
            }
            let begun = Instant::now();
            add_node(n3, "n3", source, source.name()).unwrap_or_else(|e| panic!("{e}"));
            begun.elapsed()
        });
        assert!(
            took.as_secs_f64() > delay / 2.0,
            "{took:?}: the source was behind"
        );
        wait_quiet(&[n1, n2, n3]);
        assert_same_content(&[n1, n2, n3]);
        n3.call("CALL spock.remove_node('n3')")
            .unwrap_or_else(|e| panic!("{e}"));
        n3.sql("DROP SCHEMA lab CASCADE; DROP TABLE hot, slow; DROP FUNCTION hold_up()");
    }
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_keeps_up() {
    no_join_differs(0.0, rounds(4));
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_lags_by_a_second() {
    no_join_differs(1.0, rounds(2));
}

#[test]
fn contents_are_equal_after_a_join_when_the_source_lags_by_five_seconds() {
    no_join_differs(5.0, rounds(1));
}
