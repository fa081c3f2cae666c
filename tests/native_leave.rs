//! A node leaves a cluster of the native engine: what only its subscriptions and its registry can do.

mod common;

use common::engines::On;
use common::removal::{
    assert_equal, assert_no_node, assert_no_trace, call, content, remove, remove_by_force,
    remove_fails,
};
use common::{Hang, Running, assert_failed, fingerprint, gate, quick, wait_mesh, wait_no_sessions};
use lab::postgres::{self, Client, NoTls};
use lab::{CallFailed, Cluster, Server, add_node, explain, load, quote_literal};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

fn mesh(members: usize, spare: usize) -> Cluster {
    On::Native.start(members, spare, &content())
}

/// A removal and a recovery of n3 say that it answers, and what.
fn assert_refused_as_alive(n1: &Server, how: &str, said: &str) {
    let failed = remove_fails(n1, "n3", None);
    let told = format!(
        "node \"n3\": it answers, so it is not dead, and what the others have not had of it yet would be lost: {how}"
    );
    assert_eq!(failed.code(), "55006", "{failed}");
    // Another survivor may have come in again before its server took the change.
    let findings = format!("{}\n{}", failed.message(), failed.detail());
    let of_n3 = findings.lines().find(|line| line.starts_with(&told));
    assert!(of_n3.is_some_and(|line| line.contains(said)), "{failed}");
    assert_recovery_refused_as_alive(n1, "CALL spock.recover_run('n3')", said);
}

fn assert_recovery_refused_as_alive(n1: &Server, call: &str, said: &str) {
    let failed = n1.sql_error(call);
    assert_failed(
        &failed,
        "55006",
        "node \"n3\" is alive: it answers: ",
        "With force := true",
    );
    assert!(failed.message().contains(said), "{failed}");
}

/// A server that answers lives, whatever it says: it may have what nobody else has.
#[test]
fn removal_is_refused_while_the_server_answers_with_an_error() {
    let cluster = mesh(3, 0);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let alive = |said: &str| {
        assert_refused_as_alive(n1, "could not connect to node \"n3\": ", said);
        let precheck = "CALL spock.recover_precheck('n3', NULL, NULL, NULL, NULL, true, NULL)";
        assert_recovery_refused_as_alive(n1, precheck, said);
    };
    // A server takes a signal when it gets to it.
    let closed = || {
        let begun = Instant::now();
        while Client::connect(&n3.dsn(), NoTls).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it lets in");
        }
    };
    let before = fingerprint(&[n1, cluster.n(2)]);
    let mut elsewhere = n3.client_as("postgres", "template1");
    let end_sessions = format!(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = {}",
        quote_literal(n3.database())
    );
    let database = format!("\"{}\"", n3.database());

    let hba = n3.data_dir().join("pg_hba.conf");
    let lets_in = std::fs::read_to_string(&hba).expect("read pg_hba.conf");
    std::fs::write(&hba, format!("host all all all reject\n{lets_in}")).expect("write pg_hba.conf");
    elsewhere
        .batch_execute("SELECT pg_reload_conf()")
        .expect("reload");
    closed();
    elsewhere
        .batch_execute(&end_sessions)
        .expect("end sessions");
    alive("pg_hba.conf rejects connection");
    std::fs::write(&hba, lets_in).expect("write pg_hba.conf");
    elsewhere
        .batch_execute("SELECT pg_reload_conf()")
        .expect("reload");

    let allow = |whether: bool| format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {whether}");
    elsewhere
        .batch_execute(&allow(false))
        .expect("close the database");
    elsewhere
        .batch_execute(&end_sessions)
        .expect("end sessions");
    alive("is not currently accepting connections");
    elsewhere
        .batch_execute(&allow(true))
        .expect("open the database");

    // It stops when the last session ends, and takes no new one until then.
    let mut last = n3.client();
    let told = Command::new("kill")
        .args(["-TERM", &n3.pid().to_string()])
        .status();
    assert!(told.expect("run kill").success());
    closed();
    let ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN ('walsender', 'client backend')";
    last.batch_execute(ended).expect("end sessions");
    alive("the database system is shutting down");
    drop(last);
    n3.stop();
    n3.boot();
    wait_mesh(&cluster.all());
    before.assert_same_now(&[n1, cluster.n(2)]);
    remove(n1, n3);
    assert_no_trace(On::Native, n1, "n3", 2);
}

/// A file that keeps a server in recovery.
struct RecoveryWait<'a>(&'a Path);

impl Drop for RecoveryWait<'_> {
    fn drop(&mut self) {
        std::fs::remove_file(self.0).expect("let it go on");
    }
}

/// In recovery, under another name, out of connections: each of them is told, and nothing is changed.
#[test]
fn removal_is_refused_while_the_server_starts_or_is_full() {
    let cluster = Cluster::start_with(3, &quick().set("max_connections", "25"));
    cluster.form_mesh(3, load::SCHEMA);
    wait_mesh(&cluster.all());
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let alive = |said: &str| assert_refused_as_alive(n1, "", said);
    let lacks = |subscriber: &Server, whether: bool| {
        let name = format!("sub_n3_{}", subscriber.name());
        let verb = if whether { "DISABLE" } else { "ENABLE" };
        subscriber.sql(&format!("ALTER SUBSCRIPTION {name} {verb}"));
        let running =
            "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL AND subname = '";
        if whether {
            subscriber.wait_for(&format!("{running}{name}'"), "0");
        }
    };
    // What nobody else has.
    [n1, n2].into_iter().for_each(|node| lacks(node, true));
    n3.sql("INSERT INTO load.account (id, version, owner, balance) VALUES (1, 1, 'n3', 0)");

    let wait = n3.data_dir().join("recovery.wait");
    let waits = format!(
        "while test -e {}; do sleep 0.1; done; false",
        wait.display()
    );
    n3.configure("restore_command", &waits);
    n3.crash();
    for file in [&wait, &n3.data_dir().join("recovery.signal")] {
        common::write_private(file, "");
    }
    thread::scope(|scope| {
        scope.spawn(|| n3.boot());
        let held = RecoveryWait(&wait);
        let begun = Instant::now();
        let is_starting = |e: postgres::Error| e.code().is_some_and(|c| c.code() == "57P03");
        while !Client::connect(&n3.dsn(), NoTls)
            .err()
            .is_some_and(is_starting)
        {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it does not start"
            );
        }
        [n1, n2].into_iter().for_each(|node| lacks(node, false));
        alive("the database system is ");
        drop(held);
    });
    wait_mesh(&cluster.all());
    n1.wait_for("SELECT count(*) FROM load.account", "1");
    n2.wait_for("SELECT count(*) FROM load.account", "1");
    let before = fingerprint(&[n1, n2]);

    let database = format!("\"{}\"", n3.database());
    let mut elsewhere = n3.client_as("postgres", "template1");
    let mut change = |database: &str, what: &str| {
        let sql = format!("ALTER DATABASE {database} {what}");
        elsewhere
            .batch_execute(&sql)
            .unwrap_or_else(|e| panic!("{}\n{sql}", explain(&e)));
    };
    // Or workers would come in again at once.
    change(&database, "ALLOW_CONNECTIONS false");
    let end = format!(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = {}",
        quote_literal(n3.database())
    );
    n3.client_as("postgres", "template1")
        .batch_execute(&end)
        .expect("end sessions");
    change(&database, "RENAME TO elsewhere");
    alive("does not exist");
    change("elsewhere", &format!("RENAME TO {database}"));
    change(&database, "ALLOW_CONNECTIONS true");
    drop(elsewhere);
    wait_mesh(&cluster.all());

    n3.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'",
    );
    let mut crowd = vec![];
    while let Ok(client) = n3.try_client("crowd") {
        crowd.push(client);
    }
    alive("too many clients already");
    drop(crowd);
    wait_mesh(&cluster.all());
    before.assert_same_now(&[n1, n2]);
    remove(n1, n3);
    assert_eq!(n1.value("SELECT count(*) FROM load.account"), "1");
}

/// A failover that is not finished: the address leads to a standby.
#[test]
fn removal_is_refused_while_the_node_is_a_standby() {
    let cluster = mesh(3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n3.crash();
    common::write_private(&n3.data_dir().join("standby.signal"), "");
    n3.boot();
    let before = fingerprint(&[n1, n2]);
    for more in ["", ", force := true"] {
        assert_failed(
            &n1.sql_error(&call("n3", None, more)),
            "55000",
            "the server is a standby",
            "Wait for the end of its promotion",
        );
    }
    before.assert_same_now(&[n1, n2]);
    assert_eq!(
        n1.value("SELECT count(*) FROM zodan.run WHERE ended_at IS NULL"),
        "0"
    );
    n3.sql("SELECT pg_promote()");
    wait_mesh(&cluster.all());
    remove(n1, n3);
    assert_no_trace(On::Native, n1, "n3", 2);
}

/// Commits that would wait for who leaves, and who writes on while it does.
#[test]
fn removal_is_refused_while_synchronous_commits_wait_for_the_node() {
    let cluster = mesh(3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    for named in ["sub_n1_n3", "FIRST 1 (other, \"sub_n1_n3\")", "*"] {
        n1.configure("synchronous_standby_names", &named.replace('\'', "''"));
        if named == "*" {
            // Of all that read from n1 only n3 is left.
            n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
            n1.wait_for("SELECT count(*) FROM pg_stat_replication", "1");
        }
        n1.reload();
        n1.wait_for(
            &format!(
                "SELECT current_setting('synchronous_standby_names') = {}",
                quote_literal(named)
            ),
            "t",
        );
        let failed = remove_fails(n2, "n3", None);
        assert_eq!(failed.code(), "55000", "{failed}");
        let told = "node \"n1\": synchronous_standby_names names sub_n1_n3, ";
        let all = format!("{}\n{}", failed.message(), failed.detail());
        assert!(all.contains(told), "{failed}");
        assert!(
            failed
                .hint()
                .contains("ALTER SYSTEM SET synchronous_standby_names"),
            "{failed}"
        );
        n2.sql("ALTER SUBSCRIPTION sub_n1_n2 ENABLE");
        wait_mesh(&cluster.all());
    }
    n1.configure("synchronous_standby_names", "sub_n1_n2");
    n1.reload();
    n1.wait_for(
        "SELECT current_setting('synchronous_standby_names')",
        "sub_n1_n2",
    );
    n3.sql("CREATE ROLE app LOGIN; ALTER ROLE app SET default_transaction_read_only = off; CREATE ROLE calm LOGIN; ALTER ROLE calm SET default_transaction_read_only = on");
    let removed = remove(n2, n3);
    assert_eq!(
        removed.warnings(),
        [
            "node \"n3\": role app has default_transaction_read_only = off, so it can write on while the node leaves"
        ]
    );
    n1.sql("INSERT INTO load.account (id, version, owner, balance) VALUES (1, 1, 'x', 0)");
    assert_equal(&[n1, n2]);
}

/// One that was given another name is known by its slot.
#[test]
fn renamed_subscription_is_dropped_with_its_node() {
    let cluster = mesh(3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("ALTER SUBSCRIPTION sub_n3_n1 RENAME TO mine");
    let state = "SELECT concat_ws(' ', subscription, state) FROM spock.cluster_status() WHERE provider = 'n3' AND subscriber = 'n1'";
    n2.wait_for(state, "mine replicating");
    n3.sql("INSERT INTO load.account (id, version, owner, balance) VALUES (1, 1, 'x', 0)");
    remove(n2, n3);
    assert_no_trace(On::Native, n1, "n3", 2);
    assert_no_node(On::Native, n3);
    assert_eq!(n1.value("SELECT count(*) FROM load.account"), "1");
}

/// It was started on another port, and the others do not know.
#[test]
fn survivor_whose_subscription_leads_elsewhere_is_reported() {
    let cluster = mesh(3, 0);
    let [n1, n2] = [1, 2].map(|i| cluster.n(i));
    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 DISABLE");
    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 CONNECTION 'host=127.0.0.1 port=1 dbname=nowhere password=Geheim7'");
    n2.sql("ALTER SUBSCRIPTION sub_n3_n2 ENABLE");
    let begun = Instant::now();
    let failed = remove_fails(n1, "n3", None);
    assert!(begun.elapsed() < Duration::from_secs(30), "{failed}");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\": it is not connected to node \"n3\", so what that one wrote may be missing there: subscription sub_n3_n2 leads to ",
        "ALTER SUBSCRIPTION sub_n3_n2 CONNECTION",
    );
    assert!(failed.message().contains("port=1: "), "{failed}");
    assert!(!format!("{failed}").contains("Geheim7"), "{failed}");
    let forced = remove_by_force(n1, "n3");
    assert!(forced.elapsed < Duration::from_secs(30), "{forced:?}");
    assert_no_trace(On::Native, n2, "n3", 2);
}

/// The one that kept it went with the server.
#[test]
fn recovery_slot_without_a_worker_is_dropped_with_its_node() {
    for here in [1, 3] {
        let cluster = mesh(3, 0);
        let n3 = cluster.n(3);
        n3.sql("SELECT zodan.start_node_worker()");
        n3.wait_for(
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'spk%'",
            "spk_recovery_postgres",
        );
        n3.crash();
        n3.boot();
        wait_mesh(&cluster.all());
        remove(cluster.n(here), n3);
        assert_no_node(On::Native, n3);
    }
}

#[test]
fn removal_with_wrong_arguments_is_refused() {
    let cluster = mesh(2, 1);
    let [n1, n2, alone] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql(
        "CREATE ROLE plain LOGIN; GRANT USAGE ON SCHEMA spock TO plain;
            GRANT EXECUTE ON PROCEDURE spock.remove_node(text, text, boolean, boolean) TO plain",
    );
    let before = fingerprint(&cluster.all());
    let fails = |sql: &str| n1.sql_error(sql);
    assert_failed(
        &fails("CALL spock.remove_node(NULL)"),
        "22004",
        "argument target_node_name must not be null",
        "Give a value for target_node_name.",
    );
    assert_failed(
        &fails("CALL spock.remove_node('')"),
        "22023",
        "argument target_node_name must not be empty",
        "Give the name of the node.",
    );
    assert_failed(
        &fails("CALL spock.remove_node('n2', 'hunter2')"),
        "22023",
        "argument target_node_dsn is not a connection string that libpq understands",
        "Write it as keyword=value pairs",
    );
    assert_failed(
        &fails("BEGIN; CALL spock.remove_node('n2')"),
        "25001",
        "CALL spock.remove_node cannot run inside a transaction block",
        "Run the CALL on its own",
    );
    let port = n2.port().to_string();
    let closed = n2.dsn().replace(&port, "1");
    assert_failed(
        &fails(&call("n2", Some(&closed), "")),
        "08001",
        "argument target_node_dsn does not lead to node \"n2\", which answers by the connection string of the registry",
        "Leave target_node_dsn null, or correct it.",
    );
    assert_failed(
        &alone.sql_error("CALL spock.remove_node('n2')"),
        "55000",
        "the database that the CALL runs in is not a cluster node",
        "Run it in the database of any node of the cluster.",
    );
    let error = n1
        .client_as("plain", n1.database())
        .batch_execute("CALL spock.remove_node('n2')")
        .expect_err("not a superuser");
    let error = error.as_db_error().expect("an answer of the server");
    assert_eq!(error.code().code(), "42501");
    assert_eq!(
        error.message(),
        "only a superuser can run CALL spock.remove_node"
    );
    before.assert_same_now(&cluster.all());
}

/// Something that keeps what is sent to `server` from being applied there, until it is dropped.
fn hold_apply(server: &Server) -> Client {
    let mut holder = server.client_named("holder");
    holder
        .batch_execute("BEGIN; LOCK TABLE zodan.marker IN ACCESS EXCLUSIVE MODE")
        .expect("hold the markers");
    holder
}

#[test]
fn removal_is_refused_while_another_membership_change_runs() {
    let cluster = mesh(3, 1);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let before = fingerprint(&cluster.all());
    let held = |failed: &CallFailed, purpose: &str| {
        assert_failed(
            failed,
            "55P03",
            "another membership change is in progress",
            "Wait until the other CALL has ended",
        );
        assert!(failed.detail().contains(purpose), "{failed}");
    };
    // A removal, during which another one and a join come.
    let holder = hold_apply(n2);
    let first = Running::start(n1, &call("n3", None, ""));
    first.wait_notice("phase 3 of 5");
    held(&remove_fails(n2, "n3", None), "zodan remove_node n3");
    held(&remove_fails(n2, "n1", None), "zodan remove_node n3");
    let join = add_node(n4, "n4", n1, "n1").expect_err("a removal is under way");
    held(&join, "zodan remove_node n3");
    first.cancel();
    let failed = first.fails();
    assert_eq!(failed.code(), "57014", "{failed}");
    drop(holder);
    wait_mesh(&cluster.first(3));
    before.assert_same_now(&cluster.all());
    // A join, during which a removal comes.
    let gate = gate::close(n4);
    let join = Running::start(n4, &lab::cluster::add_node_call(n4, "n4", n1, "n1"));
    gate::wait(n4);
    held(&remove_fails(n3, "n2", None), "zodan add_node n4");
    held(
        &remove_fails(n3, "n4", Some(&n4.dsn())),
        "zodan add_node n4",
    );
    drop(gate);
    join.succeeds();
    assert_equal(&cluster.all());
}

#[test]
fn removal_is_refused_while_a_transaction_is_prepared() {
    let options = quick().set("max_prepared_transactions", "5");
    let cluster = Cluster::start_with(2, &options);
    cluster.form_mesh(2, load::SCHEMA);
    let n2 = cluster.n(2);
    n2.sql("BEGIN; INSERT INTO load.account (id, version, owner, balance) VALUES (1, 1, 'x', 0); PREPARE TRANSACTION 'later'");
    assert_failed(
        &remove_fails(cluster.n(1), "n2", None),
        "55006",
        "node \"n2\": prepared transaction 'later' is open",
        "COMMIT PREPARED or ROLLBACK PREPARED it there.",
    );
    n2.sql("COMMIT PREPARED 'later'");
    remove(cluster.n(1), n2);
    assert_eq!(cluster.n(1).value("SELECT count(*) FROM load.account"), "1");
}

/// Prepared when the checks are past it, and committed when nobody can write any more.
#[test]
fn removal_waits_for_a_transaction_prepared_meanwhile() {
    const PREPARE: &str = "BEGIN; INSERT INTO load.account (id, version, owner, balance) VALUES (1, 1, 'x', 0); PREPARE TRANSACTION 'late';";
    let options = quick().set("max_prepared_transactions", "5");
    let cluster = Cluster::start_with(2, &options);
    cluster.form_mesh(2, load::SCHEMA);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let point = "within the run is written down";

    // Nobody commits it: the removal is taken back.
    let impatient = "SET zodan.no_progress_timeout = '1s'";
    let (hang, removal) = Hang::start(n1, impatient, point, &call("n2", None, ""));
    n2.sql(PREPARE);
    hang.release();
    let failed = removal.fails();
    assert_failed(
        &failed,
        "55000",
        "node \"n2\": waiting for prepared transactions made no progress for 1 s",
        "COMMIT PREPARED or ROLLBACK PREPARED it there.",
    );
    assert_eq!(failed.detail(), "prepared transaction 'late'");
    assert_eq!(n2.value("SHOW default_transaction_read_only"), "off");
    n2.sql("ROLLBACK PREPARED 'late'");
    wait_mesh(&[n1, n2]);

    let (hang, removal) = Hang::start(n1, "", point, &call("n2", None, ""));
    n2.sql(PREPARE);
    hang.release();
    removal.wait_notice("node \"n2\" has prepared transaction 'late': waiting for its end");
    assert_eq!(n2.value("SHOW default_transaction_read_only"), "on");
    n2.sql("COMMIT PREPARED 'late'");
    removal.succeeds();
    assert_eq!(n1.value("SELECT count(*) FROM load.account"), "1");
    assert_no_trace(On::Native, n1, "n2", 1);
}

/// n4 died when n3 had not yet applied what n1 and n2 have.
#[test]
fn removal_of_a_dead_node_is_refused_when_survivors_differ() {
    let cluster = mesh(4, 0);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n3.sql("ALTER SUBSCRIPTION sub_n4_n3 DISABLE");
    n4.sql("INSERT INTO load.account (id, version, owner, balance) SELECT i, 1, 'x', 0 FROM generate_series(1, 90) i");
    for node in [n1, n2] {
        node.wait_for("SELECT count(*) FROM load.account", "90");
    }
    n4.crash();
    for node in [n1, n2] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE subname = 'sub_n4_' || current_setting('cluster_name') AND pid IS NOT NULL AND received_lsn IS NOT NULL",
            "0",
        );
    }
    let before = fingerprint(&cluster.first(3));
    let failed = remove_fails(n1, "n4", None);
    assert_failed(
        &failed,
        "55000",
        "node \"n3\" lacks transactions of \"n4\" that node \"n1\" has",
        "CALL spock.recover_run(failed_node_name := 'n4', source_node_name := 'n1', ...)",
    );
    // Nothing had been done.
    let told: Vec<&str> = failed.notices.iter().map(|n| n.message.as_str()).collect();
    assert!(!told.iter().any(|t| t.contains("undoing")), "{told:?}");
    for node in ["n1", "n2", "n3"] {
        assert!(
            failed
                .detail()
                .contains(&format!("Node \"{node}\" has applied it up to ")),
            "{failed}"
        );
    }
    before.assert_same_now(&cluster.first(3));
    let forced = remove_by_force(n1, "n4");
    assert!(
        forced
            .notices
            .iter()
            .any(|n| n.severity == "WARNING" && n.message.contains("lacks transactions of \"n4\"")),
        "{forced:?}"
    );
    for node in cluster.first(3) {
        assert_no_trace(On::Native, node, "n4", 3);
    }
    assert_eq!(n3.value("SELECT count(*) FROM load.account"), "0");
}

#[test]
fn pending_cleanup_of_a_member_that_was_down_is_done_by_the_next_call() {
    let cluster = mesh(4, 0);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n3.stop();
    let failed = remove_fails(n1, "n4", None);
    assert_failed(
        &failed,
        "08001",
        "node \"n3\": it cannot be reached, so it is unknown whether it has all changes of \"n4\"",
        "With force := true it is left out",
    );
    let forced = remove_by_force(n1, "n4");
    assert!(
        forced.notices.iter().any(|n| n.severity == "WARNING"
            && n.message == "cleanup of \"n4\" on node \"n3\" is pending"),
        "{forced:?}"
    );
    let told: Vec<String> = forced
        .notices
        .iter()
        .filter(|n| n.message.contains("| sub_"))
        .map(|n| n.message.replace(' ', ""))
        .collect();
    assert_eq!(
        told,
        [
            "n1|sub_n2_n1|replicating|n2",
            "n1|sub_n3_n1|down|n3",
            "n2|sub_n1_n2|replicating|n1",
            "n2|sub_n3_n2|down|n3",
        ]
    );
    assert_no_node(On::Native, n4);
    for node in [n1, n2] {
        assert_eq!(
            node.value(
                "SELECT count(*) FROM zodan.pending_cleanup WHERE member = 'n3' AND removed = 'n4'"
            ),
            "3"
        );
    }
    assert_failed(
        &n2.sql_error(&call("n4", None, "")),
        "08001",
        "could not connect to node \"n3\"",
        "Check host, port",
    );
    n3.boot();
    n2.call(&call("n4", None, ""))
        .unwrap_or_else(|failed| panic!("{failed}"));
    wait_mesh(&[n1, n2, n3]);
    for node in [n1, n2, n3] {
        assert_no_trace(On::Native, node, "n4", 3);
    }
    assert_equal(&[n1, n2, n3]);
}

/// Killed while it waits for the writes, and while it detaches.
#[test]
fn interrupted_removal_is_finished_by_the_next_call() {
    for here in [1, 3] {
        let cluster = mesh(3, 0);
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        let kill = |running: Running| {
            cluster.n(here).sql(&format!(
                "SELECT pg_terminate_backend({}, 10000)",
                running.pid
            ));
            running.ends_terminated();
            wait_no_sessions(&cluster.all());
        };
        let holder = hold_apply(n2);
        let first = Running::start(cluster.n(here), &call("n3", None, ""));
        first.wait_notice("phase 3 of 5");
        n3.wait_for("SELECT count(*) FROM zodan.marker", "1");
        kill(first);
        drop(holder);
        let mut holder = n2.client_named("holder");
        holder
            .batch_execute("BEGIN; LOCK TABLE pg_subscription IN SHARE ROW EXCLUSIVE MODE")
            .expect("hold the subscriptions");
        let second = Running::start(cluster.n(here), &call("n3", None, ""));
        second.wait_notice("phase 4 of 5");
        n1.wait_for("SELECT count(*) FROM pg_subscription", "1");
        n3.wait_for("SELECT count(*) FROM pg_subscription", "1");
        kill(second);
        drop(holder);
        let third = cluster
            .n(here)
            .call(&call("n3", None, ""))
            .unwrap_or_else(|failed| panic!("{failed}"));
        assert!(
            third.notices.iter().any(|n| n
                .message
                .contains("going on with the removal that was interrupted")),
            "{third:?}"
        );
        for node in [n1, n2] {
            assert_no_trace(On::Native, node, "n3", 2);
        }
        assert_no_node(On::Native, n3);
        assert_equal(&[n1, n2]);
    }
}

#[test]
fn extension_of_a_member_cannot_be_dropped() {
    let cluster = mesh(2, 0);
    let n2 = cluster.n(2);
    assert_failed(
        &n2.sql_error("DROP EXTENSION zodan"),
        "55006",
        "the database is node \"n2\" of a cluster that needs the extension zodan",
        "Leave the cluster first: CALL spock.remove_node('n2');",
    );
    let failed = n2.sql_error("DROP /* it */ EXTENSION -- now\n IF EXISTS hstore, zodan");
    assert_eq!(failed.code(), "55006", "{failed}");
    // Everybody else is left alone, whatever they set.
    n2.sql(&format!(
        "CREATE ROLE app; CREATE SCHEMA app AUTHORIZATION app; GRANT CREATE ON DATABASE {} TO app",
        lab::server::quote_ident(n2.database())
    ));
    for settings in [
        "",
        "SET search_path = ''",
        "SET standard_conforming_strings = off",
    ] {
        n2.sql(&format!(
            "SET ROLE app; {settings}; CREATE EXTENSION hstore SCHEMA app; DROP EXTENSION hstore"
        ));
    }
    let mut admin = n2.client_as("postgres", "template1");
    let name = lab::server::quote_ident(n2.database());
    let error = admin
        .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .expect_err("it has subscriptions");
    assert_eq!(error.code().map(|c| c.code()), Some("55006"), "{error}");
    remove(n2, n2);
    n2.sql("DROP EXTENSION zodan");
}

/// Names that need quoting, and a database that is read-only by its own setting.
#[test]
fn node_with_an_odd_name_is_removed_and_keeps_its_settings() {
    let cluster = mesh(1, 1);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let name = "Node-2 \"x'y";
    add_node(n2, name, n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    n2.sql(&format!(
        "ALTER DATABASE {} SET default_transaction_read_only = off",
        lab::server::quote_ident(n2.database())
    ));
    n1.call(&call(name, None, ""))
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(
        n1.value("SELECT string_agg(name, ' ') FROM zodan.node"),
        "n1"
    );
    assert_eq!(n1.value("SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(
        n2.value("SELECT setconfig[1] FROM pg_db_role_setting"),
        "default_transaction_read_only=off"
    );
}

/// Three members with a table for what comes late.
fn with_late() -> Cluster {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(3, "CREATE TABLE late (id integer PRIMARY KEY)");
    wait_mesh(&cluster.all());
    cluster
}

/// What it writes while it is being removed is on all survivors or on none.
#[test]
fn writes_of_a_node_that_comes_back_during_its_removal_are_on_all_or_none() {
    let rows = "SELECT count(*) FROM late";
    for (point, brought) in [
        ("within the survivors are compared", "30"),
        ("within pending cleanup is recorded", "0"),
    ] {
        let cluster = with_late();
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        n3.stop();
        let (hang, running) = Hang::start(n1, "", point, "CALL spock.remove_node('n3')");
        // Stands for an apply worker that takes its time.
        let mut holder = n2.client_named("holder");
        holder
            .batch_execute("BEGIN; LOCK TABLE late IN SHARE ROW EXCLUSIVE MODE")
            .expect("hold up what comes");
        n3.boot();
        n3.sql("INSERT INTO late SELECT generate_series(1, 30)");
        n1.wait_for(rows, brought);
        let waiting =
            "SELECT count(*) FROM pg_locks l WHERE l.relation = 'late'::regclass AND NOT granted";
        n2.wait_for(waiting, if brought == "0" { "0" } else { "1" });
        hang.release();
        n2.wait_for(
            "SELECT count(*) FROM pg_subscription WHERE subname = 'sub_n3_n2' AND subenabled",
            "0",
        );
        drop(holder);
        running.succeeds();
        assert_eq!([n1, n2].map(|n| n.value(rows)), [brought, brought]);
        // It takes itself for a member still, and tries to connect.
        n3.stop();
        for node in [n1, n2] {
            assert_no_trace(On::Native, node, "n3", 2);
        }
    }
}

/// A removal that was cut off before it detached anything, of a node that is back when it is called again.
#[test]
fn subscriptions_held_by_an_interrupted_removal_are_released_by_the_next_call() {
    let cluster = with_late();
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n3.stop();
    let point = "within nobody applies anything of it any more";
    let (hang, running) = Hang::start(n1, "", point, "CALL spock.remove_node('n3')");
    let pid = running.pid;
    n1.sql(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    drop(hang);
    running.ends_terminated();
    let disabled = "SELECT count(*) FROM pg_subscription WHERE NOT subenabled";
    assert_eq!([n1, n2].map(|n| n.value(disabled)), ["1", "1"]);
    n3.boot();
    n3.sql("INSERT INTO late VALUES (1)");
    remove(n1, n3);
    for node in [n1, n2] {
        assert_eq!(node.value("SELECT count(*) FROM late"), "1");
        assert_no_trace(On::Native, node, "n3", 2);
    }
    assert_no_node(On::Native, n3);
}
