//! A node leaves a Spock cluster, alive or dead, called on itself or on another.

mod common;

use common::{Running, assert_failed, fingerprint, wait_no_sessions};
use lab::load::LoadOptions;
use lab::spock;
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
    spock::mesh(members, &format!("{}{CONTENT}", load::SCHEMA))
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
        "argument target_node_name is \"n9\", which is not a node of this cluster and has left nothing in it",
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
        "node \"n2\": it cannot be reached, so it is unknown whether it has all changes of \"n3\"",
        "With force := true it is left out",
    );
    let forced = n1
        .call("CALL spock.remove_node('n3', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = forced
        .notices
        .iter()
        .find(|n| n.message == "cleanup of \"n3\" on node \"n2\" is pending")
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

/// n1 takes a set of n2 by a subscription of its own.
fn second_subscription(cluster: &Cluster) {
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.sql("SELECT spock.repset_create('big'); SELECT spock.repset_add_table('big', 'pair_b')");
    n2.sql("SELECT spock.repset_remove_table('default', 'pair_b')");
    n1.sql(&format!(
        "SELECT spock.sub_create('sub_n2_n1_big', {}, ARRAY['big'], false, false)",
        quote_literal(&n2.dsn())
    ));
    n1.wait_for(
        "SELECT status FROM spock.sub_show_status('sub_n2_n1_big')",
        "replicating",
    );
}

/// A node that joins has both. All that the two bring is waited for, and both go.
#[test]
fn a_node_with_two_subscriptions_to_it_leaves() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    second_subscription(&cluster);
    n2.sql("INSERT INTO pair_b VALUES (1001, 1)");
    join(&cluster, 4);
    assert_eq!(
        n4.value("SELECT string_agg(sub_name, ' ' ORDER BY sub_name COLLATE \"C\") FROM spock.subscription"),
        "sub_n1_n4 sub_n2_n4 sub_n2_n4_big sub_n3_n4"
    );
    n2.sql("INSERT INTO pair_b VALUES (1002, 1)");
    n4.wait_for("SELECT count(*) FROM pair_b", "2");
    remove(n1, "n4");
    assert_forgotten(n3, "n4", 3);
    let left = "SELECT concat_ws(' ', (SELECT string_agg(sub_name, ' ') FROM spock.subscription WHERE sub_name LIKE '%n4%'),
                                 (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE '%n4%'),
                                 (SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE '%n4%'))";
    for node in [n1, n2] {
        node.wait_for(left, "");
    }
    assert_left(n4);
    n1.sql("SELECT spock.sub_disable('sub_n2_n1_big', true)");
    n2.sql("INSERT INTO pair_b SELECT g, g FROM generate_series(1, 1000) g");
    assert_failed(
        &n1.sql_error("CALL spock.remove_node('n2')"),
        "55000",
        "subscription sub_n2_n1_big is disabled, so what \"n2\" wrote may be missing there",
        "Make the subscription replicate",
    );
    n1.sql("SELECT spock.sub_enable('sub_n2_n1_big', true)");
    remove(n1, "n2");
    assert_eq!(n1.value("SELECT count(*) FROM pair_b"), "1002");
    for node in [n1, n3] {
        assert_forgotten(node, "n2", 2);
    }
    assert_left(n2);
}

/// Which survivor has what of each of the two is not the same question.
#[test]
fn a_dead_node_with_two_subscriptions_to_it_is_removed() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    second_subscription(&cluster);
    wait_quiet(&[n1, n2, n3]);
    n2.crash();
    let failed = n1.sql_error("CALL spock.recover_run('n2')");
    assert_failed(
        &failed,
        "0A000",
        "nodes \"n1\" and \"n3\" have several subscriptions to node \"n2\", and not with the same replication sets",
        "remove the failed node with force := true",
    );
    let failed = n3.sql_error("CALL spock.remove_node('n2')");
    assert_failed(
        &failed,
        "55000",
        "node \"n1\" has a subscription to \"n2\" that takes the replication sets big, and not every other node has one",
        "Go on with force := true.",
    );
    n3.call("CALL spock.remove_node('n2', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    for node in [n1, n3] {
        assert_forgotten(node, "n2", 2);
    }
}

/// Spock would drop the slot of a node that only reads, or refuse after everything else is done.
#[test]
fn a_node_that_others_read_from_stays() {
    let Some(mut cluster) = mesh(2) else { return };
    spock::grow(&mut cluster, "n4");
    let [n1, n2, reader, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    reader.sql("DROP EXTENSION zodan");
    reader.sql(&format!(
        "SELECT spock.node_create('reader', {})",
        quote_literal(&reader.dsn())
    ));
    reader.sql(&format!(
        "SELECT spock.sub_create('reads', {}, ARRAY['ddl_sql'], false, false)",
        quote_literal(&n1.dsn())
    ));
    let status = "SELECT status FROM spock.sub_show_status('reads')";
    reader.wait_for(status, "replicating");
    let slot = n1.value("SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ 'reads'");
    let joined = add_node(n4, "n4", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    let told = format!(
        "reads from slot {slot}, is not a member of the cluster, and does not get what is written on the new node"
    );
    assert!(
        joined.notices.iter().any(|n| n.message.contains(&told)),
        "{joined:?}"
    );
    let before = fingerprint(&[n1, n2, n4]);
    for call in [
        "CALL spock.remove_node('n1')",
        "CALL spock.remove_node('n1', force := true)",
    ] {
        let told = format!("streams from slot {slot}, and is not a member of the cluster");
        assert_failed(&n2.sql_error(call), "55006", &told, "drop its subscription");
    }
    before.assert_same_now(&[n1, n2, n4]);
    reader.stop();
    n1.wait_for(
        &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        "f",
    );
    assert_failed(
        &n2.sql_error("CALL spock.remove_node('n1')"),
        "55006",
        &format!("slot {slot} is of no member of the cluster, and would be dropped"),
        "the slot if nobody needs it",
    );
    reader.boot();
    reader.wait_for(status, "replicating");
    reader.sql("SELECT spock.sub_drop('reads')");
    remove(n2, "n1");
    assert_forgotten(n2, "n1", 2);
}

/// How a dead node called its subscription nobody can know.
#[test]
fn the_slot_of_a_dead_node_under_a_name_of_its_own_is_told() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql(&format!(
        "SELECT spock.sub_drop('sub_n2_n1');
         SELECT spock.sub_create('from_berlin', {}, ARRAY['default', 'default_insert_only', 'ddl_sql'], false, false)",
        quote_literal(&n2.dsn())
    ));
    n1.wait_for(
        "SELECT status FROM spock.sub_show_status('from_berlin')",
        "replicating",
    );
    wait_quiet(&[n1, n2, n3]);
    n1.crash();
    let removed = remove(n3, "n1");
    let slot = n2.value("SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ 'berlin'");
    let told = format!(
        "node \"n2\": slot {slot} is inactive and belongs to no member: it may have been that of \"n1\""
    );
    let warning = removed.notices.iter().find(|n| n.message == told);
    let warning = warning.unwrap_or_else(|| panic!("{removed:?}"));
    let hint = warning.hint.as_deref().unwrap_or_default();
    let drop = hint
        .split_once("run there: ")
        .unwrap_or_else(|| panic!("{hint}"))
        .1;
    n2.sql(drop);
    assert_forgotten(n2, "n1", 2);
    assert_forgotten(n3, "n1", 2);
}
