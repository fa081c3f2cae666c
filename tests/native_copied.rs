//! A copy of a node's server on the native engine, by whatever way it came to be: it has the registry of the original, its name and its subscriptions, and takes nothing
//! from it.

mod common;

use common::plan::slot;
use common::{assert_failed, quick, wait_logged, wait_mesh};
use lab::{
    Cluster, Server, ServerOptions, add_node, assert_same_content, quote_literal, wait_quiet,
};

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

fn keeping() -> ServerOptions {
    quick().set("shared_preload_libraries", "zodan")
}

/// A mesh of three whose node workers, if there are any, have noted where they are, and a server whose files will be replaced.
fn mesh(options: &ServerOptions) -> Cluster {
    let cluster = Cluster::start_with(4, options);
    cluster.form_mesh(3, CONTENT);
    wait_mesh(&cluster.first(3));
    for node in cluster.first(3) {
        node.sql(&format!(
            "INSERT INTO item VALUES ({}, 'before')",
            node.port()
        ));
        if keeps(node) {
            node.wait_for(
                "SELECT count(*) FROM pg_ls_dir('.') WHERE pg_ls_dir = 'zodan'",
                "1",
            );
        }
    }
    wait_quiet(&cluster.first(3));
    cluster.n(4).stop();
    cluster
}

fn keeps(node: &Server) -> bool {
    node.value("SHOW shared_preload_libraries") == "zodan"
}

/// What a copy of n3 says of itself.
fn claim(copy: &Server, node: &Server) -> String {
    format!(
        "two servers claim to be node \"n3\": {}, port {}, data directory {}; and user=postgres dbname=postgres host=127.0.0.1 port={}, port {}, data directory {}",
        copy.value("SELECT rtrim(pg_read_file('/etc/hostname'), E'\\n')"),
        copy.port(),
        copy.data_dir().display(),
        node.port(),
        node.port(),
        node.data_dir().display(),
    )
}

fn assert_ordinary(copy: &Server) {
    for left in [
        "SELECT count(*) FROM pg_subscription",
        "SELECT count(*) FROM pg_replication_slots",
        "SELECT count(*) FROM pg_replication_origin",
        "SELECT count(*) FROM pg_publication",
        "SELECT count(*) FROM zodan.node",
        "SELECT count(*) FROM zodan.local_node",
        "SELECT count(*) FROM zodan.membership",
    ] {
        assert_eq!(copy.value(left), "0", "{left}");
    }
    assert_eq!(copy.value("SELECT count(*) FROM item"), "3");
}

/// The members get what each of them writes, and the copy nothing.
fn assert_whole(cluster: &Cluster) {
    let members = cluster.first(3);
    for (i, node) in members.iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES ({i}, 'later')"));
    }
    wait_quiet(&members);
    assert_same_content(&members);
    assert_eq!(
        cluster
            .n(4)
            .value("SELECT count(*) FROM item WHERE node <> 'before'"),
        "0"
    );
}

#[test]
fn base_backup_started_elsewhere_takes_nothing_from_its_node() {
    let cluster = mesh(&keeping());
    let [n1, _, n3, copy] = [1, 2, 3, 4].map(|i| cluster.n(i));
    copy.restore_backup_of(n3);
    copy.boot();
    // The slots of n3 are free again and again meanwhile.
    for _ in 0..3 {
        n3.restart();
    }
    copy.wait_for("SELECT bool_or(subenabled) FROM pg_subscription", "f");
    let claim = claim(copy, n3);
    wait_logged(copy, &claim);
    assert_eq!(
        copy.value("SELECT problem FROM spock.show_all_nodes() WHERE node_name = 'n3'"),
        claim
    );
    assert_eq!(
        copy.value("SELECT string_agg(DISTINCT state, ' ') FROM spock.cluster_status() WHERE subscriber = 'n3'"),
        "unknown"
    );
    let hint = "run SELECT zodan.become_standalone() on it";
    for call in [
        "CALL spock.remove_node('n1')",
        "CALL spock.recover_run('n1')",
    ] {
        assert_failed(&copy.sql_error(call), "55000", &claim, hint);
    }
    wait_mesh(&cluster.first(3));
    assert_failed(
        &n3.sql_error("SELECT zodan.become_standalone()"),
        "55000",
        "the database is node \"n3\" itself, and no copy of it",
        "CALL spock.remove_node('n3')",
    );
    let of_n3 = slot(n1, n3);
    copy.sql("SELECT zodan.become_standalone()");
    assert_ordinary(copy);
    assert_failed(
        &copy.sql_error("SELECT zodan.become_standalone()"),
        "55000",
        "the database is not a cluster node",
        "Add it to one first.",
    );
    assert_eq!(
        n1.value(&format!(
            "SELECT active FROM pg_replication_slots WHERE slot_name = '{of_n3}'"
        )),
        "t"
    );
    assert_whole(&cluster);
}

/// The files of a standby that is older than its node have no note of it: only rows are replicated.
#[test]
fn standby_promoted_beside_its_node_takes_nothing() {
    let cluster = Cluster::start_with(4, &keeping());
    cluster.form_mesh(2, CONTENT);
    let [n1, n2, n3, standby] = [1, 2, 3, 4].map(|i| cluster.n(i));
    standby.stop();
    standby.restore_backup_of(n3);
    standby.follow(n3);
    standby.boot();
    add_node(n3, "n3", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    let members = cluster.first(3);
    wait_mesh(&members);
    for node in &members {
        node.sql(&format!(
            "INSERT INTO item VALUES ({}, 'before')",
            node.port()
        ));
    }
    wait_quiet(&members);
    standby.wait_for("SELECT count(*) FROM item", "3");
    standby.sql("SELECT pg_promote()");
    for _ in 0..3 {
        n3.restart();
        n2.sql("INSERT INTO item SELECT max(id) + 1, 'of n2' FROM item");
    }
    standby.wait_for("SELECT bool_or(subenabled) FROM pg_subscription", "f");
    wait_logged(standby, &claim(standby, n3));
    wait_quiet(&members);
    assert_same_content(&members);
    assert_eq!(standby.value("SELECT count(*) FROM item"), "3");
}

/// Its node worker has not been started yet.
#[test]
fn copy_of_a_node_that_has_just_joined_takes_nothing() {
    let options = keeping().set("zodan.recovery_slots", "off");
    let cluster = Cluster::start_with(4, &options);
    cluster.form_mesh(3, CONTENT);
    let [n1, n2, n3, copy] = [1, 2, 3, 4].map(|i| cluster.n(i));
    wait_quiet(&cluster.first(3));
    n3.stop();
    copy.stop();
    copy.copy_files_of(n3);
    copy.configure("zodan.recovery_slots", "on");
    copy.boot();
    n1.sql("INSERT INTO item VALUES (1, 'of n1')");
    wait_logged(copy, "the database was a node on ");
    n3.boot();
    copy.wait_for("SELECT bool_or(subenabled) FROM pg_subscription", "f");
    n2.sql("INSERT INTO item VALUES (2, 'of n2')");
    wait_quiet(&cluster.first(3));
    assert_same_content(&cluster.first(3));
    assert_eq!(copy.value("SELECT count(*) FROM item"), "0");
}

#[test]
fn moved_node_applies_again_when_its_address_leads_to_it() {
    let cluster = mesh(&keeping());
    let [n1, n2, n3, moved] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n3.stop();
    moved.copy_files_of(n3);
    moved.boot();
    n1.sql("INSERT INTO item VALUES (1001, 'of n1')");
    wait_logged(moved, "Nothing is applied until it leads here");
    let dsn = quote_literal(&moved.dsn());
    for node in [n1, n2, moved] {
        node.sql(&format!(
            "BEGIN; SELECT zodan.unreplicated();
             UPDATE zodan.node SET dsn = {dsn} WHERE name = 'n3'; COMMIT"
        ));
    }
    for node in [n1, n2] {
        node.sql(&format!(
            "ALTER SUBSCRIPTION sub_n3_{} CONNECTION {dsn}",
            node.name()
        ));
    }
    moved.wait_for("SELECT count(*) FROM item", "4");
    moved.sql("INSERT INTO item VALUES (1002, 'of n3')");
    let members = [n1, n2, moved];
    wait_quiet(&members);
    assert_same_content(&members);
    // It is known there from now on.
    moved.restart();
    n1.sql("INSERT INTO item VALUES (1003, 'of n1')");
    moved.wait_for("SELECT count(*) FROM item", "6");
}

#[test]
fn calls_on_a_copy_without_a_node_worker_are_refused() {
    let cluster = mesh(&quick());
    let [n1, _, n3, copy] = [1, 2, 3, 4].map(|i| cluster.n(i));
    copy.restore_backup_of(n3);
    copy.boot();
    let claim = claim(copy, n3);
    for call in [
        "CALL spock.remove_node('n1')",
        "CALL spock.recover_run('n1')",
        "SELECT * FROM spock.recover_plan('n1')",
        "SELECT * FROM spock.remove_node_plan('n1')",
    ] {
        assert_failed(
            &copy.sql_error(call),
            "55000",
            &claim,
            "zodan.become_standalone()",
        );
    }
    assert_eq!(
        copy.value("SELECT problem FROM spock.show_all_nodes() WHERE node_name = 'n3'"),
        claim
    );
    let given = format!("CALL spock.remove_node('n3', {})", quote_literal(&n3.dsn()));
    assert_failed(
        &copy.sql_error(&given),
        "22023",
        "target_node_dsn has a connection string for node \"n3\" that leads to another database",
        "Correct it",
    );
    assert_eq!(
        n1.value("SELECT count(*) FROM pg_replication_slots WHERE active"),
        "2"
    );
    copy.sql("SELECT zodan.become_standalone()");
    assert_ordinary(copy);
    assert_whole(&cluster);
}
