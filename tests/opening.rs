//! Applications meet the new node when it is proved: until then they cannot write on it, and what was written all
//! the same ends the join.

mod common;

use common::{Hang, Running};
use lab::cluster::add_node_call;
use lab::{CallFailed, Cluster, Server, add_node, assert_same_content, wait_quiet};

fn joined(new: &Server, name: &str, source: &Server, source_name: &str) {
    add_node(new, name, source, source_name).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// Two servers, the first with `content`.
fn pair(content: &str) -> Cluster {
    let cluster = Cluster::start(2);
    cluster.form_mesh(1, content);
    cluster
}

/// A join of n2 from n1 that hangs at `point`.
fn hanging<'a>(cluster: &'a Cluster, point: &str) -> (Hang<'a>, Running) {
    let call = add_node_call(cluster.n(2), "n2", cluster.n(1), "n1");
    Hang::start(cluster.n(2), "", point, &call)
}

fn assert_wrote_early(failed: &CallFailed) {
    assert_eq!(failed.code(), "55000", "{failed}");
    assert_eq!(
        failed.message(),
        "the new node was written to before it joined"
    );
}

/// Applications are kept from writing on the new node until the join is proved.
#[test]
fn new_node_is_read_only_until_the_join_ends() {
    let cluster = pair("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.sql("ALTER DATABASE postgres SET default_transaction_read_only = off");
    joined(n2, "n2", n1, "n1");
    assert_eq!(
        n2.value("SELECT unnest(setconfig) FROM pg_db_role_setting"),
        "default_transaction_read_only=off"
    );
    n2.sql("INSERT INTO t VALUES (2)");
    wait_quiet(&cluster.all());
    assert_eq!(n1.value("SELECT count(*) FROM t"), "2");
    let held = n2.value(
        "SELECT state FROM zodan.step WHERE description = 'block application writes on the new node'",
    );
    assert_eq!(held, "done");
}

/// A session that was open before the CALL does not heed the setting that keeps others from writing.
/// What it writes too early would be on no other node, so the join must not succeed.
#[test]
fn join_fails_when_the_new_node_was_written_to() {
    let cluster = pair(
        "CREATE TABLE t (id integer PRIMARY KEY);
         CREATE FUNCTION gate(integer) RETURNS boolean LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN true; END';
         CREATE TABLE held (id integer PRIMARY KEY CHECK (gate(id)));
         INSERT INTO held VALUES (1)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let mut early = n2.client_named("early bird");
    // The copy of the other table waits at its gate.
    early.batch_execute("SELECT pg_advisory_lock(42)").unwrap();
    let error = std::thread::scope(|scope| {
        let join = scope.spawn(|| add_node(n2, "n2", n1, "n1").err());
        n2.wait_for(
            "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted",
            "t",
        );
        early.batch_execute("INSERT INTO t VALUES (1)").unwrap();
        let late = n2.sql_error("INSERT INTO t VALUES (2)");
        assert_eq!(late.code(), "25006", "{late}");
        n2.wait_for(
            "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't'",
            "1",
        );
        early
            .batch_execute("SELECT pg_advisory_unlock(42)")
            .unwrap();
        join.join().unwrap()
    });
    let error = error.expect("the join cannot know what to do with that row");
    assert_wrote_early(&error);
    assert!(
        error.detail().contains("application \"early bird\""),
        "{error}"
    );
    drop(early);
    joined(n2, "n2", n1, "n1");
    assert_same_content(&[n1, n2]);
}

/// A row that was written a moment after the session had last told its counters, and so is in none of them when the
/// new node's slots are there.
#[test]
fn join_fails_on_a_write_that_no_counter_shows_yet() {
    let cluster = pair("CREATE TABLE t (id integer PRIMARY KEY)");
    let n2 = cluster.n(2);
    let mut early = n2.client_named("early bird");
    let (hang, running) = hanging(&cluster, "within sequences and materialized views are set");
    // The first statement tells what has been counted, the second follows within the second.
    early
        .batch_execute("SELECT pg_stat_force_next_flush()")
        .unwrap();
    early.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(
        n2.value("SELECT coalesce(sum(n_tup_ins), 0) FROM pg_stat_user_tables WHERE relname = 't'"),
        "0",
        "it is told already: the test tests nothing"
    );
    hang.release();
    let failed = running.fails();
    assert_wrote_early(&failed);
}

/// A session of which it cannot be known what it has written holds the join up, by name.
#[test]
fn join_waits_for_a_session_without_counters_and_names_it() {
    let cluster = pair("CREATE TABLE t (id integer PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.configure("zodan.no_progress_timeout", "3s");
    n2.reload();
    let mut busy = n2.client_named("busy bee");
    busy.batch_execute("BEGIN").unwrap();
    let call = add_node_call(n2, "n2", n1, "n1");
    let failed = n2.call(&call).expect_err("the session stays");
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(
        failed
            .message()
            .contains("knowing what other sessions have written"),
        "{failed}"
    );
    assert!(
        failed.detail().contains("application \"busy bee\""),
        "{failed}"
    );
    assert_eq!(n2.value("SELECT to_regclass('t')"), "");
    busy.batch_execute("COMMIT").unwrap();
    drop(busy);
    joined(n2, "n2", n1, "n1");
    assert_same_content(&[n1, n2]);
}

/// The new node has every slot and every path, and is not proved yet.
#[test]
fn applications_cannot_write_before_replication_is_verified() {
    let cluster =
        pair("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'n1')");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for point in [
        "within every member has a subscription",
        "within the markers are removed",
    ] {
        let (hang, running) = hanging(&cluster, point);
        n1.sql("UPDATE t SET v = 'later'");
        let refused = n2.sql_error("UPDATE t SET v = 'n2'");
        assert_eq!(refused.code(), "25006", "{point}: {refused}");
        running.cancel();
        assert_eq!(running.fails().code(), "57014", "{point}");
        hang.release();
        assert_eq!(n1.value("SELECT v FROM t"), "later", "{point}");
        assert_eq!(
            n2.value("SELECT count(*) FROM pg_db_role_setting"),
            "0",
            "{point}"
        );
    }
    joined(n2, "n2", n1, "n1");
    n2.sql("UPDATE t SET v = 'n2'");
    wait_quiet(&cluster.all());
    assert_same_content(&[n1, n2]);
}

/// Triggers that fire for replicated rows write by statements, which a read-only session refuses. Apply is let in,
/// the applications' roles are not.
#[test]
fn triggers_for_replicated_rows_can_write_before_the_join_ends() {
    let cluster = pair(
        "CREATE TABLE t (id integer PRIMARY KEY, v text);
         CREATE TABLE seen (id integer, n bigint GENERATED BY DEFAULT AS IDENTITY, PRIMARY KEY (id, n));
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.seen (id) VALUES (NEW.id); RETURN NEW; END $$;
         CREATE TRIGGER see AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION see();
         ALTER TABLE t ENABLE REPLICA TRIGGER see",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for node in [n1, n2] {
        node.sql("CREATE ROLE app LOGIN");
    }
    n1.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO app");
    let (hang, running) = hanging(&cluster, "within it is proved");
    n1.sql("INSERT INTO t VALUES (1)");
    n2.wait_for("SELECT count(*) FROM seen", "1");
    let refused = n2
        .client_as("app", n2.database())
        .batch_execute("INSERT INTO t VALUES (2)")
        .expect_err("applications are held off");
    assert_eq!(refused.code().map(|c| c.code()), Some("25006"), "{refused}");
    hang.release();
    running.succeeds();
    assert_eq!(n2.value("SELECT count(*) FROM pg_db_role_setting"), "0");
    n2.client_as("app", n2.database())
        .batch_execute("INSERT INTO t VALUES (2)")
        .unwrap();
    n1.wait_for("SELECT count(*) FROM t", "2");
}

/// No counter tells a TRUNCATE.
#[test]
fn join_fails_when_the_new_node_was_truncated() {
    let cluster = pair(
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)",
    );
    let n2 = cluster.n(2);
    let mut early = n2.client_named("early bird");
    let (hang, running) = hanging(&cluster, "within indexes are created");
    early.batch_execute("TRUNCATE t").unwrap();
    hang.release();
    let failed = running.fails();
    assert_wrote_early(&failed);
    assert!(
        failed.detail().contains("application \"early bird\""),
        "{failed}"
    );
}

/// Where sessions are not counted by default, what they write could not be noticed.
#[test]
fn join_is_refused_when_track_counts_is_off() {
    let cluster = pair("CREATE TABLE t (id integer PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.sql("CREATE ROLE \"Silent one\"");
    let database = n2.value("SELECT current_database()");
    let with = format!("ALTER DATABASE {database} SET track_counts = off");
    let without = format!("ALTER DATABASE {database} RESET track_counts");
    let in_database =
        format!("ALTER ROLE \"Silent one\" IN DATABASE {database} SET track_counts = 'no'");
    let not_in_database =
        format!("ALTER ROLE \"Silent one\" IN DATABASE {database} RESET track_counts");
    let role = "role \"Silent one\"";
    for (set, whose, reset) in [
        (&*with, format!("database {database}"), &*without),
        (
            "ALTER ROLE \"Silent one\" SET track_counts = off",
            role.to_owned(),
            "ALTER ROLE \"Silent one\" RESET track_counts",
        ),
        (&*in_database, role.to_owned(), &*not_in_database),
        (
            "ALTER SYSTEM SET track_counts = off",
            "the server".to_owned(),
            "ALTER SYSTEM SET track_counts = on",
        ),
    ] {
        n2.sql(set);
        n2.reload();
        let failed = add_node(n2, "n2", n1, "n1").expect_err(set);
        assert_eq!(failed.code(), "55000", "{failed}");
        let told = format!("track_counts is off for {whose}, so it would not be noticed");
        assert!(failed.message().contains(&told), "{failed}");
        assert!(failed.hint().contains(reset), "{failed}");
        assert_eq!(n2.value("SELECT to_regclass('t')"), "");
        n2.sql(reset);
        n2.reload();
    }
    joined(n2, "n2", n1, "n1");
    assert_same_content(&[n1, n2]);
}
