//! A node of a Spock cluster died, and its survivors are made equal.

mod common;

use common::assert_failed;
use common::recovery::{self, Victim, killed_in_the_middle, killed_under_load, on_spock, remove};
use lab::{Server, assert_same_content, quote_literal, wait_quiet};

fn assert_equal(nodes: &[&Server]) {
    wait_quiet(nodes);
    assert_same_content(nodes);
}

/// n1 dies when n3 has 90 of its rows and n2 has 20.
#[test]
fn survivors_are_made_equal_by_the_papers_statements() {
    let Some(on) = on_spock() else { return };
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 20) i");
    for node in [n2, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "20");
    }
    on.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(21, 91) i");
    n1.sql("UPDATE crash_test SET data = 'it''s \\ changed' WHERE id IN (3, 33)");
    n1.sql("DELETE FROM crash_test WHERE id = 50");
    n1.sql(
        "BEGIN; INSERT INTO debit VALUES (1, 7); INSERT INTO credit (amount) VALUES (7); COMMIT",
    );
    n3.wait_for("SELECT count(*) FROM credit", "1");
    n1.crash();
    let failed = n2.sql_error("CALL spock.remove_node('n1')");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\" lacks transactions of \"n1\" that node \"n3\" has",
        "CALL spock.recover_run(failed_node_name := 'n1', source_node_name := 'n3', ...)",
    );
    // Nothing had been done.
    let told: Vec<&str> = failed.notices.iter().map(|n| n.message.as_str()).collect();
    assert!(!told.iter().any(|t| t.contains("undoing")), "{told:?}");
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
    let Some(on) = on_spock() else { return };
    let cluster = on.mesh_without_slots(3);
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
    on.suspend(n2, n1);
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
            == "copied 72 rows to node \"n2\" and deleted 1 there, by comparison with node \"n3\""),
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
fn ten_times_three_nodes_under_load() {
    let Some(on) = on_spock() else { return };
    for seed in 0..10 {
        killed_under_load(on, &on.mesh(3), 3, seed);
    }
}

#[test]
fn ten_times_five_nodes_under_load() {
    let Some(on) = on_spock() else { return };
    for seed in 10..20 {
        killed_under_load(on, &on.mesh(5), 5, seed);
    }
}

#[test]
fn ten_times_three_nodes_under_load_by_comparison() {
    let Some(on) = on_spock() else { return };
    for seed in 20..30 {
        killed_under_load(on, &on.mesh_without_slots(3), 3, seed);
    }
}

#[test]
fn ten_times_five_nodes_under_load_by_comparison() {
    let Some(on) = on_spock() else { return };
    for seed in 30..40 {
        killed_under_load(on, &on.mesh_without_slots(5), 5, seed);
    }
}

#[test]
fn later_changes_of_a_survivor_stay() {
    let Some(on) = on_spock() else { return };
    recovery::later_changes_of_a_survivor_stay(on);
}

#[test]
fn no_transaction_is_torn() {
    let Some(on) = on_spock() else { return };
    recovery::no_transaction_is_torn(on);
}

#[test]
fn what_is_killed_in_the_middle_is_finished_by_the_next_call() {
    let Some(on) = on_spock() else { return };
    for victim in [Victim::Backend, Victim::Target, Victim::Source] {
        killed_in_the_middle(on, victim);
    }
}

#[test]
fn what_is_interrupted_before_its_end_is_finished_from_another_node() {
    let Some(on) = on_spock() else { return };
    recovery::interrupted_before_its_end(on);
}

#[test]
fn a_truncate_takes_what_it_took_on_the_source() {
    let Some(on) = on_spock() else { return };
    recovery::truncate_takes_what_it_took_on_the_source(on);
}

#[test]
fn two_nodes_died_and_nobody_has_all() {
    let Some(on) = on_spock() else { return };
    for how in recovery::TWICE {
        recovery::two_nodes_died(on, how);
    }
}

#[test]
fn a_living_node_is_refused_and_equal_survivors_are_left_alone() {
    let Some(on) = on_spock() else { return };
    recovery::living_and_equal(on);
}

#[test]
fn a_removal_lets_go_of_what_a_recovery_holds() {
    let Some(on) = on_spock() else { return };
    recovery::removal_lets_go(on);
}

#[test]
fn a_recovery_that_was_interrupted_lets_go_where_the_node_has_come_back() {
    let Some(on) = on_spock() else { return };
    recovery::interrupted_and_it_came_back(on);
}

/// What a replay needs for its progress the extension has.
#[test]
fn a_target_without_the_extension_is_refused() {
    let Some(on) = on_spock() else { return };
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    on.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test VALUES (1, 'row', NULL)");
    n3.wait_for("SELECT count(*) FROM crash_test", "1");
    n2.sql("DROP EXTENSION zodan");
    n1.crash();
    assert_failed(
        &n3.sql_error("CALL spock.recover_run('n1')"),
        "42704",
        "node \"n2\" does not have the extension zodan, without which an interrupted recovery could lose a transaction there",
        "Run CREATE EXTENSION zodan there.",
    );
    n2.sql("CREATE EXTENSION zodan");
    recovery::recover(n3, "n1");
    assert_equal(&[n2, n3]);
}
