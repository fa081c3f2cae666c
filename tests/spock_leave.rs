//! A node leaves a Spock cluster: several subscriptions of a pair, readers, and what Spock does not know.

mod common;

use common::engines::On;
use common::removal::{assert_no_node, assert_no_trace, join, remove_named};
use common::{Running, assert_failed, fingerprint};
use lab::spock;
use lab::{Cluster, add_node, load, quote_literal, wait_quiet};

const CONTENT: &str = "CREATE TABLE pair_b (id int PRIMARY KEY, amount int)";

/// A mesh of `members`, and one server more; `None` without Spock.
fn mesh(members: usize) -> Option<Cluster> {
    spock::mesh(members, &format!("{}{CONTENT}", load::SCHEMA))
}

/// What is owed to a member that is down is printed as the statements to run there.
#[test]
fn cleanup_of_a_member_that_is_down_is_printed_as_statements() {
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
    assert_no_trace(On::Spock, n1, "n3", 2);
    assert_no_trace(On::Spock, n2, "n3", 2);
    assert_no_node(On::Spock, cluster.n(3));
}

/// n3 has dropped its subscription to n2, where the CALL runs, and not yet the one to n1.
#[test]
fn removal_cancelled_between_two_subscriptions_goes_on_where_it_ended() {
    let Some(cluster) = mesh(3) else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    // Sessions of applications are ended before.
    let mut holder = n3.client_named("zodan test");
    let mut held = holder.transaction().expect("begin");
    let hold = "SELECT FROM spock.subscription WHERE sub_name = 'sub_n1_n3' FOR UPDATE";
    held.execute(hold, &[]).expect("lock the subscription");
    let run = Running::start(n2, "CALL spock.remove_node('n3')");
    n3.wait_for(
        "SELECT string_agg(sub_name::text, ' ') FROM spock.subscription",
        "sub_n1_n3",
    );
    run.cancel();
    let failed = run.join().expect_err("it is cancelled");
    assert_failed(
        &failed,
        "57014",
        "canceling statement due to user request",
        "Run the same CALL again: it goes on where this one ended.",
    );
    held.rollback().expect("let go");
    drop(holder);
    remove_named(n2, "n3");
    assert_no_trace(On::Spock, n1, "n3", 2);
    assert_no_trace(On::Spock, n2, "n3", 2);
    assert_no_node(On::Spock, n3);
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
fn living_node_with_two_subscriptions_to_it_is_removed() {
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
    remove_named(n1, "n4");
    assert_no_trace(On::Spock, n3, "n4", 3);
    let left = "SELECT concat_ws(' ', (SELECT string_agg(sub_name, ' ') FROM spock.subscription WHERE sub_name LIKE '%n4%'),
                                 (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE '%n4%'),
                                 (SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE '%n4%'))";
    for node in [n1, n2] {
        node.wait_for(left, "");
    }
    assert_no_node(On::Spock, n4);
    n1.sql("SELECT spock.sub_disable('sub_n2_n1_big', true)");
    n2.sql("INSERT INTO pair_b SELECT g, g FROM generate_series(1, 1000) g");
    assert_failed(
        &n1.sql_error("CALL spock.remove_node('n2')"),
        "55000",
        "subscription sub_n2_n1_big is disabled, so what \"n2\" wrote may be missing there",
        "Make the subscription replicate",
    );
    n1.sql("SELECT spock.sub_enable('sub_n2_n1_big', true)");
    remove_named(n1, "n2");
    assert_eq!(n1.value("SELECT count(*) FROM pair_b"), "1002");
    for node in [n1, n3] {
        assert_no_trace(On::Spock, node, "n2", 2);
    }
    assert_no_node(On::Spock, n2);
}

/// Which survivor has what of each of the two is not the same question.
#[test]
fn dead_node_with_two_subscriptions_to_it_is_removed_by_force() {
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
        assert_no_trace(On::Spock, node, "n2", 2);
    }
}

/// Spock would drop the slot of a node that only reads, or refuse after everything else is done.
#[test]
fn removal_of_a_node_with_an_outside_reader_is_refused() {
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
    remove_named(n2, "n1");
    assert_no_trace(On::Spock, n2, "n1", 2);
}

/// How a dead node called its subscription nobody can know.
#[test]
fn slot_of_a_dead_node_with_an_unknown_name_is_reported() {
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
    let removed = remove_named(n3, "n1");
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
    assert_no_trace(On::Spock, n2, "n1", 2);
    assert_no_trace(On::Spock, n3, "n1", 2);
}
