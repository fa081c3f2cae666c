//! The steps of plans on the native engine, their estimates, and their refusals.

mod common;

use common::plan::{assert_run_follows_plan, plan_of, planned};
use common::{Call, Hang, assert_failed, fingerprint, quick, runs, wait_mesh};
use lab::cluster::add_node_call;
use lab::{Cluster, Server, assert_same_content, quote_literal, wait_quiet};

const CONTENT: &str = "
CREATE TABLE keyed (i int PRIMARY KEY, t text);
INSERT INTO keyed SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
CREATE TABLE keyless (i int);
ANALYZE";

fn remove(target: &str) -> String {
    format!("CALL spock.remove_node({})", quote_literal(target))
}

#[test]
fn plan_of_a_join_has_its_steps_and_estimates_and_changes_nothing() {
    let cluster = Cluster::start_with(3, &quick());
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    cluster.create_extension();
    n1.sql(CONTENT);
    let call = add_node_call(n2, "n2", n1, "n1");
    let before = fingerprint(&cluster.all());
    let size =
        n1.value("SELECT pg_total_relation_size('keyed') + pg_total_relation_size('keyless')");
    let estimate = format!(
        "SELECT count(*) FILTER (WHERE bytes IS NOT NULL), max(rows), max(bytes) BETWEEN {size} * 0.8 AND {size}, max(seconds) > 0 FROM ({}) p",
        plan_of(&call)
    );
    assert_eq!(
        n2.rows(&estimate)[0]
            .iter()
            .map(|c| c.as_deref())
            .collect::<Vec<_>>(),
        [Some("1"), Some("5000"), Some("t"), Some("t")]
    );
    before.assert_same_now(&cluster.all());
    let plan = planned(n2, &call);
    assert_eq!(
        plan[..4],
        [
            "1 | 3 | n1 | replica identity of \"public\".\"keyless\"",
            "2 | 3 | n1 | make \"n1\" the first node of a cluster",
            "3 | 5 | n1 | create slot sub_n1_n2_postgres",
            "4 | 6 | n2 | block application writes on the new node",
        ]
    );
    assert_run_follows_plan(n2, &call);
    assert_run_follows_plan(n3, &add_node_call(n3, "n3", n1, "n1"));
    wait_mesh(&cluster.all());
    // On another node, on itself, and the last one.
    let before = fingerprint(&cluster.all());
    planned(n1, &remove("n3"));
    before.assert_same_now(&cluster.all());
    assert_run_follows_plan(n1, &remove("n3"));
    assert_run_follows_plan(n2, &remove("n2"));
    assert_run_follows_plan(n1, &remove("n1"));
}

#[test]
fn plan_of_the_removal_of_a_dead_node_has_its_steps() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(3, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_mesh(&cluster.all());
    cluster.n(3).crash();
    let plan = planned(cluster.n(1), &remove("n3"));
    assert_eq!(
        plan,
        [
            "1 | 3 | n1 | hold subscription sub_n3_n1",
            "2 | 3 | n2 | hold subscription sub_n3_n2",
            "3 | 4 | n1 | detach \"n3\"",
            "4 | 4 | n2 | detach \"n3\""
        ]
    );
    assert_run_follows_plan(cluster.n(1), &remove("n3"));
}

/// n1 dies when n3 has a row of its that n2 has not.
fn unequal(keeping: bool) -> Cluster {
    let options = quick().set("track_commit_timestamp", "on");
    let cluster = Cluster::start_with(3, &options);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    cluster.form_mesh(3, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_mesh(&cluster.all());
    if keeping {
        for node in cluster.all() {
            node.sql("SELECT zodan.start_node_worker()");
        }
        n3.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
            "2",
        );
    }
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_subscription WHERE subname = 'sub_n1_n2' AND pid IS NOT NULL",
        "0",
    );
    n1.sql("INSERT INTO t VALUES (1)");
    n3.wait_for("SELECT count(*) FROM t", "1");
    n1.crash();
    cluster
}

#[test]
fn plan_of_a_recovery_has_its_steps() {
    for keeping in [true, false] {
        let cluster = unequal(keeping);
        let (n2, n3) = (cluster.n(2), cluster.n(3));
        let call = "CALL spock.recover_run('n1')";
        let plan = planned(n3, call);
        match keeping {
            true => {
                let slot = "SELECT slot_name FROM zodan.recovery_status LIMIT 1";
                let slot = n3.value(slot);
                assert_eq!(
                    plan,
                    [
                        format!("1 | 3 | n3 | clone slot {slot}"),
                        "2 | 3 | n2 | commit a marker".into(),
                        "3 | 3 | n2 | hold subscription sub_n3_n2".into(),
                        "4 | 3 | n2 | record that a recovery is in progress".into(),
                        "5 | 3 | n2 | replay what \"n3\" has retained of \"n1\"".into(),
                    ]
                );
                assert_eq!(
                    n3.value(&format!(
                        "SELECT bytes > 0 AND seconds > 0 FROM ({}) p WHERE step = 5",
                        plan_of(call)
                    )),
                    "t"
                );
            }
            false => assert_eq!(
                plan,
                ["1 | 3 | n2 | copy what \"n3\" has of \"n1\", by comparison"]
            ),
        }
        assert_run_follows_plan(n3, call);
        assert_same_content(&[n2, n3]);
        assert_eq!(planned(n3, call), [""; 0], "there is nothing left to do");
    }
}

/// What the CALL refuses the plan refuses, in the same words.
#[test]
fn plan_is_refused_in_the_words_of_the_call() {
    let options = quick().set("max_prepared_transactions", "5");
    let cluster = Cluster::start_with(3, &options);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_quiet(&[n1, n2]);
    let same = |node: &Server, call: &str| {
        let journal = runs(&cluster.all());
        let (plan, run) = (node.sql_error(&plan_of(call)), node.sql_error(call));
        assert_eq!(
            (plan.code(), plan.message(), plan.detail(), plan.hint()),
            (run.code(), run.message(), run.detail(), run.hint()),
            "{call}"
        );
        assert_eq!(runs(&cluster.all()), journal);
    };
    n3.sql("CREATE TABLE there ()");
    same(n3, &Call::of(n3, n1).sql());
    n3.sql("DROP TABLE there");
    let mut wrong = Call::of(n3, n1);
    wrong.new_node_name = Some("n1".into());
    same(n3, &wrong.sql());
    wrong.new_node_name = None;
    same(n3, &wrong.sql());
    same(n1, &remove("n9"));
    same(n1, "CALL spock.recover_run('n9')");
    same(n1, "CALL spock.recover_run('n2')");
    n2.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'open'");
    same(n1, &remove("n2"));
    n2.sql("ROLLBACK PREPARED 'open'");

    let plan = plan_of(&Call::of(n3, n1).sql());
    assert_failed(
        &n3.sql_error(&format!("CREATE TABLE written (); {plan}")),
        "25001",
        "spock.add_node_plan cannot run in a transaction that has written something",
        "Commit first",
    );
    n3.sql("CREATE ROLE nobody; GRANT USAGE ON SCHEMA spock TO nobody; GRANT EXECUTE ON FUNCTION spock.add_node_plan TO nobody");
    assert_failed(
        &n3.sql_error(&format!("SET ROLE nobody; {plan}")),
        "42501",
        "only a superuser can run spock.add_node_plan",
        "Connect as a superuser",
    );
    n3.sql("DROP OWNED BY nobody; DROP ROLE nobody");

    // A join that is under way, and then one that was interrupted.
    let call = Call::of(n3, n1).sql();
    let (hang, running) = Hang::start(n3, "", "within rows are copied", &call);
    n3.sql("SELECT pg_terminate_backend(pid) FROM zodan.progress");
    running.ends_terminated();
    hang.release();
    assert_failed(
        &n3.sql_error(&plan),
        "55000",
        "run 1 (spock.add_node of node \"n3\") was interrupted",
        "the next CALL on this node undoes it first",
    );
    n3.call(&call).unwrap_or_else(|failed| panic!("{failed}"));
    assert_failed(
        &n3.sql_error(&plan),
        "55006",
        "this database is a member of a cluster already: n1, n2, n3",
        "Remove it from that cluster first.",
    );
}
