//! Digests see every difference, and the writers' report is the truth.

use lab::digest::{TableDigest, assert_same_structure, compare, digest};
use lab::load::LoadOptions;
use lab::{Cluster, Load, Server};
use std::time::{Duration, Instant};

const TABLES: &str = "
    CREATE TABLE keyed (id int PRIMARY KEY, body text);
    INSERT INTO keyed SELECT i, repeat('x', 10000) || i FROM generate_series(1, 500) i;
    CREATE TABLE keyless (n int);
    INSERT INTO keyless VALUES (1), (1), (2);
    CREATE TABLE parted (id int) PARTITION BY RANGE (id);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
    INSERT INTO parted VALUES (3);
    CREATE TABLE parent (id int);
    CREATE TABLE child () INHERITS (parent);
    INSERT INTO child VALUES (7);
    CREATE UNLOGGED TABLE passing (id int);
    CREATE SCHEMA zodan;
    CREATE TABLE zodan.own (id int);
";

/// Two servers with the same content, the second one's rows in another physical order.
fn twins() -> Cluster {
    let cluster = Cluster::start(2);
    for server in cluster.all() {
        server.sql(TABLES);
    }
    cluster
        .n(2)
        .sql("UPDATE keyed SET body = body WHERE id % 3 = 0; SET timezone = 'Asia/Tokyo'");
    cluster
}

#[test]
fn the_tables_that_count() {
    let cluster = twins();
    let digest = digest(cluster.n(1));
    let rows: Vec<(&str, u64)> = digest.iter().map(|(table, d)| (&**table, d.rows)).collect();
    assert_eq!(
        rows,
        [
            ("public.child", 1),
            ("public.keyed", 500),
            ("public.keyless", 3),
            ("public.parent", 0),
            ("public.parted_low", 1)
        ]
    );
    assert_eq!(
        digest["public.parent"],
        TableDigest {
            rows: 0,
            hash: ":".into()
        }
    );
}

/// Changes n2 and returns what the comparison says, which must name every one of `shown`.
fn assert_seen(cluster: &Cluster, change: &str, shown: &[&str]) {
    assert_eq!(compare(&cluster.all()), Ok(()), "before {change}");
    cluster.n(2).sql(change);
    let report = compare(&cluster.all()).expect_err(change);
    for text in shown {
        assert!(
            report.contains(text),
            "{change}: {text:?} is not in\n{report}"
        );
    }
}

#[test]
fn every_difference_is_seen_and_shown() {
    let cluster = twins();
    assert_seen(
        &cluster,
        "UPDATE keyed SET body = overlay(body PLACING 'y' FROM 9000 FOR 1) WHERE id = 77",
        &[
            "public.keyed: 500 rows on n1, 500 on n2",
            "only on n1: (77,xxx",
            "only on n2: (77,xxx",
            "(10007 bytes)",
        ],
    );
    cluster
        .n(2)
        .sql("UPDATE keyed SET body = repeat('x', 10000) || id WHERE id = 77");
    assert_seen(
        &cluster,
        "DELETE FROM keyed WHERE id = 78",
        &["500 rows on n1, 499 on n2", "only on n1: (78,"],
    );
    cluster
        .n(2)
        .sql("INSERT INTO keyed SELECT 78, repeat('x', 10000) || 78");
    assert_seen(
        &cluster,
        "INSERT INTO keyless VALUES (1)",
        &["public.keyless: 3 rows on n1, 4 on n2", "only on n2: (1)"],
    );
    cluster
        .n(2)
        .sql("DELETE FROM keyless; INSERT INTO keyless VALUES (1), (1), (2)");
    // As many rows, as many different ones: only their numbers differ.
    assert_seen(
        &cluster,
        "DELETE FROM keyless; INSERT INTO keyless VALUES (1), (2), (2)",
        &["only on n1: (1)", "only on n2: (2)"],
    );
    cluster
        .n(2)
        .sql("DELETE FROM keyless; INSERT INTO keyless VALUES (1), (1), (2)");
    assert_seen(
        &cluster,
        "DELETE FROM child; INSERT INTO parent VALUES (7)",
        &[
            "public.child: 1 rows on n1, 0 on n2",
            "public.parent: 0 rows on n1, 1 on n2",
        ],
    );
    cluster
        .n(2)
        .sql("DELETE FROM ONLY parent; INSERT INTO child VALUES (7)");
    assert_seen(
        &cluster,
        "DROP TABLE keyless",
        &["public.keyless: does not exist on n2"],
    );
}

#[test]
fn structures_are_compared() {
    let cluster = twins();
    assert_same_structure(cluster.n(1), cluster.n(2));
    cluster.n(2).sql("CREATE INDEX only_here ON keyed (body)");
    let different = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert_same_structure(cluster.n(1), cluster.n(2))
    }));
    let said = *different.unwrap_err().downcast::<String>().unwrap();
    assert!(
        said.contains("CREATE INDEX only_here ON public.keyed"),
        "{said}"
    );
}

#[test]
fn tables_of_many_kinds_survive_dump_and_restore() {
    let cluster = Cluster::start(2);
    for server in cluster.all() {
        server.sql(lab::schema::ROLES);
    }
    let (from, to) = (cluster.n(1), cluster.n(2));
    from.sql(&lab::schema::kinds(5000));
    let content = digest(from);
    let rows: u64 = content.values().map(|table| table.rows).sum();
    assert!((5000..6000).contains(&rows), "{rows}");
    for table in [
        "shop.no_columns",
        "shop.measurement_2026_1",
        "\"Odd \"\"Names\"\"\".\"Select; DROP TABLE x\"",
    ] {
        assert!(content[table].rows > 0, "{table}");
    }
    assert_eq!(content["shop.empty"].rows, 0);
    assert!(
        !content.contains_key("shop.basket"),
        "an unlogged table is no shared content"
    );

    let dump = from.tool("pg_dump").output().unwrap();
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let restored = to.psql(
        &["-q", "-o", "/dev/null"],
        &String::from_utf8(dump.stdout).unwrap(),
    );
    assert!(restored.status.success(), "{}", restored.stderr);
    assert_same_structure(from, to);
    assert_eq!(compare(&cluster.all()), Ok(()));
}

fn with_load_tables() -> Server {
    let server = Server::start("n1");
    server.sql(lab::load::SCHEMA);
    server
}

#[test]
fn the_report_counts_what_happened() {
    let server = with_load_tables();
    let before: u64 = server
        .value("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'")
        .parse()
        .unwrap();
    let options = LoadOptions {
        writers: 3,
        rate: None,
    };
    let load = Load::start_with(&[&server], &options);
    load.wait_commits(300);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    assert!(report.commits >= 900 && report.rollbacks > 0, "{report}");
    assert!(report.statements() as u64 >= report.commits + report.rollbacks * 3);
    assert!(report.max_latency() > Duration::ZERO);
    report.assert_present_on(&server);
    let live: u64 = server
        .value("SELECT (SELECT count(*) FROM load.account) + (SELECT count(*) FROM load.event) + (SELECT count(*) FROM load.document)")
        .parse()
        .unwrap();
    assert!(live > 0);
    // The server's own count can only be higher: it counts the lab's other sessions too.
    server.sql("SELECT pg_stat_force_next_flush()");
    server.wait_for(
        &format!(
            "SELECT xact_commit - {before} >= {} FROM pg_stat_database WHERE datname = 'postgres'",
            report.commits
        ),
        "t",
    );
    // All three statements were at work.
    assert_eq!(
        server.value("SELECT bool_and(v) FROM (SELECT max(version) > 1 FROM load.account) x(v)"),
        "t"
    );
    let wal = server
        .value("SELECT sum(n_tup_del) > 0 FROM pg_stat_user_tables WHERE schemaname = 'load'");
    assert_eq!(wal, "t");
}

#[test]
fn the_report_sees_lost_and_changed_rows() {
    let server = with_load_tables();
    let load = Load::start_with(
        &[&server],
        &LoadOptions {
            writers: 1,
            rate: None,
        },
    );
    load.wait_commits(200);
    let report = load.stop();
    assert_eq!(report.wrong_on(&server), [""; 0]);
    server.sql("DELETE FROM load.event WHERE id = (SELECT min(id) FROM load.event)");
    server.sql("UPDATE load.account SET version = version + 100 WHERE id = (SELECT min(id) FROM load.account)");
    let wrong = report.wrong_on(&server).join("\n");
    assert_eq!(wrong.lines().count(), 2, "{wrong}");
    assert!(
        wrong.contains("load.event") && wrong.contains("no row instead of version"),
        "{wrong}"
    );
    assert!(
        wrong.contains("load.account") && wrong.contains("version 10"),
        "{wrong}"
    );
}

#[test]
fn a_second_load_carries_on_where_the_first_one_stopped() {
    let server = with_load_tables();
    for _ in 0..2 {
        let load = Load::start_with(
            &[&server],
            &LoadOptions {
                writers: 2,
                rate: None,
            },
        );
        load.wait_commits(100);
        let report = load.stop();
        assert!(report.failures.is_empty(), "{report}");
        report.assert_present_on(&server);
    }
}

#[test]
fn a_blocked_write_shows_in_the_latency_of_its_window() {
    let server = with_load_tables();
    let load = Load::start(&[&server]);
    load.wait_commits(10);
    let quiet_from = Instant::now();
    load.wait_commits(10);
    let quiet_to = Instant::now();
    let mut blocker = server.client();
    let locked_at = Instant::now();
    blocker.batch_execute("BEGIN; LOCK load.account").unwrap();
    server.wait_for("SELECT count(*) FROM pg_locks WHERE NOT granted", "1");
    std::thread::sleep(Duration::from_millis(400));
    blocker.batch_execute("COMMIT").unwrap();
    let free_at = Instant::now();
    load.wait_commits(10);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    assert!(report.max_latency_between(locked_at, free_at) >= Duration::from_millis(400));
    assert!(report.max_latency_between(quiet_from, quiet_to) < Duration::from_millis(400));
    // 100 a second were asked for.
    let allowed = 100.0 * report.elapsed.as_secs_f64() + 5.0;
    assert!(
        (report.commits + report.rollbacks) as f64 <= allowed,
        "{report}"
    );
}

#[test]
fn failed_writes_are_recorded_and_acknowledged_ones_survive_a_crash() {
    let server = with_load_tables();
    let load = Load::start_with(
        &[&server],
        &LoadOptions {
            writers: 2,
            rate: None,
        },
    );
    load.wait_commits(200);
    server.sql("ALTER TABLE load.event ADD CONSTRAINT no_more CHECK (false) NOT VALID");
    load.wait_commits(20);
    server.crash();
    let report = load.stop();
    let errors: Vec<&str> = report
        .failures
        .iter()
        .map(|failure| &*failure.error)
        .collect();
    assert!(
        errors
            .iter()
            .any(|e| e.contains("23514") && e.contains("no_more")),
        "{report}"
    );
    // Each writer ends with the loss of its only connection.
    let lost = errors.iter().filter(|e| !e.contains("23514")).count();
    assert_eq!(lost, 2, "{report}");
    assert!(report.failures.iter().all(|failure| failure.node == "n1"));
    server.boot();
    report.assert_present_on(&server);
}
