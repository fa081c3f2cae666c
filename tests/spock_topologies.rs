//! What is no full mesh is recognised before the first change: told of where a join is exact beside it, else refused.

mod common;

use common::{assert_failed, assert_findings, fingerprint};
use lab::cluster::add_node_call;
use lab::spock::{self, Mesh};
use lab::{Called, Cluster, Server, add_node, assert_same_content, quote_literal, wait_quiet};

const CONTENT: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text)";

/// A mesh of `members`, and two servers more, of which the last is named `last`; `None` without Spock.
fn cluster(members: usize, last: &str) -> Option<Cluster> {
    spock::announced()?;
    let mesh = Mesh {
        content: CONTENT,
        ..Mesh::default()
    };
    let mut cluster = mesh.start_with_extension(members);
    spock::grow(&mut cluster, last);
    Some(cluster)
}

/// Makes the server a node of its own.
fn node(server: &Server) {
    server.sql(&format!(
        "SELECT spock.node_create({}, {})",
        quote_literal(server.name()),
        quote_literal(&server.dsn())
    ));
}

fn subscribe(subscriber: &Server, provider: &Server, subscription: &str, more: &str) {
    let sets = "{default,default_insert_only,ddl_sql}";
    spock::subscribe_to(subscriber, provider, subscription, sets, more);
}

fn warned(called: &Called, told: &str) {
    let mut notices = called.notices.iter();
    assert!(
        notices.any(|n| n.severity == "WARNING" && n.message.contains(told)),
        "{told}\n{called:?}"
    );
}

fn ids(server: &Server) -> String {
    server.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM t")
}

/// A member takes changes of a node that is none.
#[test]
fn a_provider_outside_of_the_mesh_is_told_of() {
    let Some(cluster) = cluster(2, "outside") else {
        return;
    };
    let [n1, n2, n3, outside] = [1, 2, 3, 4].map(|i| cluster.n(i));
    outside.sql("DROP EXTENSION zodan");
    outside.sql(CONTENT);
    node(outside);
    outside.sql("SELECT spock.repset_add_table('default', 't')");
    subscribe(n1, outside, "from_outside", "");
    n1.sql("INSERT INTO t VALUES (1, 'n1')");
    outside.sql("INSERT INTO t VALUES (100, 'outside')");
    n1.wait_for("SELECT count(*) FROM t", "2");
    let joined = add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    warned(
        &joined,
        "node \"n1\": subscription from_outside brings changes of node \"outside\", which takes none of the cluster's and is no member: Spock does not send them on, so the new node gets what is there when it joins, and nothing that comes later",
    );
    assert_eq!(ids(n3), "1,100");
    outside.sql("INSERT INTO t VALUES (101, 'later')");
    n3.sql("INSERT INTO t VALUES (3, 'n3')");
    n1.wait_for("SELECT count(*) FROM t", "4");
    wait_quiet(&[n1, n2, n3]);
    assert_eq!((ids(n2), ids(n3)), ("1,3".into(), "1,3,100".into()));
    assert_eq!(ids(outside), "100,101");

    // It is nobody's to remove, and the member that it feeds does not leave beside it.
    let before = fingerprint(&[n1, n2, n3]);
    assert_failed(
        &n1.sql_error("CALL spock.remove_node('outside')"),
        "55000",
        "node \"outside\" is no member of the cluster: subscription from_outside of node \"n1\" takes its changes, and it takes those of no member",
        "SELECT spock.sub_drop('from_outside'::name, true)",
    );
    for on in [n1, n2] {
        for force in ["", ", force := true"] {
            assert_failed(
                &on.sql_error(&format!("CALL spock.remove_node('n1'{force})")),
                "55006",
                "it has subscription from_outside to node \"outside\", which is no member of the cluster",
                "Drop the subscription first.",
            );
        }
    }
    before.assert_same_now(&[n1, n2, n3]);
    n3.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n3.sql("SET spock.enable_ddl_replication = off; DROP TABLE t; DROP SCHEMA lab CASCADE");

    let joined = add_node(n3, "n3", n2, "n2").unwrap_or_else(|failed| panic!("{failed}"));
    warned(
        &joined,
        "is no member: Spock does not send them on, so the new node gets none of them",
    );
    n1.sql("SELECT spock.sub_drop('from_outside')");
    n2.call("CALL spock.remove_node('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_same_content(&[n2, n3]);
}

/// Who only reads is no member, by whatever name it is called.
#[test]
fn a_node_that_only_reads_is_not_removed() {
    let Some(cluster) = cluster(2, "reader") else {
        return;
    };
    let [n1, n2, reader] = [1, 2, 4].map(|i| cluster.n(i));
    reader.sql(CONTENT);
    node(reader);
    subscribe(reader, n1, "reads", "");
    let before = fingerprint(&[n1, n2, reader]);
    let dsn = quote_literal(&reader.dsn());
    for force in ["", ", force := true"] {
        assert_failed(
            &n1.sql_error(&format!("CALL spock.remove_node('reader', {dsn}{force})")),
            "55000",
            "node \"reader\" only reads from the cluster and is no member of it",
            "run on it: SELECT spock.sub_drop('reads'::name, true)",
        );
    }
    assert_failed(
        &reader.sql_error("CALL spock.remove_node('reader')"),
        "55006",
        "it has subscription reads to node \"n1\", which is no member of the cluster",
        "Drop the subscription first.",
    );
    assert_failed(
        &reader.sql_error("CALL spock.remove_node('n1')"),
        "55000",
        "node \"n1\" is no member of the cluster: subscription reads of node \"reader\" takes its changes",
        "SELECT spock.sub_drop('reads'::name, true)",
    );
    before.assert_same_now(&[n1, n2, reader]);
}

/// Nodes that do not all subscribe to each other.
#[test]
fn a_star_is_told_as_one() {
    let Some(cluster) = cluster(3, "n5") else {
        return;
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n2.sql("SELECT spock.sub_drop('sub_n3_n2')");
    n3.sql("SELECT spock.sub_drop('sub_n2_n3')");
    let before = fingerprint(&[n1, n2, n3, n4]);
    assert_findings(
        &n4.sql_error(&add_node_call(n4, "n4", n1, "n1")),
        &[
            (
                "55000",
                "node \"n2\": subscription sub_n3_n2 from node \"n3\" does not exist",
                "The members form a star around \"n1\", and \"n2\" gets nothing of what \"n3\" writes",
            ),
            (
                "55000",
                "node \"n3\": subscription sub_n2_n3 from node \"n2\" does not exist",
                "The members form a star around \"n1\", and \"n3\" gets nothing of what \"n2\" writes",
            ),
        ],
    );
    assert_failed(
        &n4.sql_error(&add_node_call(n4, "n4", n2, "n2")),
        "55000",
        "node \"n1\": it exchanges changes with node \"n3\", which node \"n2\" does not know: they form a star around \"n1\"",
        "Nodes join a full mesh",
    );
    before.assert_same_now(&[n1, n2, n3, n4]);
}
