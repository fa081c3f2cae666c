//! A name comes back, the server that had it too: what is removed stays removed, and takes nothing of its successor.

mod common;

use common::{assert_failed, quick, wait_mesh};
use lab::{
    Cluster, Load, Server, ServerOptions, add_node, assert_same_content, load, quote_literal,
    wait_quiet,
};

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

fn keeping() -> ServerOptions {
    quick().set("shared_preload_libraries", "zodan")
}

fn call(server: &Server, sql: &str) {
    server.call(sql).unwrap_or_else(|failed| panic!("{failed}"));
}

fn remove(target: &str) -> String {
    format!("CALL spock.remove_node('{target}')")
}

/// What a node has of its cluster on its own server.
const OWN: [&str; 3] = [
    "SELECT string_agg(subname, ' ') FROM pg_subscription",
    "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots",
    "SELECT string_agg(roname, ' ') FROM pg_replication_origin",
];

fn assert_ended(server: &Server) {
    for own in OWN {
        assert_eq!(server.value(own), "", "{}: {own}", server.name());
    }
}

fn assert_no_node(server: &Server) {
    assert_ended(server);
    for left in [
        "SELECT count(*) FROM zodan.node",
        "SELECT count(*) FROM zodan.local_node",
        "SELECT count(*) FROM zodan.membership",
        "SELECT count(*) FROM pg_publication",
    ] {
        assert_eq!(server.value(left), "0", "{}: {left}", server.name());
    }
}

/// n3 dies, is removed, and another server joins under its name, while n1 and n2 are written to. Then the old one is
/// started again, and the new one restarts. That again with the next server, each time ended in another way.
fn under_one_name(keepers: bool) {
    let options = if keepers { keeping() } else { quick() };
    let cluster = Cluster::start_with(6, &options);
    cluster.form_mesh(3, &format!("{}{CONTENT}", load::SCHEMA));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    wait_mesh(&[n1, n2, cluster.n(3)]);
    let load = Load::start(&[n1, n2]);
    for round in 3..=5 {
        let (old, new) = (cluster.n(round), cluster.n(round + 1));
        load.wait_commits(10);
        if round == 5 {
            // The next one comes to where the old one was.
            old.sql(&format!(
                "BEGIN; SELECT zodan.unreplicated();
                 UPDATE zodan.node SET dsn = {} WHERE name = 'n3'; COMMIT",
                quote_literal(&new.dsn())
            ));
        }
        old.crash();
        // Both have noticed.
        for node in [n1, n2] {
            node.wait_for(
                "SELECT count(*) FROM pg_stat_subscription WHERE subname LIKE 'sub_n3_%' AND pid IS NOT NULL AND received_lsn IS NOT NULL",
                "0",
            );
        }
        call(n1, &remove("n3"));
        add_node(new, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
        let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE 'sub_n1_n3_%'";
        assert_eq!(n1.value(slots), format!("sub_n1_n3_{round}_postgres"));
        old.boot();
        old.sql("INSERT INTO item VALUES (1, 'old')");
        new.restart();
        load.wait_commits(50);
        if keepers {
            for own in OWN {
                old.wait_for(own, "");
            }
            let log = old.log();
            let told = "LOG:  zodan: node \"n3\" was removed from the cluster while it was away. Its registry has generation ";
            assert!(log.contains(told), "{log}");
        } else {
            let gone = format!(
                "replication slot \"sub_n2_n3_{}_postgres\" does not exist",
                round - 1
            );
            let told = format!(
                "SELECT pg_read_file({}) LIKE '%{gone}%'",
                quote_literal(&old.log_path().display().to_string())
            );
            old.wait_for(&told, "t");
        }
        if round == 4 {
            let failed = old.sql_error(&remove("n1"));
            let what = "node \"n3\" was removed from the cluster while it was away";
            assert_failed(&failed, "55000", what, "CALL spock.remove_node('n3') makes");
            assert!(failed.detail().contains("have been dropped"), "{failed}");
            assert_ended(old);
            let given = format!(
                "CALL spock.remove_node('n3', {})",
                quote_literal(&new.dsn())
            );
            assert_failed(
                &old.sql_error(&given),
                "22023",
                "target_node_dsn has a connection string for node \"n3\" that leads to another database",
                "Correct it",
            );
        }
        call(old, &remove("n3"));
        assert_no_node(old);
        assert_eq!(old.value("SELECT node FROM item WHERE id = 1"), "old");
        assert_eq!(
            old.sql_error(&remove("n3")).code(),
            "55000",
            "it is no node any more"
        );
    }
    let written = load.stop();
    let members = [n1, n2, cluster.n(6)];
    wait_quiet(&members);
    assert_same_content(&members);
    for member in members {
        written.assert_present_on(member);
        assert_eq!(member.value("SELECT count(*) FROM item"), "0");
    }
    n1.wait_for(
        "SELECT string_agg(DISTINCT state, ' ') FROM spock.cluster_status()",
        "replicating",
    );
}

#[test]
fn the_old_one_of_a_name_takes_nothing_of_its_successor() {
    under_one_name(false);
}

#[test]
fn with_keepers_it_ends_by_itself() {
    under_one_name(true);
}

/// Both lost, both removed, and both are back: they know each other, and nobody else knows them.
fn two_removed(keepers: bool) -> Cluster {
    let options = if keepers { keeping() } else { quick() };
    let cluster = Cluster::start_with(4, &options);
    cluster.form_mesh(4, CONTENT);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    wait_mesh(&[n1, n2, n3, n4]);
    n3.crash();
    n4.crash();
    for node in [n1, n2] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND pid IS NOT NULL",
            "1",
        );
    }
    call(n1, "CALL spock.remove_node('n3', force := true)");
    call(n1, "CALL spock.remove_node('n4', force := true)");
    n3.boot();
    n4.boot();
    cluster
}

fn assert_apart(cluster: &Cluster) {
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    for (i, node) in [n1, n2, n3, n4].into_iter().enumerate() {
        node.sql(&format!("INSERT INTO item VALUES ({i}, '{}')", node.name()));
    }
    wait_quiet(&[n1, n2]);
    let items = "SELECT string_agg(id || node, ' ' ORDER BY id) FROM item WHERE id < 10";
    assert_eq!([n1, n2].map(|n| n.value(items)), ["0n1 1n2"; 2]);
    assert_eq!([n3, n4].map(|n| n.value(items)), ["2n3", "3n4"]);
}

#[test]
fn two_removed_nodes_do_not_go_on_with_each_other() {
    let cluster = two_removed(false);
    let (n3, n4) = (cluster.n(3), cluster.n(4));
    n3.sql("INSERT INTO item VALUES (10, 'n3')");
    n4.wait_for("SELECT node FROM item WHERE id = 10", "n3");
    for (node, name) in [(n3, "n3"), (n4, "n4")] {
        call(node, &remove(name));
        assert_no_node(node);
    }
    assert_apart(&cluster);
}

#[test]
fn two_removed_nodes_with_keepers_end_by_themselves() {
    let cluster = two_removed(true);
    for (node, name) in [(cluster.n(3), "n3"), (cluster.n(4), "n4")] {
        for own in OWN {
            node.wait_for(own, "");
        }
        call(node, &remove(name));
        assert_no_node(node);
    }
    assert_apart(&cluster);
}

/// Nobody can tell it that it was removed.
#[test]
fn who_reaches_no_member_leaves_by_force() {
    let cluster = two_removed(false);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    for away in [n1, n2, n4] {
        away.stop();
    }
    let failed = n3.sql_error(&remove("n3"));
    assert_failed(
        &failed,
        "ZD001",
        "only 1 of the 4 members of the cluster can be reached",
        "SET zodan.require_majority = off",
    );
    n3.configure("zodan.require_majority", "off");
    n3.reload();
    call(n3, "CALL spock.remove_node('n3', force := true)");
    assert_no_node(n3);
}

/// Gives the slots of the members the names that they had before those contained the number.
fn name_as_before(members: &[&Server]) {
    for subscriber in members {
        for provider in members.iter().filter(|p| p.name() != subscriber.name()) {
            let (p, s) = (provider.name(), subscriber.name());
            let subscription = format!("sub_{p}_{s}");
            let now = subscriber.value(&format!(
                "SELECT subslotname FROM pg_subscription WHERE subname = '{subscription}'"
            ));
            subscriber.sql(&format!("ALTER SUBSCRIPTION {subscription} DISABLE"));
            provider.wait_for(
                &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{now}'"),
                "f",
            );
            provider.sql(&format!(
                "SELECT pg_copy_logical_replication_slot('{now}', '{subscription}_postgres');
                 SELECT pg_drop_replication_slot('{now}')"
            ));
            subscriber.sql(&format!(
                "ALTER SUBSCRIPTION {subscription} SET (slot_name = '{subscription}_postgres')"
            ));
            subscriber.sql(&format!("ALTER SUBSCRIPTION {subscription} ENABLE"));
        }
    }
}

#[test]
fn slots_with_older_names_are_known() {
    let cluster = Cluster::start_with(5, &quick());
    cluster.form_mesh(4, CONTENT);
    let [n1, n2, n3, n4, n5] = [1, 2, 3, 4, 5].map(|i| cluster.n(i));
    name_as_before(&[n1, n2, n3, n4]);
    wait_mesh(&[n1, n2, n3, n4]);
    n1.wait_for(
        "SELECT string_agg(DISTINCT state, ' ') FROM spock.cluster_status()",
        "replicating",
    );
    n3.sql("INSERT INTO item VALUES (1, 'n3')");
    wait_quiet(&[n1, n2, n3, n4]);
    // In an orderly way: what it has applied is on its disk.
    n2.stop();
    n3.crash();
    n1.wait_for(
        "SELECT string_agg(subscriber || ' ' || slot_name, ', ' ORDER BY 1) FROM spock.cluster_status()
          WHERE provider = 'n1' AND state = 'unknown'",
        "n2 sub_n1_n2_postgres, n3 sub_n1_n3_postgres",
    );
    // n2 is away, and pays later.
    for node in [n1, n4] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND pid IS NOT NULL",
            "1",
        );
    }
    call(n1, "CALL spock.remove_node('n3', force := true)");
    let of_n3 = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE 'sub_%_n3%'";
    assert_eq!([n1, n4].map(|n| n.value(of_n3)), ["", ""]);
    n2.boot();
    assert_eq!(n2.value(of_n3), "sub_n2_n3_postgres");
    add_node(n5, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n2.value(of_n3), "sub_n2_n3_4_postgres");
    let members = [n1, n2, n4, n5];
    n5.sql("INSERT INTO item VALUES (2, 'the new n3')");
    wait_quiet(&members);
    assert_same_content(&members);
    // The old one alive, by its own CALL.
    n3.boot();
    call(n3, &remove("n3"));
    assert_no_node(n3);
    // A member that leaves takes the old names with it.
    call(n1, &remove("n4"));
    assert_no_node(n4);
    let of_n4 = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%n4%'";
    assert_eq!([n1, n2, n5].map(|n| n.value(of_n4)), ["0", "0", "0"]);
}
