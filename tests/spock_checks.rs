//! What Spock's settings and tables on the members say against a join is found before the first change, and what its
//! workers have left out is no good health.

mod common;

use common::refused::{all_traces, assert_refused, fails, joins};
use lab::spock::{self, Mesh};
use lab::{Cluster, Server, quote_literal, wait_quiet};
use std::thread;

const CONTENT: &str =
    "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')";

fn mesh(members: usize, content: &str) -> Option<Cluster> {
    spock::announced()?;
    let mesh = Mesh {
        content,
        ..Mesh::default()
    };
    Some(mesh.start(members))
}

fn is_spock_6(server: &Server) -> bool {
    !server
        .value("SELECT to_regprocedure('spock.sub_alter_options(name, jsonb)')")
        .is_empty()
}

/// `node|check|found|statement` of what has the status.
fn report(server: &Server, source: &Server, new: &Server, when: &str, status: &str) -> Vec<String> {
    let arguments = [source.name(), &source.dsn(), new.name(), &new.dsn(), when]
        .map(quote_literal)
        .join(", ");
    let query = format!(
        "SELECT concat_ws('|', node, \"check\", found, statement) FROM spock.health_report({arguments})
          WHERE status = '{status}'"
    );
    let text = |row: Vec<Option<String>>| row[0].clone().unwrap_or_default();
    server.rows(&query).into_iter().map(text).collect()
}

/// Runs the statements that the report before the join has for what has failed there.
fn mend(cluster: &Cluster, new: &Server) {
    let source = cluster.n(1);
    let arguments = [source.name(), &source.dsn(), new.name(), &new.dsn()]
        .map(quote_literal)
        .join(", ");
    let mending = new.rows(&format!(
        "SELECT DISTINCT node, statement FROM spock.health_report({arguments})
          WHERE status = 'failed' AND statement IS NOT NULL"
    ));
    assert!(!mending.is_empty(), "the report has statements");
    for row in mending {
        let [node, statement] = [0, 1].map(|i| row[i].clone().unwrap_or_default());
        let all = cluster.all();
        let node = all.iter().find(|n| n.name() == node).expect("a node");
        node.sql(&statement);
        node.reload();
    }
}

#[test]
fn join_is_refused_when_apply_is_read_only() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let message = "spock.readonly is all, so apply workers write nothing there";

    n2.configure("spock.readonly", "all");
    n2.reload();
    n2.wait_for("SHOW spock.readonly", "all");
    let refused = |node: &str, hint: &str| {
        let message = format!("node \"{node}\": {message}");
        assert_refused(&cluster, n3, "55000", &message, hint);
    };
    refused("n2", "ALTER SYSTEM SET spock.readonly = 'off', and reload");
    mend(&cluster, n3);

    n1.sql("ALTER DATABASE postgres SET spock.readonly = 'all'");
    refused(
        "n1",
        "SET spock.readonly = 'off'; ALTER DATABASE postgres RESET spock.readonly",
    );
    mend(&cluster, n3);

    // What the session of the CALL has says nothing: the setting is that of the role of apply workers alone.
    n2.sql("ALTER ROLE postgres IN DATABASE postgres SET spock.readonly = 'All'");
    refused(
        "n2",
        "ALTER ROLE postgres IN DATABASE postgres RESET spock.readonly",
    );
    mend(&cluster, n3);

    if is_spock_6(n3) {
        // Before, nobody could even run a CALL there.
        n3.configure("spock.readonly", "all");
        n3.reload();
        n3.wait_for("SHOW spock.readonly", "all");
        refused("n3", "ALTER SYSTEM SET spock.readonly = 'off'");
        mend(&cluster, n3);
    }

    // The database has its own value.
    n1.sql("ALTER DATABASE postgres SET spock.readonly = 'off'");
    n1.configure("spock.readonly", "all");
    n1.reload();
    // Somebody else's database, and applications alone.
    n1.sql("CREATE DATABASE other");
    n1.sql("ALTER DATABASE other SET spock.readonly = 'all'");
    let applications = match is_spock_6(n3) {
        true => "local",
        false => "user",
    };
    // Its postgresql.auto.conf has a value by now.
    n2.sql(&format!(
        "ALTER SYSTEM SET spock.readonly = '{applications}'"
    ));
    n2.reload();
    n2.wait_for("SHOW spock.readonly", applications);
    joins(n3, n1);
}

#[test]
fn join_is_refused_when_a_subscription_forwards_origins() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let message = "node \"n1\": subscription sub_n2_n1 from node \"n2\" forwards changes of other nodes (forward_origins is all)";
    if is_spock_6(n1) {
        n1.sql("SELECT spock.sub_alter_options('sub_n2_n1', '{\"forward_origins\": [\"all\"]}')");
        let hint = "SELECT spock.sub_alter_options('sub_n2_n1', '{\"forward_origins\": []}')";
        wait_quiet(&cluster.first(2));
        assert_refused(&cluster, n3, "55000", message, hint);
        n1.sql(hint);
    } else {
        n1.sql("UPDATE spock.subscription SET sub_forward_origins = '{all}'");
        let hint = "create it again with forward_origins := '{}'";
        assert_refused(&cluster, n3, "55000", message, hint);
        n1.sql("UPDATE spock.subscription SET sub_forward_origins = '{}'");
    }
    wait_quiet(&cluster.first(2));
    joins(n3, n1);
}

#[test]
fn join_is_refused_when_an_origin_is_left_over() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let origin = |node: &Server, provider: &str| {
        node.value(&format!(
            "SELECT spock.spock_gen_slot_name(current_database()::name, '{provider}', 'sub_{provider}_{}')",
            node.name()
        ))
    };
    let left = [(n1, "n3"), (n3, "n2")].map(|(node, from)| (node, origin(node, from)));
    for (node, origin) in &left {
        node.sql(&format!(
            "SELECT pg_replication_origin_create('{origin}');
             SELECT pg_replication_origin_advance('{origin}', 'F/0')"
        ));
    }
    // Of no concern to n3.
    n2.sql("SELECT pg_replication_origin_create('spk_postgres_n9_sub_n9_n2')");
    for (node, origin) in &left {
        let message = format!("replication origin {origin} exists already, at position F/0");
        assert_refused(&cluster, n3, "42710", &message, "");
        let failed = fails(n3, n1);
        let drop = format!("SELECT pg_replication_origin_drop('{origin}')");
        assert!(
            failed.detail().contains(node.name()) && failed.to_string().contains(&drop),
            "{failed}"
        );
    }
    n1.sql("CREATE EXTENSION zodan");
    n1.call("CALL spock.remove_node('n9')")
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        n2.value("SELECT count(*) FROM pg_replication_origin WHERE roname LIKE '%n9%'"),
        "0"
    );
    mend(&cluster, n3);
    joins(n3, n1);
    n3.sql("INSERT INTO t VALUES (2, 'two')");
    n2.sql("INSERT INTO t VALUES (3, 'three')");
    wait_quiet(&cluster.all());
    for node in cluster.all() {
        assert_eq!(node.value("SELECT count(*) FROM t"), "3", "{}", node.name());
    }
}

#[test]
fn join_is_refused_when_a_schema_is_reserved() {
    let Some(cluster) = mesh(
        2,
        "CREATE SCHEMA ops; CREATE TABLE ops.\"T\" (id integer PRIMARY KEY);
         CREATE TABLE t (id integer PRIMARY KEY)",
    ) else {
        return;
    };
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    if n1
        .value("SELECT to_regclass('spock.reserved_object')")
        .is_empty()
    {
        // Before 6.0 the one schema is reserved by name, without a table.
        n1.sql(
            "CREATE SCHEMA pgedge_ace; CREATE TABLE pgedge_ace.t (id integer PRIMARY KEY);
             SELECT spock.repset_add_table('default', 'pgedge_ace.t')",
        );
        assert_refused(
            &cluster,
            n3,
            "55000",
            "table \"pgedge_ace\".\"t\" is in replication set default, but Spock reserves its schema to each node",
            "SELECT spock.repset_remove_table('default', '\"pgedge_ace\".\"t\"')",
        );
        n1.sql("SELECT spock.repset_remove_table('default', 'pgedge_ace.t')");
        joins(n3, n1);
        return;
    }
    n1.sql("SELECT spock.reserved_object_add('ops', 'schema', true, false)");
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n1\": table \"ops\".\"T\" is in replication set default, but Spock reserves its schema to each node",
        "SELECT spock.reserved_object_remove('ops', 'schema')",
    );
    // A peer sends it, too.
    n1.sql("SELECT spock.repset_remove_table('default', 'ops.\"T\"')");
    assert_refused(
        &cluster,
        n3,
        "55000",
        "table \"ops\".\"T\" is in replication set default",
        "on every member that has it in a set",
    );
    n1.sql("SELECT spock.reserved_object_remove('ops', 'schema'); SELECT spock.repset_add_table('default', 'ops.\"T\"')");

    n3.sql("SELECT spock.reserved_object_add('ops', 'schema')");
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n3\": schema \"ops\" is reserved here, so table \"ops\".\"T\" cannot be in replication set default",
        "SELECT spock.reserved_object_remove('ops', 'schema')",
    );
    mend(&cluster, n3);

    // Nothing replicated in it, but something else needs what is in it.
    n1.sql(
        "CREATE SCHEMA own; CREATE TYPE own.mood AS ENUM ('good', 'bad'); CREATE FUNCTION own.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
         CREATE VIEW v AS SELECT own.f() AS f;
         SELECT spock.reserved_object_add('own', 'schema')",
    );
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n1\": view public.v needs function own.f(), whose schema Spock reserves to each node",
        "SELECT spock.reserved_object_remove('own', 'schema')",
    );
    n1.sql("ALTER FUNCTION own.f() SET SCHEMA public");
    joins(n3, n1);
    assert_eq!(n3.value("SELECT f FROM v"), "1");
    assert_eq!(n3.value("SELECT to_regnamespace('own')"), "");
}

#[test]
fn join_is_refused_when_a_table_is_not_synchronized() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n3.configure("zodan.connect_timeout", "2s");
    n3.reload();
    // Spock 6 leaves it so after an error; before, it tries for ever.
    let failed = "INSERT INTO spock.local_sync_status
                  SELECT 'd', sub_id, 'public', 't', 'f', '0/0' FROM spock.subscription";
    n1.sql(failed);
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n1\": subscription sub_n2_n1 has failed to synchronize table public.t, and passes over what is written to it",
        "SELECT spock.sub_resync_table('sub_n2_n1', 'public.t')",
    );
    // On a peer it is not what the new node copies, and a cluster that is not in order all the same.
    n1.sql("DELETE FROM spock.local_sync_status WHERE sync_relname = 't'");
    n2.sql(failed);
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n2\": subscription sub_n1_n2 has failed to synchronize table public.t",
        "SELECT spock.sub_resync_table('sub_n1_n2', 'public.t')",
    );
    n2.sql("DELETE FROM spock.local_sync_status WHERE sync_relname = 't'");

    // A synchronization that cannot go on: its slot waits for this transaction.
    let mut holder = n2.client();
    holder
        .batch_execute("BEGIN; LOCK t")
        .expect("hold the table that is copied");
    n1.sql("SELECT spock.sub_resync_table('sub_n2_n1', 't')");
    n1.wait_for(
        "SELECT count(*) FROM spock.local_sync_status WHERE sync_relname = 't' AND sync_status <> 'r'",
        "1",
    );
    n2.wait_for("SELECT count(*) FROM pg_replication_slots", "2");
    assert_refused(
        &cluster,
        n3,
        "55000",
        "node \"n1\": subscription sub_n2_n1 is synchronizing table public.t (status ",
        "SELECT spock.table_wait_for_sync('sub_n2_n1', 'public.t')",
    );
    holder.batch_execute("ROLLBACK").expect("let it go");
    n1.wait_for(
        "SELECT sync_status FROM spock.local_sync_status WHERE sync_relname = 't'",
        "r",
    );
    joins(n3, n1);
    assert_eq!(n3.value("SELECT v FROM t"), "one");
}

/// One that begins after the checks and is not done in the snapshot of the copy.
#[test]
fn join_fails_when_a_synchronization_begins_after_the_checks() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let before = all_traces(&cluster);
    // The snapshot waits for it.
    let mut holder = n1.client();
    holder
        .batch_execute("BEGIN; INSERT INTO t VALUES (2, 'two')")
        .expect("hold up the snapshot");
    let failed = thread::scope(|scope| {
        let call = scope.spawn(|| fails(n3, n1));
        n3.wait_for(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL spock.add_node phase 5 of 9: take%'",
            "1",
        );
        n1.sql(
            "INSERT INTO spock.local_sync_status
             SELECT 'd', sub_id, 'public', 't', 'u', '0/0' FROM spock.subscription",
        );
        holder.batch_execute("COMMIT").expect("let it go");
        call.join().expect("the CALL")
    });
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(
        failed.message().contains(
            "node \"n1\": subscription sub_n2_n1 is synchronizing table public.t (status u)"
        ),
        "{failed}"
    );
    n1.sql("DELETE FROM spock.local_sync_status WHERE sync_relname = 't'");
    assert_eq!(all_traces(&cluster), before);
    joins(n3, n1);
}

#[test]
fn join_reports_settings_that_differ() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let of_spock = |status: &str| -> Vec<String> {
        let found = report(n3, n1, n3, "pre", status);
        let of_spock = |line: &String| line.contains("|settings of Spock|");
        found.into_iter().filter(of_spock).collect()
    };
    assert_eq!(of_spock("warning"), [""; 0]);
    n2.configure("spock.exception_behaviour", "discard");
    n2.reload();
    n3.sql("ALTER DATABASE postgres SET spock.enable_ddl_replication = on");
    n1.configure("spock.exception_logging", "none");
    n3.configure("spock.exception_logging", "none");
    n1.reload();
    n3.reload();
    n2.wait_for("SHOW spock.exception_behaviour", "discard");
    n3.wait_for("SHOW spock.exception_logging", "none");
    let found = [
        "n1|settings of Spock|spock.exception_logging is none: what its apply workers leave out is told nowhere",
        "n3|settings of Spock|spock.exception_logging is none: what its apply workers leave out is told nowhere",
        "n2|settings of Spock|spock.exception_behaviour is discard, on node \"n1\" transdiscard",
        "n2|settings of Spock|spock.exception_logging is all, on node \"n1\" none",
        "n3|settings of Spock|spock.enable_ddl_replication is on, on node \"n1\" off",
    ];
    assert_eq!(of_spock("warning"), found);
    let called = lab::add_node(n3, "n3", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    let warned = called.notices.iter().any(|notice| {
        notice.message
            == "node \"n2\": spock.exception_behaviour is discard, on node \"n1\" transdiscard"
    });
    assert!(warned, "{:?}", called.notices);
}

/// A row that Spock has left out is missing for good, and nobody says that all is well.
#[test]
fn join_reports_changes_that_spock_discarded() {
    let Some(cluster) = spock::mesh(
        2,
        "CREATE TABLE t (id integer PRIMARY KEY, v text UNIQUE); INSERT INTO t VALUES (1, 'one')",
    ) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let state =
        "SELECT state FROM spock.cluster_status() WHERE provider = 'n1' AND subscriber = 'n2'";
    let failed = |check: &str| -> Vec<String> {
        let found = report(n1, n1, n2, "post", check);
        let lost = |line: &String| line.contains("exception") || line.contains("left out");
        found.into_iter().filter(lost).collect()
    };
    // What any member leaves out by itself is told, and no failure.
    n2.sql("BEGIN; SELECT spock.repair_mode(true); DELETE FROM t; COMMIT");
    n1.sql("UPDATE t SET v = 'two'");
    n2.wait_for("SELECT count(*) FROM spock.exception_log", "1");
    n1.wait_for(state, "replicating");
    assert_eq!(failed("failed"), [""; 0]);
    let warned = failed("warning");
    assert!(
        warned.len() == 1
            && warned[0].starts_with("n2|exceptions|spock.exception_log has 1 entries since "),
        "{warned:?}"
    );

    n2.sql("BEGIN; SELECT spock.repair_mode(true); INSERT INTO t VALUES (7, 'same'); COMMIT");
    n1.sql("BEGIN; INSERT INTO t VALUES (8, 'fine'); INSERT INTO t VALUES (9, 'same'); COMMIT");
    n2.wait_for("SELECT count(*) FROM spock.exception_log", "3");
    n1.wait_for(state, "incomplete");
    let lost = failed("failed");
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(
        lost[0].starts_with(
            "n2|subscriptions|from \"n1\": sub_n1_n2 is incomplete: 2 changes left out since 2"
        ),
        "{lost:?}"
    );
    assert!(
        lost[0].contains(", the last: INSERT public.t: ")
            && lost[0].contains("duplicate key value"),
        "{lost:?}"
    );
    assert!(
        n1.value("SELECT last_error FROM spock.cluster_status() WHERE subscriber = 'n2'")
            .starts_with("2 changes left out since "),
    );

    // It does not keep a node from joining, which is warned of it.
    let called = lab::add_node(n3, "n3", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    assert!(
        called.notices.iter().any(|notice| notice
            .message
            .starts_with("node \"n2\": spock.exception_log has 3 entries since ")),
        "{:?}",
        called.notices
    );

    // When the table has been brought anew, the entries are of the past.
    n2.sql("SELECT spock.sub_resync_table('sub_n1_n2', 't')");
    n2.wait_for(
        "SELECT sync_status FROM spock.local_sync_status WHERE sync_relname = 't'",
        "r",
    );
    n1.wait_for(state, "replicating");
    assert_eq!(failed("failed"), [""; 0]);
    assert_eq!(failed("warning"), [""; 0]);
    assert_eq!(
        n2.value("SELECT string_agg(id || v, ',' ORDER BY id) FROM t"),
        "1two,8fine,9same"
    );
}

#[test]
fn unreachable_address_is_reported_with_its_origin() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let closed = "host=127.0.0.1 port=1 dbname=postgres";
    for (source, new, argument) in [
        (closed, n3.dsn().as_str(), "src_dsn"),
        (n1.dsn().as_str(), closed, "new_node_dsn"),
    ] {
        let call = format!(
            "CALL spock.add_node('n1', {}, 'n3', {})",
            quote_literal(source),
            quote_literal(new)
        );
        let failed = n3.sql_error(&call);
        assert_eq!(failed.code(), "08001", "{failed}");
        let hint = format!("Its address is that of argument {argument}.");
        assert!(failed.hint().starts_with(&hint), "{failed}");
    }
    for node in [n1, n2] {
        let interface = format!("WHERE if_name = '{}'", node.name());
        let right = n1.value(&format!(
            "SELECT if_dsn FROM spock.node_interface {interface}"
        ));
        let set = |dsn: &str| {
            n1.sql(&format!(
                "UPDATE spock.node_interface SET if_dsn = {} {interface}",
                quote_literal(dsn)
            ));
        };
        set(closed);
        assert_refused(
            &cluster,
            n3,
            "08001",
            &format!("could not connect to node \"{}\"", node.name()),
            "Its address is not an argument, but that of spock.node_interface of node \"n1\".",
        );
        set(&right);
    }
    joins(n3, n1);
    // The interface that the subscription uses counts, not the one of the name.
    n3.sql(&format!(
        "SELECT spock.node_add_interface('n2', 'good', {})",
        quote_literal(&n2.dsn())
    ));
    n3.sql("SELECT spock.sub_disable('sub_n2_n3', true)");
    n3.sql("SELECT spock.sub_alter_interface('sub_n2_n3', 'good')");
    n3.sql(&format!(
        "UPDATE spock.node_interface SET if_dsn = {} WHERE if_name = 'n2'",
        quote_literal(closed)
    ));
    n3.sql("SELECT spock.sub_enable('sub_n2_n3', true)");
    n3.wait_for(
        "SELECT string_agg(DISTINCT provider_up::text, ',') FROM spock.cluster_status()",
        "true",
    );
    assert!(
        !n3.value("SELECT dsn FROM spock.get_nodes() WHERE node_name = 'n2'")
            .contains("port=1 ")
    );
}

/// A wait that comes to nothing tells what keeps the apply worker.
#[test]
fn wait_that_fails_reports_what_stops_the_apply_worker() {
    let Some(cluster) = mesh(2, CONTENT) else {
        return;
    };
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n3.configure("zodan.no_progress_timeout", "3s");
    n3.reload();
    let mut holder = n1.client_named("holder");
    holder
        .batch_execute("BEGIN; SELECT FROM t FOR UPDATE")
        .expect("hold a row that n2 changes");
    n2.sql("UPDATE t SET v = 'two'");
    let failed = fails(n3, n1);
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(
        failed
            .message()
            .contains("applying what its peers committed made no progress for 3 s"),
        "{failed}"
    );
    let detail = failed.detail();
    for part in [
        "Subscription sub_n2_n1 is replicating by spock.sub_show_status(); its apply worker has pid ",
        "waits for Lock transactionid",
        "(holder, idle in transaction)",
        "the log of that server says more",
    ] {
        assert!(detail.contains(part), "no {part:?} in {failed}");
    }
    holder.batch_execute("ROLLBACK").expect("let it go");
    wait_quiet(&cluster.first(2));
    joins(n3, n1);
}
