//! A node joins nodes that are being written to: what the suites about that share.

use super::engines::On;
use lab::load::LoadOptions;
use lab::spock::Mesh;
use lab::{Called, Cluster, Load, Server, add_node, assert_same_content, load, schema, wait_quiet};

/// A mesh of `members` with tables of all kinds of so many rows, and one empty server more.
pub fn cluster(on: On, members: usize, rows: u64) -> Cluster {
    let content = format!("{};\n{}", load::SCHEMA, schema::kinds(rows));
    match on {
        On::Native => {
            let cluster = Cluster::start(members + 1);
            for node in cluster.all() {
                node.sql(schema::ROLES);
            }
            cluster.form_mesh(members, &content);
            cluster
        }
        On::Spock => spock_cluster(members, rows, &[]),
    }
}

/// The same of Spock with these settings.
pub fn spock_cluster(members: usize, rows: u64, settings: &[(&str, &str)]) -> Cluster {
    let mesh = Mesh {
        everywhere: schema::ROLES,
        content: &format!("{};\n{}", load::SCHEMA, schema::kinds(rows)),
        settings,
        ..Mesh::default()
    };
    mesh.start(members)
}

/// Joins the last server of `cluster` while the others are written to, and proves that all have the same content,
/// which is what the writers were told was committed. Returns how many writes there were in a second.
pub fn join_under_load(on: On, cluster: &Cluster, members: usize, rate: Option<u32>) -> f64 {
    let writers = cluster.first(members);
    let new = cluster.n(members + 1);
    let load = Load::start_with(&writers, &LoadOptions { writers: 2, rate });
    load.wait_commits(200);
    add_node(new, new.name(), cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    load.wait_commits(200);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        report.assert_present_on(node);
        assert_no_conflict(on, node);
    }
    report.writes_per_second()
}

/// Nothing was applied twice and nothing was missing when a change came: Spock would have resolved that and
/// written it down. The native engine does not count it: the apply worker stops, or the contents differ.
pub fn assert_no_conflict(on: On, node: &Server) {
    if on == On::Native {
        return;
    }
    assert_eq!(
        node.value("SELECT count(*) FROM spock.resolutions"),
        "0",
        "{}: {:?}",
        node.name(),
        node.rows("SELECT to_jsonb(r) FROM spock.resolutions r LIMIT 5")
    );
    assert_eq!(node.value("SELECT count(*) FROM spock.exception_log"), "0");
}

/// For how long the join whose journal is on `new` has paused apply on its source.
pub fn apply_pause_ms(new: &Server) -> f64 {
    let pause = new.value(
        "SELECT apply_pause_ms FROM zodan.run WHERE state = 'done' ORDER BY id DESC LIMIT 1",
    );
    pause
        .parse()
        .unwrap_or_else(|_| panic!("apply_pause_ms is {pause:?}"))
}
