//! What is no full mesh is recognised before the first change: told of where a join is exact beside it, else refused.

mod common;

use common::{Hang, Running, StopOnDrop, assert_failed, assert_findings, fingerprint};
use lab::cluster::add_node_call;
use lab::spock::{self, Mesh};
use lab::{Called, Cluster, Server, add_node, assert_same_content, quote_literal, wait_quiet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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
    let warnings = called.warnings();
    assert!(
        warnings.iter().any(|warning| warning.contains(told)),
        "{told}\n{called:?}"
    );
}

fn ids(server: &Server) -> String {
    server.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM t")
}

/// A member takes changes of a node that is none.
#[test]
fn provider_outside_of_the_mesh_is_reported() {
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
        "node \"n1\": subscription from_outside brings changes of node \"outside\", which takes none of the cluster's and is not a member: Spock does not send them on, so the new node gets what is there when it joins, and nothing that comes later",
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
        "node \"outside\" is not a member of the cluster: subscription from_outside of node \"n1\" takes its changes, and it takes those of no member",
        "SELECT spock.sub_drop('from_outside'::name, true)",
    );
    for on in [n1, n2] {
        for force in ["", ", force := true"] {
            assert_failed(
                &on.sql_error(&format!("CALL spock.remove_node('n1'{force})")),
                "55006",
                "it has subscription from_outside to node \"outside\", which is not a member of the cluster",
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
        "is not a member: Spock does not send them on, so the new node gets none of them",
    );
    n1.sql("SELECT spock.sub_drop('from_outside')");
    n2.call("CALL spock.remove_node('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_same_content(&[n2, n3]);
}

/// Who only reads is no member, by whatever name it is called.
#[test]
fn removal_of_a_reader_is_refused() {
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
            "node \"reader\" only reads from the cluster and is not a member of it",
            "run on it: SELECT spock.sub_drop('reads'::name, true)",
        );
    }
    assert_failed(
        &reader.sql_error("CALL spock.remove_node('n1')"),
        "55000",
        "node \"n1\" is not a member of the cluster: subscription reads of node \"reader\" takes its changes",
        "SELECT spock.sub_drop('reads'::name, true)",
    );
    before.assert_same_now(&[n1, n2, reader]);

    // On itself it can be told to read no more.
    reader
        .call("CALL spock.remove_node('reader')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let slots = "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots";
    assert_eq!(n1.value(slots), "spk_postgres_n1_sub_n1_n2");
    assert_eq!(
        reader.value(
            "SELECT (SELECT count(*) FROM spock.subscription) + (SELECT count(*) FROM spock.node)
                    + (SELECT count(*) FROM pg_replication_origin)"
        ),
        "0"
    );
}

/// Nodes that do not all subscribe to each other.
#[test]
fn join_to_a_star_is_refused_as_a_star() {
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

/// The CALL that adds `n3` by `source`, and has `readers` read from it too.
fn with_readers(n3: &Server, source: &Server, readers: &[&str]) -> String {
    let readers: Vec<String> = readers.iter().map(|dsn| quote_literal(dsn)).collect();
    let call = add_node_call(n3, "n3", source, source.name());
    let call = call.strip_suffix(')').unwrap_or_else(|| panic!("{call}"));
    format!("{call}, readers := ARRAY[{}]::text[])", readers.join(", "))
}

fn same_rows(of: &[&Server], table: &str) {
    let digest = format!("SELECT md5(string_agg(x::text, ',' ORDER BY x::text)) FROM {table} x");
    let expected = of[0].value(&digest);
    for node in of {
        node.wait_for(&digest, &expected);
    }
}

/// From its first change on, once, and with the sets that the reader has.
#[test]
fn reader_gets_what_is_written_on_the_new_node() {
    if spock::announced().is_none() {
        return;
    }
    let content = "CREATE TABLE t (id bigserial, v text, at text, PRIMARY KEY (at, id));
                   CREATE TABLE other (id bigint PRIMARY KEY)";
    let mesh = Mesh {
        content,
        sets: Some(
            "SELECT spock.repset_add_table('default', 't');
             SELECT spock.repset_create('more');
             SELECT spock.repset_add_table('more', 'other');
             SELECT spock.repset_add_table('more', 'lab.marker')",
        ),
        subscriptions: &[spock::Subscription {
            name: "sub_{p}_{s}",
            sets: "{default,default_insert_only,ddl_sql,more}",
            arguments: "",
        }],
        ..Mesh::default()
    };
    let mut cluster = mesh.start_with_extension(2);
    spock::grow(&mut cluster, "reader");
    let [n1, n2, n3, reader] = [1, 2, 3, 4].map(|i| cluster.n(i));
    reader.sql(&format!("DROP EXTENSION zodan; {content}"));
    node(reader);
    for (provider, name) in [(n1, "reads_n1"), (n2, "reads_n2")] {
        subscribe(reader, provider, name, "");
    }
    let over = AtomicBool::new(false);
    let call = with_readers(n3, n1, &[&reader.dsn()]);
    let joined = thread::scope(|scope| {
        let end = StopOnDrop(&over);
        for node in [n1, n2] {
            let over = &over;
            scope.spawn(move || {
                let mut client = node.client();
                while !over.load(Ordering::Relaxed) {
                    let insert = format!("INSERT INTO t (v, at) VALUES ('x', '{}')", node.name());
                    client.batch_execute(&insert).expect("an insert");
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let joined = common::plan::assert_run_follows_plan(n3, &call);
        // At once, and beside what the others write.
        let mut client = n3.client();
        for i in 1..=50 {
            let insert =
                format!("INSERT INTO t (v, at) VALUES ('y', 'n3'); INSERT INTO other VALUES ({i})");
            client.batch_execute(&insert).expect("an insert");
        }
        drop(end);
        joined
    });
    assert!(
        !joined
            .notices
            .iter()
            .any(|n| n.message.contains("reads from slot")),
        "{joined:?}"
    );
    wait_quiet(&[n1, n2, n3]);
    assert_same_content(&[n1, n2, n3]);
    same_rows(&[n1, reader], "t");
    assert_eq!(n1.value("SELECT count(*) FROM other"), "50");
    assert_eq!(
        reader.value("SELECT count(*) FROM other"),
        "0",
        "in no set of its"
    );
    let sets = "SELECT array_to_string(sub_replication_sets, ',') FROM spock.subscription WHERE sub_name = 'sub_n3_reader'";
    assert_eq!(reader.value(sets), "ddl_sql,default,default_insert_only");

    // It reads from all now, and the new node does not leave beside it.
    assert_failed(
        &n1.sql_error("CALL spock.remove_node('n3')"),
        "55006",
        "is not a member of the cluster",
        "drop its subscription first",
    );
    reader.sql("SELECT spock.sub_drop('sub_n3_reader')");
    n1.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
}

/// Before the first change.
#[test]
fn join_is_refused_when_a_reader_cannot_get_the_changes() {
    let Some(cluster) = cluster(2, "reader") else {
        return;
    };
    let [n1, n2, n3, reader] = [1, 2, 3, 4].map(|i| cluster.n(i));
    reader.sql(CONTENT);
    let refused = |readers: &[&str], code: &str, message: &str, hint: &str| {
        let before = fingerprint(&[n1, n2, n3, reader]);
        let failed = n3.sql_error(&with_readers(n3, n1, readers));
        assert_failed(&failed, code, message, hint);
        before.assert_same_now(&[n1, n2, n3, reader]);
        assert_eq!(n3.value("SELECT count(*) FROM zodan.run"), "0");
    };
    let argument = "argument readers leads to ";
    let dsn = reader.dsn();
    let nowhere = format!("{dsn} port=1");
    refused(
        &[&nowhere],
        "08001",
        "could not connect to node \"reader 1\"",
        "Its address is that of argument readers.",
    );
    let no_node = format!("{argument}a database that is not a cluster node");
    refused(&[&dsn], "22023", &no_node, "nodes that subscribe");
    node(reader);
    let of_none = format!("{argument}node \"reader\", which takes changes of no member");
    refused(&[&dsn], "22023", &of_none, "nodes that subscribe");
    let member = format!("{argument}node \"n2\", which gets all without that");
    refused(&[&n2.dsn()], "22023", &member, "no others");
    subscribe(reader, n1, "reads", ", forward_origins := '{all}'");
    let forwarded = format!(
        "{argument}node \"reader\", which takes by subscription reads what node \"n1\" has from others"
    );
    refused(&[&dsn], "22023", &forwarded, "Leave it out.");
    // It gets all the same, by n1, so nobody is told otherwise.
    let joined = add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        !joined
            .notices
            .iter()
            .any(|n| n.message.contains("reads from slot")),
        "{joined:?}"
    );
    n3.sql("INSERT INTO t VALUES (3, 'n3')");
    reader.wait_for("SELECT count(*) FROM t", "1");
    n1.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n3.sql("SET spock.enable_ddl_replication = off; DROP TABLE t; DROP SCHEMA lab CASCADE");
    n3.sql("DROP EXTENSION zodan; CREATE EXTENSION zodan");

    reader.sql("SELECT spock.sub_drop('reads')");
    subscribe(reader, n1, "reads", "");
    refused(
        &[&dsn, &dsn],
        "22023",
        &format!("{argument}node \"reader\", which gets all without that"),
        "once",
    );
    reader.sql("SELECT spock.sub_disable('reads', true)");
    refused(
        &[&dsn],
        "55000",
        "node \"reader\": subscription reads from node \"n1\" does not replicate",
        "Make it replicate first",
    );
    reader.sql("SELECT spock.sub_enable('reads', true)");
    reader.wait_for(
        "SELECT status FROM spock.sub_show_status('reads')",
        "replicating",
    );
    // A node of the name was removed.
    let slot =
        reader.value("SELECT spock.spock_gen_slot_name('postgres', 'n3', 'sub_n3_reader_gen2')");
    reader.sql(&format!("SELECT pg_replication_origin_create('{slot}')"));
    refused(&[&dsn], "42710", &slot, "pg_replication_origin_drop");
}

/// What was made on the reader goes with the rest, also where the CALL is not told of it any more.
#[test]
fn reader_is_as_before_when_a_join_fails() {
    let Some(cluster) = cluster(2, "reader") else {
        return;
    };
    let [n1, n2, n3, reader] = [1, 2, 3, 4].map(|i| cluster.n(i));
    reader.sql(CONTENT);
    node(reader);
    subscribe(reader, n1, "reads", "");
    let nodes = [n1, n2, reader];
    let before = fingerprint(&nodes);
    let call = with_readers(n3, n1, &[&reader.dsn()]);
    let point = "within it is proved";
    let error = format!("SET zodan.failpoint = 'error {point}'");
    let failed = Running::start_after(n3, &error, &call).fails();
    assert!(failed.message().contains(point), "{failed}");
    before.assert_same_now(&nodes);

    let (hang, running) = Hang::start(n3, "", point, &call);
    n3.crash();
    hang.release();
    running.ends_terminated();
    n3.boot();
    let there = "SELECT count(*) FROM spock.subscription WHERE sub_name = 'sub_n3_reader'";
    assert_eq!(reader.value(there), "1");
    let joined = add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    warned(
        &joined,
        "node \"reader\", which only reads, may keep subscription sub_n3_reader to node \"n3\"",
    );
    reader.sql("SELECT spock.sub_drop('sub_n3_reader')");
}
