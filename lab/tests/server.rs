//! The lab's servers do what the scenario tests rely on.

use lab::{Server, ServerOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let server = thread::spawn(|| Server::start("n1")).join().unwrap();
    let pid = server.pid();
    server.restart();
    assert_ne!(server.pid(), pid);
    let child = thread::scope(|scope| {
        scope
            .spawn(|| {
                server.stop();
                server.boot();
                server.pid()
            })
            .join()
            .unwrap()
    });
    // A signal on the thread's death would have come by now; the query would then find the server gone.
    assert_eq!(server.value("SELECT 1"), "1");
    assert_eq!(server.pid(), child);
}

#[test]
fn a_crash_keeps_what_was_committed_and_nothing_else() {
    let server = Server::start("n1");
    server.sql("CREATE TABLE t (id int PRIMARY KEY)");
    server.sql("CHECKPOINT");
    server.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let mut open = server.client();
    open.batch_execute("BEGIN; INSERT INTO t VALUES (0)")
        .unwrap();
    server.crash();
    assert!(!server.is_running());
    assert!(open.batch_execute("COMMIT").is_err());
    server.boot();
    assert_eq!(
        server.value("SELECT count(*) || ' ' || min(id) FROM t"),
        "1000 1"
    );
    assert!(
        server.log().contains("automatic recovery in progress"),
        "{}",
        server.log()
    );
}

#[test]
fn an_orderly_stop_needs_no_recovery() {
    let server = Server::start("n1");
    server.stop();
    server.boot();
    assert!(server.log().contains("database system is shut down"));
    assert!(!server.log().contains("automatic recovery in progress"));
}

#[test]
fn a_killed_backend_takes_all_sessions_along() {
    let server = Server::start("n1");
    let mut bystander = server.client();
    let pid = bystander
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get::<_, i32>(0);
    let victim = server.client();
    let mut other = server.client();
    let victim_pid: i32 = other
        .query_one(
            "SELECT max(pid) FROM pg_stat_activity WHERE application_name = 'lab' AND pid NOT IN ($1, pg_backend_pid())",
            &[&pid],
        )
        .unwrap()
        .get(0);
    server.kill_backend(victim_pid.cast_unsigned());
    server.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lab'",
        "1",
    );
    assert!(bystander.batch_execute("SELECT 1").is_err());
    assert!(
        server.log().contains("terminated by signal 9"),
        "{}",
        server.log()
    );
    drop(victim);
}

#[test]
fn settings_and_the_database_are_as_asked() {
    let options = ServerOptions::default()
        .set("max_wal_senders", "3")
        .set("cluster_name", "it's a \\ test")
        .initdb("--encoding=SQL_ASCII")
        .database("shop \"x\"");
    let server = Server::start_with("n1", &options);
    assert_eq!(server.value("SHOW max_wal_senders"), "3");
    assert_eq!(server.value("SHOW cluster_name"), "it's a \\ test");
    assert_eq!(
        server.value("SHOW wal_level"),
        "logical",
        "the lab's own settings stay"
    );
    assert_eq!(server.value("SELECT current_database()"), "shop \"x\"");
    assert_eq!(server.value("SHOW server_encoding"), "SQL_ASCII");
    for dsn in [server.dsn(), server.dsn_uri()] {
        let out = server.psql(
            &["-At", "-d", &dsn],
            "SELECT current_database(), inet_client_addr()",
        );
        assert_eq!(
            out.stdout, "shop \"x\"|127.0.0.1\n",
            "{dsn}: {}",
            out.stderr
        );
    }
    server.configure("work_mem", "7MB");
    server.reload();
    server.wait_for("SHOW work_mem", "7MB");
}

#[test]
fn a_password_is_asked_for_over_tcp_only() {
    let server = Server::start_with("n1", &ServerOptions::default().password("s3cret' \\%"));
    assert_eq!(server.value("SELECT 1"), "1");
    for dsn in [server.dsn(), server.dsn_uri()] {
        assert_eq!(server.psql(&["-At", "-d", &dsn], "SELECT 2").stdout, "2\n");
    }
    let wrong = server.psql(
        &["-w", "-d", &format!("{} password=wrong", server.dsn())],
        "SELECT 2",
    );
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        wrong.stderr.contains("password authentication failed"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn notices_arrive_in_order_and_survive_an_error() {
    let server = Server::start("n1");
    let failed = server
        .call(
            "DO $$ BEGIN
               RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h';
               RAISE WARNING 'two' USING ERRCODE = '01ABC';
               RAISE EXCEPTION 'three' USING ERRCODE = 'ZD001', DETAIL = 'dd', HINT = 'hh';
             END $$",
        )
        .unwrap_err();
    let said: Vec<String> = failed
        .notices
        .iter()
        .map(|n| format!("{} {n}", n.code))
        .collect();
    assert_eq!(
        said,
        [
            "00000 NOTICE: one\nDETAIL: d\nHINT: h",
            "01ABC WARNING: two"
        ]
    );
    assert_eq!((failed.code(), &*failed.message()), ("ZD001", "three"));
    assert_eq!((failed.detail(), failed.hint()), ("dd", "hh"));

    let called = server.call("SELECT pg_sleep(0.05), NULL, 'x'").unwrap();
    assert!(called.elapsed >= Duration::from_millis(50));
    assert_eq!(called.rows[0][1..], [None, Some("x".into())]);
}

#[test]
fn psql_gives_output_errors_and_status() {
    let server = Server::start("n1");
    let good = server.psql(&["-At"], "SELECT 1; SELECT 'two';");
    assert_eq!((&*good.stdout, good.status.code()), ("1\ntwo\n", Some(0)));
    let bad = server.psql(&["-At"], "SELECT 1; SELECT 1/0; SELECT 3;");
    assert_eq!((&*bad.stdout, bad.status.code()), ("1\n", Some(3)));
    assert!(bad.stderr.contains("division by zero"), "{}", bad.stderr);
}

#[test]
fn waiting_sees_what_is_not_there_yet_and_gives_up() {
    let server = Server::start("n1");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| server.wait_for("SELECT x FROM later", "5"));
        server.sql("CREATE TABLE later (x int)");
        server.restart();
        server.sql("INSERT INTO later VALUES (5)");
        waiting.join().unwrap();
    });
    let brief = Duration::from_millis(50);
    let gave_up = thread::scope(|scope| {
        scope
            .spawn(|| server.wait_for_within("SELECT 1", "2", brief))
            .join()
            .unwrap_err()
    });
    let said = gave_up.downcast_ref::<String>().unwrap();
    assert!(
        said.contains("for \"2\"") && said.contains("still \"1\"") && said.contains("SELECT 1"),
        "{said}"
    );
}

/// A query over the proxied DSN, on a thread, because it may hang.
fn query_in_background(server: &Server, sql: &str) -> mpsc::Receiver<(String, String)> {
    let (answer, result) = mpsc::channel();
    let (mut command, sql) = (server.tool("psql"), sql.to_string());
    command.args(["-XAt", "-d", &server.dsn(), "-c", &sql]);
    thread::spawn(move || {
        let out = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let _ = answer.send((text(out.stdout), text(out.stderr)));
    });
    result
}

#[test]
fn a_cut_network_blocks_silently_and_heals() {
    let server = Server::start_with("n1", &ServerOptions::default().proxy());
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_advisory_lock%' AND state = 'active'";
    let mut holder = server.client();
    holder.batch_execute("SELECT pg_advisory_lock(1)").unwrap();
    let old = query_in_background(&server, "SELECT pg_advisory_lock(1), 'old'");
    server.wait_for(running, "1");
    server.cut();
    let new = query_in_background(&server, "SELECT 'new'");
    holder
        .batch_execute("SELECT pg_advisory_unlock(1)")
        .unwrap();
    // The server has answered, the client does not learn it.
    server.wait_for(running, "0");
    assert!(old.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(new.try_recv().is_err());
    assert_eq!(
        server.value("SELECT 1"),
        "1",
        "the lab itself is not cut off"
    );
    server.uncut();
    let patience = Duration::from_secs(10);
    assert_eq!(old.recv_timeout(patience).unwrap().0, "|old\n");
    assert_eq!(new.recv_timeout(patience).unwrap().0, "new\n");
}

#[test]
fn a_severed_network_resets_what_is_open_only() {
    let server = Server::start_with("n1", &ServerOptions::default().proxy());
    // The least a server answers without a login: "no" to the request for TLS.
    let ask = |stream: &mut TcpStream| {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    let connect = || TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let mut open = connect();
    assert_eq!(ask(&mut open).unwrap(), *b"N");
    server.cut();
    server.sever();
    let error = open.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    server.uncut();
    assert_eq!(ask(&mut connect()).unwrap(), *b"N");
}
