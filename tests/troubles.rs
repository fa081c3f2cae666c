//! What machines and networks do to a join or a removal beside dying: a stall without a word, a full disk,
//! nothing left of what a server has a fixed number of, a slot that loses its WAL, someone else's CALL.

mod common;

use common::{
    Call, Fingerprint, Hang, Running, WAITS_FOR_ANOTHER, assert_failed, fingerprint, quick,
    wait_mesh, wait_no_sessions,
};
use lab::postgres::Client;
use lab::{CallFailed, Cluster, Server, ServerOptions, assert_same_content, load, pg, wait_quiet};
use std::time::{Duration, Instant};

const CONTENT: &str = "
CREATE TABLE item (id integer PRIMARY KEY, body text);
INSERT INTO item SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 24000) i;
";

/// A mesh of `members`, and n3 (and n4 ...) to be added.
fn scene(members: usize, all: usize, options: impl Fn(&str) -> ServerOptions + Sync) -> Cluster {
    let cluster = Cluster::start_each(all, options);
    cluster.form_mesh(members, &format!("{}{CONTENT}", load::SCHEMA));
    wait_quiet(&cluster.first(members));
    wait_mesh(&cluster.first(members));
    cluster
}

fn join_of(cluster: &Cluster) -> String {
    Call::of(cluster.n(3), cluster.n(1)).sql()
}

/// Panics unless all is as before, and the same CALL now makes n3 a member.
fn assert_undone_and_joins(cluster: &Cluster, before: &Fingerprint, failed: &CallFailed) {
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    before.assert_same(&structure(&cluster.all()));
    assert_joins(cluster);
}

/// What a join touches beside the content, which the tests change.
fn structure(servers: &[&Server]) -> Fingerprint {
    fingerprint(servers).without("content")
}

fn assert_joins(cluster: &Cluster) {
    wait_mesh(&cluster.first(2));
    cluster
        .n(3)
        .call(&join_of(cluster))
        .unwrap_or_else(|failed| panic!("the same CALL again: {failed}"));
    wait_mesh(&cluster.all());
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

const LIMIT: Duration = Duration::from_secs(4);
const IMPATIENT: &str = "SET zodan.no_progress_timeout = '4s'; SET zodan.connect_timeout = '1s'";

/// Not a byte, no reset, no refusal: for a statement that runs this looks like a long one.
#[test]
fn join_fails_when_the_network_stalls() {
    let cluster = scene(2, 3, |name| match name {
        "n3" => quick(),
        _ => quick().proxy(),
    });
    let n3 = cluster.n(3);
    let lost = |name: &str| {
        format!("connection to node \"{name}\" was lost: nothing has come from it for long")
    };
    for (stalled, point, code, message, left) in [
        // Nothing is on n1 yet.
        (
            1,
            "4 before commit a marker on n2",
            "08006",
            lost("n1"),
            ["", ""],
        ),
        (
            1,
            "6 before block application writes on the new node on n3",
            "08006",
            lost("n1"),
            ["\"create slot sub_n1_n3_postgres_", "\" on node \"n1\""],
        ),
        (
            2,
            "within the new node has the registry",
            "08006",
            lost("n2"),
            ["\"create slot sub_n2_n3_postgres_", "\" on node \"n2\""],
        ),
    ] {
        let stalled = cluster.n(stalled);
        let name = stalled.name();
        let others: Vec<&Server> = cluster
            .all()
            .into_iter()
            .filter(|s| s.name() != name)
            .collect();
        let before = structure(&others);
        let (hang, running) = Hang::start(n3, IMPATIENT, point, &join_of(&cluster));
        stalled.cut();
        hang.release();
        let released = Instant::now();
        let failed = running.fails();
        let took = released.elapsed();
        assert_eq!(failed.code(), code, "{failed}");
        assert!(failed.message().contains(&message), "{failed}");
        for part in left {
            assert!(failed.hint().contains(part), "{failed}");
        }
        // To notice, and to try each thing on the node once more.
        assert!(took < LIMIT * 2, "it took {took:?}");
        before.assert_same(&structure(&others));
        stalled.uncut();
        wait_no_sessions(&cluster.all());
    }
    assert_joins(&cluster);
}

#[test]
fn join_survives_a_stall_that_ends_in_time() {
    let cluster = scene(2, 3, |name| match name {
        "n1" => quick().proxy(),
        _ => quick(),
    });
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let (hang, running) = Hang::start(n3, "", "4 before commit a marker on n2", &join_of(&cluster));
    n1.cut();
    hang.release();
    n3.wait_for(
        &format!(
            "SELECT wait_event IN ({WAITS_FOR_ANOTHER}) FROM pg_stat_activity WHERE pid = {}",
            running.pid
        ),
        "t",
    );
    n1.uncut();
    running.succeeds();
    wait_mesh(&cluster.all());
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// A statement that takes longer than the limit is none that makes no progress: the server works on it.
#[test]
fn long_statement_of_a_peer_is_no_stall() {
    let cluster = scene(2, 3, |_| quick());
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    let point = "within the new node has the registry";
    let (hang, running) = Hang::start(n3, IMPATIENT, point, &join_of(&cluster));
    n2.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN PERFORM pg_catalog.pg_sleep(6); RETURN NULL; END';
         CREATE TRIGGER slow AFTER INSERT ON zodan.membership EXECUTE FUNCTION slow();
         ALTER TABLE zodan.membership ENABLE ALWAYS TRIGGER slow",
    );
    hang.release();
    running.succeeds();
}

/// n2 gives up the WAL that n3 is to get.
fn lose_slot(cluster: &Cluster) {
    let n2 = cluster.n(2);
    n2.configure("max_slot_wal_keep_size", "32MB");
    n2.reload();
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name LIKE 'sub_n2_n3_%'";
    for i in 0.. {
        if n2.value(status) == "lost" {
            break;
        }
        assert!(i < 20, "the slot keeps its WAL");
        n2.sql("SELECT pg_logical_emit_message(true, 'test', 'x')");
        n2.sql("SELECT pg_switch_wal()");
        // The slot of n1 follows, and keeps what it needs.
        wait_quiet(&cluster.first(2));
        n2.sql("CHECKPOINT");
    }
}

fn assert_slot_lost(cluster: &Cluster, before: &Fingerprint, failed: &CallFailed) {
    assert_failed(
        failed,
        "55000",
        "on node \"n2\" lost the WAL that the new node needs while the copy ran",
        "Raise max_slot_wal_keep_size and idle_replication_slot_timeout there for the time of the join.",
    );
    assert!(
        failed.message().starts_with("slot sub_n2_n3_postgres_"),
        "{failed}"
    );
    let n2 = cluster.n(2);
    n2.configure("max_slot_wal_keep_size", "-1");
    n2.reload();
    assert_undone_and_joins(cluster, before, failed);
}

#[test]
fn join_fails_when_a_slot_lost_its_wal() {
    let cluster = scene(2, 3, |_| quick());
    let before = structure(&cluster.all());
    let (hang, running) = Hang::start(
        cluster.n(3),
        "",
        "within indexes are created",
        &join_of(&cluster),
    );
    lose_slot(&cluster);
    hang.release();
    assert_slot_lost(&cluster, &before, &running.fails());
}

/// The rows cannot be copied before the lock is given back, which is after the CALL has failed.
#[test]
fn slot_that_lost_its_wal_is_noticed_during_the_copy() {
    let cluster = scene(2, 3, |_| quick());
    let before = structure(&cluster.all());
    let (hang, running) = Hang::start(
        cluster.n(3),
        "",
        "within tables are created",
        &join_of(&cluster),
    );
    let mut holder = cluster.n(1).client_named("holder");
    holder
        .batch_execute("BEGIN; LOCK item IN ACCESS EXCLUSIVE MODE")
        .expect("hold a table that is to be copied");
    hang.release();
    lose_slot(&cluster);
    let failed = running.fails();
    holder.batch_execute("ROLLBACK").expect("give it back");
    assert_slot_lost(&cluster, &before, &failed);
}

#[test]
fn join_fails_when_the_source_falls_behind_its_peers() {
    let cluster = scene(2, 3, |_| quick());
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let before = structure(&cluster.all());
    let (hang, running) = Hang::start(
        n3,
        IMPATIENT,
        "4 before commit a marker on n2",
        &join_of(&cluster),
    );
    let mut locker = n1.client_named("locker");
    locker
        .batch_execute("BEGIN; LOCK TABLE item IN EXCLUSIVE MODE")
        .expect("lock a table");
    n2.sql("UPDATE item SET body = body WHERE id = 1");
    n1.wait_for(
        "SELECT count(*) FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted",
        "1",
    );
    hang.release();
    let failed = running.fails();
    assert_failed(
        &failed,
        "55000",
        "node \"n1\": applying what its peers committed made no progress for 4 s",
        "The log of the subscriber says why",
    );
    assert!(failed.detail().contains("sub_n2_n1"), "{failed}");
    locker.batch_execute("ROLLBACK").expect("unlock the table");
    wait_quiet(&cluster.first(2));
    assert_undone_and_joins(&cluster, &before, &failed);
}

/// Sessions that take what is left of the connections of a server.
fn take_connections(server: &Server) -> Vec<Client> {
    let mut taken = vec![];
    loop {
        match server.try_client("crowd") {
            Ok(client) => taken.push(client),
            Err(error) => {
                assert_eq!(error.code().map(|c| c.code()), Some("53300"), "{error}");
                return taken;
            }
        }
    }
}

#[test]
fn join_fails_when_the_source_is_out_of_connections() {
    let cluster = scene(2, 3, |_| quick().set("max_connections", "25"));
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let before = structure(&cluster.all());
    let point = "6 before copy structure and data on n3";
    let (hang, running) = Hang::start(n3, "", point, &join_of(&cluster));
    let crowd = take_connections(n1);
    hang.release();
    let failed = running.fails();
    assert_eq!(failed.code(), "08001", "{failed}");
    assert!(
        failed
            .message()
            .contains("could not connect to node \"n1\"")
            && failed.message().contains("too many clients already"),
        "{failed}"
    );
    drop(crowd);
    n1.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd'",
        "0",
    );
    assert_undone_and_joins(&cluster, &before, &failed);
}

/// Background workers that take what is left of them, until the session is dropped.
fn take_workers(server: &Server) -> Client {
    let mut holder = server.client_named("crowd");
    holder
        .batch_execute("SELECT pg_advisory_lock(2054120560, pg_backend_pid())")
        .expect("hold what the workers wait for");
    loop {
        let one = "SELECT zodan.start_pause_watchdog(pg_backend_pid(), 600000)";
        if let Err(error) = holder.batch_execute(one) {
            assert_eq!(error.code().map(|c| c.code()), Some("53400"), "{error}");
            return holder;
        }
    }
}

fn give_workers_back(server: &Server, holder: Client) {
    drop(holder);
    server.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'zodan pause watchdog'",
        "0",
    );
}

#[test]
fn join_fails_when_a_server_is_out_of_worker_processes() {
    let cluster = scene(2, 3, |_| quick().set("max_worker_processes", "12"));
    let n3 = cluster.n(3);
    for (short, point, message) in [
        (
            1,
            "5 before pause apply for the moment of the snapshot on n1",
            "no background worker is free",
        ),
        (
            3,
            "6 before copy structure and data on n3",
            "no background worker is free to copy data",
        ),
    ] {
        let short = cluster.n(short);
        let before = structure(&cluster.all());
        let (hang, running) = Hang::start(n3, "", point, &join_of(&cluster));
        let holder = take_workers(short);
        hang.release();
        let failed = running.fails();
        assert_failed(&failed, "53400", message, "max_worker_processes");
        give_workers_back(short, holder);
        assert!(!failed.hint().contains("Could not be undone"), "{failed}");
        before.assert_same(&structure(&cluster.all()));
    }
    assert_joins(&cluster);
}

/// A limit on the size of files stands for the full disk: it needs nobody's leave, and fails the same writes.
#[test]
fn join_fails_when_the_new_node_cannot_store_the_rows() {
    let cluster = scene(2, 3, |_| quick());
    let n3 = cluster.n(3);
    let before = structure(&cluster.all());
    let (hang, running) = Hang::start(n3, "", "within tables are created", &join_of(&cluster));
    n3.limit_file_size(Some(16 << 20));
    hang.release();
    let failed = running.fails();
    assert!(
        failed
            .message()
            .contains("could not copy table \"public\".\"item\" of node \"n1\"")
            && failed.message().contains("File too large"),
        "{failed}"
    );
    n3.limit_file_size(None);
    assert_undone_and_joins(&cluster, &before, &failed);
}

/// The rows are of a size that the worker of the copy cannot hold.
#[test]
fn join_fails_when_the_new_node_lacks_memory_for_the_rows() {
    let cluster = scene(2, 3, |_| quick());
    let n3 = cluster.n(3);
    for node in cluster.first(2) {
        node.sql("CREATE TABLE wide (id integer PRIMARY KEY, body text)");
    }
    for (node, subscription) in cluster.first(2).iter().zip(["sub_n2_n1", "sub_n1_n2"]) {
        node.sql(&format!(
            "ALTER SUBSCRIPTION {subscription} REFRESH PUBLICATION WITH (copy_data = false)"
        ));
    }
    cluster
        .n(1)
        .sql("INSERT INTO wide VALUES (1, repeat('x', 100 * 1024 * 1024))");
    wait_quiet(&cluster.first(2));
    let before = structure(&cluster.all());
    n3.limit_memory(Some(256 << 20));
    let failed = n3.sql_error(&join_of(&cluster));
    assert_failed(
        &failed,
        "53200",
        "could not copy table \"public\".\"wide\" of node \"n1\": out of memory",
        "A row takes about three times its size in memory on the new node.",
    );
    n3.limit_memory(None);
    assert_undone_and_joins(&cluster, &before, &failed);
}

fn assert_held(failed: &CallFailed, holder: &str) {
    assert_failed(
        failed,
        "55P03",
        "another membership change is in progress",
        "Wait until the other CALL has ended",
    );
    assert!(failed.detail().contains(holder), "{failed}");
}

/// From different sources, so that neither comes to the other's lock first by chance.
#[test]
fn one_of_two_joins_at_the_same_time_is_refused() {
    let cluster = scene(2, 4, |_| quick());
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let calls = [(n3, n1, "zodan add_node n4"), (n4, n2, "zodan add_node n3")];
    let running = calls.map(|(new, source, other)| {
        (
            new,
            source,
            other,
            Running::start(new, &Call::of(new, source).sql()),
        )
    });
    let mut joined = 0;
    for (new, source, other, running) in running {
        match running.join() {
            Ok(_) => joined += 1,
            Err(failed) => {
                assert_held(&failed, other);
                wait_no_sessions(&[n1, n2]);
                if let Err(failed) = new.call(&Call::of(new, source).sql()) {
                    panic!("after the other: {failed}");
                }
            }
        }
    }
    assert!(joined > 0, "each was in the other's way");
    wait_mesh(&cluster.all());
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

#[test]
fn join_is_refused_when_the_source_is_being_removed() {
    let cluster = scene(3, 4, |_| quick());
    let [n1, n2, _, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let join = Call::of(n4, n1).sql();
    let removal = "CALL spock.remove_node('n1')";
    // The join was first.
    let (hang, running) = Hang::start(n4, "", "within rows are copied", &join);
    let before = fingerprint_of_locks(&cluster);
    assert_held(&n2.sql_error(removal), "zodan add_node n4");
    assert_eq!(fingerprint_of_locks(&cluster), before);
    running.cancel();
    hang.release();
    assert_eq!(running.fails().code(), "57014");
    wait_no_sessions(&cluster.all());
    // The removal was first.
    let (hang, running) = Hang::start(n2, "", "within subscriptions are dropped", removal);
    assert_held(&n4.sql_error(&join), "zodan remove_node n1");
    hang.release();
    running.succeeds();
}

/// Who holds which membership lock.
fn fingerprint_of_locks(cluster: &Cluster) -> Vec<String> {
    let locks =
        "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_locks WHERE locktype = 'advisory'";
    cluster
        .all()
        .iter()
        .map(|server| server.value(locks))
        .collect()
}

/// A lock that a session of somebody else holds on a table of ours is no reason to wait for ever.
#[test]
fn join_fails_when_another_session_keeps_a_lock() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(3, "CREATE TABLE item (id integer PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let mut holder = n2.client();
    holder
        .batch_execute("BEGIN; LOCK TABLE zodan.marker IN ACCESS EXCLUSIVE MODE")
        .expect("lock the markers");
    let call = "CALL spock.remove_node('n3')";
    let failed = Running::start_after(n1, "SET zodan.no_progress_timeout = '4s'", call)
        .join()
        .expect_err("it waits for a lock");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\": waiting for a lock made no progress for 4 s",
        "End that transaction",
    );
    let told = failed.to_string();
    assert!(told.contains("It is held by pid "), "{told}");
    holder.batch_execute("ROLLBACK").expect("let go");
    n1.call(call).unwrap_or_else(|e| panic!("{e}"));
}

/// n2 has room for two workers, and one that has helped with a large transaction of n1 stays.
#[test]
fn worker_that_applies_in_parallel_takes_the_place_of_the_new_subscription() {
    if pg::major() < 18 {
        eprintln!(
            "skipped: subscriptions do not apply in parallel by default before PostgreSQL 18"
        );
        return;
    }
    let cluster = scene(2, 3, |name| match name {
        "n2" => quick().set("max_logical_replication_workers", "2"),
        _ => quick().set("logical_decoding_work_mem", "64kB"),
    });
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("INSERT INTO item SELECT i, repeat('x', 1000) FROM generate_series(30001, 31000) i");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication parallel worker'",
        "1",
    );
    wait_quiet(&cluster.first(2));
    let before = structure(&cluster.all());
    let failed = cluster.n(3).sql_error(&join_of(&cluster));
    assert_failed(
        &failed,
        "53400",
        "node \"n2\" cannot start the worker of subscription sub_n3_n2: all 2 places of max_logical_replication_workers are taken, 1 of them by workers that apply large transactions in parallel",
        "Raise max_logical_replication_workers on node \"n2\" and restart it",
    );
    let foretold = "max_logical_replication_workers is 2; workers that apply large transactions in parallel may take the places of the 2 that its subscriptions need";
    let told = |n: &lab::server::Notice| n.severity == "WARNING" && n.message.contains(foretold);
    assert!(failed.notices.iter().any(told), "{failed}");
    n2.configure("max_logical_replication_workers", "6");
    n2.restart();
    assert_undone_and_joins(&cluster, &before, &failed);
}
