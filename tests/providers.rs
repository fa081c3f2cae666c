//! What a provider lacks of what others have of it, and what it refuses a subscription with, is said before anything is
//! changed.

mod common;

use common::{APPLY_WORKERS, Call, assert_failed, fingerprint, quick, wait_mesh};
use lab::{Cluster, quote_literal};

/// A mesh of two, and one server more.
fn mesh() -> Cluster {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_mesh(&cluster.first(2));
    cluster
}

/// As if n2 had had more WAL when n1 applied it: it was restored since, or a standby was promoted that lacked the rest.
#[test]
fn join_is_refused_when_the_wal_of_a_provider_went_back() {
    let cluster = mesh();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 DISABLE");
    n2.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "0",
    );
    // The origin is free a moment after the slot.
    n1.wait_for(APPLY_WORKERS, "0");
    n1.sql(
        "SELECT pg_replication_origin_advance('pg_' || oid, '70/0')
           FROM pg_subscription WHERE subname = 'sub_n2_n1'",
    );
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 ENABLE");
    n2.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "1",
    );
    let before = fingerprint(&cluster.all());
    let message =
        "subscription sub_n2_n1 has applied node \"n2\" up to 70/0, but the WAL of \"n2\" ends at";
    let hint = "CALL spock.recover_run('n2'), CALL spock.remove_node('n2')";
    assert_failed(&Call::of(n3, n1).fails_on(n3), "55000", message, hint);
    before.assert_same_now(&cluster.all());
    let report = format!(
        "SELECT node || ': ' || found FROM spock.health_report('n1', {})
          WHERE \"check\" = 'positions' AND status = 'failed'",
        quote_literal(&n1.dsn())
    );
    let found = n1.value(&report);
    assert!(found.starts_with(&format!("n1: {message}")), "{found}");
    // A removal would say that all that n2 wrote is everywhere.
    let failed = n1.sql_error("CALL spock.remove_node('n2')");
    assert_failed(&failed, "55000", message, hint);
    n1.call("CALL spock.remove_node('n2', force := true)")
        .unwrap_or_else(|e| panic!("{e}"));
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn join_is_refused_when_the_slot_of_a_subscription_is_gone() {
    let cluster = mesh();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n3.configure("zodan.connect_timeout", "2s");
    n3.reload();
    let slot = n1.value("SELECT subslotname FROM pg_subscription WHERE subname = 'sub_n2_n1'");
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 DISABLE");
    n2.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "0",
    );
    n2.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 ENABLE");
    assert_failed(
        &Call::of(n3, n1).fails_on(n3),
        "55000",
        &format!(
            "subscription sub_n2_n1 from node \"n2\" has no connection to its provider: replication slot \"{slot}\" does not exist"
        ),
        "Make every subscription of the cluster replicate",
    );
}
