//! A plan is what the CALL of the same arguments does, step for step, whatever the cluster replicates with.

mod common;

use common::engines::{On, on_both_engines};
use common::plan::{assert_run_follows_plan, planned};
use common::recovery::wait_protected;
use lab::assert_same_content;
use lab::cluster::add_node_call;

on_both_engines! {
    joins_and_removals_follow_their_plans,
    recovery_from_a_slot_follows_its_plan,
    recovery_without_slots_follows_its_plan,
}

const CONTENT: &str = "CREATE TABLE t (i int PRIMARY KEY); INSERT INTO t VALUES (1)";

fn joins_and_removals_follow_their_plans(on: On) {
    let cluster = on.start(3, 1, CONTENT);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    assert_run_follows_plan(n4, &add_node_call(n4, "n4", n1, "n1"));
    assert_run_follows_plan(n1, "CALL spock.remove_node('n4')");
    n3.crash();
    assert_run_follows_plan(n1, "CALL spock.remove_node('n3')");
    assert_run_follows_plan(n2, "CALL spock.remove_node('n2')");
}

fn recovery_from_a_slot_follows_its_plan(on: On) {
    recover_by_plan(on, true);
}

fn recovery_without_slots_follows_its_plan(on: On) {
    recover_by_plan(on, false);
}

/// n1 dies when n3 has a row of its that n2 has not.
fn recover_by_plan(on: On, with_slots: bool) {
    let settings = [("track_commit_timestamp", "on")];
    let cluster = on.start_with(3, 0, CONTENT, &settings);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    if with_slots {
        for node in [n1, n2, n3] {
            node.sql("SELECT zodan.start_node_worker()");
        }
        wait_protected(&[n1, n2, n3]);
    }
    on.suspend(n2, n1);
    n1.sql("INSERT INTO t VALUES (2)");
    n3.wait_for("SELECT count(*) FROM t", "2");
    n1.crash();
    let call = "CALL spock.recover_run('n1')";
    assert_run_follows_plan(n3, call);
    n2.wait_for("SELECT count(*) FROM t", "2");
    assert_same_content(&[n2, n3]);
    assert_eq!(planned(n3, call), [""; 0], "there is nothing left to do");
}
