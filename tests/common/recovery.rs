//! A node dies, and its survivors are made equal: what the suites about that share.

use super::engines::On;
use super::{quick, wait_mesh};
use lab::spock::Mesh;
use lab::{Called, Cluster, Server, ServerOptions, load, quote_literal};

pub const CONTENT: &str = "
CREATE TABLE crash_test (id int PRIMARY KEY, data text, big text);
CREATE TABLE debit (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE credit (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int NOT NULL);
CREATE TABLE journal (at int, what text);
CREATE TABLE scratch (id bigint PRIMARY KEY);
";

/// Servers that know when rows were written.
pub fn options() -> ServerOptions {
    quick().set("track_commit_timestamp", "on")
}

impl On {
    /// A mesh of `members` that keeps no recovery slots.
    pub fn mesh_without_slots(self, members: usize) -> Cluster {
        match self {
            On::Native => form(members, &options()),
            On::Spock => Mesh {
                content: &content(),
                ..Mesh::default()
            }
            .start_with_extension(members),
        }
    }

    /// A mesh whose members all keep a recovery slot.
    pub fn mesh(self, members: usize) -> Cluster {
        let cluster = self.mesh_without_slots(members);
        keep(&cluster.first(members));
        cluster
    }
}

fn content() -> String {
    format!("{}{CONTENT}", load::SCHEMA)
}

/// A native mesh.
pub fn form(members: usize, options: &ServerOptions) -> Cluster {
    let cluster = Cluster::start_with(members, options);
    cluster.form_mesh(members, &content());
    wait_mesh(&cluster.all());
    cluster
}

/// Has each node keep what the others may lack of each.
pub fn keep(nodes: &[&Server]) {
    for node in nodes {
        node.sql("SELECT zodan.start_node_worker()");
    }
    wait_protected(nodes);
}

/// Waits until each node keeps what the others may lack of each.
pub fn wait_protected(nodes: &[&Server]) {
    for node in nodes {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
            &(nodes.len() - 1).to_string(),
        );
    }
}

pub fn call(failed: &str, source: Option<&Server>, target: Option<&Server>, more: &str) -> String {
    let name = |node: Option<&Server>| node.map_or("NULL".into(), |n| quote_literal(n.name()));
    let dsn = |node: Option<&Server>| node.map_or("NULL".into(), |n| quote_literal(&n.dsn()));
    format!(
        "CALL spock.recover_run(failed_node_name := {}, source_node_name := {}, source_dsn := {},
                                target_node_name := {}, target_dsn := {}{more})",
        quote_literal(failed),
        name(source),
        dsn(source),
        name(target),
        dsn(target)
    )
}

pub fn recover(here: &Server, failed: &str) -> Called {
    run(here, &call(failed, None, None, ""))
}

pub fn remove(here: &Server, failed: &str) -> Called {
    run(here, &format!("CALL spock.remove_node('{failed}')"))
}

pub fn run(here: &Server, sql: &str) -> Called {
    here.call(sql).unwrap_or_else(|failed| panic!("{failed}"))
}

pub fn assert_nothing_to_do(called: &Called) {
    let said = |n: &lab::server::Notice| {
        n.message == "nothing to do: every survivor has the same of \"n1\""
    };
    assert!(called.notices.iter().any(said), "{called:?}");
}

pub fn rows(node: &Server) -> String {
    node.value("SELECT count(*) FROM crash_test")
}

/// What n1 moves between two tables in one transaction is there or not there in both.
pub fn assert_whole(node: &Server) {
    let sums = "SELECT (SELECT sum(amount) FROM debit) IS NOT DISTINCT FROM (SELECT sum(amount) FROM credit)";
    assert_eq!(node.value(sums), "t", "on {}", node.name());
}

/// No slot and no note of a recovery is left.
pub fn assert_nothing_held(nodes: &[&Server]) {
    for node in nodes {
        let left = node.value(
            "SELECT concat_ws(' ',
                (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE '%clone%'),
                (SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE 'zodan%'))",
        );
        assert_eq!(left, "", "on {}", node.name());
    }
}

/// n1 dies when n3 has 90 of its rows and n2 has 20, with updates and deletes among what n2 lacks.
pub fn crash_with_unequal_survivors(on: On, cluster: &Cluster) {
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 20) i");
    for node in [n2, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "20");
    }
    on.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(21, 91) i");
    n1.sql("UPDATE crash_test SET data = 'it''s \\ changed' WHERE id IN (3, 33)");
    n1.sql("UPDATE crash_test SET id = 1000 WHERE id = 4");
    n1.sql("DELETE FROM crash_test WHERE id = 50");
    n1.sql(
        "BEGIN; INSERT INTO debit VALUES (1, 7); INSERT INTO credit (amount) VALUES (7); COMMIT",
    );
    n1.sql("UPDATE credit SET amount = 8");
    if on == On::Native {
        // Spock does not send what becomes of a row without a key.
        n1.sql("INSERT INTO journal VALUES (1, 'a'), (1, 'a'), (2, NULL)");
        n1.sql("DELETE FROM journal WHERE at = 2; UPDATE journal SET what = 'b'");
        n3.wait_for("SELECT string_agg(what, '') FROM journal", "bb");
    }
    n3.wait_for("SELECT amount FROM credit", "8");
    assert_eq!((rows(n2), rows(n3)), ("20".into(), "90".into()));
    n1.crash();
}

/// Workers that apply do not wait for their commits to reach the disk; this one does.
pub fn crash_with_all_on_disk(node: &Server) {
    node.sql("SELECT pg_logical_emit_message(true, 'test', 'flushed')");
    node.crash();
}
