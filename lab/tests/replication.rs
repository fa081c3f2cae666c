//! Waiting until nodes are quiet, on two nodes that replicate to each other without the product.

use lab::{Cluster, Load, assert_same_content, pg, wait_quiet, wait_quiet_within};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Two nodes that replicate to each other, or nothing before PostgreSQL 16, which cannot filter by origin.
fn pair() -> Option<Cluster> {
    if pg::major() < 16 {
        eprintln!("skipped: {} cannot filter by origin", pg::version());
        return None;
    }
    let cluster = Cluster::start(2);
    for node in cluster.all() {
        node.sql(lab::quiet::SCHEMA);
        node.sql(lab::load::SCHEMA);
        node.sql("CREATE PUBLICATION everything FOR ALL TABLES");
    }
    for (from, to) in [(cluster.n(1), cluster.n(2)), (cluster.n(2), cluster.n(1))] {
        to.sql(&format!(
            "CREATE SUBSCRIPTION sub_{}_{} CONNECTION {} PUBLICATION everything WITH (copy_data = false, origin = none)",
            from.name(),
            to.name(),
            lab::quote_literal(&from.dsn())
        ));
    }
    Some(cluster)
}

#[test]
fn quiet_nodes_have_everything() {
    let Some(cluster) = pair() else { return };
    let load = Load::start(&cluster.all());
    load.wait_commits(200);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        report.assert_present_on(node);
    }
}

#[test]
fn a_node_that_lags_is_not_quiet() {
    let Some(cluster) = pair() else { return };
    wait_quiet(&cluster.all());
    cluster.n(2).sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    let waited = catch_unwind(AssertUnwindSafe(|| {
        wait_quiet_within(&cluster.all(), Duration::from_secs(1));
    }));
    let said = *waited.unwrap_err().downcast::<String>().unwrap();
    assert!(
        said.contains("n2: waited") && said.contains("still \"n1 missing\""),
        "{said}"
    );
    cluster.n(2).sql("ALTER SUBSCRIPTION sub_n1_n2 ENABLE");
    wait_quiet(&cluster.all());
}
