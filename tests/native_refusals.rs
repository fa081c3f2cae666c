//! Joins that the native engine refuses: names, resources, settings and the mesh, each with its own message, SQLSTATE and
//! hint, and nothing changed anywhere.

mod common;

use common::plan::{plan_of, planned_slot};
use common::refused::{Before, fails_in, text};
use common::{Call, assert_failed, assert_findings, fingerprint, quick, wait_mesh};
use lab::{Cluster, Server, pg};
use std::fs;

/// A mesh of all servers but the last, which is to be refused.
fn mesh_and_new(n: usize) -> Cluster {
    let cluster = Cluster::start_with(n, &quick());
    cluster.form_mesh(
        n - 1,
        "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2)",
    );
    wait_mesh(&cluster.first(n - 1));
    cluster
}

#[test]
fn join_is_refused_when_a_connection_string_leads_elsewhere() {
    let cluster = mesh_and_new(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n3.sql("CREATE DATABASE other");
    let before = Before::of(cluster.all());
    let good = Call::of(n3, n1);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("have a port");
    let closed = nobody.local_addr().expect("know the port").port();
    drop(nobody);
    let unreachable = format!("host=127.0.0.1 port={closed} user=postgres dbname=postgres");
    let refused = Call {
        src_dsn: text(&unreachable),
        ..good.clone()
    };
    before.refuses(
        n3,
        &refused,
        "08001",
        "could not connect to node \"n1\"",
        "Check host, port, database, user and password in the connection string of node \"n1\"",
    );
    let refused = Call {
        new_node_dsn: text(&unreachable),
        ..good.clone()
    };
    before.refuses(
        n3,
        &refused,
        "08001",
        "could not connect to node \"n3\"",
        "Check host, port, database, user and password in the connection string of node \"n3\"",
    );
    let no_host = Call {
        src_dsn: text("host=nowhere.invalid dbname=postgres user=postgres"),
        ..good.clone()
    };
    before.refuses(
        n3,
        &no_host,
        "08001",
        "could not connect to node \"n1\"",
        "Check host",
    );
    let no_database = Call {
        src_dsn: text(n1.dsn().replace("dbname=postgres", "dbname=missing")),
        ..good.clone()
    };
    before.refuses(
        n3,
        &no_database,
        "08001",
        "database \"missing\" does not exist",
        "Check host",
    );
    let no_role = Call {
        src_dsn: text(n1.dsn().replace("user=postgres", "user=nobody")),
        ..good.clone()
    };
    before.refuses(
        n3,
        &no_role,
        "08001",
        "role \"nobody\" does not exist",
        "Check host",
    );

    for member in [n1, n2] {
        let another_server = Call {
            new_node_dsn: text(member.dsn()),
            ..good.clone()
        };
        before.refuses(
            n3,
            &another_server,
            "22023",
            "argument new_node_dsn leads to database \"postgres\" of another server, not to the database \"postgres\" that the CALL runs in",
            "Run the CALL in the database of the new node",
        );
    }
    let another_database = Call {
        new_node_dsn: text(n3.dsn().replace("dbname=postgres", "dbname=other")),
        ..good.clone()
    };
    before.refuses(
        n3,
        &another_database,
        "22023",
        "argument new_node_dsn leads to database \"other\" of this server, not to the database \"postgres\" that the CALL runs in",
        "Run the CALL in the database of the new node",
    );
    for own in [n3.dsn(), n3.dsn_uri()] {
        let itself = Call {
            src_dsn: text(own),
            ..good.clone()
        };
        before.refuses(
            n3,
            &itself,
            "22023",
            "argument src_dsn leads to the database that the CALL runs in",
            "the connection string of a node of the cluster",
        );
    }
    let wrong_name = Call {
        src_node_name: text("n2"),
        ..good.clone()
    };
    before.refuses(
        n3,
        &wrong_name,
        "22023",
        "argument src_node_name is \"n2\", but src_dsn leads to the node \"n1\"",
        "Give \"n1\", or the connection string of \"n2\"",
    );
    let unknown_name = Call {
        src_node_name: text("n9"),
        ..good.clone()
    };
    before.refuses(
        n3,
        &unknown_name,
        "22023",
        "argument src_node_name is \"n9\", but src_dsn leads to the node \"n1\"",
        "Give \"n1\"",
    );
    // A member joins again, whatever it is called now.
    let member = Call {
        new_node_name: text("n9"),
        ..Call::of(n2, n1)
    };
    before.refuses(
        n2,
        &member,
        "55006",
        "node \"n9\": this database is a member of a cluster already: n1, n2",
        "Remove it from that cluster first",
    );
}

/// `/proc/self/cwd` is another directory in every process: the server's own data directory. So this is a
/// connection string that means something else on every node, as `host=localhost` does on real ones.
#[test]
fn join_is_refused_when_a_member_cannot_reach_the_new_node() {
    let cluster = mesh_and_new(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    for server in [n2, n3] {
        let sockets = format!("{}, .", server.socket_dir().display());
        server.configure("unix_socket_directories", &sockets);
        server.restart();
    }
    wait_mesh(&cluster.first(2));
    let before = Before::of(cluster.all());
    let call = Call {
        new_node_dsn: text(format!(
            "host=/proc/self/cwd port={} user=postgres dbname=postgres",
            n3.port()
        )),
        ..Call::of(n3, n1)
    };
    let failed = call.fails_on(n3);
    let hint = "a new_node_dsn by which every member reaches the new node";
    assert_findings(
        &failed,
        &[
            (
                "08001",
                "node \"n1\": the new node cannot be reached from here: ",
                hint,
            ),
            (
                "08001",
                "node \"n2\": the new node cannot be reached from here: ",
                hint,
            ),
        ],
    );
    before.still();

    // From n2 it leads to n2 itself, from n1 nowhere.
    let socket = |server: &Server, port: u16| server.data_dir().join(format!(".s.PGSQL.{port}"));
    std::os::unix::fs::symlink(socket(n2, n2.port()), socket(n2, n3.port())).expect("make a link");
    let failed = call.fails_on(n3);
    assert_findings(
        &failed,
        &[
            (
                "08001",
                "node \"n1\": the new node cannot be reached from here: ",
                hint,
            ),
            (
                "08001",
                "node \"n2\": new_node_dsn leads from here to another database than from the new node",
                hint,
            ),
        ],
    );
    before.still();
}

#[test]
fn join_is_refused_with_a_wrong_password() {
    let cluster = Cluster::start_with(2, &quick().password("Right5ecret"));
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let before = Before::of(cluster.all());
    let good = Call::of(n2, n1);
    for (node, call) in [
        (
            "n1",
            Call {
                src_dsn: text(n1.dsn().replace("Right5ecret", "Wrong5ecret")),
                ..good.clone()
            },
        ),
        (
            "n2",
            Call {
                new_node_dsn: text(n2.dsn().replace("Right5ecret", "Wrong5ecret")),
                ..good.clone()
            },
        ),
        (
            "n1",
            Call {
                src_dsn: text(n1.dsn().replace("password=Right5ecret", "")),
                ..good.clone()
            },
        ),
    ] {
        let failed = call.fails_on(n2);
        assert_failed(
            &failed,
            "08001",
            &format!("could not connect to node \"{node}\""),
            &format!("password in the connection string of node \"{node}\""),
        );
        let said = failed.message();
        assert!(
            said.contains("password authentication failed")
                || said.contains("no password supplied"),
            "{failed}"
        );
        assert!(!failed.to_string().contains("Wrong5ecret"), "{failed}");
        before.still();
    }
}

#[test]
fn join_is_refused_when_its_names_are_in_use() {
    let cluster = mesh_and_new(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let taken = Call {
        new_node_name: text("n2"),
        ..Call::of(n3, n1)
    };
    Before::of(cluster.all()).refuses(
        n3,
        &taken,
        "42710",
        "the cluster has a node named \"n2\" already",
        "Choose another name, or remove that node first",
    );

    let call = Call::of(n3, n1);
    let hint = "It was not made by this run, so it is not touched.";
    let of_n2 = format!(
        "SELECT substr(action, 13) FROM ({}) p WHERE action LIKE 'create slot sub\\_n3\\_n2\\_%'",
        plan_of(&call.sql())
    );
    let of_n2 = n3.value(&of_n2);
    let slots = [
        (n1, planned_slot(n3, &call.sql(), "n1")),
        (n2, planned_slot(n3, &call.sql(), "n2")),
        (n3, of_n2),
    ];
    for (server, slot) in &slots {
        // A slot reserves WAL: its plugin and its user do not matter.
        server.sql(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ));
        Before::of(cluster.all()).refuses(
            n3,
            &call,
            "42710",
            &format!(
                "node \"{}\": replication slot {slot} exists already",
                server.name()
            ),
            hint,
        );
        server.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
    let subscribe = |server: &Server, name: &str| {
        server.sql(&format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'dbname=elsewhere' PUBLICATION zodan WITH (connect = false)"
        ));
    };
    let unsubscribe = |server: &Server, name: &str| {
        server.sql(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"));
        server.sql(&format!("DROP SUBSCRIPTION {name}"));
    };
    for (server, name) in [(n1, "sub_n3_n1"), (n2, "sub_n3_n2"), (n3, "sub_n1_n3")] {
        subscribe(server, name);
        Before::of(cluster.all()).refuses(
            n3,
            &call,
            "42710",
            &format!(
                "node \"{}\": subscription {name} exists already",
                server.name()
            ),
            hint,
        );
        unsubscribe(server, name);
    }
    // All of it at once is told at once.
    for (server, slot) in &slots {
        server.sql(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ));
    }
    subscribe(n2, "sub_n3_n2");
    let before = Before::of(cluster.all());
    assert_findings(
        &call.fails_on(n3),
        &[
            (
                "42710",
                &format!("node \"n1\": replication slot {}", slots[0].1),
                hint,
            ),
            (
                "42710",
                &format!("node \"n2\": replication slot {}", slots[1].1),
                hint,
            ),
            ("42710", "node \"n2\": subscription sub_n3_n2", hint),
            (
                "42710",
                &format!("node \"n3\": replication slot {}", slots[2].1),
                hint,
            ),
        ],
    );
    before.still();
}

#[test]
fn join_is_refused_when_slots_or_workers_are_exhausted() {
    let cluster = mesh_and_new(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let call = Call::of(n3, n1);
    let roomy = |server: &Server, setting: &str| {
        server.value(&format!(
            "SELECT boot_val FROM pg_settings WHERE name = '{setting}'"
        ))
    };
    // On a member of two nodes one path is there and one more is needed; the new node needs two.
    let cases = [
        (
            n2,
            "max_replication_slots",
            "1",
            "not enough replication slots: 1 needed, 0 free (max_replication_slots = 1)",
            2,
        ),
        (
            n1,
            "max_replication_slots",
            "1",
            "not enough replication slots: 1 needed, 0 free (max_replication_slots = 1)",
            2,
        ),
        (
            n2,
            "max_wal_senders",
            "1",
            "not enough WAL senders: 1 needed, 0 free (max_wal_senders = 1)",
            2,
        ),
        (
            n3,
            "max_wal_senders",
            "1",
            "not enough WAL senders: 2 needed, 1 free (max_wal_senders = 1)",
            2,
        ),
        (
            n2,
            "max_logical_replication_workers",
            "1",
            "not enough logical replication workers: 1 needed, 0 free (max_logical_replication_workers = 1)",
            2,
        ),
        (
            n3,
            "max_logical_replication_workers",
            "1",
            "not enough logical replication workers: 2 needed, 1 free (max_logical_replication_workers = 1)",
            2,
        ),
        // The launcher of the subscriptions and the worker of one.
        (
            n2,
            "max_worker_processes",
            "2",
            "not enough background workers: 1 needed, 0 free (max_worker_processes = 2)",
            3,
        ),
    ];
    for (server, setting, limit, message, enough) in cases {
        let old = roomy(server, setting);
        server.configure(setting, limit);
        server.restart();
        wait_mesh(&cluster.first(2));
        Before::of(cluster.all()).refuses(
            n3,
            &call,
            "53400",
            &format!("node \"{}\": {message}", server.name()),
            &format!(
                "Set {setting} to at least {enough} on node \"{}\" and restart it",
                server.name()
            ),
        );
        server.configure(setting, &old);
        server.restart();
        wait_mesh(&cluster.first(2));
    }
    // What the hint says is enough, and no more is asked for.
    n2.configure("max_wal_senders", "2");
    n2.restart();
    wait_mesh(&cluster.first(2));
    if let Err(failed) = n3.call(&call.sql()) {
        panic!("{failed}");
    }
}

#[test]
fn join_is_refused_with_wrong_server_settings() {
    let cluster = Cluster::start_each(2, |name| match name {
        "n1" => quick().set("wal_level", "replica"),
        _ => quick(),
    });
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let call = Call::of(n2, n1);
    let message = |node: &str| format!("node \"{node}\": wal_level is replica, not logical");
    let hint = "Set wal_level = logical in postgresql.conf and restart the server";
    Before::of(cluster.all()).refuses(n2, &call, "55000", &message("n1"), hint);
    n2.configure("wal_level", "replica");
    n2.restart();
    let before = Before::of(cluster.all());
    assert_findings(
        &call.fails_on(n2),
        &[
            ("55000", &message("n1"), hint),
            ("55000", &message("n2"), hint),
        ],
    );
    before.still();
    n1.configure("wal_level", "logical");
    n1.restart();
    Before::of(cluster.all()).refuses(n2, &call, "55000", &message("n2"), hint);
    n2.configure("wal_level", "logical");
    n2.restart();
    if !n1
        .value("SELECT current_setting('output_plugin_libraries', true)")
        .is_empty()
    {
        for server in [n1, n2] {
            let old = server.value("SHOW output_plugin_libraries");
            server.configure("output_plugin_libraries", "test_decoding");
            server.restart();
            Before::of(cluster.all()).refuses(
                n2,
                &call,
                "55000",
                &format!(
                    "node \"{}\": output_plugin_libraries does not list pgoutput",
                    server.name()
                ),
                "Add pgoutput to output_plugin_libraries",
            );
            server.configure("output_plugin_libraries", &old);
            server.restart();
        }
    }
}

/// A limit that a long copy may run into is no reason to refuse, but to be told.
#[test]
fn join_warns_of_settings_that_may_lose_the_slot() {
    let cluster = mesh_and_new(3);
    let n2 = cluster.n(2);
    n2.configure("max_slot_wal_keep_size", "64MB");
    n2.reload();
    let called = match cluster
        .n(3)
        .call(&Call::of(cluster.n(3), cluster.n(1)).sql())
    {
        Ok(called) => called,
        Err(failed) => panic!("{failed}"),
    };
    let warning = called
        .notices
        .iter()
        .find(|notice| notice.severity == "WARNING")
        .expect("a warning");
    assert!(
        warning
            .message
            .contains("node \"n2\": max_slot_wal_keep_size is 64 MB"),
        "{warning}"
    );
    assert!(
        warning
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("Set it to -1")),
        "{warning}"
    );
}

#[test]
fn join_is_refused_when_the_mesh_is_broken() {
    let cluster = mesh_and_new(4);
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    let call = Call::of(n4, n1);
    let hint = "Make every subscription of the cluster replicate";
    // Between two members that are not the source: nobody but a look at all of them would find it.
    n3.sql("ALTER SUBSCRIPTION sub_n2_n3 DISABLE");
    Before::of(cluster.all()).refuses(
        n4,
        &call,
        "55000",
        "node \"n3\": subscription sub_n2_n3 from node \"n2\" is disabled",
        hint,
    );
    n3.sql("ALTER SUBSCRIPTION sub_n2_n3 ENABLE");
    wait_mesh(&cluster.first(3));
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 DISABLE");
    n1.sql("ALTER SUBSCRIPTION sub_n3_n1 DISABLE");
    let before = Before::of(cluster.all());
    assert_findings(
        &call.fails_on(n4),
        &[
            (
                "55000",
                "node \"n1\": subscription sub_n2_n1 from node \"n2\" is disabled",
                hint,
            ),
            (
                "55000",
                "node \"n1\": subscription sub_n3_n1 from node \"n3\" is disabled",
                hint,
            ),
        ],
    );
    before.still();
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 ENABLE");
    n1.sql("ALTER SUBSCRIPTION sub_n3_n1 ENABLE");
    wait_mesh(&cluster.first(3));

    // Enabled, but its provider does not let it in.
    let dsn = n2.value("SELECT subconninfo FROM pg_subscription WHERE subname = 'sub_n3_n2'");
    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 CONNECTION 'host=127.0.0.1 port=1 user=postgres dbname=postgres'");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_subscription WHERE subname = 'sub_n3_n2' AND received_lsn IS NOT NULL",
        "0",
    );
    Before::of(cluster.all()).refuses(
        n4,
        &call,
        "55000",
        "node \"n2\": subscription sub_n3_n2 from node \"n3\" has no connection to its provider",
        hint,
    );
    n2.sql(&format!(
        "ALTER SUBSCRIPTION sub_n3_n2 CONNECTION {}",
        lab::quote_literal(&dsn)
    ));
    wait_mesh(&cluster.first(3));

    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 DISABLE");
    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 SET (slot_name = NONE)");
    n2.sql("DROP SUBSCRIPTION sub_n3_n2");
    Before::of(cluster.all()).refuses(
        n4,
        &call,
        "55000",
        "node \"n2\": subscription sub_n3_n2 from node \"n3\" does not exist",
        "The members form a cluster in which some changes go one way only, and \"n2\" gets nothing of what \"n3\" writes",
    );

    // A member that is down is an error of its own, and names it.
    n3.stop();
    let before = Before::of(vec![n1, n2, n4]);
    before.refuses(
        n4,
        &call,
        "08001",
        "could not connect to node \"n3\"",
        "connection string of node \"n3\"",
    );
}

#[test]
fn join_is_refused_when_the_databases_differ() {
    let cluster = mesh_and_new(3);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let hint = "Create the new node's database with the encoding and the locale of the source's";
    for (database, options, message) in [
        (
            "latin",
            "ENCODING 'LATIN1' LOCALE 'C'",
            "node \"n3\": the encoding of the database is LATIN1, the source's is UTF8",
        ),
        (
            "collated",
            "LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'",
            "node \"n3\": the collation of the database is ",
        ),
    ] {
        n3.sql(&format!(
            "CREATE DATABASE {database} TEMPLATE template0 {options}"
        ));
        let mut client = n3.client_as("postgres", database);
        client
            .batch_execute("CREATE EXTENSION zodan")
            .expect("create the extension");
        let before = Before::of(cluster.all());
        let call = Call {
            new_node_dsn: text(
                n3.dsn()
                    .replace("dbname=postgres", &format!("dbname={database}")),
            ),
            ..Call::of(n3, n1)
        };
        assert_failed(&fails_in(&mut client, &call.sql()), "55000", message, hint);
        before.still();
    }
}

/// Rules that change the order of a collation count as much as its locale.
#[test]
fn join_is_refused_when_the_icu_rules_differ() {
    let cluster = Cluster::start_each(2, |name| {
        let options = quick()
            .initdb("--locale-provider=icu")
            .initdb("--icu-locale=de");
        match name {
            "n2" => options.initdb("--icu-rules=&a < z"),
            _ => options,
        }
    });
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE TABLE t (i int PRIMARY KEY)");
    Before::of(cluster.all()).refuses(
        n2,
        &Call::of(n2, n1),
        "55000",
        "'&a < z', the source's is ",
        "Create the new node's database with the encoding and the locale of the source's",
    );
}

#[test]
fn join_is_refused_when_the_source_is_a_standby() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    // A standby of nobody: it waits for WAL that never comes, and answers meanwhile.
    n1.stop();
    fs::write(n1.data_dir().join("standby.signal"), "").expect("make a standby of it");
    n1.boot();
    assert_eq!(n1.value("SELECT pg_is_in_recovery()"), "t");
    Before::of(cluster.all()).refuses(
        n2,
        &Call::of(n2, n1),
        "55000",
        "node \"n1\": the server is a standby",
        "Give the connection string of the primary",
    );
}

#[test]
fn join_is_refused_when_a_member_lacks_the_extension() {
    let cluster = mesh_and_new(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let call = Call::of(n3, n1);
    n2.sql("UPDATE pg_extension SET extversion = '0.0.9' WHERE extname = 'zodan'");
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "55000",
        "node \"n2\": the extension zodan is 0.0.9 here and 0.1.0 on the new node",
        "Run ALTER EXTENSION zodan UPDATE where it is older",
    );
    n2.sql("SET session_replication_role = replica; DROP EXTENSION zodan");
    let before = fingerprint(&cluster.all());
    let missing = call.fails_on(n3);
    assert_failed(
        &missing,
        "42704",
        "node \"n2\": the extension zodan is not installed in the database",
        "Run CREATE EXTENSION zodan in the database of every member",
    );
    before.assert_same_now(&cluster.all());
    n1.sql("SET session_replication_role = replica; DROP EXTENSION zodan");
    let before = fingerprint(&cluster.all());
    let missing = call.fails_on(n3);
    assert_failed(
        &missing,
        "42704",
        "node \"n1\": the extension zodan is not installed in the database",
        "Run CREATE EXTENSION zodan in the database of every member",
    );
    before.assert_same_now(&cluster.all());
}

/// Only there where PostgreSQL is too old for the engine.
#[test]
fn join_is_refused_on_servers_that_are_too_old() {
    if pg::major() >= 16 {
        eprintln!("skipped: {} is not too old", pg::version());
        return;
    }
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let before = Before::of(cluster.all());
    let failed = Call::of(cluster.n(2), cluster.n(1)).fails_on(cluster.n(2));
    let reason = |node| {
        format!(
            "node \"{node}\": the native engine needs PostgreSQL 16 or newer, the server is {}",
            pg::major()
        )
    };
    let hint = "Upgrade the server, or use Spock";
    assert_findings(
        &failed,
        &[
            ("0A000", &reason("n1"), hint),
            ("0A000", &reason("n2"), hint),
        ],
    );
    before.still();
}
