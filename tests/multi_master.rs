//! What PostgreSQL's own replication leaves to be done where several members are written to: sequences that never
//! give the same value, and updates of one row at two ends that end up the same.

mod common;

use common::{Call, assert_failed, quick, wait_mesh};
use lab::postgres::Client;
use lab::{CallFailed, Called, Cluster, Server, assert_same_content, wait_quiet};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// Keys of every kind that an application may draw, each of them unique.
const KEYS: &str = "
CREATE SEQUENCE ahead CACHE 20;
CREATE SEQUENCE down INCREMENT -3 START 1000 MINVALUE -1000000000 MAXVALUE 1000;
CREATE TABLE item (
    id    serial PRIMARY KEY,
    big   bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    ahead bigint NOT NULL DEFAULT nextval('ahead') UNIQUE,
    down  bigint NOT NULL DEFAULT nextval('down') UNIQUE,
    node  text NOT NULL)";

const SEQUENCES: &str = "SELECT string_agg(format('%s %s %s %s %s', seqrelid::regclass, seqstart, seqincrement, seqmin, seqmax),
                                           '; ' ORDER BY seqrelid::regclass::text) FROM pg_sequence";

/// Two sessions on each of some servers that insert as fast as they can.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
    counts: BTreeMap<String, Arc<AtomicU64>>,
}

impl Writers {
    fn new() -> Writers {
        Writers {
            stop: Arc::default(),
            threads: vec![],
            counts: BTreeMap::new(),
        }
    }

    fn write_on(&mut self, server: &Server, statement: &str) {
        let count: Arc<AtomicU64> = Arc::default();
        for _ in 0..2 {
            let (stop, count) = (self.stop.clone(), count.clone());
            let mut client = server.client_named("writer");
            let (name, statement) = (server.name().to_owned(), statement.to_owned());
            self.threads.push(thread::spawn(move || {
                let mut written = 0;
                while !stop.load(Ordering::SeqCst) {
                    client
                        .batch_execute(&statement)
                        .unwrap_or_else(|e| panic!("{name}: {}", lab::explain(&e)));
                    written += 1;
                    count.fetch_add(1, Ordering::SeqCst);
                }
                written
            }));
        }
        self.counts.insert(server.name().to_owned(), count);
    }

    /// Waits until each server has taken `more` than now.
    fn wait(&self, more: u64) {
        for count in self.counts.values() {
            let want = count.load(Ordering::SeqCst) + more;
            let begun = std::time::Instant::now();
            while count.load(Ordering::SeqCst) < want {
                assert!(
                    begun.elapsed() < lab::server::PATIENCE,
                    "nothing is written"
                );
                thread::sleep(common::POLL);
            }
        }
    }

    /// How many rows they have written in all.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let written = self
            .threads
            .into_iter()
            .map(|t| t.join().expect("a writer"));
        written.sum()
    }
}

fn insert(server: &Server) -> String {
    format!("INSERT INTO item (node) VALUES ('{}')", server.name())
}

/// Adds `new` in a session with `settings`.
fn join(new: &Server, source: &Server, settings: &str) -> Result<Called, CallFailed> {
    common::Running::start_after(new, settings, &Call::of(new, source).sql()).join()
}

fn joined(new: &Server, source: &Server, settings: &str) {
    join(new, source, settings).unwrap_or_else(|failed| panic!("{failed}"));
}

/// Members join while the others write, and write themselves at once. A key that was given twice would stop the
/// replication.
fn keys_never_meet(policy: &str, parts: i32) {
    let cluster = Cluster::start_with(3, &quick());
    cluster.create_extension();
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql(lab::quiet::SCHEMA);
    n1.sql(KEYS);
    let mut writers = Writers::new();
    writers.write_on(n1, &insert(n1));
    writers.wait(50);
    let settings =
        format!("SET zodan.sequence_policy = {policy}; SET zodan.sequence_parts = {parts}");
    joined(n2, n1, &settings);
    writers.write_on(n2, &insert(n2));
    writers.wait(200);
    // The cluster knows how it does it.
    joined(n3, n2, "");
    writers.write_on(n3, &insert(n3));
    writers.wait(200);
    let written = writers.stop();
    let all = cluster.all();
    wait_quiet(&all);
    assert_same_content(&all);
    for node in &all {
        assert_eq!(node.value("SELECT count(*) FROM item"), written.to_string());
        let errors = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats";
        assert_eq!(node.value(errors), "0", "{}", node.name());
    }
    let report = format!(
        "SELECT count(*) FROM spock.health_report('n1', {}, NULL, NULL, 'post')
          WHERE \"check\" = 'sequences' AND status <> 'ok'",
        lab::quote_literal(&n1.dsn())
    );
    n1.wait_for(&report, "0");
}

#[test]
fn sequence_values_by_stride_never_collide_under_load() {
    keys_never_meet("stride", 32);
}

/// Two parts are too few for three nodes: the members' strides double while they write.
#[test]
fn strides_double_under_load_when_there_are_too_few() {
    keys_never_meet("stride", 2);
}

#[test]
fn sequence_values_by_range_never_collide_under_load() {
    keys_never_meet("range", 32);
}

/// The next `n` values of a sequence.
fn draw(server: &Server, sequence: &str, n: i32) -> Vec<i64> {
    let drawn = server.rows(&format!(
        "SELECT nextval('{sequence}') FROM generate_series(1, {n})"
    ));
    let value = |row: Vec<Option<String>>| row[0].as_ref().unwrap().parse().unwrap();
    drawn.into_iter().map(value).collect()
}

/// Where another member than the source of the join has drawn further, its values are in rows already.
#[test]
fn divided_sequences_start_after_the_values_of_all_members() {
    for policy in ["copy", "stride", "range"] {
        let cluster = Cluster::start_with(3, &quick());
        cluster.form_mesh(
            2,
            "CREATE SEQUENCE up; CREATE SEQUENCE \"Down\" INCREMENT -1; CREATE SEQUENCE small AS smallint;
             CREATE SEQUENCE set; SELECT nextval('up')",
        );
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        draw(n2, "up", 1000);
        draw(n2, "\"Down\"", 500);
        draw(n2, "small", 300);
        n2.sql("SELECT setval('set', 700, false)");
        joined(n3, n1, &format!("SET zodan.sequence_policy = {policy}"));
        let nodes = match policy {
            // A member that has copies goes on with its own.
            "copy" => vec![n3],
            _ => vec![n1, n2, n3],
        };
        for (sequence, had) in [("up", 1001), ("small", 300), ("set", 699)] {
            let drawn: Vec<i64> = nodes.iter().flat_map(|n| draw(n, sequence, 20)).collect();
            assert!(
                drawn.iter().all(|v| *v > had),
                "{policy} {sequence} {drawn:?}"
            );
        }
        let drawn: Vec<i64> = nodes.iter().flat_map(|n| draw(n, "\"Down\"", 20)).collect();
        assert!(drawn.iter().all(|v| *v < -500), "{policy} {drawn:?}");
    }
}

/// Rows were imported, and the sequences set behind them, on every node to the same value.
#[test]
fn sequences_set_by_hand_return_to_their_own_values() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -1; CREATE SEQUENCE calm CACHE 5");
    joined(n2, n1, "SET zodan.sequence_policy = stride");
    let meeting = format!(
        "SELECT count(*) FROM spock.health_report('n1', {}, NULL, NULL, 'post')
          WHERE \"check\" = 'sequences' AND status <> 'ok'",
        lab::quote_literal(&n1.dsn())
    );
    for node in [n1, n2] {
        draw(node, "calm", 7);
        node.sql("SELECT setval('up', 500), setval('down', -500, false)");
    }
    n1.wait_for(&meeting, "2");
    let realign = "SELECT coalesce(string_agg(s::text, ' ' ORDER BY s::text), '') FROM zodan.realign_sequences() s";
    let mended: Vec<String> = [n1, n2].iter().map(|node| node.value(realign)).collect();
    assert!(mended.iter().any(|m| m == "down up"), "{mended:?}");
    n1.wait_for(&meeting, "0");
    for node in [n1, n2] {
        assert_eq!(node.value(realign), "");
    }
    for (sequence, beyond) in [("up", 500), ("down", 500), ("calm", 0)] {
        let mut drawn: Vec<i64> = [n1, n2]
            .iter()
            .flat_map(|n| draw(n, sequence, 50))
            .collect();
        assert!(drawn.iter().all(|v| v.abs() >= beyond), "{drawn:?}");
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 100, "{sequence}");
    }
}

#[test]
fn sequences_of_odd_definitions_are_divided() {
    for policy in ["stride", "range"] {
        let cluster = Cluster::start_with(3, &quick());
        cluster.form_mesh(
            1,
            "CREATE SCHEMA \"Odd\";
             CREATE SEQUENCE \"Odd\".\"a b\" INCREMENT 7 START 5;
             CREATE SEQUENCE small AS smallint;
             CREATE SEQUENCE round MINVALUE 1 MAXVALUE 320 CYCLE;
             CREATE SEQUENCE back INCREMENT -1 MINVALUE -320 MAXVALUE -1 CYCLE;
             CREATE SEQUENCE used; SELECT setval('used', 4711);
             CREATE SEQUENCE over MAXVALUE 10; SELECT setval('over', 10)",
        );
        let settings = format!("SET zodan.sequence_policy = {policy}");
        joined(cluster.n(2), cluster.n(1), &settings);
        joined(cluster.n(3), cluster.n(1), &settings);
        for sequence in ["\"Odd\".\"a b\"", "small", "round", "back", "used"] {
            let mut owner = BTreeMap::new();
            for (i, node) in cluster.all().iter().enumerate() {
                for value in draw(node, sequence, 25) {
                    let other = *owner.entry(value).or_insert(i);
                    assert_eq!(other, i, "{policy}: {value} of {sequence}");
                }
            }
            assert!(owner.keys().all(|v| sequence != "used" || *v > 4711));
        }
        let failed = cluster.n(2).sql_error("SELECT nextval('over')");
        assert_eq!(failed.code(), "2200H", "{failed}");
    }
}

/// What TRUNCATE ... RESTART IDENTITY starts again with is a value of one's own.
#[test]
fn sequence_restarted_by_truncate_stays_in_its_part() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.form_mesh(1, "CREATE TABLE item (id serial PRIMARY KEY)");
    joined(
        cluster.n(2),
        cluster.n(1),
        "SET zodan.sequence_policy = stride",
    );
    for node in cluster.all() {
        node.sql("ALTER SEQUENCE item_id_seq RESTART");
    }
    let [ours, theirs] = [1, 2].map(|i| draw(cluster.n(i), "item_id_seq", 10));
    assert!(
        ours.iter().all(|v| !theirs.contains(v)),
        "{ours:?} {theirs:?}"
    );
}

#[test]
fn sequences_are_restored_when_a_join_is_undone() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, KEYS);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let before = [n1, n2].map(|node| node.value(SEQUENCES));
    n2.sql(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'nothing from %', NEW.node; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON zodan.marker FOR EACH ROW WHEN (NEW.node = 'n3')
             EXECUTE FUNCTION public.refuse();
         ALTER TABLE zodan.marker ENABLE ALWAYS TRIGGER refuse",
    );
    let failed = join(n3, n1, "SET zodan.sequence_policy = stride").expect_err("n2 refuses");
    assert_failed(
        &failed,
        "55000",
        "subscription sub_n3_n2 of node \"n2\" keeps failing on the same change",
        "The log of the subscriber says why",
    );
    for (node, before) in [n1, n2].iter().zip(&before) {
        assert_eq!(node.value(SEQUENCES), *before);
        assert_eq!(node.value("SELECT count(*) FROM zodan.sequence"), "0");
        assert_eq!(
            node.value("SELECT sequence_policy FROM zodan.membership"),
            "copy"
        );
        let drawn = draw(node, "item_id_seq", 2);
        assert_eq!(drawn[1] - drawn[0], 1);
    }
    n2.sql("DROP TRIGGER refuse ON zodan.marker; DROP FUNCTION public.refuse()");
    joined(n3, n1, "SET zodan.sequence_policy = stride");
    let drawn: Vec<Vec<i64>> = cluster
        .all()
        .iter()
        .map(|n| draw(n, "item_id_seq", 5))
        .collect();
    let mut values: Vec<i64> = drawn.concat();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), 15, "{drawn:?}");
}

#[test]
fn join_is_refused_when_a_sequence_cannot_be_divided() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(
        1,
        "CREATE SEQUENCE number; CREATE SEQUENCE tiny MAXVALUE 10",
    );
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let range = "SET zodan.sequence_policy = range";
    let failed = join(n2, n1, range).expect_err("32 parts of 10 values");
    assert_failed(
        &failed,
        "2200H",
        "sequence public.tiny has no values left for part 0 of 32",
        "Make it a bigint sequence",
    );
    assert_eq!(n1.value("SELECT count(*) FROM zodan.sequence"), "0");
    joined(n2, n1, &format!("{range}; SET zodan.sequence_parts = 2"));
    assert_failed(
        &join(n3, n1, "").expect_err("there is no third"),
        "53400",
        "all 2 ranges of the sequences have been given to nodes",
        "higher zodan.sequence_parts",
    );
    assert_failed(
        &join(n3, n1, "SET zodan.sequence_policy = stride").expect_err("it has ranges"),
        "55000",
        "the cluster divides its sequences by range, not by stride",
        "RESET zodan.sequence_policy",
    );
    assert_failed(
        &n3.sql_error("LOAD 'zodan'; SET zodan.sequence_policy = 'odd'"),
        "22023",
        "invalid value for parameter \"zodan.sequence_policy\"",
        "Available values: copy, stride, range.",
    );
}

const TABLES: &str = "
CREATE TABLE account (id integer PRIMARY KEY, balance integer NOT NULL, node text NOT NULL);
CREATE TABLE plain (id integer PRIMARY KEY, node text NOT NULL);
INSERT INTO account SELECT i, 0, 'n1' FROM generate_series(1, 10) i;
INSERT INTO plain VALUES (1, 'n1');
CREATE VIEW accounts AS SELECT * FROM account";

fn accounts(members: usize, extra: usize) -> Cluster {
    let cluster = Cluster::start_with(members + extra, &quick());
    cluster.form_mesh(members, TABLES);
    wait_mesh(&cluster.first(members));
    wait_quiet(&cluster.first(members));
    cluster
}

const ENABLE: &str = "SELECT spock.enable_last_update_wins('account')";

const GUARD: &str = "SELECT tgenabled FROM pg_trigger
    WHERE tgrelid = 'account'::regclass AND tgname = 'zodan_last_update_wins'";

#[test]
fn rows_updated_on_all_nodes_at_once_end_up_equal() {
    let cluster = accounts(3, 1);
    let all = cluster.first(3);
    let mut writers = Writers::new();
    // One row in each transaction: with several, two that come from different members may deadlock.
    let update = |server: &Server| {
        format!(
            "UPDATE account SET balance = balance + 1, node = '{}'
              WHERE id = (SELECT 1 + floor(random() * 10)::integer)",
            server.name()
        )
    };
    writers.write_on(all[0], &update(all[0]));
    writers.wait(20);
    // While it is written to.
    assert_eq!(all[1].value(ENABLE), "3");
    for node in &all[1..] {
        writers.write_on(node, &update(node));
    }
    writers.wait(300);
    writers.stop();
    wait_quiet(&all);
    assert_same_content(&all);
    for node in &all {
        let errors = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats";
        assert_eq!(node.value(errors), "0", "{}", node.name());
    }
    // Who joins later has the guard, too.
    joined(cluster.n(4), all[0], "");
    assert_eq!(cluster.n(4).value(GUARD), "A");
}

/// n2 gets what n1 wrote when it has written something later itself.
#[test]
fn older_update_that_arrives_late_is_discarded() {
    let cluster = accounts(2, 0);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    assert_eq!(n1.value(ENABLE), "2");
    assert_eq!(n2.value(ENABLE), "0", "it is so already");
    for node in [n1, n2] {
        assert_eq!(node.value(GUARD), "A");
    }
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL",
        "0",
    );
    for table in ["account", "plain"] {
        n1.sql(&format!("UPDATE {table} SET node = 'early' WHERE id = 1"));
    }
    for table in ["account", "plain"] {
        n2.sql(&format!("UPDATE {table} SET node = 'late' WHERE id = 1"));
        n1.wait_for(&format!("SELECT node FROM {table} WHERE id = 1"), "late");
    }
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 ENABLE");
    wait_quiet(&[n1, n2]);
    let row =
        |node: &Server, table: &str| node.value(&format!("SELECT node FROM {table} WHERE id = 1"));
    assert_eq!(row(n1, "account"), "late");
    assert_eq!(row(n2, "account"), "late");
    // What happens without.
    assert_eq!(
        (row(n1, "plain"), row(n2, "plain")),
        ("late".into(), "early".into())
    );

    // A later update of a row that came from a clock ahead of this one is later still.
    n1.sql(
        "BEGIN; SET LOCAL session_replication_role = replica;
         UPDATE account SET node = 'from the future', zodan_updated_at = now() + '1 hour' WHERE id = 2; COMMIT",
    );
    n2.wait_for("SELECT node FROM account WHERE id = 2", "from the future");
    n2.sql("UPDATE account SET node = 'after it' WHERE id = 2");
    n1.wait_for("SELECT node FROM account WHERE id = 2", "after it");

    assert_eq!(
        n2.value("SELECT spock.disable_last_update_wins('account')"),
        "2"
    );
    assert_eq!(
        n2.value("SELECT spock.disable_last_update_wins('account')"),
        "0"
    );
    for node in [n1, n2] {
        assert_eq!(node.value(GUARD), "");
    }
}

#[test]
fn last_update_wins_is_installed_on_all_members_or_none() {
    let cluster = accounts(3, 1);
    let [n1, n2, n3, alone] = [1, 2, 3, 4].map(|i| cluster.n(i));
    let on_none = || {
        for node in [n1, n2] {
            assert_eq!(node.value(GUARD), "");
        }
    };
    n3.sql("ALTER TABLE account ADD COLUMN zodan_updated_at text");
    assert_failed(
        &n1.sql_error(ENABLE),
        "42804",
        "node \"n3\": column zodan_updated_at of table public.account is a text",
        "Rename the column that is there.",
    );
    on_none();
    n3.sql("ALTER TABLE account DROP COLUMN zodan_updated_at");
    assert_failed(
        &n1.sql_error("SELECT spock.enable_last_update_wins('accounts')"),
        "42P01",
        "argument relation is not a table of this database",
        "Give the name of a table.",
    );
    assert_failed(
        &n1.sql_error("SELECT spock.enable_last_update_wins(NULL)"),
        "22004",
        "argument relation must not be null",
        "Give a value",
    );
    assert_failed(
        &n1.sql_error(&format!("BEGIN; SELECT pg_current_xact_id(); {ENABLE}")),
        "25001",
        "cannot run in a transaction that has written something",
        "Commit first",
    );
    alone.sql(TABLES);
    assert_failed(
        &alone.sql_error(ENABLE),
        "55000",
        "the database is not a cluster node",
        "of any node of the cluster",
    );
    // A table in use is waited for; nobody waits behind that. Who has it in use is told.
    let mut reader: Client = n2.client_named("reader");
    reader
        .batch_execute("BEGIN; SELECT FROM account")
        .expect("read the table");
    let mut impatient = n1.client();
    impatient
        .batch_execute("SET zodan.no_progress_timeout = '1s'")
        .expect("set");
    let failed = impatient.batch_execute(ENABLE).expect_err("it is in use");
    let failed = failed.as_db_error().expect("an error of the server");
    assert_eq!(failed.code().code(), "55000");
    assert_eq!(
        failed.message(),
        "node \"n2\": locking public.account made no progress for 1 s"
    );
    assert_eq!(failed.detail(), Some("the table is in use on node \"n2\""));
    let waiting = common::Running::start(n1, ENABLE);
    n2.wait_for(
        "SELECT count(*) > 0 FROM pg_stat_activity
          WHERE application_name LIKE 'zodan%' AND query LIKE '%set_last_update_wins%' OR query = 'ROLLBACK'",
        "t",
    );
    n2.sql("UPDATE account SET balance = 1 WHERE id = 1");
    reader.batch_execute("COMMIT").expect("end it");
    waiting.succeeds();
    assert_eq!(n3.value(GUARD), "A");
    n3.stop();
    assert_failed(
        &n1.sql_error("SELECT spock.disable_last_update_wins('account')"),
        "08001",
        "could not connect to node \"n3\"",
        "Check host, port",
    );
    assert_eq!(n1.value(GUARD), "A");
}
