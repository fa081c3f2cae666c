//! Whatever libpq can connect by is good for a join, because servers and programs that have to connect are
//! given the connection string as it is: the CALL, `pg_dump`, the copy and later the subscriptions.

mod common;

use common::{Call, Running, fingerprint, open_writer, quick, wait_mesh, write_private};
use lab::{Cluster, Server, ServerOptions, assert_same_content, dirs, wait_quiet};
use std::fs;
use std::path::Path;

const PASSWORD: &str = "p w'd\\%40";

/// [`PASSWORD`] as a line of a password file has it.
const IN_PASSFILE: &str = "p w'd\\\\%40";

/// [`PASSWORD`] within single quotes.
const QUOTED: &str = "p w\\'d\\\\%40";

const CONTENT: &str = "CREATE TABLE t (id integer PRIMARY KEY, text text);
    INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 1000) i";

fn connection_string_joins(cluster: &Cluster, new: usize, src_dsn: &str, new_node_dsn: &str) {
    let (n1, new) = (cluster.n(1), cluster.n(new));
    let call = Call {
        src_dsn: Some(src_dsn.into()),
        new_node_dsn: Some(new_node_dsn.into()),
        ..Call::of(new, n1)
    };
    new.call(&call.sql())
        .unwrap_or_else(|e| panic!("{src_dsn}\n{e}"));
}

/// Panics unless what each of them writes arrives on all, and all have what was copied.
fn assert_replicates(servers: &[&Server]) {
    wait_mesh(servers);
    for (i, server) in servers.iter().enumerate() {
        server.sql(&format!("INSERT INTO t VALUES (-{i} - 1, 'replicated')"));
    }
    wait_quiet(servers);
    assert_same_content(servers);
    let rows = (1000 + servers.len()).to_string();
    assert_eq!(servers[0].value("SELECT count(*) FROM t"), rows);
}

/// Every form that libpq reads, for the source and for the new node: the members subscribe by it too.
#[test]
fn join_works_with_connection_strings_of_all_forms() {
    let cluster = Cluster::start_with(6, &quick().password(PASSWORD));
    cluster.form_mesh(1, CONTENT);
    let passfile = cluster.n(1).data_dir().join("passfile");
    write_private(&passfile, &format!("*:*:*:*:{IN_PASSFILE}\n"));
    let forms = |server: &Server| {
        let port = server.port();
        [
            server.dsn_uri(),
            format!(
                "host = 127.0.0.1   port = {port} user = postgres dbname = 'postgres' password = '{QUOTED}'"
            ),
            format!(
                "host=127.0.0.1 port={port} user=postgres dbname=postgres passfile={}",
                passfile.display()
            ),
            // The first of the hosts has no server.
            format!(
                "postgresql://postgres:p%20w%27d%5C%2540@127.0.0.1:1,127.0.0.1:{port}/postgres?sslmode=prefer"
            ),
            format!(
                "host=127.0.0.2,127.0.0.1 port=1,{port} user=postgres dbname=postgres password='{QUOTED}'"
            ),
        ]
    };
    for i in 2..=6 {
        let source = &forms(cluster.n(1))[i - 2];
        let new = &forms(cluster.n(i))[i - 2];
        connection_string_joins(&cluster, i, source, new);
    }
    assert_replicates(&cluster.all());
}

/// Joins n2 by services, whose passwords are in the service file, and n3 by connection strings without a
/// password, which is in the password file.
fn join_by_files(cluster: &Cluster, services: &Path, passwords: &Path) {
    cluster.form_mesh(1, CONTENT);
    let sections: String = (1..=2)
        .map(|i| {
            let port = cluster.n(i).port();
            format!(
                "[lab n{i}]\nhost=127.0.0.1\nport={port}\nuser=postgres\ndbname=postgres\npassword={PASSWORD}\n"
            )
        })
        .collect();
    write_private(services, &sections);
    write_private(passwords, "127.0.0.1:*:postgres:postgres:wrong\n");
    let bare = |i: usize| {
        let port = cluster.n(i).port();
        format!("host=127.0.0.1 port={port} user=postgres dbname=postgres")
    };
    let by_password = Call {
        src_dsn: Some(bare(1)),
        new_node_dsn: Some(bare(3)),
        ..Call::of(cluster.n(3), cluster.n(1))
    };
    // The file is read, and what it says matters.
    let failed = by_password.fails_on(cluster.n(3));
    let hint = "Check host, port, database, user and password";
    common::assert_findings(
        &failed,
        &[
            ("08001", "could not connect to node \"n1\"", hint),
            ("08001", "could not connect to node \"n3\"", hint),
        ],
    );
    let reason = format!("password retrieved from file \"{}\"", passwords.display());
    assert!(failed.detail().contains(&reason), "{failed}");

    connection_string_joins(cluster, 2, "service='lab n1'", "service='lab n2'");
    write_private(
        passwords,
        &format!("127.0.0.1:*:postgres:postgres:{IN_PASSFILE}\n"),
    );
    connection_string_joins(cluster, 3, &bare(1), &bare(3));
    assert_replicates(&cluster.all());
    for (server, expected) in [(1, "service='lab n2'"), (2, "service='lab n1'")] {
        let subscribed = "SELECT string_agg(subconninfo, E'\\n') FROM pg_subscription";
        let subscribed = cluster.n(server).value(subscribed);
        assert!(subscribed.contains(expected), "{subscribed}");
        assert!(!subscribed.contains("password"), "{subscribed}");
    }
}

#[test]
fn connection_files_in_the_home_directory_are_used() {
    let home = dirs::scratch("home-");
    let options = quick()
        .password(PASSWORD)
        .env("HOME", &home.path().display().to_string());
    join_by_files(
        &Cluster::start_with(3, &options),
        &home.path().join(".pg_service.conf"),
        &home.path().join(".pgpass"),
    );
}

#[test]
fn connection_files_that_the_environment_names_are_used() {
    let dir = dirs::scratch("files-");
    let (services, passwords) = (dir.path().join("services"), dir.path().join("passwords"));
    let options = quick()
        .password(PASSWORD)
        .env("PGSERVICEFILE", &services.display().to_string())
        .env("PGPASSFILE", &passwords.display().to_string());
    join_by_files(&Cluster::start_with(3, &options), &services, &passwords);
}

/// Two certificates for 127.0.0.1, each signed by itself and valid until 2120. The key protects nothing.
const CERTIFICATE: &str = include_str!("tls/server.crt");
const KEY: &str = include_str!("tls/server.key");
const OTHER_CERTIFICATE: &str = include_str!("tls/other.crt");
/// The same key, encrypted with [`KEY_PASSWORD`].
const LOCKED_KEY: &str = include_str!("tls/locked.key");
const KEY_PASSWORD: &str = "open sesame";

/// More than fits into any buffer on the way.
const LARGE: &str = "CREATE TABLE large (id integer PRIMARY KEY, text text);
    INSERT INTO large SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 5000) i";

/// Servers that let clients in over TCP only if they encrypt, and as the rest of the rule says.
fn encrypted(dir: &Path, rule: &str) -> Cluster {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        write_private(&path, text);
        path.display().to_string()
    };
    let certificate = file("server.crt", CERTIFICATE);
    file("other.crt", OTHER_CERTIFICATE);
    file("locked.key", LOCKED_KEY);
    let options: ServerOptions = quick()
        .set("ssl", "on")
        .set("ssl_cert_file", &certificate)
        .set("ssl_key_file", &file("server.key", KEY))
        .set("ssl_ca_file", &certificate)
        .set("log_connections", "on");
    let cluster = Cluster::start_with(2, &options);
    for server in cluster.all() {
        let rules = format!("local all all trust\nhostssl all all 127.0.0.1/32 {rule}\n");
        fs::write(server.data_dir().join("pg_hba.conf"), rules).expect("write pg_hba.conf");
        server.restart();
    }
    cluster
}

fn verified(server: &Server, root: &Path) -> String {
    format!(
        "{} sslmode=verify-full sslrootcert={}",
        server.dsn(),
        root.display()
    )
}

/// Panics if a session over TCP is not encrypted, or was not.
fn assert_all_encrypted(cluster: &Cluster) {
    for server in cluster.all() {
        // The subscription of the other node.
        assert_eq!(
            server.value(
                "SELECT string_agg(s.ssl::text, ' ') FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid)"
            ),
            "true"
        );
        // Those that have ended too. The test's own come over the socket.
        let log = server.log();
        let sessions: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("connection authorized:"))
            .filter(|line| {
                !["lab", "writer"]
                    .iter()
                    .any(|own| line.contains(&format!("application_name={own}")))
            })
            .collect();
        let plain: Vec<&&str> = sessions
            .iter()
            .filter(|line| !line.contains("SSL enabled"))
            .collect();
        assert!(plain.is_empty(), "{plain:#?}");
        // zodan's own, those of its programs, and the subscription's.
        assert!(sessions.len() >= 3, "{sessions:#?}");
    }
}

#[test]
fn join_works_with_a_verified_server_certificate() {
    let dir = dirs::scratch("tls-");
    let cluster = encrypted(dir.path(), "trust");
    cluster.form_mesh(1, &format!("{CONTENT};{LARGE}"));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let root = dir.path().join("server.crt");
    let call = Call {
        src_dsn: Some(verified(n1, &root)),
        new_node_dsn: Some(verified(n2, &root)),
        ..Call::of(n2, n1)
    };
    let sessions = "SELECT coalesce(bool_and(s.ssl), false) || ' ' || (count(*) > 0)
          FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
         WHERE a.application_name LIKE 'zodan%' AND a.client_addr IS NOT NULL";
    let mut writer = open_writer(n1);
    let running = Running::start(n2, &call.sql());
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    assert_eq!(n1.value(sessions), "true true");
    writer.batch_execute("ROLLBACK").expect("end the writer");
    running.succeeds();

    assert_replicates(&cluster.all());
    assert_all_encrypted(&cluster);
}

#[test]
fn join_is_refused_when_the_certificate_cannot_be_verified() {
    let dir = dirs::scratch("tls-");
    let cluster = encrypted(dir.path(), "trust");
    cluster.form_mesh(1, CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let before = fingerprint(&cluster.all());
    let (right, wrong) = (dir.path().join("server.crt"), dir.path().join("other.crt"));
    let good = Call {
        src_dsn: Some(verified(n1, &right)),
        new_node_dsn: Some(verified(n2, &right)),
        ..Call::of(n2, n1)
    };
    for (call, node, reason) in [
        (
            Call {
                src_dsn: Some(verified(n1, &wrong)),
                ..good.clone()
            },
            "n1",
            "certificate verify failed",
        ),
        (
            Call {
                new_node_dsn: Some(verified(n2, &wrong)),
                ..good.clone()
            },
            "n2",
            "certificate verify failed",
        ),
        (
            Call {
                src_dsn: Some(verified(n1, &right).replace("127.0.0.1", "localhost")),
                ..good.clone()
            },
            "n1",
            "does not match host name \"localhost\"",
        ),
        (
            Call {
                src_dsn: Some(format!("{} sslmode=disable", n1.dsn())),
                ..good.clone()
            },
            "n1",
            "no encryption",
        ),
    ] {
        let failed = call.fails_on(n2);
        common::assert_failed(
            &failed,
            "08001",
            &format!("could not connect to node \"{node}\""),
            &format!("connection string of node \"{node}\""),
        );
        assert!(failed.message().contains(reason), "{failed}");
        before.assert_same_now(&cluster.all());
        assert!(common::runs(&cluster.all()).is_empty(), "{failed}");
    }
}

/// The password of a key is a secret that programs cannot be given as they are given a password.
#[test]
fn join_works_with_a_client_key_that_has_a_password() {
    let dir = dirs::scratch("tls-");
    let cluster = encrypted(dir.path(), "trust clientcert=verify-ca");
    cluster.form_mesh(1, CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let before = fingerprint(&cluster.all());
    let certificate = dir.path().join("server.crt");
    let with = |server: &Server, password: &str| {
        Some(format!(
            "{} sslcert={} sslkey={} sslpassword='{password}'",
            verified(server, &certificate),
            certificate.display(),
            dir.path().join("locked.key").display()
        ))
    };
    let call = Call {
        src_dsn: with(n1, KEY_PASSWORD),
        new_node_dsn: with(n2, KEY_PASSWORD),
        ..Call::of(n2, n1)
    };
    for (src_dsn, reason) in [
        (Some(verified(n1, &certificate)), "client certificate"),
        (
            with(n1, "wrong password"),
            "could not load private key file",
        ),
    ] {
        let failed = Call {
            src_dsn,
            ..call.clone()
        }
        .fails_on(n2);
        assert_eq!(failed.code(), "08001", "{failed}");
        assert!(failed.message().contains(reason), "{failed}");
        before.assert_same_now(&cluster.all());
    }
    let called = n2.call(&call.sql()).unwrap_or_else(|e| panic!("{e}"));
    for notice in called.notices {
        assert!(!notice.to_string().contains(KEY_PASSWORD), "{notice}");
    }
    assert_replicates(&cluster.all());
    assert_all_encrypted(&cluster);
}

/// A port where nobody listens.
const NOBODY: u16 = 2;

/// A server that is read-only for a moment is still the one that was meant.
#[test]
fn connection_string_with_target_session_attrs_is_followed() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(1, CONTENT);
    for new in [2, 3] {
        let dsn = |server: &Server| {
            let port = format!("port={}", server.port());
            let ports = format!("port={NOBODY},{}", server.port());
            format!(
                "{} target_session_attrs=read-write",
                server
                    .dsn()
                    .replace("host=127.0.0.1", "host=127.0.0.1,127.0.0.1")
                    .replace(&port, &ports)
            )
        };
        connection_string_joins(&cluster, new, &dsn(cluster.n(1)), &dsn(cluster.n(new)));
    }
    assert_replicates(&cluster.all());
    let n3 = cluster.n(3);
    n3.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|e| panic!("{e}"));
    n3.sql("INSERT INTO t VALUES (-10, 'after the removal')");
    cluster
        .n(1)
        .wait_for("SELECT count(*) FROM t WHERE id = -10", "1");
}

#[test]
fn connection_string_for_the_replication_protocol_is_refused() {
    let cluster = Cluster::start(2);
    cluster.form_mesh(1, CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for value in ["database", "true", "off"] {
        let failed = Call {
            src_dsn: Some(format!("{} replication={value}", n1.dsn())),
            ..Call::of(n2, n1)
        }
        .fails_on(n2);
        common::assert_failed(
            &failed,
            "22023",
            "argument src_dsn asks for the replication protocol",
            "Leave replication= out",
        );
    }
}

/// Each of several hosts may have a reason of its own.
#[test]
fn error_of_every_host_is_reported() {
    let cluster = Cluster::start(2);
    cluster.form_mesh(1, CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let failed = Call {
        src_dsn: Some(format!(
            "host=127.0.0.1,127.0.0.1 port={NOBODY},{} dbname=postgres user=postgres",
            NOBODY + 1
        )),
        ..Call::of(n2, n1)
    }
    .fails_on(n2);
    common::assert_failed(
        &failed,
        "08001",
        "could not connect to node \"n1\"",
        "connection string of node \"n1\"",
    );
    for port in [NOBODY, NOBODY + 1] {
        assert!(
            failed
                .message()
                .contains(&format!("port {port} failed: Connection refused")),
            "{failed}"
        );
    }
    assert!(!failed.message().contains('\n'), "{failed}");
}
