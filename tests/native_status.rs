//! What a DBA sees of a cluster of the native engine, from any of its nodes: in time, and with those marked that do not
//! answer.

mod common;

use common::plan::slot;
use common::{assert_failed, quick, table, wait_mesh};
use lab::{Cluster, Server};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The promise of the status functions, whatever the members do.
const IN_TIME: Duration = Duration::from_secs(3);

const FROM_N4: &str =
    "SELECT state FROM spock.cluster_status() WHERE provider = 'n4' AND subscriber = 'n1'";

const SECRET: &str = "correct-horse";

/// A mesh whose registry has a password, each server behind a proxy.
fn mesh(members: usize) -> Cluster {
    let options = quick().proxy().password(SECRET);
    let cluster = Cluster::start_with(members, &options);
    cluster.form_mesh(members, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_mesh(&cluster.all());
    cluster
}

/// As [`table`], and the answer must be there in time.
fn table_in_time(server: &Server, query: &str) -> Vec<String> {
    let begun = Instant::now();
    let rows = table(server, query);
    let took = begun.elapsed();
    assert!(took < IN_TIME, "{took:?} for\n{query}");
    rows
}

#[test]
fn status_functions_show_paths_and_hide_passwords() {
    let cluster = mesh(3);
    let registry =
        "SELECT node_name, location, country, dsn, info, joined, engine FROM spock.get_nodes()";
    let known = table(cluster.n(1), registry);
    assert_eq!(known.len(), 3, "{known:?}");
    for (node, line) in cluster.all().iter().zip(&known) {
        assert!(line.starts_with(&format!("{}|", node.name())), "{line}");
        assert!(line.contains(&format!("port={}", node.port())), "{line}");
        assert!(
            line.contains("password=********") && !line.contains(SECRET),
            "{line}"
        );
        assert!(line.ends_with("|native"), "{line}");
    }
    assert_eq!(
        table(
            cluster.n(1),
            "SELECT joined = n.joined_at FROM spock.get_nodes() JOIN zodan.node n ON n.name = node_name"
        ),
        ["t", "t", "t"]
    );
    for node in cluster.all() {
        assert_eq!(table(node, registry), known);
        assert_eq!(
            table(
                node,
                "SELECT node_name FROM spock.get_nodes() WHERE is_local"
            ),
            [node.name()]
        );
        // Caught up, once the last commit of the join has been confirmed.
        node.wait_for(
            "SELECT string_agg(DISTINCT concat_ws(' ', state, lag_bytes, lag_time), ', ') FROM spock.cluster_status()",
            "replicating 0 00:00:00",
        );
        assert_eq!(
            table(
                node,
                "SELECT provider, subscriber, state, provider_up, subscriber_up, provider_role, engine, subscription,
                        slot_name, slot_active, wal_status, retained_bytes > 0,
                        provider_version = current_setting('server_version'), last_error
                   FROM spock.cluster_status()"
            ),
            [("n2", "n1"), ("n3", "n1"), ("n1", "n2"), ("n3", "n2"), ("n1", "n3"), ("n2", "n3")].map(|(p, s)| {
                let of = |name: &str| cluster.n(name[1..].parse().unwrap());
                let slot = slot(of(p), of(s));
                format!("{p}|{s}|replicating|t|t|primary|native|sub_{p}_{s}|{slot}|t|reserved|t|t|")
            })
        );
        assert_eq!(
            table(node, "SELECT node_name, subscription_name, status, provider_node, replication_sets, problem
                           FROM spock.show_all_subscription_status()"),
            [("n1", "n2"), ("n1", "n3"), ("n2", "n1"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")]
                .map(|(s, p)| format!("{s}|sub_{p}_{s}|replicating|{p}|{{zodan}}|"))
        );
        assert_eq!(
            table(
                node,
                "SELECT node_id, node_name, location, country, status, problem FROM spock.show_all_nodes()"
            ),
            ["|n1|||up|", "|n2|NY|USA|up|", "|n3|NY|USA|up|"]
        );
    }
}

#[test]
fn nodes_that_are_dead_or_cut_off_are_marked_within_three_seconds() {
    let cluster = mesh(5);
    let n1 = cluster.n(1);
    let mut slots = BTreeMap::new();
    for (provider, subscriber) in [(1, 4), (1, 5), (2, 1), (3, 1), (4, 1)] {
        let (provider, subscriber) = (cluster.n(provider), cluster.n(subscriber));
        let names = (provider.name(), subscriber.name());
        slots.insert(names, slot(provider, subscriber));
    }
    let slot_of = |provider, subscriber| slots[&(provider, subscriber)].clone();
    cluster.n(4).crash();
    n1.wait_for(FROM_N4, "down");
    // The worker starts again and again, and is there for a moment each time.
    for _ in 0..50 {
        assert_eq!(table_in_time(n1, FROM_N4), ["down"]);
    }
    cluster.n(5).cut();
    // The provider learns of the loss when its reader does not come back.
    n1.wait_for(
        "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE NOT active",
        &slot_of("n1", "n4"),
    );
    let nodes = table_in_time(
        n1,
        "SELECT node_name, status, problem FROM spock.show_all_nodes()",
    );
    assert_eq!(nodes[..3], ["n1|up|", "n2|up|", "n3|up|"]);
    assert!(nodes[3].starts_with("n4|down|no connection: "), "{nodes:?}");
    assert_eq!(nodes[4], "n5|down|no connection: timeout expired");
    let status = table_in_time(
        n1,
        "SELECT provider, subscriber, state, provider_up, subscriber_up, slot_name FROM spock.cluster_status()
          WHERE 'n1' IN (provider, subscriber)",
    );
    assert_eq!(
        status[..2],
        ["n2", "n3"].map(|p| format!("{p}|n1|replicating|t|t|{}", slot_of(p, "n1")))
    );
    assert!(
        status.contains(&format!("n4|n1|down|f|t|{}", slot_of("n4", "n1"))),
        "{status:?}"
    );
    assert!(
        status.contains(&format!("n1|n4|unknown|t|f|{}", slot_of("n1", "n4"))),
        "{status:?}"
    );
    assert!(
        status.contains(&format!("n1|n5|unknown|t|f|{}", slot_of("n1", "n5"))),
        "{status:?}"
    );
    assert_eq!(
        table_in_time(
            n1,
            "SELECT count(*), count(*) FILTER (WHERE state = 'unknown'), count(*) FILTER (WHERE provider_up AND subscriber_up)
               FROM spock.cluster_status()"
        ),
        ["20|8|6"]
    );
    // What waits for the dead node is known from the provider's slot, and before PostgreSQL 17 not since when.
    let since = if lab::pg::major() >= 17 { "t" } else { "" };
    n1.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    assert_eq!(
        table_in_time(
            n1,
            "SELECT lag_bytes > 60000, retained_bytes >= lag_bytes, slot_active, lag_time > '0', subscriber_problem IS NOT NULL
               FROM spock.cluster_status() WHERE provider = 'n1' AND subscriber = 'n4'"
        ),
        [format!("t|t|f|{since}|t")]
    );
    let drawing = table_in_time(n1, "SELECT * FROM spock.topology()");
    let cells =
        |line: &str| -> Vec<String> { line.split('|').map(|c| c.trim().to_owned()).collect() };
    let row_of_n1 = drawing
        .iter()
        .rfind(|l| l.starts_with(" n1 "))
        .expect("a row for n1");
    assert_eq!(
        cells(row_of_n1),
        [
            "n1",
            "-",
            "replicating",
            "replicating",
            "unknown",
            "unknown"
        ]
    );
    let dot = table_in_time(n1, "SELECT * FROM spock.topology('dot')");
    assert!(
        dot.contains(&"    \"n4\" [label=\"n4: down\", color=red];".into()),
        "{dot:?}"
    );
    let mermaid = table_in_time(n1, "SELECT * FROM spock.topology('Mermaid')");
    assert!(
        mermaid.contains(&"    m1 -->|replicating| m0".into()),
        "{mermaid:?}"
    );
    table_in_time(n1, "SELECT * FROM spock.get_nodes()");
    table_in_time(n1, "SELECT * FROM spock.show_all_subscription_status()");
    cluster.n(5).uncut();
}

/// A node whose sessions begin and then hang: a lock in its catalog stands for that.
#[test]
fn node_that_does_not_answer_is_marked_within_three_seconds() {
    let cluster = mesh(3);
    let mut blocker = cluster.n(2).client();
    blocker
        .batch_execute("BEGIN; LOCK pg_subscription IN ACCESS EXCLUSIVE MODE")
        .expect("lock the catalog");
    assert_eq!(
        table_in_time(
            cluster.n(1),
            "SELECT node_name, status, problem FROM spock.show_all_nodes()"
        ),
        ["n1|up|", "n2|down|no answer within 1000 ms", "n3|up|"]
    );
    // The question was cancelled over there.
    cluster.n(2).wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zodan' AND state = 'active'",
        "0",
    );
    blocker.batch_execute("ROLLBACK").expect("let go");
    cluster.n(1).wait_for(
        "SELECT string_agg(status, ' ') FROM spock.show_all_nodes()",
        "up up up",
    );
}

#[test]
fn path_that_is_broken_is_shown_with_its_reason() {
    let cluster = mesh(3);
    let state = |path: &str| {
        format!(
            "SELECT state || coalesce(': ' || last_error, '') FROM spock.cluster_status()
              WHERE provider || ' ' || subscriber = '{path}'"
        )
    };
    let n1 = cluster.n(1);
    cluster.n(2).sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    n1.wait_for(&state("n1 n2"), "disabled");
    cluster.n(2).sql("ALTER SUBSCRIPTION sub_n1_n2 ENABLE");
    n1.wait_for(&state("n1 n2"), "replicating");
    // A row that the subscriber cannot take.
    cluster.n(3).sql("ALTER TABLE t ADD CHECK (i > 1)");
    n1.sql("INSERT INTO t VALUES (1)");
    n1.wait_for(
        &format!(
            "SELECT s ~ '^down: (its replication slot is inactive; )?errors of the apply worker so far: [1-9][0-9]* \\(see the log of the subscriber\\)$'
               FROM ({}) x (s)",
            state("n1 n3")
        ),
        "t",
    );
    cluster
        .n(2)
        .sql("SELECT zodan.drop_subscription('sub_n3_n2')");
    n1.wait_for(&state("n3 n2"), "missing");
    n1.wait_for(
        "SELECT state FROM spock.cluster_status() WHERE provider = 'n2' AND subscriber = 'n1'",
        "replicating",
    );
    cluster.n(1).sql("ALTER SUBSCRIPTION sub_n2_n1 DISABLE");
    let slot = slot(cluster.n(2), n1);
    cluster.n(2).wait_for(
        &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        "f",
    );
    cluster
        .n(2)
        .sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 ENABLE");
    n1.wait_for(
        &state("n2 n1"),
        "down: its slot does not exist on the provider",
    );
}

#[test]
fn status_functions_are_refused_to_outsiders() {
    let cluster = mesh(2);
    let n1 = cluster.n(1);
    let outsider = Server::start("outsider");
    outsider.sql("CREATE EXTENSION zodan");
    assert_eq!(table(&outsider, "SELECT * FROM spock.get_nodes()"), [""; 0]);
    for function in [
        "cluster_status",
        "show_all_nodes",
        "show_all_subscription_status",
        "topology",
    ] {
        let call = format!("SELECT * FROM spock.{function}()");
        assert_failed(
            &outsider.sql_error(&call),
            "55000",
            "the database is not a cluster node",
            "any node of the cluster",
        );
        assert_failed(
            &n1.sql_error(&format!("CREATE TABLE written (); {call}")),
            "25001",
            &format!("spock.{function}() cannot run in a transaction that has written something"),
            "Commit first",
        );
        assert_eq!(
            n1.sql_error(&format!("CREATE ROLE nobody; SET ROLE nobody; {call}"))
                .code(),
            "42501"
        );
        // Who may execute it needs nothing else, and gets no password.
        n1.sql(&format!("CREATE ROLE watcher; GRANT USAGE ON SCHEMA spock TO watcher; GRANT EXECUTE ON FUNCTION spock.{function} TO watcher"));
        let mut client = n1.client();
        client
            .batch_execute("SET ROLE watcher")
            .expect("become the watcher");
        let rows = client.simple_query(&call).expect("the watcher may look");
        assert!(
            rows.len() > 1 && !format!("{rows:?}").contains(SECRET),
            "{rows:?}"
        );
        n1.sql("DROP OWNED BY watcher; DROP ROLE watcher");
    }
    assert_failed(
        &n1.sql_error("SELECT spock.topology('png')"),
        "22023",
        "argument format is \"png\", which is not a format of a drawing",
        "text, dot or mermaid",
    );
}

/// The procedures of the public scripts, by their own statements.
#[test]
fn procedures_of_the_public_scripts_print_the_same_status() {
    let cluster = mesh(3);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let outsider = Server::start("outsider");
    outsider.sql("CREATE EXTENSION zodan");
    let call = |name: &str, dsn: &str, more: &str| {
        format!("CALL spock.{name}({}{more})", lab::quote_literal(dsn))
    };
    let said = |server: &Server, sql: &str| -> Vec<String> {
        let called = server.call(sql).unwrap_or_else(|failed| panic!("{failed}"));
        called.notices.iter().map(|n| n.message.clone()).collect()
    };
    let dsn = n1.dsn();
    // From anywhere.
    for server in [n2, &outsider] {
        let nodes = said(server, &call("show_all_nodes", &dsn, ", true"));
        assert_eq!(nodes.len(), 6, "{nodes:?}");
        assert!(
            nodes[3].starts_with(" n2        | NY       | USA     | "),
            "{nodes:?}"
        );
        assert!(
            nodes[3].contains("password=********") && nodes[3].contains("| up, PostgreSQL "),
            "{nodes:?}"
        );
        assert_eq!(nodes[5], "3 nodes, 3 up");
        assert!(!nodes.concat().contains(SECRET), "{nodes:?}");
    }
    n1.wait_for(
        "SELECT string_agg(DISTINCT state, ' ') FROM spock.cluster_status()",
        "replicating",
    );
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    let paths = said(
        &outsider,
        &call("show_all_subscription_status", &dsn, ", true"),
    );
    assert_eq!(
        paths[..5],
        [
            " node_name | subscription_name | status      | provider_node",
            "-----------+-------------------+-------------+---------------",
            " n1        | sub_n2_n1         | replicating | n2",
            " n1        | sub_n3_n1         | replicating | n3",
            " n2        | sub_n1_n2         | disabled    | n1",
        ],
        "{paths:?}"
    );
    assert_eq!(paths[8], "6 subscriptions, 5 replicating");
    // Their default is to tell; without, only an error is.
    assert_eq!(said(n2, &call("show_all_nodes", &dsn, "")).len(), 6);
    for name in ["show_all_nodes", "show_all_subscription_status"] {
        assert_eq!(said(n2, &call(name, &dsn, ", false")), [""; 0]);
        let refused = n2.sql_error(&call(name, &outsider.dsn(), ", true"));
        assert_failed(
            &refused,
            "55000",
            "the database is not a cluster node",
            "any node of the cluster",
        );
        assert_failed(
            &n2.sql_error(&format!("CALL spock.{name}(NULL)")),
            "22004",
            "argument cluster_dsn must not be null",
            "cluster_dsn",
        );
        let unreachable = n2.sql_error(&call(name, "host=127.0.0.1 port=1 dbname=x", ""));
        assert_eq!(unreachable.code(), "08001", "{unreachable}");
        assert!(
            unreachable.message().contains("Connection refused"),
            "{unreachable}"
        );
        n2.sql("CREATE ROLE nobody; GRANT USAGE ON SCHEMA spock TO nobody");
        assert_eq!(
            n2.sql_error(&format!("SET ROLE nobody; {}", call(name, &dsn, "")))
                .code(),
            "42501"
        );
        n2.sql("DROP OWNED BY nobody; DROP ROLE nobody");
    }
}
