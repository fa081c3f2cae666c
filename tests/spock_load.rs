//! A node joins a Spock cluster that is being written to: no row is lost, doubled or stale, no write fails.

use lab::load::LoadOptions;
use lab::server::Called;
use lab::spock::{self, Mesh};
use lab::{
    Cluster, Load, Server, add_node, assert_same_content, load, quote_literal, schema, wait_quiet,
};
use std::thread;
use std::time::Instant;

/// A mesh of `members` with content, and one empty server more; `None` without Spock.
fn cluster(members: usize, rows: u64) -> Option<Cluster> {
    cluster_with(members, rows, &[])
}

fn cluster_with(members: usize, rows: u64, settings: &[(&str, &str)]) -> Option<Cluster> {
    spock::announced()?;
    let content = format!("{};\n{}", load::SCHEMA, schema::kinds(rows));
    let mesh = Mesh {
        everywhere: schema::ROLES,
        content: &content,
        settings,
        ..Mesh::default()
    };
    Some(mesh.start(members))
}

/// Joins the last server of `cluster` while the others are written to, and proves that all have the same content,
/// which is what the writers were told was committed.
fn join_under_load(cluster: &Cluster, members: usize, rate: Option<u32>) -> Called {
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
        assert_no_conflict(node);
    }
    joined
}

/// Nothing was applied twice and nothing was missing when a change came: Spock would have resolved that and
/// written it down.
fn assert_no_conflict(node: &Server) {
    assert_eq!(
        node.value("SELECT count(*) FROM spock.resolutions"),
        "0",
        "{}: {:?}",
        node.name(),
        node.rows("SELECT to_jsonb(r) FROM spock.resolutions r LIMIT 5")
    );
    assert_eq!(node.value("SELECT count(*) FROM spock.exception_log"), "0");
}

#[test]
fn the_second_node() {
    let Some(cluster) = cluster(1, 20_000) else {
        return;
    };
    join_under_load(&cluster, 1, Some(300));
}

#[test]
fn the_third_node() {
    let Some(cluster) = cluster(2, 20_000) else {
        return;
    };
    join_under_load(&cluster, 2, Some(200));
}

#[test]
fn the_fourth_node() {
    let Some(cluster) = cluster(3, 50_000) else {
        return;
    };
    join_under_load(&cluster, 3, Some(150));
}

#[test]
fn the_fifth_node() {
    let Some(cluster) = cluster(4, 20_000) else {
        return;
    };
    join_under_load(&cluster, 4, Some(50));
}

#[test]
fn whatever_spock_does_about_exceptions() {
    for behaviour in ["discard", "transdiscard", "sub_disable"] {
        let settings = [("spock.exception_behaviour", behaviour)];
        let Some(cluster) = cluster_with(2, 5_000, &settings) else {
            return;
        };
        for node in cluster.all() {
            assert_eq!(node.value("SHOW spock.exception_behaviour"), behaviour);
        }
        join_under_load(&cluster, 2, Some(200));
    }
}

#[test]
fn ten_joins_in_a_row() {
    for _ in 0..10 {
        let Some(cluster) = cluster(3, 5_000) else {
            return;
        };
        join_under_load(&cluster, 3, Some(150));
    }
}

#[test]
fn nobody_writes() {
    let Some(cluster) = cluster(3, 20_000) else {
        return;
    };
    let joined = add_node(cluster.n(4), "n4", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    eprintln!("an idle join took {:.1?}", joined.elapsed);
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        assert_no_conflict(node);
    }
}

/// Spock takes a second for each worker that it starts, one after the other, if nothing wakes it.
#[test]
fn the_workers_of_the_new_node_start_at_once() {
    let Some(cluster) = cluster(4, 1_000) else {
        return;
    };
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
        assert_no_conflict(node);
    }
}

/// A transaction on the source and one on a peer are open when the slots are made, both for longer than Spock
/// keeps its workers paused.
#[test]
fn long_transactions_on_the_source_and_on_a_peer() {
    let Some(cluster) = cluster(3, 20_000) else {
        return;
    };
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
    let joined = add_node(cluster.n(4), "n4", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    let ended = Instant::now();
    assert!(source.join().unwrap() < ended && peer.join().unwrap() < ended);
    let said: Vec<&str> = joined.notices.iter().map(|n| n.message.as_str()).collect();
    let said = said.join("\n");
    for node in ["n1", "n2"] {
        let waiting = format!("waiting for a write transaction on node \"{node}\": pid ");
        assert!(said.contains(&waiting), "{said}");
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        report.assert_present_on(node);
        assert_no_conflict(node);
    }
}

/// Spock takes an apply worker for paused that is in a transaction and has not written yet: here one that stands in
/// a trigger. It writes and commits later, so no attempt counts while it is there.
#[test]
fn a_worker_that_only_looks_paused() {
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
        assert_no_conflict(node);
    }
}

/// Every node updates the same few rows again and again while a node joins. The last update wins, and it is the
/// same one on every node.
#[test]
fn the_same_rows_are_updated_everywhere() {
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
