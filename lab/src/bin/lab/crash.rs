//! `lab demo-crash`: a node dies when its survivors have different parts of what it wrote, and they are made equal.

use crate::Options;
use crate::demo::{step, summary};
use lab::{Cluster, Server, ServerOptions, digest, pg};

const TABLE: &str = "CREATE TABLE crash_test (id int PRIMARY KEY, data text)";

/// Plays the scenario in both forms; true if the survivors are equal at the end of each.
pub fn run(_: &Options) -> bool {
    println!("Three nodes, {}.", pg::version());
    let paper = play(
        "n1 dies: n3 has 90 of its rows, n2 has 20.",
        |cluster| suspend(cluster.n(2), cluster.n(1)),
        |_| {},
    );
    let stricter = play(
        "\nThe same, with all other subscriptions suspended first.",
        |cluster| {
            suspend(cluster.n(2), cluster.n(1));
        },
        |cluster| {
            suspend(cluster.n(2), cluster.n(3));
            suspend(cluster.n(3), cluster.n(2));
        },
    );
    if !(paper && stricter) {
        println!("\nThe demo FAILED.");
    }
    paper && stricter
}

fn play(what: &str, lag: impl Fn(&Cluster), after: impl Fn(&Cluster)) -> bool {
    println!("{what}\n");
    let options = ServerOptions::default()
        .set("track_commit_timestamp", "on")
        .set("shared_preload_libraries", "zodan");
    let cluster = step("Starting three servers, and making a mesh of them", || {
        let cluster = Cluster::start_with(3, &options);
        cluster.form_mesh(3, TABLE);
        cluster
    });
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    step("Waiting until each keeps what the others may lack", || {
        for node in cluster.all() {
            node.wait_for(
                "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
                "2",
            );
        }
    });
    step("n1 writes 20 rows, which all get", || {
        n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i FROM generate_series(1, 20) i");
        for node in [n2, n3] {
            node.wait_for("SELECT count(*) FROM crash_test", "20");
        }
    });
    step(
        "n2 gets nothing of n1 any more; n1 writes 70 more, updates some and deletes one",
        || {
            lag(&cluster);
            n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i FROM generate_series(21, 91) i");
            n1.sql("UPDATE crash_test SET data = 'changed' WHERE id IN (3, 33)");
            n1.sql("DELETE FROM crash_test WHERE id = 50");
            n3.wait_for("SELECT count(*) FROM crash_test", "90");
            after(&cluster);
        },
    );
    step("n1 dies", || n1.crash());
    for node in [n2, n3] {
        summary(
            node.name(),
            &format!("{} rows", node.value("SELECT count(*) FROM crash_test")),
        );
    }
    psql(
        n2,
        "CALL spock.recover_precheck('n1', 'n3', NULL, 'n2', NULL, true, NULL)",
    );
    psql(
        n2,
        "CALL spock.recover_run(failed_node_name := 'n1', source_node_name := 'n3', target_node_name := 'n2', verb := true)",
    );
    let equal = digest::compare(&[n2, n3]);
    for node in [n2, n3] {
        summary(
            node.name(),
            &format!("{} rows", node.value("SELECT count(*) FROM crash_test")),
        );
    }
    match &equal {
        Ok(()) => summary("content", "equal on both"),
        Err(differences) => println!("{differences}"),
    }
    psql(n3, "CALL spock.remove_node('n1')");
    equal.is_ok()
}

/// From now on `subscriber` gets nothing from `provider`.
fn suspend(subscriber: &Server, provider: &Server) {
    let name = format!("sub_{}_{}", provider.name(), subscriber.name());
    subscriber.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
    subscriber.wait_for(
        &format!(
            "SELECT count(*) FROM pg_stat_subscription WHERE subname = '{name}' AND pid IS NOT NULL"
        ),
        "0",
    );
}

/// As a user would run it: its notices appear as they come.
fn psql(node: &Server, sql: &str) {
    println!("\n{}=# {sql};", node.name());
    let status = node
        .tool("psql")
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .status()
        .unwrap_or_else(|e| panic!("cannot run psql: {e}"));
    assert!(status.success(), "its error is above");
    println!();
}
