//! Recovery on Spock: what its replication sets leave out, and what it needs of the extension.

mod common;

use common::assert_failed;
use common::engines::On;
use common::recovery::{crash_with_all_on_disk, recover, remove};
use common::removal::remove_by_force;
use lab::{Cluster, Server, add_node, assert_same_content, spock, wait_quiet};

fn assert_equal(nodes: &[&Server]) {
    wait_quiet(nodes);
    assert_same_content(nodes);
}

/// Nobody kept anything: the contents are compared, and a table in no replication set is each node's own.
#[test]
fn comparison_leaves_tables_of_no_replication_set_alone() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = On::Spock.mesh_without_slots(3);
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
    On::Spock.suspend(n2, n1);
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

/// What a replay needs for its progress the extension has.
#[test]
fn recovery_is_refused_when_the_target_lacks_the_extension() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = On::Spock.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    On::Spock.suspend(n2, n1);
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
    recover(n3, "n1");
    assert_equal(&[n2, n3]);
}

/// n1 is dead. n2 has applied all of it, most of it after its last checkpoint, and has crashed too. n3 has less.
fn two_crashed() -> Option<Cluster> {
    spock::announced()?;
    let cluster = On::Spock.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let insert = |from: i32, to: i32, on: &[&Server]| {
        n1.sql(&format!(
            "INSERT INTO crash_test SELECT i, 'row', NULL FROM generate_series({from}, {to}) i"
        ));
        for node in on {
            node.wait_for("SELECT count(*) FROM crash_test", &to.to_string());
        }
    };
    insert(1, 10, &[n2, n3]);
    n2.sql("CHECKPOINT");
    insert(11, 20, &[n2, n3]);
    On::Spock.suspend(n3, n1);
    insert(21, 30, &[n2]);
    n1.crash();
    crash_with_all_on_disk(n2);
    n2.boot();
    assert_eq!(n2.value("SELECT count(*) FROM crash_test"), "30");
    wait_quiet(&[n2, n3]);
    Some(cluster)
}

/// Spock itself does not know it any more.
#[test]
fn recovery_takes_what_a_survivor_has_that_crashed_too() {
    let Some(cluster) = two_crashed() else {
        return;
    };
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    recover(n3, "n1");
    assert_eq!(n3.value("SELECT count(*) FROM crash_test"), "30");
    assert_equal(&[n2, n3]);
    remove(n2, "n1");
}

/// After one more start, nothing tells a position that the crash has left from one that a former node of the name has.
#[test]
fn recovery_is_refused_when_a_restart_hides_what_a_crash_has_left() {
    let Some(cluster) = two_crashed() else {
        return;
    };
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    n2.restart();
    wait_quiet(&[n2, n3]);
    for (call, hint) in [
        (
            "CALL spock.recover_run('n1')",
            "CALL spock.remove_node('n1', force := true)",
        ),
        ("CALL spock.remove_node('n1')", "go on with force := true"),
    ] {
        assert_failed(
            &n3.sql_error(call),
            "55000",
            "node \"n2\" has crashed and applied nothing of \"n1\" since, so it is unknown whether it has it up to ",
            hint,
        );
    }
    assert_eq!(n3.value("SELECT count(*) FROM crash_test"), "20");
    remove_by_force(n3, "n1");
}

/// The second node called n1 has a WAL that begins anew. n2 knows a position of the first from a crash; it is not what n2
/// has of the second.
#[test]
fn recovery_is_refused_when_a_crash_has_left_the_position_of_a_former_node() {
    if spock::announced().is_none() {
        return;
    }
    let mut cluster = On::Spock.mesh_without_slots(3);
    spock::grow(&mut cluster, "n4");
    let [first, n2, n3, second] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let insert = |on: &Server, id: i32| {
        on.sql(&format!(
            "INSERT INTO crash_test VALUES ({id}, 'row', NULL)"
        ));
    };
    let has = |node: &Server, id: i32| {
        let there = format!("SELECT count(*) FROM crash_test WHERE id = {id}");
        node.wait_for(&there, "1");
    };
    for id in 1..=4 {
        first.sql("SELECT pg_switch_wal()");
        insert(first, id);
    }
    has(n2, 4);
    crash_with_all_on_disk(n2);
    n2.boot();
    insert(first, 5);
    for node in [n2, n3] {
        has(node, 5);
    }
    first.crash();
    remove(n2, "n1");
    n2.restart();
    add_node(second, "n1", n2, "n2").unwrap_or_else(|failed| panic!("{failed}"));
    for node in [n2, n3, second] {
        node.sql("CHECKPOINT");
    }
    insert(second, 200);
    has(n2, 200);
    n2.sql("SELECT spock.sub_disable(sub_name, true) FROM spock.subscription WHERE sub_name ~ '^sub_n1_'");
    insert(second, 201);
    has(n3, 201);
    second.crash();
    crash_with_all_on_disk(n2);
    n2.boot();
    wait_quiet(&[n2, n3]);
    let failed = n3.sql_error("CALL spock.recover_run('n1')");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\" has crashed and applied nothing of \"n1\" since, so it is unknown whether it has it up to",
        "SELECT * FROM spock.verify_nodes() tells where the survivors differ.",
    );
    has(n3, 201);
}
