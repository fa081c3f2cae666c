//! What a DBA sees of a Spock cluster, in the same functions and columns as of any other.

use lab::spock;
use lab::{Server, quote_literal};
use std::time::{Duration, Instant};

const CONTENT: &str = "CREATE TABLE t (i int PRIMARY KEY)";

fn table(server: &Server, query: &str) -> Vec<String> {
    let line = |row: Vec<Option<String>>| {
        let cells: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        cells.join("|")
    };
    server.rows(query).into_iter().map(line).collect()
}

const STATES: &str = "SELECT string_agg(provider || ' ' || subscriber || ' ' || state, ', ') FROM spock.cluster_status()";

#[test]
fn the_cluster_before_and_after_a_join() {
    let Some(cluster) = spock::mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.wait_for(STATES, "n2 n1 replicating, n1 n2 replicating");
    let arguments = |check: &str| {
        [n1.name(), &n1.dsn(), n3.name(), &n3.dsn(), check]
            .map(quote_literal)
            .join(", ")
    };
    let failed = |check: &str| {
        format!(
            "SELECT node, \"check\", found FROM spock.health_report({}) WHERE status = 'failed'",
            arguments(check)
        )
    };
    assert_eq!(table(n3, &failed("pre")), [""; 0]);
    assert_eq!(
        table(n1, &failed("post")),
        ["n3|membership|is not a member of the cluster of node \"n1\""]
    );
    n3.call(&format!(
        "CALL spock.add_node('n1', {}, 'n3', {})",
        quote_literal(&n1.dsn()),
        quote_literal(&n3.dsn())
    ))
    .unwrap_or_else(|failed| panic!("{failed}"));
    let all = "n2 n1 replicating, n3 n1 replicating, n1 n2 replicating, n3 n2 replicating, n1 n3 replicating, n2 n3 replicating";
    let registry = "SELECT node_name, location, country, joined, engine FROM spock.get_nodes()";
    for node in cluster.all() {
        node.wait_for(STATES, all);
        assert_eq!(
            table(node, registry),
            ["n1||||spock", "n2||||spock", "n3|NY|USA||spock"]
        );
        assert_eq!(
            table(
                node,
                "SELECT node_name FROM spock.get_nodes() WHERE is_local"
            ),
            [node.name()]
        );
        assert_eq!(
            table(
                node,
                "SELECT bool_and(s.node_id = n.node_id::integer), count(*) FROM spock.show_all_nodes() s
                   JOIN spock.node n USING (node_name) WHERE s.status = 'up'"
            ),
            ["t|3"]
        );
        node.wait_for(
            &format!(
                "SELECT count(*) FROM spock.health_report({}) WHERE status = 'failed'",
                arguments("post")
            ),
            "0",
        );
    }
    assert_eq!(
        table(
            n2,
            "SELECT node_name, subscription_name, status, provider_node, replication_sets
               FROM spock.show_all_subscription_status() WHERE node_name = 'n3'"
        ),
        ["n1", "n2"].map(|p| format!(
            "n3|sub_{p}_n3|replicating|{p}|{{ddl_sql,default,default_insert_only}}"
        ))
    );
    assert_eq!(
        table(
            n1,
            "SELECT c.slot_name = s.sub_slot_name::text, slot_active, retained_bytes > 0, lag_bytes IS NOT NULL
               FROM spock.cluster_status() c JOIN spock.subscription s ON s.sub_name = c.subscription
              WHERE c.subscriber = 'n1'"
        ),
        ["t|t|t|t"; 2]
    );
    n2.sql("SELECT spock.sub_disable('sub_n1_n2', true)");
    n1.wait_for(
        "SELECT state FROM spock.cluster_status() WHERE subscription = 'sub_n1_n2'",
        "disabled",
    );
    n3.crash();
    let begun = Instant::now();
    let states = table(
        n1,
        "SELECT provider, subscriber, state, slot_name IS NOT NULL FROM spock.cluster_status() WHERE subscriber = 'n3'",
    );
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    // The slots of the dead are known from their providers.
    assert_eq!(states, ["n1|n3|unknown|t", "n2|n3|unknown|t"]);
}

/// Two nodes may have several subscriptions to each other, and each has a row.
#[test]
fn each_subscription_of_a_pair_has_its_state() {
    let Some(cluster) = spock::mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for node in [n1, n2] {
        node.sql("CREATE TABLE big (id integer PRIMARY KEY, v text)");
        node.sql("SELECT spock.repset_create('bigset')");
        node.sql("SELECT spock.repset_add_table('bigset', 'big')");
    }
    n1.sql(&format!(
        "SELECT spock.sub_create('sub_n2_n1_big', {}, ARRAY['bigset'], false, false)",
        quote_literal(&n2.dsn())
    ));
    let states = "SELECT string_agg(subscription || ' ' || state, ', ' ORDER BY subscription)
                    FROM spock.cluster_status() WHERE subscriber = 'n1'";
    n1.wait_for(states, "sub_n2_n1 replicating, sub_n2_n1_big replicating");
    n1.sql("SELECT spock.sub_disable('sub_n2_n1_big', true)");
    n1.wait_for(states, "sub_n2_n1 replicating, sub_n2_n1_big disabled");
    let failed = format!(
        "SELECT found FROM spock.health_report('n1', {}, 'n2', {}, 'post') WHERE status = 'failed' AND \"check\" = 'subscriptions'",
        quote_literal(&n1.dsn()),
        quote_literal(&n2.dsn())
    );
    let told = table(n1, &failed);
    assert!(
        told.len() == 1 && told[0].contains("sub_n2_n1_big is disabled"),
        "{told:?}"
    );
}
