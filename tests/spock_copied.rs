//! Copies of a node, and nodes that were removed while they were away, where the cluster runs Spock.

mod common;

use common::assert_failed;
use lab::{Cluster, Server, assert_same_content, quote_literal, spock, wait_quiet};

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

/// A mesh of three with node workers, which have noted where they are, and a server more.
fn mesh() -> Option<Cluster> {
    let cluster = spock::mesh(3, CONTENT)?;
    for node in cluster.first(3) {
        node.configure("shared_preload_libraries", "spock, zodan");
        node.restart();
        node.wait_for("SELECT count(*) FROM pg_ls_dir('zodan')", "1");
    }
    for (i, node) in cluster.first(3).iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES ({i}, 'before')"));
    }
    wait_quiet(&cluster.first(3));
    Some(cluster)
}

fn wait_logged(server: &Server, text: &str) {
    let log = quote_literal(&server.log_path().display().to_string());
    let text = quote_literal(text);
    server.wait_for(
        &format!("SELECT strpos(pg_read_file({log}), {text}) > 0"),
        "t",
    );
}

fn assert_ordinary(server: &Server) {
    for left in [
        "SELECT count(*) FROM spock.subscription",
        "SELECT count(*) FROM spock.node",
        "SELECT count(*) FROM pg_replication_slots",
        "SELECT count(*) FROM pg_replication_origin",
    ] {
        assert_eq!(server.value(left), "0", "{left}");
    }
}

fn assert_whole(members: &[&Server]) {
    for (i, node) in members.iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES (10 + {i}, 'later')"));
    }
    wait_quiet(members);
    assert_same_content(members);
}

#[test]
fn copy_takes_nothing_from_its_node() {
    let Some(cluster) = mesh() else { return };
    let [n1, n3, copy] = [1, 3, 4].map(|i| cluster.n(i));
    copy.stop();
    copy.restore_backup_of(n3);
    n3.stop();
    copy.boot();
    n1.sql("INSERT INTO item VALUES (5, 'n1')");
    wait_logged(copy, "the database was a node on ");
    wait_logged(copy, "Nothing is applied until it leads here");
    n3.boot();
    copy.wait_for("SELECT bool_or(sub_enabled) FROM spock.subscription", "f");
    wait_logged(copy, "two servers claim to be node \"n3\": ");
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
    n3.wait_for("SELECT count(*) FROM item", "4");
    assert_eq!(
        copy.value("SELECT problem LIKE 'two servers claim to be node \"n3\": %' FROM spock.show_all_nodes() WHERE node_name = 'n3'"),
        "t"
    );
    assert_failed(
        &copy.sql_error("CALL spock.remove_node('n1')"),
        "55000",
        "two servers claim to be node \"n3\": ",
        "run SELECT zodan.become_standalone() on it",
    );
    assert_failed(
        &n3.sql_error("SELECT zodan.become_standalone()"),
        "55000",
        "the database is node \"n3\" itself, and no copy of it",
        "CALL spock.remove_node('n3')",
    );
    copy.sql("SELECT zodan.become_standalone()");
    assert_ordinary(copy);
    assert_whole(&cluster.first(3));
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
}

#[test]
fn copy_becomes_standalone_by_its_own_removal() {
    let Some(cluster) = mesh() else { return };
    let (n3, copy) = (cluster.n(3), cluster.n(4));
    copy.stop();
    copy.restore_backup_of(n3);
    copy.boot();
    let called = copy
        .call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = "two servers claim to be node \"n3\": ";
    assert!(
        called.notices.iter().any(|n| n.message.contains(told)),
        "{called:?}"
    );
    assert_ordinary(copy);
    assert_whole(&cluster.first(3));
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
}

#[test]
fn node_removed_while_away_ends_by_itself() {
    let Some(cluster) = mesh() else { return };
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n3.stop();
    n1.call("CALL spock.remove_node('n3', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n3.boot();
    n3.wait_for("SELECT count(*) FROM spock.subscription", "0");
    wait_logged(
        n3,
        "node \"n3\" was removed from the cluster while it was away: node \"n1\" has removed it, node \"n2\" has removed it",
    );
    n3.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_ordinary(n3);
    assert_whole(&[n1, n2]);
    assert_eq!(n3.value("SELECT count(*) FROM item"), "3");
}
