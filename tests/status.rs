//! What a DBA sees of a cluster, whatever it replicates with: the same answer from every node, in time.

mod common;

use common::engines::{On, on_both_engines};
use common::table;
use lab::{add_node, quote_literal};
use std::time::{Duration, Instant};

on_both_engines! {
    status_is_the_same_on_every_node_before_and_after_a_join,
    disabled_subscription_is_shown_as_disabled,
    paths_to_a_dead_node_are_unknown_within_three_seconds,
}

const CONTENT: &str = "CREATE TABLE t (i int PRIMARY KEY)";

const STATES: &str = "SELECT string_agg(provider || ' ' || subscriber || ' ' || state, ', ') FROM spock.cluster_status()";

fn status_is_the_same_on_every_node_before_and_after_a_join(on: On) {
    let cluster = on.start(2, 1, CONTENT);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
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
    add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    let all = "n2 n1 replicating, n3 n1 replicating, n1 n2 replicating, n3 n2 replicating, n1 n3 replicating, n2 n3 replicating";
    let registry = "SELECT node_name, location, country, engine FROM spock.get_nodes()";
    let known = table(n1, registry);
    let engine = match on {
        On::Native => "native",
        On::Spock => "spock",
    };
    assert_eq!(known.len(), 3, "{known:?}");
    for (line, name) in known.iter().zip(["n1", "n2", "n3"]) {
        assert!(line.starts_with(&format!("{name}|")), "{line}");
        assert!(line.ends_with(&format!("|{engine}")), "{line}");
    }
    assert_eq!(known[2], format!("n3|NY|USA|{engine}"));
    for node in [n1, n2, n3] {
        node.wait_for(STATES, all);
        assert_eq!(table(node, registry), known);
        assert_eq!(
            table(
                node,
                "SELECT node_name FROM spock.get_nodes() WHERE is_local"
            ),
            [node.name()]
        );
        assert_eq!(
            table(node, "SELECT node_name, status FROM spock.show_all_nodes()"),
            ["n1|up", "n2|up", "n3|up"]
        );
        assert_eq!(
            table(
                node,
                "SELECT node_name, provider_node, status FROM spock.show_all_subscription_status() ORDER BY 1, 2"
            ),
            [
                ("n1", "n2"),
                ("n1", "n3"),
                ("n2", "n1"),
                ("n2", "n3"),
                ("n3", "n1"),
                ("n3", "n2")
            ]
            .map(|(subscriber, provider)| format!("{subscriber}|{provider}|replicating"))
        );
        node.wait_for(
            &format!(
                "SELECT count(*) FROM spock.health_report({}) WHERE status = 'failed'",
                arguments("post")
            ),
            "0",
        );
    }
}

fn disabled_subscription_is_shown_as_disabled(on: On) {
    let cluster = on.start(2, 0, CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    on.suspend(n2, n1);
    for node in [n1, n2] {
        node.wait_for(STATES, "n2 n1 replicating, n1 n2 disabled");
    }
    on.resume(n2, n1);
    n1.wait_for(STATES, "n2 n1 replicating, n1 n2 replicating");
}

fn paths_to_a_dead_node_are_unknown_within_three_seconds(on: On) {
    let cluster = on.start(3, 0, CONTENT);
    let n1 = cluster.n(1);
    cluster.n(3).crash();
    let begun = Instant::now();
    let states = table(
        n1,
        "SELECT provider, subscriber, state, slot_name IS NOT NULL FROM spock.cluster_status() WHERE subscriber = 'n3'",
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    // The slots of the dead are known from their providers.
    assert_eq!(states, ["n1|n3|unknown|t", "n2|n3|unknown|t"]);
}
