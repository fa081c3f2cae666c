//! A node that was put back to an earlier state, by a backup or a copy of its files: what it writes reaches nobody, and
//! it lacks what it had sent. It is told of at once wherever somebody looks, and nobody waits for what cannot come.

mod common;

use common::engines::On;
use common::recovery::{CONTENT, options};
use common::{POLL, assert_failed, wait_mesh};
use lab::{CallFailed, Cluster, Server, add_node, assert_same_content, quote_literal, wait_quiet};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.expect("run cp").success());
}

/// More of it than a server writes into its WAL by itself.
const NOISE: &str =
    "(SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 200) j)";

/// A mesh of three and an empty server. n3 is as it was before it wrote what n1 has got, and n2 all but the last of.
fn put_back() -> Cluster {
    let cluster = Cluster::start_with(4, &options());
    cluster.form_mesh(3, CONTENT);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'before', NULL FROM generate_series(1, 100) i");
    wait_quiet(&[n1, n2, n3]);
    n3.stop();
    let (files, yesterday) = (n3.data_dir(), n3.data_dir().with_extension("yesterday"));
    copy(&files, &yesterday);
    n3.boot();
    wait_mesh(&[n1, n2, n3]);
    n1.sql("INSERT INTO crash_test SELECT i, 'of n1', NULL FROM generate_series(201, 300) i");
    n3.sql(&format!(
        "INSERT INTO crash_test SELECT i, 'of n3', {NOISE} FROM generate_series(301, 400) i"
    ));
    wait_quiet(&[n1, n2, n3]);
    On::Native.suspend(n2, n3);
    n3.sql(&format!(
        "INSERT INTO crash_test SELECT i, 'of n3', {NOISE} FROM generate_series(401, 500) i"
    ));
    n1.wait_for("SELECT count(*) FROM crash_test", "400");
    n3.stop();
    On::Native.resume(n2, n3);
    std::fs::remove_dir_all(&files).expect("remove the files");
    copy(&yesterday, &files);
    n3.boot();
    // Its readers hear nothing of it for long, being ahead.
    n3.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "2",
    );
    n3.sql("INSERT INTO crash_test VALUES (1000, 'written on what was put back', NULL)");
    cluster
}

fn remove(more: &str) -> String {
    format!("CALL spock.remove_node('n3'{more})")
}

const FOUND: &str = "subscription sub_n3_n1 has applied node \"n3\" up to ";
const WAY_OUT: &str = "CALL spock.recover_run('n3'), CALL spock.remove_node('n3')";

fn in_time(server: &Server, sql: &str) -> CallFailed {
    let begun = Instant::now();
    let failed = server.sql_error(sql);
    assert!(begun.elapsed() < Duration::from_secs(30), "{failed}");
    failed
}

#[test]
fn restored_node_is_reported_and_replaced_like_a_dead_one() {
    let cluster = put_back();
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));

    for looking in [n1, n3] {
        let state = "SELECT string_agg(state, ' ' ORDER BY subscriber) FROM spock.cluster_status() WHERE provider = 'n3'";
        assert_eq!(looking.value(state), "down down");
        let why = looking.value(
            "SELECT last_error FROM spock.cluster_status() WHERE provider = 'n3' AND subscriber = 'n1'",
        );
        assert!(why.contains("but the WAL of \"n3\" ends at "), "{why}");
        let report = format!(
            "SELECT string_agg(node || ': ' || remedy, '; ') FROM spock.health_report({}, {}, NULL, NULL, 'post')
              WHERE \"check\" = 'positions' AND status = 'failed'",
            quote_literal(looking.name()),
            quote_literal(&looking.dsn())
        );
        let report = looking.value(&report);
        assert!(
            report.contains("n1: ") && report.contains(WAY_OUT),
            "{report}"
        );
    }
    for here in [n1, n3] {
        let failed = in_time(here, &remove(""));
        assert_eq!(failed.code(), "55000", "{failed}");
        assert!(failed.detail().contains(FOUND), "{failed}");
        assert!(failed.hint().contains(WAY_OUT), "{failed}");
    }
    let failed = in_time(n1, "SELECT * FROM spock.verify_nodes()");
    assert_failed(&failed, "55000", "n3\" up to ", WAY_OUT);
    let failed = in_time(n1, "CALL spock.recover_run('n3')");
    let alive = "node \"n3\" is alive, but not what it was: node \"n1\": subscription sub_n3_n1 has applied node \"n3\" up to ";
    assert_failed(&failed, "55006", alive, WAY_OUT);
    let failed = add_node(n4, "n4", n1, "n1").expect_err("a member was put back");
    assert!(failed.to_string().contains(FOUND), "{failed}");

    // As docs/operations.md has it. A fast shutdown waits for readers that never confirm.
    n3.crash();
    n1.call("CALL spock.recover_run('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "400");
    assert_same_content(&[n1, n2]);
    n1.call(&remove(""))
        .unwrap_or_else(|failed| panic!("{failed}"));
    add_node(n4, "n4", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    n4.sql("INSERT INTO crash_test VALUES (2000, 'of n4', NULL)");
    wait_quiet(&[n1, n2, n4]);
    assert_same_content(&[n1, n2, n4]);
    assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "401");
    // What was written on the old one is on it, and goes nowhere.
    n3.boot();
    n3.call(&remove(""))
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n3.value("SELECT count(*) FROM pg_subscription"), "0");
    assert_eq!(
        n3.value("SELECT count(*) FROM crash_test WHERE id = 1000"),
        "1"
    );
    assert_eq!(
        n1.value("SELECT count(*) FROM crash_test WHERE id = 1000"),
        "0"
    );
}

#[test]
fn restored_node_is_removed_by_force_with_a_warning() {
    let cluster = put_back();
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("SELECT zodan.start_node_worker()");
    let told = format!("WARNING:  zodan: node \"n1\": {FOUND}");
    let begun = Instant::now();
    while !n1.log().contains(&told) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "its node worker does not tell"
        );
        thread::sleep(POLL);
    }
    let recovered = n1
        .call("CALL spock.recover_run('n3', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let warned = |called: &lab::Called, text: &str| {
        let warnings = called.warnings();
        assert!(warnings.iter().any(|w| w.contains(text)), "{called:?}");
    };
    warned(&recovered, FOUND);
    let begun = Instant::now();
    let removed = n1
        .call(&remove(", force := true"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert!(begun.elapsed() < Duration::from_secs(60), "{removed:?}");
    warned(&removed, FOUND);
    assert_same_content(&[n1, n2]);
    assert_eq!(n3.value("SELECT count(*) FROM pg_subscription"), "0");
    wait_quiet(&[n1, n2]);
}
