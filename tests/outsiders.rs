//! Replication with the world outside of the cluster: who would read zodan's own records, and whose rows would not be
//! passed on.

mod common;

use common::{Call, assert_failed, fingerprint, quick, runs};
use lab::{Cluster, Server, quote_literal};

fn report(server: &Server, source: &Server, check: &str) -> Vec<String> {
    let rows = server.rows(&format!(
        "SELECT node, status, found FROM spock.health_report({}, {}, check_type := 'post')
          WHERE \"check\" = {} AND status <> 'ok' ORDER BY node, found",
        quote_literal(source.name()),
        quote_literal(&source.dsn()),
        quote_literal(check)
    ));
    let line = |row: Vec<Option<String>>| row.into_iter().flatten().collect::<Vec<_>>().join(" ");
    rows.into_iter().map(line).collect()
}

/// Whoever subscribes to all tables would be sent connection strings, and stop for lack of the tables that hold them.
#[test]
fn registry_is_not_sent_to_outside_subscribers() {
    let cluster = Cluster::start_with(2, &quick());
    let warehouse = Server::start_with("warehouse", &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for server in [n1, &warehouse] {
        server.sql("CREATE TABLE t (i int PRIMARY KEY)");
    }
    n1.sql("CREATE PUBLICATION \"for all\" FOR ALL TABLES");
    warehouse.sql(&format!(
        "CREATE SUBSCRIPTION warehouse CONNECTION {} PUBLICATION \"for all\" WITH (copy_data = false)",
        quote_literal(&n1.dsn())
    ));
    cluster.create_extension();
    let all = cluster.all();
    let before = (fingerprint(&all), runs(&all));
    let failed = Call::of(n2, n1).fails_on(n2);
    assert_failed(
        &failed,
        "55000",
        "node \"n1\": publication \"for all\" is for all tables: the reader of slot warehouse may be sent zodan's own records, which hold connection strings",
        "CREATE PUBLICATION \"for all\" FOR TABLES IN SCHEMA",
    );
    before.0.assert_same_now(&all);
    assert_eq!(before.1, runs(&all));

    // The same of a schema or a table by name, on the new node too.
    n1.sql("DROP PUBLICATION \"for all\"; CREATE PUBLICATION \"for all\" FOR TABLES IN SCHEMA zodan, public");
    n2.sql("CREATE PUBLICATION named FOR TABLE zodan.node");
    n2.sql("SELECT pg_create_logical_replication_slot('other', 'pgoutput')");
    let failed = Call::of(n2, n1).fails_on(n2);
    for text in [
        "node \"n1\": publication \"for all\" has tables of schema zodan: the reader of slot warehouse",
        "node \"n2\": publication \"named\" has tables of schema zodan: the reader of slot other",
    ] {
        assert!(failed.detail().contains(text), "{text}\n{failed}");
    }
    n2.sql("SELECT pg_drop_replication_slot('other')");
    n2.sql("DROP PUBLICATION named");

    // The remedy is one: the warehouse goes on.
    n1.sql(
        "DROP PUBLICATION \"for all\"; CREATE PUBLICATION \"for all\" FOR TABLES IN SCHEMA public",
    );
    let called = n2
        .call(&Call::of(n2, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        !called
            .notices
            .iter()
            .any(|n| n.message.contains("publication")),
        "{called:?}"
    );
    n1.sql("INSERT INTO t VALUES (1)");
    warehouse.wait_for("SELECT count(*) FROM t", "1");

    // Nobody reads it: a word of warning, before a join and afterwards.
    n1.sql("CREATE PUBLICATION idle FOR ALL TABLES");
    let told = "publication \"idle\" is for all tables: the reader of slot warehouse may be sent zodan's own records";
    let found = report(n2, n1, "publications");
    assert!(
        found.len() == 1 && found[0].starts_with(&format!("n1 failed {told}")),
        "{found:?}"
    );
    warehouse.sql("DROP SUBSCRIPTION warehouse");
    let told = "n1 warning publication \"idle\" is for all tables: who reads it is sent zodan's own records, which hold connection strings";
    assert_eq!(report(n2, n1, "publications"), [told]);
}

/// Members send on what was written on them, so rows that one of them gets from elsewhere stay there.
#[test]
fn rows_from_an_outside_provider_are_not_sent_on() {
    let mut cluster = Cluster::start_with(3, &quick());
    cluster.grow("legacy", &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2, n3, legacy) = (cluster.n(1), cluster.n(2), cluster.n(3), &cluster["legacy"]);
    legacy.sql("CREATE TABLE t (i int PRIMARY KEY); CREATE PUBLICATION feed FOR TABLE t");
    n2.sql(&format!(
        "CREATE SUBSCRIPTION feed CONNECTION {} PUBLICATION feed",
        quote_literal(&legacy.dsn())
    ));
    n2.wait_for(
        "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'",
        "0",
    );
    let called = n3
        .call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = "node \"n2\": subscription feed brings rows from outside of the cluster, which no other member gets";
    let warned = called.notices.iter().find(|n| n.message == told);
    assert_eq!(
        warned.map(|n| n.severity.as_str()),
        Some("WARNING"),
        "{called:?}"
    );
    assert_eq!(
        report(n3, n1, "subscriptions of others"),
        [
            "n2 warning subscription feed brings rows from outside of the cluster, which no other member gets"
        ]
    );
    n2.sql("DROP SUBSCRIPTION feed");
    assert!(report(n3, n1, "subscriptions of others").is_empty());
}

/// Whoever subscribes to what members send each other, and is none.
#[test]
fn outside_reader_of_the_clusters_publication_is_reported() {
    let mut cluster = Cluster::start_with(3, &quick());
    cluster.grow("reader", &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2, n3, reader) = (cluster.n(1), cluster.n(2), cluster.n(3), &cluster["reader"]);
    reader.sql("CREATE TABLE t (i int PRIMARY KEY)");
    // Whoever reads it needs all of its tables.
    reader.sql(lab::quiet::SCHEMA);
    reader.sql(&format!(
        "CREATE SUBSCRIPTION reports CONNECTION {} PUBLICATION zodan WITH (copy_data = false)",
        quote_literal(&n1.dsn())
    ));
    n1.wait_for(
        "SELECT active FROM pg_replication_slots WHERE slot_name = 'reports'",
        "t",
    );
    let call = Call::of(n3, n2).sql();
    let with_reader = call.strip_suffix(')').unwrap_or_else(|| panic!("{call}"));
    let with_reader = format!(
        "{with_reader}, readers := ARRAY[{}])",
        quote_literal(&reader.dsn())
    );
    assert_failed(
        &n3.sql_error(&with_reader),
        "0A000",
        "argument readers is for clusters of Spock: with PostgreSQL's own replication every node is a member",
        "subscribes to the new node by itself",
    );
    let called = n3.call(&call).unwrap_or_else(|failed| panic!("{failed}"));
    let told = "reads from slot reports by publication zodan, is not a member of the cluster, and does not get what is written on the new node";
    let mut warnings = called.warnings();
    warnings.retain(|warning| warning.contains("publication zodan"));
    assert!(
        warnings.len() == 1
            && warnings[0].starts_with("node \"n1\": reports")
            && warnings[0].ends_with(told),
        "{called:?}"
    );
    let before = fingerprint(&[n1, n2, n3]);
    for call in [
        "CALL spock.remove_node('n1')",
        "CALL spock.remove_node('n1', force := true)",
    ] {
        assert_failed(
            &n2.sql_error(call),
            "55006",
            "streams from slot reports by publication zodan, and is not a member of the cluster",
            "drop its subscription first",
        );
    }
    before.assert_same_now(&[n1, n2, n3]);
    reader.sql("DROP SUBSCRIPTION reports");
    n2.call("CALL spock.remove_node('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
}
