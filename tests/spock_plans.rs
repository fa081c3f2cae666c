//! On Spock too a plan is what the CALL of the same arguments does, step for step.

mod common;

use common::plan::follow;
use lab::cluster::add_node_call;
use lab::spock;

const CONTENT: &str = "CREATE TABLE t (i int PRIMARY KEY); INSERT INTO t VALUES (1)";

#[test]
fn a_join_and_removals_follow_their_plans() {
    let Some(cluster) = spock::mesh(2, CONTENT) else {
        return;
    };
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    follow(n3, &add_node_call(n3, "n3", n1, "n1"));
    follow(n1, "CALL spock.remove_node('n3')");
    cluster.n(2).crash();
    follow(n1, "CALL spock.remove_node('n2')");
}

#[test]
fn a_recovery_follows_its_plan() {
    let Some(cluster) = spock::mesh(3, CONTENT) else {
        return;
    };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n2.sql("SELECT spock.sub_disable('sub_n1_n2', true)");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'apply' AND application_name ~ 'sub_n1_n2'",
        "0",
    );
    n1.sql("INSERT INTO t VALUES (2)");
    n3.wait_for("SELECT count(*) FROM t", "2");
    n1.crash();
    follow(n3, "CALL spock.recover_run('n1')");
    n2.wait_for("SELECT count(*) FROM t", "2");
}
