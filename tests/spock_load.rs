//! A node joins a Spock cluster that is being written to: its exceptions, its workers, its conflicts.

mod common;

use common::engines::On;
use common::joining::{assert_no_conflict, cluster, join_under_load, spock_cluster};
use lab::spock::{self, Mesh};
use lab::{Server, add_node, assert_same_content, quote_literal, wait_quiet};
use std::thread;

#[test]
fn join_under_load_works_with_every_exception_behaviour() {
    if spock::announced().is_none() {
        return;
    }
    for behaviour in ["discard", "transdiscard", "sub_disable"] {
        let settings = [("spock.exception_behaviour", behaviour)];
        let cluster = spock_cluster(2, 5_000, &settings);
        for node in cluster.all() {
            assert_eq!(node.value("SHOW spock.exception_behaviour"), behaviour);
        }
        join_under_load(On::Spock, &cluster, 2, Some(200));
    }
}

/// Spock takes a second for each worker that it starts, one after the other, if nothing wakes it.
#[test]
fn workers_of_the_new_node_start_within_three_seconds() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = cluster(On::Spock, 4, 1_000);
    let n5 = cluster.n(5);
    add_node(n5, "n5", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    let took: f64 = n5
        .value(
            "SELECT extract(epoch FROM max(ended_at) - min(started_at)) FROM zodan.step
              WHERE node = 'n5' AND description LIKE 'subscribe to %'",
        )
        .parse()
        .unwrap();
    assert!(took < 3.0, "{took} s for four subscriptions");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        assert_no_conflict(On::Spock, node);
    }
}

/// Spock takes an apply worker for paused that is in a transaction and has not written yet: here one that stands in
/// a trigger. It writes and commits later, so no attempt counts while it is there.
#[test]
fn snapshot_waits_for_a_worker_that_only_looks_paused() {
    if spock::announced().is_none() {
        return;
    }
    let mesh = Mesh {
        content: "CREATE TABLE t (id integer PRIMARY KEY);
                  CREATE TABLE other (id integer PRIMARY KEY);
                  CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
                  BEGIN
                      IF (SELECT node_name FROM spock.node JOIN spock.local_node USING (node_id)) = 'n1' THEN
                          PERFORM pg_advisory_xact_lock_shared(4712);
                      END IF;
                      RETURN NEW;
                  END $$;
                  CREATE TRIGGER hold_up BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION hold_up();
                  ALTER TABLE t ENABLE ALWAYS TRIGGER hold_up",
        ..Mesh::default()
    };
    let cluster = mesh.start(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    // Holds the join up after everything from n2 has arrived on n1, and before the pause.
    let mut writer = n1.client_named("writer");
    writer
        .batch_execute("BEGIN; INSERT INTO other VALUES (1)")
        .unwrap();
    // A younger one would not be waited for.
    n1.wait_for(
        "SELECT count(*) FROM pg_stat_activity
          WHERE application_name = 'writer' AND xact_start < clock_timestamp() - interval '1 s'",
        "1",
    );
    let mut holder = n1.client_named("holder");
    holder
        .batch_execute("SELECT pg_advisory_lock(4712)")
        .unwrap();
    let called = thread::scope(|scope| {
        let call = scope.spawn(|| {
            n3.call(&format!(
                "CALL spock.add_node('n1', {}, 'n3', {}, true)",
                quote_literal(&n1.dsn()),
                quote_literal(&n3.dsn())
            ))
            .unwrap_or_else(|e| panic!("{e}"))
        });
        n3.wait_for(
            "SELECT count(*) FROM zodan.step WHERE description LIKE 'pause apply%'",
            "1",
        );
        n2.sql("INSERT INTO t VALUES (1)");
        n1.wait_for(
            "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
              WHERE starts_with(backend_type, 'spock apply') AND locktype = 'advisory' AND NOT granted
                AND backend_xid IS NULL",
            "1",
        );
        writer.batch_execute("COMMIT").unwrap();
        n3.wait_for("SELECT apply_pause_ms IS NOT NULL FROM zodan.run", "t");
        n2.sql("INSERT INTO t VALUES (2)");
        drop(holder);
        call.join().unwrap()
    });
    let said: Vec<&str> = called.notices.iter().map(|n| n.message.as_str()).collect();
    let said = said.join("\n");
    assert!(
        said.contains("snapshot attempt given up, apply resumed: apply did not stop within"),
        "{said}"
    );
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n3.value("SELECT count(*) FROM t"), "2");
    for node in cluster.all() {
        assert_no_conflict(On::Spock, node);
    }
}

/// Every node updates the same few rows again and again while a node joins. The last update wins, and it is the
/// same one on every node.
#[test]
fn rows_updated_on_all_nodes_during_a_join_end_up_equal() {
    if spock::announced().is_none() {
        return;
    }
    let mesh = Mesh {
        content: "CREATE TABLE hot (id integer PRIMARY KEY, node text, n integer);
                  INSERT INTO hot SELECT g, 'none', 0 FROM generate_series(1, 5) g;
                  CREATE TABLE bulk (id integer PRIMARY KEY, filler text);
                  INSERT INTO bulk SELECT g, repeat('x', 300) FROM generate_series(1, 50000) g",
        ..Mesh::default()
    };
    let cluster = mesh.start(3);
    let update = |node: &Server| {
        let mut client = node.client_named("updates");
        let name = node.name().to_owned();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writer = thread::spawn(move || {
            let mut n = 0;
            while stopped.try_recv().is_err() {
                n += 1;
                client
                    .execute(
                        "UPDATE hot SET node = $1, n = $2 WHERE id = $3",
                        &[&name, &n, &(n % 5 + 1)],
                    )
                    .unwrap();
                thread::sleep(std::time::Duration::from_millis(3));
            }
            n
        });
        (stop, writer)
    };
    let writers: Vec<_> = cluster.first(3).into_iter().map(update).collect();
    add_node(cluster.n(4), "n4", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    for (stop, writer) in writers {
        stop.send(()).unwrap();
        assert!(writer.join().unwrap() > 10, "the writers were at work");
    }
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(
        cluster
            .n(4)
            .value("SELECT count(*) FROM hot WHERE node = 'none'"),
        "0"
    );
}
