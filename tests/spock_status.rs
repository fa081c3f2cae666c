//! What a DBA sees of a Spock cluster: its ids, replication sets and slots, and several subscriptions of a pair.

mod common;

use common::table;
use lab::{add_node, quote_literal, spock};

const CONTENT: &str = "CREATE TABLE t (i int PRIMARY KEY)";

#[test]
fn status_functions_show_ids_sets_and_slots_of_spock() {
    let Some(cluster) = spock::mesh(2, CONTENT) else {
        return;
    };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    for node in cluster.all() {
        assert_eq!(
            table(
                node,
                "SELECT bool_and(s.node_id = n.node_id::integer), count(*) FROM spock.show_all_nodes() s
                   JOIN spock.node n USING (node_name) WHERE s.status = 'up'"
            ),
            ["t|3"]
        );
    }
    assert_eq!(
        table(
            n2,
            "SELECT node_name, subscription_name, provider_node, replication_sets
               FROM spock.show_all_subscription_status() WHERE node_name = 'n3'"
        ),
        ["n1", "n2"].map(|p| format!("n3|sub_{p}_n3|{p}|{{ddl_sql,default,default_insert_only}}"))
    );
    assert_eq!(
        table(
            n1,
            "SELECT c.slot_name = s.sub_slot_name::text, retained_bytes > 0, lag_bytes IS NOT NULL
               FROM spock.cluster_status() c JOIN spock.subscription s ON s.sub_name = c.subscription
              WHERE c.subscriber = 'n1'"
        ),
        ["t|t|t"; 2]
    );
}

/// Two nodes may have several subscriptions to each other, and each has a row.
#[test]
fn each_subscription_of_a_pair_has_its_own_state() {
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
