//! Replication sets are each node's own. The new node takes from every provider what the source takes from it, and
//! the others take from the new node what they take from the source.

mod common;

use common::gate;
use lab::cluster::add_node_call;
use lab::load::LoadOptions;
use lab::spock::{self, Mesh};
use lab::{
    CallFailed, Called, Cluster, Load, Server, add_node, assert_same_content, load, schema,
    wait_quiet,
};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn joined(new: &Server, source: &Server) -> Called {
    add_node(new, new.name(), source, source.name()).unwrap_or_else(|e| panic!("{e}"))
}

fn said(called: &Called) -> String {
    let lines: Vec<String> = called.notices.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// What the subscription names beyond what every node has.
fn takes(subscriber: &Server, subscription: &str) -> String {
    subscriber.value(&format!(
        "SELECT coalesce(string_agg(s, ', ' ORDER BY s), '')
           FROM spock.subscription, unnest(sub_replication_sets) s
          WHERE sub_name = '{subscription}' AND s NOT IN ('default', 'default_insert_only', 'ddl_sql')"
    ))
}

/// The public procedure's own scenario: a third node joins two that are written to, each of which has a set of its
/// own that the other does not know.
#[test]
fn join_works_when_each_node_has_a_set_of_its_own() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        everywhere: &format!("SET spock.enable_ddl_replication = off; {}", schema::ROLES),
        content: &format!(
            "SET spock.enable_ddl_replication = off; {}; {}",
            load::SCHEMA,
            schema::kinds(5_000)
        ),
        settings: &[
            ("spock.enable_ddl_replication", "on"),
            ("spock.include_ddl_repset", "on"),
            ("spock.allow_ddl_from_functions", "on"),
        ],
        ..Mesh::default()
    }
    .start(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql("SELECT spock.repset_create('n1r1', true, true, true, true)");
    n2.sql("SELECT spock.repset_create('n2r2', true, true, true, true)");
    let options = LoadOptions {
        writers: 2,
        rate: Some(200),
    };
    let load = Load::start_with(&[n1, n2], &options);
    load.wait_commits(200);
    joined(n3, n1);
    load.wait_commits(200);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        report.assert_present_on(node);
        assert_eq!(node.value("SELECT count(*) FROM spock.exception_log"), "0");
    }
    for (subscriber, subscription) in [
        (n3, "sub_n1_n3"),
        (n3, "sub_n2_n3"),
        (n1, "sub_n3_n1"),
        (n2, "sub_n3_n2"),
    ] {
        assert_eq!(takes(subscriber, subscription), "", "{subscription}");
    }
    // It has the role of the source, for whoever subscribes to the set later.
    assert_eq!(
        n3.value("SELECT string_agg(set_name, ', ') FROM spock.replication_set WHERE set_name LIKE 'n_r_'"),
        "n1r1"
    );
}

/// Tables that are in the set `default` everywhere.
const SHARED: &str = "SELECT spock.repset_add_table('default', 'lab.marker'), spock.repset_add_table('default', 'gate')";

/// Two members with a set of their own each that the other one takes: `a` is in that of n1, `b` in that of n2, and
/// `c` in one of n1 that nobody takes.
fn members_with_sets(settings: &[(&str, &str)]) -> Cluster {
    let content = format!(
        "{}; CREATE TABLE a (id integer PRIMARY KEY); CREATE TABLE b (id integer PRIMARY KEY);
         CREATE TABLE c (id integer PRIMARY KEY)",
        gate::CONTENT
    );
    let cluster = Mesh {
        content: &content,
        sets: Some(SHARED),
        settings,
        ..Mesh::default()
    }
    .start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(
        "SELECT spock.repset_create('of n1'), spock.repset_create('nobody''s');
         SELECT spock.repset_add_table('of n1', 'a'), spock.repset_add_table('nobody''s', 'c')",
    );
    n2.sql("SELECT spock.repset_create('of n2'); SELECT spock.repset_add_table('of n2', 'b')");
    n1.sql("SELECT spock.sub_add_repset('sub_n2_n1', 'of n2')");
    n2.sql("SELECT spock.sub_add_repset('sub_n1_n2', 'of n1')");
    for (node, provider, set) in [(n1, n2, "of n2"), (n2, n1, "of n1")] {
        // The worker starts again with the other sets.
        provider.wait_for(
            "SELECT count(*) FROM pg_replication_slots WHERE active",
            "1",
        );
        let (table, id) = if set == "of n1" { ("a", 1) } else { ("b", 2) };
        provider.sql(&format!("INSERT INTO {table} VALUES ({id})"));
        node.wait_for(&format!("SELECT count(*) FROM {table}"), "1");
    }
    n1.sql("INSERT INTO c VALUES (3)");
    cluster
}

#[test]
fn join_takes_the_sets_that_single_members_have() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = members_with_sets(&[]);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let called = joined(n3, n1);
    let warning = "WARNING: node \"n1\": no member subscribes to replication set nobody's, so the new node does not either, and gets no rows of \"public\".\"c\"";
    assert!(said(&called).contains(warning), "{}", said(&called));
    for (subscriber, subscription, sets) in [
        (n3, "sub_n1_n3", "of n1"),
        (n3, "sub_n2_n3", "of n2"),
        (n2, "sub_n3_n2", "of n1"),
        (n1, "sub_n3_n1", "of n1"),
    ] {
        assert_eq!(takes(subscriber, subscription), sets, "{subscription}");
    }
    let counts = "SELECT concat_ws(' ', (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT count(*) FROM c))";
    assert_eq!(n3.value(counts), "1 1 0");
    n1.sql("INSERT INTO a VALUES (11); INSERT INTO c VALUES (11)");
    n2.sql("INSERT INTO b VALUES (12)");
    n3.sql("INSERT INTO a VALUES (13)");
    wait_quiet(&cluster.all());
    assert_eq!(n1.value(counts), "3 2 2");
    assert_eq!(n2.value(counts), "3 2 0");
    assert_eq!(n3.value(counts), "3 2 0");
}

/// Every row of a table as text, in their order.
fn content(node: &Server, table: &str) -> String {
    node.value(&format!(
        "SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM {table} t"
    ))
}

fn join_verified(new: &Server, source: &Server) -> Called {
    let call = add_node_call(new, new.name(), source, source.name());
    let call = call.replace("new_node_dsn", "verify := true, new_node_dsn");
    new.call(&call).unwrap_or_else(|e| panic!("{e}"))
}

/// In one subscription all row filters of a table apply together, and where any set lists columns, no others are sent.
#[test]
fn join_copies_by_the_filters_and_columns_of_all_sets() {
    if spock::announced().is_none() {
        return;
    }
    let sets = format!(
        "{SHARED}; SELECT spock.repset_create('more, \"really\"');
         SELECT spock.repset_add_table('default', 'two', false, NULL, 'kind = ''a'''),
                spock.repset_add_table('more, \"really\"', 'two', false, NULL, 'kind = ''b'''),
                spock.repset_add_table('default', 'cust'),
                spock.repset_add_table('more, \"really\"', 'cust', false, '{{id,region}}', 'region = ''eu'''),
                spock.repset_add_table('default', 'beyond', false, '{{id,v}}', 'region = ''eu'''),
                spock.repset_add_table('default', 'parted', false, NULL, 'at > 5')"
    );
    let cluster = Mesh {
        content: &format!(
            "{}; CREATE TABLE two (id integer PRIMARY KEY, kind text);
             CREATE TABLE cust (id integer PRIMARY KEY, region text, secret text DEFAULT 'none');
             CREATE TABLE beyond (id integer PRIMARY KEY, region text, v text);
             CREATE TABLE parted (id integer, at integer, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
             CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20);
             CREATE TABLE apart (id integer PRIMARY KEY)",
            gate::CONTENT
        ),
        sets: Some(&sets),
        ..Mesh::default()
    }
    .start(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql(
        "INSERT INTO two VALUES (1, 'a'), (2, 'b'), (3, 'c');
         INSERT INTO cust VALUES (1, 'eu', 'pw1'), (2, 'us', 'pw2');
         INSERT INTO beyond VALUES (1, 'eu', 'x'), (2, 'us', 'y');
         INSERT INTO parted VALUES (1, 4), (1, 6), (1, 14);
         INSERT INTO apart VALUES (1)",
    );
    n2.sql(
        "INSERT INTO cust VALUES (3, 'eu', 'pw3'), (4, 'us', 'pw4');
         INSERT INTO beyond VALUES (3, 'eu', 'z'), (4, 'us', 'w')",
    );
    wait_quiet(&[n1, n2]);
    assert_eq!(content(n2, "cust"), "(1,eu,none) (3,eu,pw3) (4,us,pw4)");
    assert_eq!(content(n1, "beyond"), "(1,eu,x) (2,us,y) (3,,z)");
    let called = join_verified(n3, n1);
    for line in [
        "copying the structure without the rows of tables of which nobody would send any: \"public\".\"apart\"",
        "node \"n3\" has the same content as node \"n1\", as far as it is sent; \
         spock.verify_nodes(by_design := true) lists what differs else",
    ] {
        assert!(said(&called).contains(line), "{}", said(&called));
    }
    assert_eq!(content(n3, "two"), "");
    assert_eq!(content(n3, "cust"), "(1,eu,none) (3,eu,none)");
    assert_eq!(content(n3, "beyond"), "(1,,x) (3,,z)");
    assert_eq!(content(n3, "parted"), content(n2, "parted"));
    assert_eq!(content(n3, "apart"), "");
    // And so they stay.
    n2.sql("UPDATE beyond SET v = 'zz' WHERE id = 3; UPDATE cust SET secret = 'new' WHERE id = 3");
    n3.sql("INSERT INTO two VALUES (11, 'a'); INSERT INTO cust VALUES (5, 'eu', 'pw5')");
    wait_quiet(&cluster.all());
    assert_eq!(content(n3, "beyond"), "(1,,x) (3,,zz)");
    assert_eq!(
        content(n1, "cust"),
        "(1,eu,pw1) (2,us,pw2) (3,eu,none) (5,eu,none)"
    );
    assert_eq!(content(n1, "two"), "(1,a) (2,b) (3,c)");
    assert_eq!(n3.value("SELECT count(*) FROM spock.exception_log"), "0");
}

/// Each member publishes something else. The new node gets of the source's rows what the source sends, and of the
/// others' what they send.
#[test]
fn join_copies_what_each_member_sends_when_sets_differ() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: &format!(
            "{}; CREATE TABLE catalog (id integer PRIMARY KEY, v text);
             CREATE TABLE orders (id integer PRIMARY KEY, v text);
             CREATE TABLE cust (id integer PRIMARY KEY, region text);
             CREATE TABLE mixed (id integer PRIMARY KEY, v text, w text DEFAULT 'none' NOT NULL)",
            gate::CONTENT
        ),
        sets: Some(SHARED),
        ..Mesh::default()
    }
    .start_with_extension(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql(
        "SELECT spock.repset_add_table('default', 'catalog'),
                spock.repset_add_table('default', 'cust', false, NULL, 'region = ''eu'''),
                spock.repset_add_table('default', 'mixed', false, '{id,v}')",
    );
    n2.sql(
        "SELECT spock.repset_add_table('default', 'orders'),
                spock.repset_add_table('default', 'cust', false, NULL, 'region = ''us'''),
                spock.repset_add_table('default', 'mixed')",
    );
    n1.sql(
        "INSERT INTO catalog VALUES (1, 'c'); INSERT INTO orders VALUES (9, 'of n1');
         INSERT INTO cust VALUES (1, 'eu'), (2, 'us'); INSERT INTO mixed VALUES (1, 'a', 'x')",
    );
    n2.sql(
        "INSERT INTO orders VALUES (1, 'o'), (2, 'o');
         INSERT INTO cust VALUES (3, 'us'), (4, 'eu'); INSERT INTO mixed VALUES (2, 'b', 'y')",
    );
    wait_quiet(&[n1, n2]);
    assert_eq!(content(n1, "cust"), "(1,eu) (2,us) (3,us)");
    assert_eq!(content(n2, "mixed"), "(1,a,none) (2,b,y)");
    join_verified(n3, n1);
    assert_eq!(content(n3, "catalog"), "(1,c)");
    assert_eq!(content(n3, "orders"), "(1,o) (2,o)");
    assert_eq!(content(n3, "cust"), "(1,eu) (3,us)");
    assert_eq!(content(n3, "mixed"), "(1,a,none) (2,b,y)");
    n2.sql(
        "BEGIN; INSERT INTO orders VALUES (3, 'later');
         UPDATE orders SET v = 'changed' WHERE id = 1; COMMIT",
    );
    wait_quiet(&cluster.all());
    assert_eq!(content(n3, "orders"), "(1,changed) (2,o) (3,later)");
    for node in cluster.all() {
        let found = node.value("SELECT count(*) FROM spock.verify_nodes()");
        assert_eq!(found, "0", "{}", node.name());
    }
    // What n2 alone sends is compared where n1 is asked.
    n3.sql("DELETE FROM orders WHERE id = 3");
    let found =
        "SELECT concat_ws('|', table_name, node, missing_rows, extra_rows, different_rows, keys)
                   FROM spock.verify_nodes()";
    assert_eq!(n1.value(found), "\"public\".\"orders\"|n3|1|0|0|{(3)}");
}

/// Both members were filled from one dump, and only n2 sends the table.
#[test]
fn join_is_refused_when_rows_of_a_peers_table_are_from_elsewhere() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: &format!(
            "{}; CREATE TABLE orders (id integer PRIMARY KEY, v text);
             INSERT INTO orders SELECT i, 'old' FROM generate_series(1, 500) i",
            gate::CONTENT
        ),
        sets: Some(SHARED),
        ..Mesh::default()
    }
    .start(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n2.sql("SELECT spock.repset_add_table('default', 'orders')");
    n2.sql("INSERT INTO orders VALUES (501, 'new')");
    wait_quiet(&[n1, n2]);
    let failed = add_node(n3, "n3", n1, "n1").expect_err("500 rows would be missing");
    assert_eq!(failed.code(), "55000", "{failed}");
    let told = "node \"n1\": rows of table \"public\".\"orders\" that were written on it have not come from node \"n2\", which has them too (100 of 100 looked at), and it does not send them itself: the new node would lack them";
    assert_eq!(failed.message(), told, "{failed}");
    n1.sql("SELECT spock.repset_add_table('default', 'orders')");
    join_verified(n3, n1);
    assert_same_content(&cluster.all());
}

/// Sessions of the replication protocol that do nothing.
struct Idle(Vec<Child>);

impl Idle {
    fn sessions(server: &Server, count: usize) -> Self {
        let dsn = format!("{} replication=database", server.dsn());
        let one = |_| {
            let mut psql = server.tool("psql");
            psql.args(["-X", "-d", &dsn]);
            psql.stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            psql.spawn().expect("start psql")
        };
        Self((0..count).map(one).collect())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for psql in &mut self.0 {
            // It ends with its input, whatever comes of that.
            drop(psql.stdin.take());
            let _ = psql.wait();
        }
    }
}

fn fails(cluster: &Cluster, meanwhile: impl FnOnce()) -> (CallFailed, Duration) {
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let gate = gate::close(n3);
    thread::scope(|scope| {
        let call = scope.spawn(|| add_node(n3, "n3", n1, "n1"));
        gate::wait(n3);
        meanwhile();
        drop(gate);
        let begun = Instant::now();
        match call.join().expect("the CALL's thread") {
            Ok(called) => panic!("this was expected to fail: {called:?}"),
            Err(failed) => (failed, begun.elapsed()),
        }
    })
}

/// What a provider refuses a subscription with ends the join within seconds, with what it said.
#[test]
fn join_fails_at_once_when_a_provider_refuses_a_subscription() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = members_with_sets(&[("max_wal_senders", "4")]);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    let traces = || {
        let all = cluster.all().into_iter().map(|node| {
            node.value(
                "SELECT concat_ws('; ', (SELECT string_agg(slot_name, ',' ORDER BY 1) FROM pg_replication_slots),
                        (SELECT string_agg(sub_name, ',' ORDER BY 1) FROM spock.subscription),
                        (SELECT string_agg(roname, ',' ORDER BY 1) FROM pg_replication_origin))",
            )
        });
        all.collect::<Vec<String>>()
    };
    let before = traces();
    let assert_refused = |(failed, took): (CallFailed, Duration), code: &str, message: &str| {
        assert_eq!(failed.code(), code, "{failed}");
        assert!(
            failed.message().contains(message),
            "no {message:?} in {failed}"
        );
        assert!(took < Duration::from_secs(30), "{took:?}: {failed}");
        assert_eq!(traces(), before, "{failed}");
    };

    let mut idle = None;
    let failed = fails(&cluster, || {
        idle = Some(Idle::sessions(n2, 3));
        n2.wait_for(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
            "4",
        );
    });
    assert_refused(failed, "08001", "exceeds \"max_wal_senders\"");
    // A member that is refused is told with the same reason, before anything is changed.
    n2.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
    let last = Idle::sessions(n2, 1);
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND application_name = 'psql'",
        "4",
    );
    let failed = match add_node(n3, "n3", cluster.n(1), "n1") {
        Ok(called) => panic!("this was expected to fail: {called:?}"),
        Err(failed) => failed,
    };
    let cut_off = "subscription sub_n2_n1 from node \"n2\" has no connection to its provider: ";
    let text = format!("{}\n{}", failed.message(), failed.detail());
    let told = text.lines().find(|line| line.contains(cut_off));
    let told = told.unwrap_or_else(|| panic!("no {cut_off:?} in {failed}"));
    assert!(told.contains("max_wal_senders"), "{failed}");
    drop((idle, last));
    n2.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "1",
    );

    let hba = n2.data_dir().join("pg_hba.conf");
    let lets_in = std::fs::read_to_string(&hba).expect("read pg_hba.conf");
    let failed = fails(&cluster, || {
        let rejects = "local all all trust\nhost all all all reject\n";
        std::fs::write(&hba, rejects).expect("write pg_hba.conf");
        n2.reload();
    });
    std::fs::write(&hba, lets_in).expect("write pg_hba.conf");
    n2.reload();
    assert_refused(failed, "08001", "pg_hba.conf rejects connection");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
        "1",
    );
    // What n1 still has to get from n2 needs that set, so this comes last.
    let failed = fails(&cluster, || n2.sql("SELECT spock.repset_drop('of n2')"));
    // That of n1 starts again first where n2 has no session of it at this moment.
    let of_n1 = failed.0.message().contains("sub_n2_n1");
    let reader = if of_n1 { "n1" } else { "n3" };
    let what = format!(
        "node \"n2\" refuses subscription sub_n2_{reader} of node \"{reader}\": replication set of n2 not found"
    );
    assert_refused(failed, "22023", &what);
    let failed = match add_node(n3, "n3", cluster.n(1), "n1") {
        Ok(called) => panic!("this was expected to fail: {called:?}"),
        Err(failed) => failed,
    };
    let text = format!("{}\n{}", failed.message(), failed.detail());
    assert!(
        text.contains(&format!("{cut_off}replication set")),
        "{failed}"
    );
}

/// A table that comes into a set while the copy runs has rows that are not copied, and is told.
#[test]
fn table_added_to_a_set_during_the_copy_is_reported() {
    if spock::announced().is_none() {
        return;
    }
    let content = format!(
        "{}; CREATE TABLE apart (id integer PRIMARY KEY)",
        gate::CONTENT
    );
    let cluster = Mesh {
        content: &content,
        sets: Some(SHARED),
        ..Mesh::default()
    }
    .start(1);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("INSERT INTO apart VALUES (1)");
    let gate = gate::close(n2);
    let called = thread::scope(|scope| {
        let call = scope.spawn(|| joined(n2, n1));
        gate::wait(n2);
        n1.sql("SELECT spock.repset_add_table('default', 'apart')");
        drop(gate);
        call.join().expect("the CALL's thread")
    });
    let warning = "WARNING: table \"public\".\"apart\" is in replication set default of node \"n1\" and not of \"n2\"";
    assert!(said(&called).contains(warning), "{}", said(&called));
    // As the warning says.
    n2.sql("SELECT spock.repset_add_table('default', 'apart'); SELECT spock.sub_resync_table('sub_n1_n2', 'apart')");
    n2.wait_for("SELECT count(*) FROM apart", "1");
}

/// Two names of nodes may have the same number in Spock, and some numbers mean something else.
#[test]
fn join_is_refused_when_spock_cannot_tell_node_names_apart() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh::default().start(2);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let named = |number: &str| {
        n1.value(&format!(
            "SELECT 'node' || i FROM generate_series(1, 2000000) i
              WHERE hashtext('node' || i) & 65535 = {number} LIMIT 1"
        ))
    };
    let cases = [
        (named("(hashtext('n2') & 65535)"), "which node \"n2\" has"),
        (named("0"), "which PostgreSQL keeps for itself"),
        (named("65535"), "which PostgreSQL keeps for itself"),
    ];
    for (name, why) in cases {
        let failed = match add_node(n3, &name, n1, "n1") {
            Ok(called) => panic!("this was expected to fail: {called:?}"),
            Err(failed) => failed,
        };
        assert_eq!(failed.code(), "42710", "{failed}");
        let what = format!("Spock gives the name \"{name}\" the number");
        assert!(failed.message().contains(&what), "{failed}");
        assert!(failed.message().contains(why), "{failed}");
        assert_eq!(failed.hint(), "Choose another name for the new node.");
        assert_eq!(n3.value("SELECT count(*) FROM zodan.step"), "0");
    }
    joined(n3, n1);
}

/// A provider that was restored lacks what others have of it. Markers by position would seem to have arrived.
#[test]
fn join_is_refused_when_the_wal_of_a_provider_went_back() {
    if spock::announced().is_none() {
        return;
    }
    let mesh = Mesh {
        content: "CREATE TABLE t (id integer PRIMARY KEY)",
        ..Mesh::default()
    };
    let cluster = mesh.start_with_extension(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let slot = n1.value("SELECT sub_slot_name FROM spock.subscription");
    // As if n2 had had so much more WAL when n1 applied it.
    n1.sql("SELECT spock.sub_disable('sub_n2_n1', true)");
    n1.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'spock apply%'",
        "0",
    );
    n1.sql(&format!(
        "SELECT pg_replication_origin_advance('{slot}', '70/0')"
    ));
    n1.sql("SELECT spock.sub_enable('sub_n2_n1', true)");
    n2.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "1",
    );
    let message =
        "subscription sub_n2_n1 has applied node \"n2\" up to 70/0, but the WAL of \"n2\" ends at";
    let failed = match add_node(n3, "n3", n1, "n1") {
        Ok(called) => panic!("this was expected to fail: {called:?}"),
        Err(failed) => failed,
    };
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(failed.message().contains(message), "{failed}");
    assert!(
        failed.hint().contains("CALL spock.remove_node('n2')"),
        "{failed}"
    );
    let report = format!(
        "SELECT node || ': ' || found FROM spock.health_report('n1', '{}', NULL, NULL, 'post')
          WHERE \"check\" = 'positions' AND status = 'failed'",
        n1.dsn().replace('\'', "''")
    );
    let found = n1.value(&report);
    assert!(found.starts_with(&format!("n1: {message}")), "{found}");
    // And before it is said that all that a node wrote is everywhere.
    let failed = match n1.call("CALL spock.remove_node('n2')") {
        Ok(called) => panic!("this was expected to fail: {called:?}"),
        Err(failed) => failed,
    };
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(failed.message().contains(message), "{failed}");
    // As the hint says.
    n1.call("CALL spock.remove_node('n2', force := true)")
        .unwrap_or_else(|e| panic!("{e}"));
    joined(n3, n1);
}
