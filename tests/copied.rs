//! A copy of a node's server takes nothing from its node, and a node that was removed while it was away ends by itself,
//! whatever the cluster replicates with.

mod common;

use common::engines::{On, on_both_engines};
use common::removal::assert_no_node;
use common::{assert_failed, wait_logged};
use lab::{Cluster, Server, assert_same_content, wait_quiet};

on_both_engines! {
    copy_takes_nothing_from_its_node_that_is_down,
    copy_becomes_standalone_by_its_own_removal,
    node_removed_while_away_ends_by_itself,
}

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

/// A mesh of three with node workers, which have noted where they are, and a server whose files will be replaced.
fn mesh(on: On) -> Cluster {
    let cluster = on.start(3, 1, CONTENT);
    let libraries = match on {
        On::Native => "zodan",
        On::Spock => "spock, zodan",
    };
    for node in cluster.first(3) {
        node.configure("shared_preload_libraries", libraries);
        node.restart();
        node.wait_for("SELECT count(*) FROM pg_ls_dir('zodan', true, false)", "1");
    }
    on.wait_mesh(&cluster.first(3));
    for (i, node) in cluster.first(3).iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES ({i}, 'before')"));
    }
    wait_quiet(&cluster.first(3));
    cluster
}

/// The members get what each of them writes.
fn assert_members_replicate(members: &[&Server]) {
    for (i, node) in members.iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES (10 + {i}, 'later')"));
    }
    wait_quiet(members);
    assert_same_content(members);
}

const TWO: &str = "two servers claim to be node \"n3\": ";

fn copy_takes_nothing_from_its_node_that_is_down(on: On) {
    let cluster = mesh(on);
    let [n1, n3, copy] = [1, 3, 4].map(|i| cluster.n(i));
    copy.stop();
    copy.restore_backup_of(n3);
    n3.stop();
    copy.boot();
    n1.sql("INSERT INTO item SELECT i, 'n1' FROM generate_series(1001, 1050) i");
    wait_logged(copy, "the database was a node on ");
    wait_logged(copy, "Nothing is applied until it leads here");
    copy.restart();
    wait_logged(copy, "Nothing is applied until it leads here");
    n3.boot();
    copy.wait_for(on.any_enabled(), "f");
    wait_logged(copy, TWO);
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
    n3.wait_for("SELECT count(*) FROM item", "53");
    assert_eq!(
        copy.value(&format!(
            "SELECT starts_with(problem, '{TWO}') FROM spock.show_all_nodes() WHERE node_name = 'n3'"
        )),
        "t"
    );
    assert_failed(
        &copy.sql_error("CALL spock.remove_node('n1')"),
        "55000",
        TWO,
        "run SELECT zodan.become_standalone() on it",
    );
    assert_failed(
        &n3.sql_error("SELECT zodan.become_standalone()"),
        "55000",
        "the database is node \"n3\" itself, and no copy of it",
        "CALL spock.remove_node('n3')",
    );
    copy.sql("SELECT zodan.become_standalone()");
    assert_no_node(on, copy);
    assert_members_replicate(&cluster.first(3));
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
}

fn copy_becomes_standalone_by_its_own_removal(on: On) {
    let cluster = mesh(on);
    let (n3, copy) = (cluster.n(3), cluster.n(4));
    copy.stop();
    copy.restore_backup_of(n3);
    copy.boot();
    let called = copy
        .call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        called.notices.iter().any(|n| n.message.contains(TWO)),
        "{called:?}"
    );
    assert_no_node(on, copy);
    assert_members_replicate(&cluster.first(3));
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
}

fn node_removed_while_away_ends_by_itself(on: On) {
    let cluster = mesh(on);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n3.stop();
    n1.call("CALL spock.remove_node('n3', force := true)")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n3.boot();
    n3.wait_for(on.any_enabled(), "");
    let why = match on {
        On::Native => ". Its registry has generation ",
        On::Spock => ": node \"n1\" has removed it, node \"n2\" has removed it",
    };
    wait_logged(
        n3,
        &format!("node \"n3\" was removed from the cluster while it was away{why}"),
    );
    n3.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_no_node(on, n3);
    assert_members_replicate(&[n1, n2]);
    assert_eq!(n3.value("SELECT count(*) FROM item"), "3");
}
