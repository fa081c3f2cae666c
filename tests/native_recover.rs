//! Recovery on the native engine: parts of what is missing, the limits of the recovery slot, interrupted comparisons.

mod common;

use common::engines::On;
use common::recovery::{
    CONTENT, assert_nothing_held, call, crash_with_unequal_survivors, form, keep, options, recover,
    wait_protected,
};
use common::{Hang, Running, assert_failed, wait_no_sessions};
use lab::{CallFailed, Cluster, Load, Server, assert_same_content, load, wait_quiet};

/// A mesh whose members all keep a recovery slot.
fn mesh(members: usize) -> Cluster {
    On::Native.mesh(members)
}

/// A mesh that keeps no recovery slots.
fn mesh_without_slots(members: usize) -> Cluster {
    On::Native.mesh_without_slots(members)
}

fn suspend(subscriber: &Server, provider: &Server) {
    On::Native.suspend(subscriber, provider);
}

fn refused(here: &Server, sql: &str) -> CallFailed {
    here.sql_error(sql)
}

#[test]
fn recovery_brings_only_the_part_that_is_asked_for() {
    let cluster = mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    suspend(n2, n1);
    let mut ends = vec![];
    for i in 1..=4 {
        n1.sql(&format!("INSERT INTO debit VALUES ({i}, {i})"));
        n3.wait_for("SELECT count(*) FROM debit", &i.to_string());
        ends.push(n3.value(
            "SELECT remote_lsn FROM pg_replication_origin_status o JOIN pg_subscription s ON o.external_id = 'pg_' || s.oid WHERE subname = 'sub_n1_n3'",
        ));
    }
    let third = n3.value("SELECT pg_xact_commit_timestamp(xmin) FROM debit WHERE id = 3");
    n1.crash();
    let with = |more: &str| call("n1", Some(n3), Some(n2), more);
    assert_failed(
        &refused(n2, &with(", skip_lsn := '0/1'")),
        "22023",
        "argument skip_lsn is 0/1, but node \"n2\" has applied up to",
        "give a later position of the failed node",
    );
    assert_failed(
        &refused(n2, &with(", stop_lsn := 'FF/FF'")),
        "22023",
        "argument stop_lsn is FF/FF, but node \"n3\" has only up to",
        "Leave it null for all that the source has.",
    );
    assert_failed(
        &refused(n2, &with(", stop_lsn := '0/2'")),
        "22023",
        "argument stop_lsn is 0/2, which is not after",
        "Leave it null for all that the source has.",
    );
    let ids = |node: &Server| node.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM debit");
    let bring = |more: &str| {
        n2.call(&with(more))
            .unwrap_or_else(|failed| panic!("{failed}"));
        ids(n2)
    };
    assert_eq!(bring(&format!(", stop_lsn := '{}'", ends[0])), "1");
    // The second is given up.
    assert_eq!(
        bring(&format!(
            ", skip_lsn := '{}', stop_timestamp := '{third}'",
            ends[1]
        )),
        "1 3"
    );
    assert_eq!(bring(""), "1 3 4");
    assert_eq!(ids(n3), "1 2 3 4");
}

/// What the slot of `node` holds of the WAL, in bytes.
fn retained(node: &Server) -> i64 {
    let text = node.value("SELECT DISTINCT retained_bytes FROM zodan.recovery_status");
    text.parse()
        .unwrap_or_else(|_| panic!("retained_bytes is {text:?}"))
}

#[test]
fn recovery_slot_retains_no_more_than_is_needed() {
    let cluster = mesh(3);
    let n2 = cluster.n(2);
    for node in cluster.all() {
        node.sql("INSERT INTO journal SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i");
    }
    wait_quiet(&cluster.all());
    let place = n2.value("SELECT pg_current_wal_lsn()");
    // Logical decoding gives WAL up when it meets a list of running transactions.
    for _ in 0..3 {
        let before = n2.value("SELECT confirmed_flush_lsn FROM zodan.recovery_status LIMIT 1");
        n2.sql("SELECT pg_log_standby_snapshot(); INSERT INTO debit SELECT coalesce(max(id), 0) + 1, 0 FROM debit");
        n2.wait_for(
            &format!(
                "SELECT bool_and(confirmed_flush_lsn > '{before}') FROM zodan.recovery_status"
            ),
            "t",
        );
    }
    n2.wait_for(
        &format!("SELECT bool_and(restart_lsn >= '{place}') FROM zodan.recovery_status"),
        "t",
    );
    assert!(retained(n2) < 1 << 20, "{} bytes", retained(n2));
}

/// Waits until the server has logged it.
fn wait_log(server: &Server, text: &str) {
    let deadline = std::time::Instant::now() + lab::server::PATIENCE;
    while !server.log().contains(text) {
        assert!(
            std::time::Instant::now() < deadline,
            "{text:?} is not in the log of {}",
            server.name()
        );
        std::thread::sleep(common::POLL);
    }
}

#[test]
fn recovery_slot_over_its_limit_is_advanced_with_a_warning() {
    let cluster = form(3, &options().set("zodan.recovery_slot_max_wal", "4MB"));
    keep(&cluster.all());
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    suspend(n2, n1);
    n1.sql(
        "INSERT INTO journal SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i",
    );
    n3.wait_for("SELECT count(*) FROM journal", "20000");
    n3.wait_for(
        "SELECT count(*) FROM zodan.recovery_status WHERE gap_since IS NOT NULL",
        "2",
    );
    wait_log(n3, "WARNING:  zodan: slot spk_recovery_");
    wait_log(n3, "more than zodan.recovery_slot_max_wal");
    // What it holds comes down later; until then it is not said again at every look.
    n3.sql("SELECT pg_sleep(3)");
    let told = n3.log();
    let told = told
        .matches("more than zodan.recovery_slot_max_wal")
        .count();
    assert_eq!(told, 1);
    n1.crash();
    let compared = recover(n2, "n1");
    let said = compared.notices.iter().any(|n| {
        n.message.contains("their contents are compared: cannot recover from the slot of node \"n3\": it has the transactions after ")
    });
    assert!(said, "{compared:?}");
    assert_same_content(&[n2, n3]);
}

/// What the function finds, and what the procedures say when they are asked to look.
#[test]
fn verify_nodes_finds_rows_that_differ() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(1, 500) i");
    n1.sql("INSERT INTO journal VALUES (1, 'a'), (1, 'a')");
    wait_quiet(&cluster.all());
    let all = "SELECT concat_ws('|', table_name, reference_node, node, missing_rows, extra_rows, different_rows, keys)
                 FROM spock.verify_nodes() ORDER BY 1";
    let found = |node: &Server| {
        let rows = node.rows(all).into_iter().flatten().flatten();
        rows.collect::<Vec<String>>()
    };
    let load = Load::start(&cluster.all());
    load.wait_commits(10);
    assert_eq!(found(n2), Vec::<String>::new(), "while all write");
    assert!(load.stop().failures.is_empty());
    // What replication does not send on.
    n3.sql(
        "BEGIN; SELECT zodan.unreplicated(); DELETE FROM crash_test WHERE id IN (7, 8);
            INSERT INTO crash_test VALUES (1000); UPDATE crash_test SET data = NULL WHERE id = 9;
            INSERT INTO journal VALUES (1, 'a'); COMMIT",
    );
    assert_eq!(
        found(n1),
        [
            r#""public"."crash_test"|n1|n3|2|1|1|{(1000),(7),(8),(9)}"#,
            r#""public"."journal"|n1|n3|0|1|0|{"(1,a) (no. 3)"}"#,
        ]
    );
    suspend(n2, n1);
    n1.sql("INSERT INTO debit VALUES (1, 1)");
    n3.wait_for("SELECT count(*) FROM debit", "1");
    n1.crash();
    let recovered = n2
        .call(&call("n1", None, Some(n2), ", verify := true"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    // What a survivor deleted so looks like what n1 deleted. What it wrote so is nobody's.
    assert_eq!(
        recovered.warnings(),
        [
            r#"3 rows differ between node "n3" and node "n2", and are left alone, since no member of the cluster has written them: "public"."crash_test" (1000), "public"."crash_test" (9), "public"."journal" (1,a) (no. 3)"#,
            r#"table "public"."crash_test" of node "n3" is not that of node "n2": 0 rows missing, 1 too many, 1 different, among them (1000) (9)"#,
            r#"table "public"."journal" of node "n3" is not that of node "n2": 0 rows missing, 1 too many, 0 different, among them (1,a) (no. 3)"#,
        ]
    );
}

/// A table that one survivor has dropped does not keep the others from being compared, and brought over.
#[test]
fn table_that_a_survivor_lacks_is_reported() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO journal VALUES (1, 'a'), (1, 'a')");
    wait_quiet(&cluster.all());
    n2.sql("DROP TABLE journal");
    let lack = "node \"n2\" lacks table \"public\".\"journal\", which node \"n3\" has";
    let asked = n3.call("SELECT concat_ws('|', table_name, node, missing_rows, extra_rows, different_rows, keys) FROM spock.verify_nodes()");
    let asked = asked.unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(asked.warnings(), [lack]);
    let told = asked.notices.iter().find(|n| n.message == lack);
    assert_eq!(told.map(|n| n.code.as_str()), Some("42P01"));
    assert_eq!(
        asked.rows,
        [[Some(r#""public"."journal"|n2|2|0|0|{}"#.to_owned())]]
    );
    suspend(n2, n1);
    n1.sql("INSERT INTO debit VALUES (1, 1)");
    n3.wait_for("SELECT count(*) FROM debit", "1");
    n1.crash();
    let recovered = recover(n2, "n1");
    assert!(recovered.warnings().contains(&lack), "{recovered:?}");
    assert_eq!(n2.value("SELECT count(*) FROM debit"), "1");
}

#[test]
fn join_with_verify_compares_the_contents() {
    let cluster = Cluster::start_with(2, &options());
    cluster.form_mesh(1, &format!("{CONTENT}{}", load::SCHEMA));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(1, 500) i");
    let call = lab::cluster::add_node_call(n2, "n2", n1, "n1")
        .replace("new_node_dsn", "verify := true, new_node_dsn");
    let load = Load::start(&[n1]);
    let joined = n2.call(&call).unwrap_or_else(|failed| panic!("{failed}"));
    assert!(load.stop().failures.is_empty());
    assert!(
        joined
            .notices
            .iter()
            .any(|n| n.message == "node \"n2\" has the same content as node \"n1\""),
        "{joined:?}"
    );
}

/// A row that the failed node deleted, and that a survivor that did not know has changed since.
#[test]
fn rows_that_cannot_be_resolved_are_listed() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i");
    wait_quiet(&cluster.all());
    suspend(n2, n1);
    n1.sql("DELETE FROM crash_test WHERE id < 3");
    n3.wait_for("SELECT count(*) FROM crash_test", "1");
    n1.crash();
    n2.sql("UPDATE crash_test SET data = 'kept' WHERE id = 2");
    let compared = recover(n2, "n1");
    let warning = compared
        .notices
        .iter()
        .find(|n| n.severity == "WARNING")
        .unwrap_or_else(|| panic!("{compared:?}"));
    assert_eq!(
        warning.message,
        "1 rows differ between node \"n3\" and node \"n2\", and they cannot be resolved automatically: \"public\".\"crash_test\" (2)"
    );
    assert_eq!(
        n2.value("SELECT string_agg(id || data, ' ' ORDER BY id) FROM crash_test"),
        "2kept 3old"
    );
}

#[test]
fn preloaded_library_keeps_recovery_slots_by_itself() {
    let cluster = Cluster::start_with(2, &options().set("shared_preload_libraries", "zodan"));
    cluster.form_mesh(2, CONTENT);
    wait_protected(&cluster.all());
    let n2 = cluster.n(2);
    let worker = n2.value("SELECT worker_pid FROM zodan.recovery_status");
    assert_eq!(n2.value("SELECT zodan.start_node_worker()"), worker);
    n2.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n2.wait_for("SELECT count(*) FROM pg_replication_slots", "0");
    n2.wait_for("SELECT count(*) FROM zodan.recovery_slot", "0");
    let failed = n2.sql_error("SELECT zodan.start_node_worker()");
    assert_failed(
        &failed,
        "55000",
        "the database is not a cluster node",
        "Add it to one first.",
    );
}

const STAY_AWAY: &str =
    "keep its server stopped until CALL spock.recover_run('n1') has come to its end";

/// Ends the comparison when it has brought what it can, and has not said so.
fn interrupt_comparison(here: &Server, point: &str, how: impl Fn(&Running)) -> Option<CallFailed> {
    let (hang, running) = Hang::start(here, "", point, &call("n1", None, None, ""));
    how(&running);
    let failed = running.join().expect_err("it was interrupted");
    hang.release();
    wait_no_sessions(&[here]);
    (failed.code() != "").then_some(failed)
}

#[test]
fn interrupted_comparison_is_finished_by_the_next_call() {
    for (point, again) in [
        ("within the differences are applied", 2),
        ("within the progress is moved", 3),
    ] {
        let cluster = mesh_without_slots(3);
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        crash_with_unequal_survivors(On::Native, &cluster);
        On::Native.resume(n2, n1);
        n2.sql("INSERT INTO crash_test VALUES (5002, 'of n2', NULL)");
        interrupt_comparison(n2, point, |running| {
            n2.sql(&format!(
                "SELECT pg_terminate_backend({}, 10000)",
                running.pid
            ));
        });
        // What a survivor does in between stays.
        n3.sql("UPDATE crash_test SET data = 'of n3' WHERE id = 21");
        n2.sql("DELETE FROM crash_test WHERE id = 22");
        recover(cluster.n(again), "n1");
        wait_quiet(&[n2, n3]);
        assert_same_content(&[n2, n3]);
        assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "90");
        assert_eq!(n2.value("SELECT string_agg(what, '') FROM journal"), "bb");
        assert_eq!(
            n2.value("SELECT data FROM crash_test WHERE id = 21"),
            "of n3"
        );
        assert_nothing_held(&[n2, n3]);
        n1.boot();
        wait_quiet(&[n1, n2, n3]);
        assert_same_content(&[n1, n2, n3]);
    }
}

/// What was brought the failed node sends again. It is told, and mended by the CALL while that node is stopped.
#[test]
fn interrupted_comparison_of_a_node_that_is_back_is_reported() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    crash_with_unequal_survivors(On::Native, &cluster);
    On::Native.resume(n2, n1);
    let point = "within the differences are applied";
    let failed = interrupt_comparison(n2, point, Running::cancel).expect("its word");
    assert_eq!(failed.code(), "57014", "{failed}");
    assert!(failed.hint().contains(STAY_AWAY), "{failed}");
    let state = "SELECT concat_ws(' ', state, last_error) FROM spock.cluster_status() WHERE provider = 'n1' AND subscriber = 'n2'";
    let interrupted =
        "a recovery by comparison was interrupted: stop \"n1\" and CALL spock.recover_run('n1')";
    let told = n3.value(state);
    assert!(told.contains(interrupted), "{told}");

    n1.boot();
    n2.wait_for(
        "SELECT apply_error_count > 0 FROM pg_stat_subscription_stats WHERE subname = 'sub_n1_n2'",
        "t",
    );
    let told = n1.value(state);
    assert!(told.contains(interrupted), "{told}");
    let living = "node \"n1\" is alive: it answers";
    assert_failed(
        &refused(n3, "CALL spock.recover_run('n1')"),
        "55006",
        living,
        STAY_AWAY,
    );
    n1.sql("INSERT INTO crash_test VALUES (5001, 'of n1', NULL)");
    n3.wait_for("SELECT count(*) FROM crash_test WHERE id = 5001", "1");

    n1.stop();
    recover(n3, "n1");
    assert_nothing_held(&[n2, n3]);
    n1.boot();
    n1.sql("INSERT INTO crash_test VALUES (5003, 'of n1', NULL)");
    wait_quiet(&[n1, n2, n3]);
    assert_same_content(&[n1, n2, n3]);
    assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "92");
}

/// Of a transaction that ends between its last statement and its COMMIT nothing stays, its position neither: it is
/// brought by the next call.
#[test]
fn progress_of_an_origin_moves_with_a_commit_only() {
    let cluster = mesh(2);
    let n1 = cluster.n(1);
    n1.sql("SELECT pg_replication_origin_create('test')");
    let begin = "SELECT pg_replication_origin_session_setup('test')";
    let change = |id: u32| {
        format!(
            "BEGIN; INSERT INTO scratch VALUES ({id});
             SELECT zodan.commit_position('0/{id}', timestamptz '2001-02-03 04:05:06+00')"
        )
    };
    let progress = || {
        n1.value(
            "SELECT coalesce(pg_replication_origin_progress('test', false)::text, 'none') || ' ' || (SELECT count(*) FROM scratch)",
        )
    };
    let mut session = n1.client();
    session.batch_execute(begin).unwrap();
    session.batch_execute(&change(10)).unwrap();
    session.batch_execute("COMMIT").unwrap();
    assert_eq!(progress(), "0/10 1");
    session.batch_execute(&change(20)).unwrap();
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(progress(), "0/10 1");
    // A later one does not take what was set for that.
    session
        .batch_execute("BEGIN; INSERT INTO scratch VALUES (25); COMMIT")
        .unwrap();
    assert_eq!(progress(), "0/10 2");
    session.batch_execute(&change(30)).unwrap();
    drop(session);
    n1.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'",
        "0",
    );
    assert_eq!(progress(), "0/10 2");
    let written =
        "SELECT pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC' FROM scratch WHERE id = 10";
    assert_eq!(n1.value(written), "2001-02-03 04:05:06");
    let failed = n1.sql_error("SELECT zodan.commit_position('0/1', now())");
    assert_failed(
        &failed,
        "55000",
        "no replication origin is set up in this session",
        "pg_replication_origin_session_setup",
    );
}
