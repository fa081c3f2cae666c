//! On the native engine a name comes back, the server that had it too: what is removed stays removed, and takes nothing of its successor.

mod common;

use common::plan::slot;
use common::removal::wait_for_refusal;
use common::{assert_failed, quick, wait_mesh};
use lab::{
    Cluster, Load, Server, ServerOptions, add_node, assert_same_content, load, quote_literal,
    wait_quiet,
};
use std::collections::BTreeSet;

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

const NUMBERS: &str =
    "SELECT string_agg(name || ' ' || number, ', ' ORDER BY name) FROM zodan.node";

/// n3 dies, is removed, and another server joins under its name, while n1 and n2 are written to. Then the old one is
/// started again, and the new one restarts. That again with the next server, each time ended in another way.
fn under_one_name(node_workers: bool) {
    let options = if node_workers { keeping() } else { quick() };
    let cluster = Cluster::start_with(6, &options);
    cluster.form_mesh(3, &format!("{}{CONTENT}", load::SCHEMA));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    wait_mesh(&[n1, n2, cluster.n(3)]);
    let load = Load::start(&[n1, n2]);
    let mut names = BTreeSet::new();
    for round in 3..=5 {
        let (old, new) = (cluster.n(round), cluster.n(round + 1));
        let of_old = slot(n2, old);
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
        let now = n1.value(slots);
        assert_eq!(now, slot(n1, new));
        assert!(names.insert(now.clone()), "{now} once more");
        old.boot();
        old.sql("INSERT INTO item VALUES (1, 'old')");
        new.restart();
        load.wait_commits(50);
        if node_workers {
            for own in OWN {
                old.wait_for(own, "");
            }
            let log = old.log();
            let told = "LOG:  zodan: node \"n3\" was removed from the cluster while it was away. Its registry has generation ";
            assert!(log.contains(told), "{log}");
        } else {
            wait_for_refusal(old, &of_old);
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
fn three_successors_of_one_name_lose_nothing_to_the_nodes_before() {
    under_one_name(false);
}

#[test]
fn replaced_nodes_with_node_workers_end_by_themselves() {
    under_one_name(true);
}

/// Both lost, both removed, and both are back: they know each other, and nobody else knows them.
fn two_removed(node_workers: bool) -> Cluster {
    let options = if node_workers { keeping() } else { quick() };
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
fn two_removed_nodes_end_by_their_own_removals() {
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
fn two_removed_nodes_with_node_workers_end_by_themselves() {
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

/// No node worker runs, and nobody calls on n3: what tells it is that n2, which was away too, forgets it.
#[test]
fn member_that_was_away_ends_a_node_removed_meanwhile() {
    let cluster = Cluster::start_with(4, &quick());
    cluster.form_mesh(4, CONTENT);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    wait_mesh(&[n1, n2, n3, n4]);
    n2.crash();
    n3.crash();
    for node in [n1, n4] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND pid IS NOT NULL",
            "1",
        );
    }
    call(n1, "CALL spock.remove_node('n3', force := true)");
    n3.boot();
    n2.boot();
    let done = n1
        .call(&remove("n3"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = "removed node \"n3\" has ended what it had of the cluster";
    assert!(
        done.notices.iter().any(|n| n.message.contains(told)),
        "{:?}",
        done.notices
    );
    assert_ended(n3);
    n3.sql("INSERT INTO item VALUES (1, 'n3')");
    call(n3, &remove("n3"));
    assert_no_node(n3);
    n2.sql("INSERT INTO item VALUES (2, 'n2')");
    wait_quiet(&[n1, n2, n4]);
    for node in [n1, n2, n4] {
        assert_eq!(node.value("SELECT string_agg(node, ' ') FROM item"), "n2");
    }
}

/// Nobody can tell it that it was removed.
#[test]
fn removed_node_that_reaches_no_member_leaves_by_force() {
    let cluster = two_removed(false);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    for away in [n1, n2, n4] {
        away.stop();
    }
    let failed = n3.sql_error(&remove("n3"));
    assert_failed(
        &failed,
        "ZD001",
        "cannot reach a majority: 1 of 4 members reachable",
        "SET zodan.require_majority = off",
    );
    n3.configure("zodan.require_majority", "off");
    n3.reload();
    call(n3, "CALL spock.remove_node('n3', force := true)");
    assert_no_node(n3);
}

/// n2 is lost and removed, n1 leaves, and founds the same cluster again with another n2: each node has the name and the
/// number that one had before. The old n2 is back.
#[test]
fn cluster_founded_again_knows_no_node_of_the_first() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, CONTENT);
    let [n1, old, new] = [1, 2, 3].map(|i| cluster.n(i));
    wait_mesh(&[n1, old]);
    let of_old = slot(n1, old);
    old.crash();
    call(n1, "CALL spock.remove_node('n2', force := true)");
    call(n1, &remove("n1"));
    add_node(new, "n2", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n1.value(NUMBERS), "n1 0, n2 1");
    assert_ne!(of_old, slot(n1, new));
    // Nobody else is in its way.
    new.stop();
    old.boot();
    wait_for_refusal(old, &of_old);
    n1.sql("INSERT INTO item SELECT i, 'n1' FROM generate_series(1, 50) i");
    new.boot();
    wait_quiet(&[n1, new]);
    assert_same_content(&[n1, new]);
    assert_eq!(old.value("SELECT count(*) FROM item"), "0");
    assert_eq!(n1.value("SELECT count(*) FROM item"), "50");
}

/// What n2 reads of n3 comes from the old n3 for a while, which has the slots of its readers still.
#[test]
fn members_do_not_read_from_a_replaced_node_at_its_successors_address() {
    let cluster = Cluster::start_with(4, &quick());
    cluster.form_mesh(3, CONTENT);
    let [n1, n2, old, new] = [1, 2, 3, 4].map(|i| cluster.n(i));
    wait_mesh(&[n1, n2, old]);
    old.crash();
    for node in [n1, n2] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE subname LIKE 'sub_n3_%' AND pid IS NOT NULL AND received_lsn IS NOT NULL",
            "0",
        );
    }
    call(n1, "CALL spock.remove_node('n3', force := true)");
    add_node(new, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'sub_n3_n2_%'";
    old.boot();
    assert_eq!([old, new].map(|n3| n3.value(slots)), ["1", "1"]);
    let of_n2 = n2.value("SELECT subslotname FROM pg_subscription WHERE subname = 'sub_n3_n2'");
    let connect = |n3: &Server| {
        n2.sql(&format!(
            "ALTER SUBSCRIPTION sub_n3_n2 CONNECTION {}",
            quote_literal(&n3.dsn())
        ));
    };
    connect(old);
    old.sql("INSERT INTO item SELECT i, 'old' FROM generate_series(1, 50) i");
    new.sql("INSERT INTO item SELECT i, 'new' FROM generate_series(1, 50) i");
    wait_for_refusal(n2, &of_n2);
    connect(new);
    let members = [n1, n2, new];
    wait_quiet(&members);
    assert_same_content(&members);
    for member in members {
        assert_eq!(
            member.value("SELECT string_agg(DISTINCT node, ' ') FROM item"),
            "new"
        );
    }
}
