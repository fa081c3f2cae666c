//! A node leaves a Spock cluster, alive or dead, called on itself or on another; a node that died is recovered from
//! first, where its survivors have different parts of what it wrote.

mod common;

use common::{Running, assert_failed, wait_no_sessions};
use lab::load::LoadOptions;
use lab::spock::{self, Mesh};
use lab::{
    Called, Cluster, Load, Server, add_node, assert_same_content, load, quote_literal, wait_quiet,
};
use std::time::Duration;

const CONTENT: &str = "
CREATE TABLE crash_test (id int PRIMARY KEY, data text, big text);
CREATE TABLE pair_a (id int PRIMARY KEY, amount int);
CREATE TABLE pair_b (id int PRIMARY KEY, amount int);
";

/// A mesh of `members`, and one server more; `None` without Spock.
fn mesh(members: usize) -> Option<Cluster> {
    spock::announced()?;
    let content = format!("{}{CONTENT}", load::SCHEMA);
    let mesh = Mesh {
        content: &content,
        settings: &[
            ("wal_retrieve_retry_interval", "100ms"),
            ("max_worker_processes", "40"),
        ],
        ..Mesh::default()
    };
    let cluster = mesh.start(members);
    for node in cluster.all() {
        node.sql("CREATE EXTENSION IF NOT EXISTS zodan");
    }
    Some(cluster)
}

fn remove(here: &Server, target: &str) -> Called {
    here.call(&format!(
        "CALL spock.remove_node({})",
        quote_literal(target)
    ))
    .unwrap_or_else(|failed| panic!("{failed}"))
}

/// Panics if anything on `server` names the node.
fn assert_forgotten(server: &Server, gone: &str, members: usize) {
    wait_no_sessions(&[server]);
    for (what, query) in [
        (
            "subscriptions",
            "SELECT string_agg(sub_name, ' ') FROM spock.subscription WHERE sub_name ~ '_NODE(_|$)'",
        ),
        (
            "slots",
            "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name ~ '_NODE(_|$)'",
        ),
        (
            "origins",
            "SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname ~ '_NODE(_|$)'",
        ),
        (
            "nodes",
            "SELECT string_agg(node_name, ' ') FROM spock.node WHERE node_name = 'NODE'",
        ),
        (
            "interfaces",
            "SELECT string_agg(if_name, ' ') FROM spock.node_interface WHERE if_name = 'NODE'",
        ),
        (
            "advisory locks",
            "SELECT string_agg(l::text, ' ') FROM pg_locks l WHERE locktype = 'advisory' AND 'NODE' <> ''",
        ),
    ] {
        server.wait_for(&query.replace("NODE", gone), "");
        assert_eq!(server.value(&query.replace("NODE", gone)), "", "{what}");
    }
    let paths = (members - 1).to_string();
    server.wait_for("SELECT count(*) FROM spock.subscription", &paths);
    server.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'spock_output' AND slot_name NOT LIKE 'spk_recovery%'",
        &paths,
    );
    server.wait_for("SELECT count(*) FROM pg_replication_origin", &paths);
}

fn assert_left(server: &Server) {
    wait_no_sessions(&[server]);
    let what = "SELECT concat_ws(' ',
            (SELECT string_agg(sub_name, ' ') FROM spock.subscription),
            (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots),
            (SELECT string_agg(roname, ' ') FROM pg_replication_origin),
            (SELECT string_agg(node_name, ' ') FROM spock.node),
            (SELECT string_agg(s::text, ' ') FROM pg_db_role_setting s))";
    assert_eq!(server.value(what), "");
}

fn assert_equal(nodes: &[&Server]) {
    wait_quiet(nodes);
    assert_same_content(nodes);
}

#[test]
fn ten_removals_of_a_living_node_under_load() {
    for run in 0..10 {
        let Some(cluster) = mesh(4) else { return };
        let members = cluster.first(4);
        let load = Load::start_with(
            &members,
            &LoadOptions {
                writers: 2,
                rate: Some(100),
            },
        );
        load.wait_commits(30);
        remove(cluster.n(1 + run % 4), "n4");
        let report = load.stop();
        for failure in &report.failures {
            assert_eq!(failure.node, "n4", "{report}");
        }
        let rest = cluster.first(3);
        assert_equal(&rest);
        for node in &rest {
            report.assert_present_on(node);
            assert_forgotten(node, "n4", 3);
        }
        assert_left(cluster.n(4));
        cluster
            .n(4)
            .sql("INSERT INTO crash_test VALUES (1, 'late', NULL)");
    }
}

#[test]
fn an_idle_node_leaves_at_once() {
    let Some(cluster) = mesh(4) else { return };
    let removed = remove(cluster.n(2), "n4");
    assert!(removed.elapsed < Duration::from_secs(2), "{removed:?}");
}

#[test]
fn a_killed_node_is_removed_from_any_survivor() {
    for here in 1..=3 {
        let Some(cluster) = mesh(4) else { return };
        let members = cluster.first(4);
        let load = Load::start(&members);
        load.wait_commits(20);
        let report = load.stop();
        assert!(report.failures.is_empty(), "{report}");
        wait_quiet(&members);
        cluster.n(4).crash();
        remove(cluster.n(here), "n4");
        let rest = cluster.first(3);
        assert_equal(&rest);
        for node in rest {
            assert_forgotten(node, "n4", 3);
        }
        // It comes back, still thinking that it is a node.
        cluster.n(4).boot();
        remove(cluster.n(4), "n4");
        assert_left(cluster.n(4));
    }
}

/// Drops what was copied, so that the node can be added again.
fn empty(server: &Server) {
    let tables = "SELECT string_agg(format('DROP SCHEMA %I CASCADE', nspname), '; ')
                    FROM pg_namespace WHERE nspname IN ('load', 'lab')";
    server.sql("SET spock.enable_ddl_replication = off; DROP TABLE crash_test, pair_a, pair_b");
    let drop = server.value(tables);
    server.sql(&format!("SET spock.enable_ddl_replication = off; {drop}"));
}

fn join(cluster: &Cluster, number: usize) {
    let new = cluster.n(number);
    add_node(new, new.name(), cluster.n(1), "n1").unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn up_to_four_nodes_and_back_to_one_and_up_again() {
    let Some(mut cluster) = mesh(1) else { return };
    for name in ["n3", "n4"] {
        spock::grow(&mut cluster, name);
    }
    for number in 2..=4 {
        join(&cluster, number);
        assert_equal(&cluster.first(number));
    }
    for number in [4, 3, 2] {
        let here = if number == 3 { 3 } else { 1 };
        remove(cluster.n(here), &format!("n{number}"));
        assert_left(cluster.n(number));
        assert_forgotten(cluster.n(1), &format!("n{number}"), number - 1);
    }
    empty(cluster.n(2));
    join(&cluster, 2);
    assert_equal(&cluster.first(2));
    remove(cluster.n(1), "n2");
    remove(cluster.n(1), "n1");
    assert_left(cluster.n(1));
}

#[test]
fn the_same_name_can_be_added_again_three_times() {
    let Some(cluster) = mesh(2) else { return };
    for round in 0..3 {
        join(&cluster, 3);
        cluster.n(3).sql(&format!(
            "INSERT INTO crash_test VALUES ({round}, 'x', NULL)"
        ));
        assert_equal(&cluster.all());
        remove(cluster.n(1 + round % 3), "n3");
        empty(cluster.n(3));
    }
    assert_eq!(cluster.n(2).value("SELECT count(*) FROM crash_test"), "3");
}

#[test]
fn what_is_not_this_clusters_node_is_not_touched() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n4] = [1, 2, 4].map(|i| cluster.n(i));
    let refused = |target: &str, dsn: &str| {
        n1.sql_error(&format!(
            "CALL spock.remove_node({}, {})",
            quote_literal(target),
            quote_literal(dsn)
        ))
    };
    assert_failed(
        &n1.sql_error("CALL spock.remove_node('n9')"),
        "42704",
        "argument target_node_name is \"n9\", which is no node of this cluster and has left nothing in it",
        "The nodes are: n1, n2, n3.",
    );
    assert_failed(
        &refused("n3", &n2.dsn()),
        "22023",
        "argument target_node_dsn leads to node \"n2\", not to \"n3\"",
        "Give the connection string of \"n3\".",
    );
    n4.sql(&format!(
        "SELECT spock.node_create('n3', {})",
        quote_literal(&n4.dsn())
    ));
    assert_failed(
        &refused("n3", &n4.dsn()),
        "22023",
        "argument target_node_dsn leads to another node \"n3\" than this cluster's",
        "Give the connection string of \"n3\".",
    );
    cluster.n(3).crash();
    assert_failed(
        &refused("n3", &n4.dsn()),
        "22023",
        "argument target_node_dsn leads to another node \"n3\" than this cluster's",
        "Give the connection string of \"n3\".",
    );
}

/// What is owed to a member that is down is printed as the statements to run there.
#[test]
fn what_a_member_that_is_down_has_to_do_is_told() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2] = [1, 2].map(|i| cluster.n(i));
    n2.stop();
    let failed = n1.sql_error("CALL spock.remove_node('n3')");
    assert_failed(
        &failed,
        "08001",
        "node \"n2\": it cannot be reached, so nobody knows whether it has all of \"n3\"",
        "With force := true it is left out",
    );
    let forced = n1
        .call("CALL spock.remove_node('n3', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = forced
        .notices
        .iter()
        .find(|n| n.message == "node \"n2\" still has to forget \"n3\"")
        .unwrap_or_else(|| panic!("{forced:?}"));
    let statements = told
        .hint
        .as_deref()
        .unwrap_or_default()
        .split_once("Run there when it can be reached: ")
        .unwrap_or_else(|| panic!("{told}"))
        .1;
    n2.boot();
    for statement in statements.split_inclusive(';') {
        n2.sql(statement);
    }
    assert_forgotten(n1, "n3", 2);
    assert_forgotten(n2, "n3", 2);
    assert_left(cluster.n(3));
}

#[test]
fn a_half_added_node_is_removed_from_a_member_and_from_itself() {
    for here in [2, 4] {
        let Some(cluster) = mesh(3) else { return };
        let n4 = cluster.n(4);
        let slots = "SELECT count(*) FROM pg_replication_slots";
        let mut held = cluster.n(1).client_named("holder");
        held.batch_execute("BEGIN; SELECT pg_current_xact_id()")
            .expect("open a write transaction");
        let call = lab::cluster::add_node_call(n4, "n4", cluster.n(1), "n1");
        let join = Running::start(n4, &call);
        join.wait_notice("waiting for a write transaction on node \"n1\"");
        n4.sql(&format!("SELECT pg_terminate_backend({}, 10000)", join.pid));
        join.ends_terminated();
        held.batch_execute("ROLLBACK").expect("end it");
        wait_no_sessions(&cluster.all());
        assert_eq!(cluster.n(2).value(slots), "3");
        cluster
            .n(here)
            .call(&format!(
                "CALL spock.remove_node('n4', {})",
                quote_literal(&n4.dsn())
            ))
            .unwrap_or_else(|failed| panic!("{failed}"));
        for node in cluster.first(3) {
            assert_forgotten(node, "n4", 3);
        }
        join_again(&cluster);
    }
}

fn join_again(cluster: &Cluster) {
    join(cluster, 4);
    assert_equal(&cluster.all());
}

/// From now on `subscriber` gets nothing from `provider`.
fn suspend(subscriber: &Server, provider: &Server) {
    let name = format!("sub_{}_{}", provider.name(), subscriber.name());
    subscriber.sql(&format!("SELECT spock.sub_disable('{name}', true)"));
    subscriber.wait_for(
        &format!("SELECT status FROM spock.sub_show_status('{name}')"),
        "disabled",
    );
    let slot = format!("SELECT sub_slot_name FROM spock.subscription WHERE sub_name = '{name}'");
    let slot = subscriber.value(&slot);
    provider.wait_for(
        &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        "f",
    );
}

fn keep(nodes: &[&Server]) {
    for node in nodes {
        node.sql("SELECT zodan.keep_recovery_slot()");
    }
    for node in nodes {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE protected_from IS NOT NULL",
            &(nodes.len() - 1).to_string(),
        );
    }
}

/// n1 dies when n3 has 90 of its rows and n2 has 20.
#[test]
fn survivors_are_made_equal_by_the_papers_statements() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    keep(&cluster.first(3));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 20) i");
    for node in [n2, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "20");
    }
    suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(21, 91) i");
    n1.sql("UPDATE crash_test SET data = 'it''s \\ changed' WHERE id IN (3, 33)");
    n1.sql("DELETE FROM crash_test WHERE id = 50");
    n1.sql("BEGIN; INSERT INTO pair_a VALUES (1, 7); INSERT INTO pair_b VALUES (1, 7); COMMIT");
    n3.wait_for("SELECT count(*) FROM pair_b", "1");
    n1.crash();
    let failed = n2.sql_error("CALL spock.remove_node('n1')");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\" lacks transactions of \"n1\" that node \"n3\" has",
        "CALL spock.recover_run(failed_node_name := 'n1', source_node_name := 'n3', ...)",
    );
    n2.call(&format!(
        "CALL spock.recover_run(failed_node_name := 'n1', source_node_name := 'n3', source_dsn := {},
             target_node_name := 'n2', target_dsn := {}, stop_lsn := NULL, skip_lsn := NULL,
             stop_timestamp := NULL, verb := true)",
        quote_literal(&n3.dsn()),
        quote_literal(&n2.dsn())
    ))
    .unwrap_or_else(|failed| panic!("{failed}"));
    assert_same_content(&[n2, n3]);
    assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "90");
    let times = "SELECT string_agg(id || ' ' || pg_xact_commit_timestamp(xmin), ',' ORDER BY id) FROM crash_test";
    assert_eq!(n2.value(times), n3.value(times));
    remove(n3, "n1");
    for node in [n2, n3] {
        node.sql(&format!(
            "INSERT INTO crash_test VALUES (2000 + {}, 'after', NULL)",
            node.port()
        ));
    }
    assert_equal(&[n2, n3]);
}

/// Nobody kept anything: the contents are compared, and a table in no replication set is each node's own.
#[test]
fn survivors_are_made_equal_by_comparison() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    for node in [n2, n3] {
        node.sql(&format!(
            "SET spock.enable_ddl_replication = off; CREATE TABLE own (id int PRIMARY KEY);
             INSERT INTO own VALUES ({})",
            node.port()
        ));
    }
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(1, 20) i");
    for node in [n2, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "20");
    }
    suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(21, 91) i");
    n1.sql("UPDATE crash_test SET data = 'changed' WHERE id IN (3, 33)");
    n1.sql("DELETE FROM crash_test WHERE id = 5");
    n3.wait_for("SELECT count(*) FROM crash_test", "90");
    n1.crash();
    n2.sql("INSERT INTO crash_test VALUES (5002, 'of n2', NULL)");
    let compared = n3
        .call("CALL spock.recover_run('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        compared.notices.iter().any(|n| n.message
            == "node \"n2\" has got 72 rows and lost 1 by comparison with node \"n3\""),
        "{compared:?}"
    );
    assert!(
        !compared.notices.iter().any(|n| n.severity == "WARNING"),
        "{compared:?}"
    );
    for node in [n2, n3] {
        assert_eq!(
            node.value("SELECT string_agg(id::text, ' ') FROM own"),
            node.port().to_string()
        );
        node.sql("SET spock.enable_ddl_replication = off; DROP TABLE own");
    }
    assert_equal(&[n2, n3]);
    remove(n2, "n1");
    assert_eq!(n2.rows("SELECT * FROM spock.verify_nodes()").len(), 0);
}

#[test]
fn five_times_killed_under_load_and_recovered() {
    for run in 0..5 {
        let Some(cluster) = mesh(3) else { return };
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        keep(&cluster.first(3));
        let rate = LoadOptions {
            writers: 1,
            rate: Some(100),
        };
        let doomed = Load::start_with(&[n1], &rate);
        let living = Load::start_with(&[n2, n3], &rate);
        doomed.wait_commits(10 + 5 * run);
        suspend([n2, n3][run as usize % 2], n1);
        doomed.wait_commits(20);
        n1.crash();
        drop(doomed.stop());
        living.wait_commits(5);
        n2.call("CALL spock.recover_run('n1')")
            .unwrap_or_else(|failed| panic!("{failed}"));
        living.wait_commits(5);
        let report = living.stop();
        assert!(report.failures.is_empty(), "{report}");
        assert_equal(&[n2, n3]);
        for node in [n2, n3] {
            report.assert_present_on(node);
        }
        remove(n2, "n1");
        assert_forgotten(n3, "n1", 2);
    }
}
