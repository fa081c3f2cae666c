//! A node that is replaced under its name takes nothing of its successor, whatever the cluster replicates with.

mod common;

use common::engines::{On, on_both_engines};
use common::plan::assert_run_follows_plan;
use common::removal::{assert_no_node, remove_by_force, wait_for_refusal};
use lab::cluster::add_node_call;
use lab::{Load, Server, assert_same_content, load, wait_quiet};

on_both_engines! {
    replaced_node_takes_nothing_from_its_successor,
}

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

fn items(server: &Server) -> String {
    server.value("SELECT string_agg(id || ' ' || node, ', ' ORDER BY id) FROM item")
}

/// n3 dies, is removed, and another server joins under its name, while n1 and n2 are written to. The old one is started
/// again while the new one is down. All that twice.
fn replaced_node_takes_nothing_from_its_successor(on: On) {
    let cluster = on.start(3, 2, &format!("{}{CONTENT}", load::SCHEMA));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let load = Load::start(&[n1, n2]);
    let mut written = String::new();
    for round in 0..2 {
        let (old, new) = (cluster.n(round + 3), cluster.n(round + 4));
        load.wait_commits(10);
        let of_old = [n1, n2].map(|provider| on.slot(old, provider));
        old.crash();
        remove_by_force(n1, "n3");
        assert_run_follows_plan(new, &add_node_call(new, "n3", n1, "n1"));
        let of_new = [n1, n2].map(|provider| on.slot(new, provider));
        assert!(
            of_new.iter().all(|slot| !of_old.contains(slot)),
            "{of_new:?}"
        );
        new.stop();
        old.boot();
        for slot in of_old {
            wait_for_refusal(old, &slot);
        }
        n1.sql(&format!("INSERT INTO item VALUES ({round}, 'n1')"));
        old.sql("INSERT INTO item VALUES (100, 'old')");
        load.wait_commits(20);
        new.boot();
        let before = if written.is_empty() { "" } else { ", " };
        written += &format!("{before}{round} n1");
        new.wait_for(
            "SELECT string_agg(id || ' ' || node, ', ' ORDER BY id) FROM item",
            &written,
        );
        assert!(
            !items(old).contains(&format!("{round} n1")),
            "{}",
            items(old)
        );
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    let members = [n1, n2, cluster.n(5)];
    wait_quiet(&members);
    assert_same_content(&members);
    for member in members {
        report.assert_present_on(member);
        assert_eq!(items(member), written, "{}", member.name());
    }
    assert_eq!(items(cluster.n(3)), "100 old");
    assert!(
        !items(cluster.n(4)).contains("1 n1"),
        "{}",
        items(cluster.n(4))
    );
    n1.wait_for(
        "SELECT string_agg(DISTINCT state, ' ') FROM spock.cluster_status()",
        "replicating",
    );
    // Called on the old ones, nothing happens to the successor, and the first was gone when the second joined.
    let told = match on {
        On::Native => "was removed from the cluster while it was away",
        On::Spock => {
            "was removed from the cluster while it was away: subscription sub_n3_n1_gen3 of node \"n1\" is to another one"
        }
    };
    for old in [cluster.n(3), cluster.n(4)] {
        for call in [
            "SELECT * FROM spock.remove_node_plan('n3')",
            "CALL spock.recover_run('n2')",
        ] {
            let failed = old.sql_error(call);
            assert_eq!(failed.code(), "55000", "{failed}");
            assert!(failed.message().contains(told), "{failed}");
        }
        assert_eq!(
            old.sql_error("CALL spock.remove_node('n1')").code(),
            "55000"
        );
        let left = old
            .call("CALL spock.remove_node('n3')")
            .unwrap_or_else(|failed| panic!("{failed}"));
        assert!(
            left.notices.iter().any(|n| n.message.contains(told)),
            "{left:?}"
        );
        assert_no_node(on, old);
    }
    n2.sql("INSERT INTO item VALUES (2, 'n2')");
    for node in members {
        node.wait_for("SELECT count(*) FROM item", "3");
    }
}
