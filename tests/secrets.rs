//! A password in a connection string stands where replication needs it, and nowhere else: in no notice, no
//! error, no line of a server log, no journal, no `pg_stat_activity`, no process list and no file.

mod common;

use common::{Call, quick, wait_mesh};
use lab::postgres::{CancelToken, Client, Config, NoTls, SimpleQueryMessage};
use lab::{Cluster, Server, ServerOptions, explain};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Part of every password, in letters and digits, so that no way of quoting the whole hides it.
const CORE: &str = "Zx9hush7Qv";
/// The same as SQL that does not hold it, since the look for it must not be what is found.
const CORE_SQL: &str = "'Zx9hush' || '7Qv'";

/// Passwords that are written differently in each form of a connection string.
fn password(node: &str) -> String {
    match node {
        "n1" => format!("{CORE}one"),
        "n2" => format!("it's {CORE} \\ \"quoted\""),
        _ => format!("100%41 {CORE}/@:?#&=ü"),
    }
}

fn cluster(n: usize, options: impl Fn(&str) -> ServerOptions + Sync) -> Cluster {
    Cluster::start_each(n, |name| options(name).password(&password(name)))
}

/// Looks at all servers and at the process list, again and again, until it is told to stop.
struct Watch {
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<u64>>,
}

impl Watch {
    fn start(servers: &[&Server]) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let found = Arc::new(Mutex::new(vec![]));
        let mut threads = vec![];
        for server in servers {
            let (stop, found, name) = (stop.clone(), found.clone(), server.name().to_string());
            let mut client = server.client();
            threads.push(thread::spawn(move || {
                looks(&stop, || {
                    let rows = client
                        .query(
                            &format!(
                                "SELECT a::text FROM pg_stat_activity a
                                  WHERE strpos(a::text, {CORE_SQL}) > 0
                                  UNION ALL
                                 SELECT p::text FROM pg_prepared_statements p
                                  WHERE strpos(p::text, {CORE_SQL}) > 0"
                            ),
                            &[],
                        )
                        .expect("look at pg_stat_activity");
                    for row in rows {
                        let row: String = row.get(0);
                        found
                            .lock()
                            .unwrap()
                            .push(format!("pg_stat_activity of {name}: {row}"));
                    }
                })
            }));
        }
        let (stopped, sink) = (stop.clone(), found.clone());
        threads.push(thread::spawn(move || {
            looks(&stopped, || sink.lock().unwrap().extend(command_lines()))
        }));
        Watch {
            stop,
            found,
            threads,
        }
    }

    /// Ends the watch, which must have found nothing, and returns how often each look was had at least.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self
            .threads
            .into_iter()
            .map(|thread| thread.join().expect("watch"))
            .min();
        let found = self.found.lock().unwrap();
        assert!(found.is_empty(), "{}", found.join("\n"));
        looks.unwrap_or(0)
    }
}

fn looks(stop: &AtomicBool, mut look: impl FnMut()) -> u64 {
    let mut count = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        look();
        count += 1;
        if last {
            return count;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Processes whose command line shows a password.
fn command_lines() -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return vec![];
    };
    processes
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(CORE))
        .map(|line| format!("process list: {line}"))
        .collect()
}

/// A session that keeps everything that the server says, with the context.
struct Session {
    client: Client,
    said: Arc<Mutex<Vec<String>>>,
    cancel: CancelToken,
}

impl Session {
    fn on(server: &Server) -> Session {
        let said = Arc::new(Mutex::new(vec![]));
        let sink = said.clone();
        let client = Config::new()
            .host_path(server.socket_dir())
            .port(server.port())
            .user("postgres")
            .dbname(server.database())
            .notice_callback(move |notice| {
                sink.lock().unwrap().push(format!("{notice:?}"));
            })
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {}", server.name(), explain(&e)));
        Session {
            cancel: client.cancel_token(),
            client,
            said,
        }
    }

    /// Runs the call with everything watched, and returns how often, too. PostgreSQL itself shows the text of
    /// the CALL until the procedure has begun, so the watch begins with the first notice, or where there is
    /// none, after the call.
    fn call(&mut self, cluster: &Cluster, sql: &str) -> (Result<(), String>, u64) {
        self.said.lock().unwrap().clear();
        let (client, said) = (&mut self.client, self.said.clone());
        let (watch, result) = thread::scope(|scope| {
            let call = scope.spawn(|| client.simple_query(sql).map(|_| ()));
            while said.lock().unwrap().is_empty() && !call.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            let watch = Watch::start(&cluster.all());
            (watch, call.join().expect("the thread of the call"))
        });
        let looks = watch.end();
        let mut said = said.lock().unwrap().join("\n");
        let result = result.map_err(|error| {
            // All that there is, whether or not a client would show it.
            said += &format!("\n{error:?}");
            explain(&error)
        });
        assert!(!said.contains(CORE), "the caller was told\n{said}");
        assert_nowhere(cluster);
        (result, looks)
    }

    fn fails(&mut self, cluster: &Cluster, sql: &str, expected: &str) {
        let (result, _) = self.call(cluster, sql);
        let error = result.expect_err("the call was to fail");
        assert!(
            error.contains(expected),
            "this was to fail with {expected}\n{error}"
        );
    }

    fn succeeds(&mut self, cluster: &Cluster, sql: &str) {
        let (result, looks) = self.call(cluster, sql);
        if let Err(error) = result {
            panic!("{error}");
        }
        assert!(looks >= 10, "the watch looked only {looks} times");
    }
}

/// Panics if a password stands anywhere on the servers but in the two places meant for it.
fn assert_nowhere(cluster: &Cluster) {
    for server in cluster.all() {
        let log = server.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(CORE)).collect();
        assert!(
            lines.is_empty(),
            "the log of {} has\n{}",
            server.name(),
            lines.join("\n")
        );
        let stored = stored(server);
        assert!(
            stored.is_empty(),
            "{} stores it in\n{}",
            server.name(),
            stored.join("\n")
        );
        let files = files(&server.data_dir());
        assert!(
            files.is_empty(),
            "{} has it in the files {files:?}",
            server.name()
        );
    }
}

/// Rows of all tables and catalogs that hold a password and should not.
fn stored(server: &Server) -> Vec<String> {
    let mut client = server.client();
    let mut rows = |query: &str| -> Vec<String> {
        client
            .simple_query(query)
            .unwrap_or_else(|e| panic!("{}: {}\n{query}", server.name(), explain(&e)))
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(String::from),
                _ => None,
            })
            .collect()
    };
    let tables = rows(
        "SELECT format('%I.%I', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'",
    );
    let mut found = vec![];
    for table in tables {
        let shown = match table.as_str() {
            "zodan.node" => "(to_jsonb(t) - 'dsn')::text",
            "pg_catalog.pg_subscription" => "(to_jsonb(t) - 'subconninfo')::text",
            _ => "t::text",
        };
        let query = format!("SELECT {shown} FROM {table} t WHERE strpos({shown}, {CORE_SQL}) > 0");
        found.extend(rows(&query).iter().map(|row| format!("{table}: {row}")));
    }
    found
}

/// Files of a data directory that hold a password, tables and WAL excepted.
fn files(dir: &Path) -> Vec<String> {
    let mut found = vec![];
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let tables = name.bytes().all(|b| b.is_ascii_digit()) || name == "global";
        if path.is_dir() {
            if !tables && name != "pg_wal" {
                found.extend(files(&path));
            }
        } else if fs::read(&path).is_ok_and(|bytes| contains(&bytes, CORE.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Passwords are kept where subscriptions are made from, or the mesh could not work.
fn assert_kept(server: &Server, others: usize) {
    for (what, query) in [
        (
            "subscriptions",
            format!(
                "SELECT count(*) FROM pg_subscription WHERE strpos(subconninfo, {CORE_SQL}) > 0"
            ),
        ),
        (
            "nodes",
            format!("SELECT count(*) - 1 FROM zodan.node WHERE strpos(dsn, {CORE_SQL}) > 0"),
        ),
    ] {
        assert_eq!(
            server.value(&query),
            others.to_string(),
            "{what} of {}",
            server.name()
        );
    }
}

/// With every connection string in both of its forms.
fn join_in_both_forms(cluster: &Cluster) {
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql(
        "CREATE TABLE item (id int PRIMARY KEY, text text);
         INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i",
    );
    Session::on(n2).succeeds(cluster, &Call::of(n2, n1).sql());
    // The source is reached by what the cluster knows of it, so n2's goes through the registry.
    let uris = Call {
        src_dsn: Some(n2.dsn_uri()),
        new_node_dsn: Some(n3.dsn_uri()),
        ..Call::of(n3, n2)
    };
    Session::on(n3).succeeds(
        cluster,
        &uris.sql().replace("add_node(", "add_node(verb := true, "),
    );
    wait_mesh(&cluster.all());
    for server in cluster.all() {
        assert_kept(server, 2);
    }
    lab::assert_same_content(&cluster.all());
}

#[test]
fn join_shows_no_password() {
    let cluster = cluster(3, |_| quick());
    cluster.create_extension();
    join_in_both_forms(&cluster);
}

/// What the new node logs of the CALL itself is PostgreSQL's decision, made before the procedure begins. On
/// the members it is the product that sends statements.
#[test]
fn logs_of_members_show_no_password() {
    let cluster = cluster(3, |name| match name {
        "n3" => quick(),
        _ => quick()
            .set("log_statement", "all")
            .set("log_min_duration_statement", "0")
            .set("log_duration", "on")
            .set("log_min_error_statement", "debug1")
            .set("log_min_messages", "info")
            .set("log_error_verbosity", "verbose")
            .set("log_connections", "on")
            .set("log_disconnections", "on")
            .set("log_replication_commands", "on")
            .set("log_parameter_max_length_on_error", "-1"),
    });
    cluster.create_extension();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    // The password that the lab itself has set was logged; and so will be the call on n2.
    let forget = |server: &Server| fs::write(server.log_path(), "").expect("empty the log");
    n2.sql("ALTER SYSTEM SET log_statement = 'none'");
    n2.sql("ALTER SYSTEM SET log_min_duration_statement = -1");
    n2.sql("ALTER SYSTEM SET log_duration = off");
    n2.reload();
    n2.wait_for("SHOW log_statement", "none");
    forget(n1);
    forget(n2);
    Session::on(n2).succeeds(&cluster, &Call::of(n2, n1).sql());
    n2.sql("ALTER SYSTEM RESET ALL");
    n2.reload();
    n2.wait_for("SHOW log_statement", "all");
    let mut session = Session::on(n3);
    session.succeeds(&cluster, &Call::of(n3, n1).sql());
    for member in [n1, n2] {
        assert!(
            member.log().contains("statement: SELECT"),
            "nothing was logged on {}",
            member.name()
        );
    }
}

#[test]
fn refusals_show_no_password() {
    let cluster = cluster(3, |_| quick());
    cluster.create_extension();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    Session::on(n2).succeeds(&cluster, &Call::of(n2, n1).sql());
    let good = Call::of(n3, n1);
    let mut session = Session::on(n3);
    let wrong = |dsn: String| Some(dsn.replace(CORE, &format!("{CORE}wrong")));

    let cases = [
        (
            "08001: could not connect to node \"n1\"",
            Call {
                src_dsn: wrong(n1.dsn()),
                ..good.clone()
            },
        ),
        (
            "08001: could not connect to node \"n1\"",
            Call {
                src_dsn: wrong(n1.dsn_uri()),
                ..good.clone()
            },
        ),
        (
            "08001: could not connect to node \"n3\"",
            Call {
                new_node_dsn: wrong(n3.dsn()),
                ..good.clone()
            },
        ),
        (
            "22023: argument src_dsn is not a connection string",
            Call {
                src_dsn: Some(format!("host=127.0.0.1 password={CORE} {CORE}")),
                ..good.clone()
            },
        ),
        (
            "22023: argument new_node_dsn is not a connection string",
            Call {
                new_node_dsn: Some(format!(
                    "postgresql://postgres:%zz{CORE}@127.0.0.1/postgres"
                )),
                ..good.clone()
            },
        ),
        // A slash or an @ that is not percent-encoded makes a port or a host of a part of the password.
        (
            "22023: argument src_dsn is not a connection string",
            Call {
                src_dsn: Some(format!(
                    "postgresql://postgres:{CORE}/x@127.0.0.1:{}/postgres",
                    n1.port()
                )),
                ..good.clone()
            },
        ),
        (
            "22023: argument src_dsn is not a connection string",
            Call {
                src_dsn: Some(format!(
                    "postgresql://postgres:x@{CORE}@127.0.0.1:{}/postgres",
                    n1.port()
                )),
                ..good.clone()
            },
        ),
        (
            "argument new_node_dsn leads to database",
            Call {
                new_node_dsn: Some(n2.dsn()),
                ..good.clone()
            },
        ),
        (
            "the new node cannot be reached from here",
            Call {
                new_node_dsn: Some(n3.dsn().replace("host=127.0.0.1", "host=/proc/self/cwd")),
                ..good.clone()
            },
        ),
    ];
    let sockets = format!("{}, .", n3.socket_dir().display());
    n3.configure("unix_socket_directories", &sockets);
    n3.restart();
    let mut again = Session::on(n3);
    std::mem::swap(&mut session, &mut again);
    for (expected, call) in &cases {
        session.fails(&cluster, &call.sql(), expected);
    }
    session.client.batch_execute("BEGIN").expect("begin");
    session.fails(&cluster, &good.sql(), "25001");
    session.client.batch_execute("ROLLBACK").expect("roll back");
    session.succeeds(&cluster, &good.sql());
}

/// Something on a node that says or does something when a statement of some kind runs there.
fn event_trigger(server: &Server, tag: &str, does: &str) {
    server.sql(&format!(
        "CREATE FUNCTION public.meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN {does}; END$$;
         CREATE EVENT TRIGGER meddle ON ddl_command_end WHEN TAG IN ('{tag}') EXECUTE FUNCTION public.meddle()"
    ));
}

fn drop_event_trigger(server: &Server) {
    server.sql("DROP EVENT TRIGGER meddle; DROP FUNCTION public.meddle()");
}

#[test]
fn failures_show_no_password() {
    let cluster = cluster(3, |_| quick().set("zodan.failpoint", "event triggers fire"));
    cluster.create_extension();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql(
        "CREATE TABLE item (id int PRIMARY KEY);
         INSERT INTO item SELECT generate_series(1, 1000);
         CREATE VIEW items AS SELECT count(*) FROM item",
    );
    Session::on(n2).succeeds(&cluster, &Call::of(n2, n1).sql());
    let call = Call::of(n3, n1).sql();
    let mut session = Session::on(n3);

    // pg_dump fails.
    n1.sql(
        "CREATE UNLOGGED TABLE rule AS SELECT * FROM pg_rewrite WHERE ev_class = 'items'::regclass;
         DELETE FROM pg_rewrite WHERE ev_class = 'items'::regclass",
    );
    session.fails(&cluster, &call, "pg_dump");
    n1.sql("INSERT INTO pg_rewrite SELECT * FROM rule; DROP TABLE rule");

    // pg_restore fails.
    event_trigger(n3, "CREATE TABLE", "RAISE EXCEPTION 'no tables here'");
    session.fails(&cluster, &call, "no tables here");
    drop_event_trigger(n3);

    // A statement fails, on a member and on the new node itself, whose context is the statement.
    for server in [n2, n1, n3] {
        event_trigger(
            server,
            "CREATE SUBSCRIPTION",
            "RAISE EXCEPTION 'no subscription here'",
        );
        session.fails(&cluster, &call, "no subscription here");
        drop_event_trigger(server);
    }

    // A statement is talked about.
    for server in [n2, n3] {
        event_trigger(
            server,
            "CREATE SUBSCRIPTION",
            "RAISE LOG 'noted for the log'; RAISE NOTICE 'noted'; RAISE WARNING 'warned of'",
        );
    }
    session.succeeds(&cluster, &call);
}

#[test]
fn interrupted_join_shows_no_password() {
    let cluster = cluster(3, |_| quick());
    cluster.create_extension();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    Session::on(n2).succeeds(&cluster, &Call::of(n2, n1).sql());
    let call = Call::of(n3, n1).sql();
    // An idle session still shows what it ran last.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CALL spock.add_node phase 5%'";

    let mut session = Session::on(n3);
    let mut writer = common::open_writer(n1);
    let cancel = session.cancel.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            n3.wait_for(waiting, "1");
            cancel.cancel_query(NoTls).expect("send the cancel request");
        });
        session.fails(&cluster, &call, "57014");
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            n3.wait_for(waiting, "1");
            n3.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CALL spock.add_node phase 5%'");
        });
        // The client may see the end of the connection before it has read why.
        let (result, _) = session.call(&cluster, &call);
        let error = result.expect_err("the session was terminated");
        assert!(
            error.contains("57P01") || error.contains("closed"),
            "{error}"
        );
    });
    writer.batch_execute("ROLLBACK").expect("end the writer");
    Session::on(n3).succeeds(&cluster, &call);
}
