//! A node died, and the survivors have different parts of what it wrote. Afterwards they have the same: each
//! transaction once, whole, with its time, whatever happens on the way.

mod common;

use common::{Running, assert_failed, fingerprint, quick, wait_mesh, wait_no_sessions};
use lab::load::LoadOptions;
use lab::{
    CallFailed, Called, Cluster, Load, Server, ServerOptions, assert_same_content, load,
    quote_literal, wait_quiet,
};

const CONTENT: &str = "
CREATE TABLE crash_test (id int PRIMARY KEY, data text, big text);
CREATE TABLE debit (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE credit (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int NOT NULL);
CREATE TABLE journal (at int, what text);
CREATE TABLE scratch (id bigint PRIMARY KEY);
";

fn options() -> ServerOptions {
    quick().set("track_commit_timestamp", "on")
}

/// A mesh whose members all keep a recovery slot.
fn mesh(members: usize) -> Cluster {
    mesh_with(members, &options())
}

/// A mesh that keeps no recovery slots.
fn mesh_without_slots(members: usize) -> Cluster {
    form(members, &options())
}

fn form(members: usize, options: &ServerOptions) -> Cluster {
    let cluster = Cluster::start_with(members, options);
    cluster.form_mesh(members, &format!("{CONTENT}{}", load::SCHEMA));
    wait_mesh(&cluster.all());
    cluster
}

fn mesh_with(members: usize, options: &ServerOptions) -> Cluster {
    let cluster = form(members, options);
    for node in cluster.all() {
        node.sql("SELECT zodan.keep_recovery_slot()");
    }
    wait_protected(&cluster.all());
    cluster
}

/// Waits until each node keeps what the others may lack of each.
fn wait_protected(nodes: &[&Server]) {
    for node in nodes {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE protected_from IS NOT NULL",
            &(nodes.len() - 1).to_string(),
        );
    }
}

fn call(failed: &str, source: Option<&Server>, target: Option<&Server>, more: &str) -> String {
    let name = |node: Option<&Server>| node.map_or("NULL".into(), |n| quote_literal(n.name()));
    let dsn = |node: Option<&Server>| node.map_or("NULL".into(), |n| quote_literal(&n.dsn()));
    format!(
        "CALL spock.recover_run(failed_node_name := {}, source_node_name := {}, source_dsn := {},
                                target_node_name := {}, target_dsn := {}{more})",
        quote_literal(failed),
        name(source),
        dsn(source),
        name(target),
        dsn(target)
    )
}

fn recover(here: &Server, failed: &str) -> Called {
    here.call(&call(failed, None, None, ""))
        .unwrap_or_else(|failed| panic!("{failed}"))
}

fn refused(here: &Server, sql: &str) -> CallFailed {
    here.sql_error(sql)
}

/// From now on `subscriber` gets nothing from `provider`.
fn suspend(subscriber: &Server, provider: &Server) {
    let name = format!("sub_{}_{}", provider.name(), subscriber.name());
    subscriber.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
    subscriber.wait_for(
        &format!(
            "SELECT count(*) FROM pg_stat_subscription WHERE subname = '{name}' AND pid IS NOT NULL"
        ),
        "0",
    );
}

fn rows(node: &Server) -> String {
    node.value("SELECT count(*) FROM crash_test")
}

/// n1 dies when n3 has 90 of its rows and n2 has 20, with updates and deletes among what n2 lacks.
fn papers_crash(cluster: &Cluster) {
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, repeat(md5(i::text), 100) FROM generate_series(1, 20) i");
    for node in [n2, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "20");
    }
    suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(21, 91) i");
    n1.sql("UPDATE crash_test SET data = 'it''s \\ changed' WHERE id IN (3, 33)");
    n1.sql("UPDATE crash_test SET id = 1000 WHERE id = 4");
    n1.sql("DELETE FROM crash_test WHERE id = 50");
    n1.sql(
        "BEGIN; INSERT INTO debit VALUES (1, 7); INSERT INTO credit (amount) VALUES (7); COMMIT",
    );
    n1.sql("UPDATE credit SET amount = 8");
    n1.sql("INSERT INTO journal VALUES (1, 'a'), (1, 'a'), (2, NULL)");
    n1.sql("DELETE FROM journal WHERE at = 2; UPDATE journal SET what = 'b'");
    n3.wait_for("SELECT string_agg(what, '') FROM journal", "bb");
    assert_eq!((rows(n2), rows(n3)), ("20".into(), "90".into()));
    n1.crash();
}

#[test]
fn the_papers_example_by_its_own_statements() {
    let cluster = mesh(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    papers_crash(&cluster);
    let times = "SELECT string_agg(id || ' ' || pg_xact_commit_timestamp(xmin), ',' ORDER BY id) FROM crash_test";
    let precheck = format!(
        "CALL spock.recover_precheck('n1', 'n3', {}, 'n2', {}, true, NULL)",
        quote_literal(&n3.dsn()),
        quote_literal(&n2.dsn())
    );
    assert_eq!(n2.value(&precheck), "t");
    let run = format!(
        "CALL spock.recover_run(
    failed_node_name := 'n1',
    source_node_name := 'n3',
    source_dsn       := {},
    target_node_name := 'n2',
    target_dsn       := {},
    stop_lsn         := NULL,
    skip_lsn         := NULL,
    stop_timestamp   := NULL,
    verb             := true
)",
        quote_literal(&n3.dsn()),
        quote_literal(&n2.dsn())
    );
    n3.call(&run).unwrap_or_else(|failed| panic!("{failed}"));
    assert_same_content(&[n2, n3]);
    assert_eq!(rows(n2), "90");
    // When, and by whom: as if it had come the usual way.
    assert_eq!(n2.value(times), n3.value(times));
    assert_eq!(
        n2.value(
            "SELECT count(DISTINCT roident) FROM crash_test, pg_xact_commit_timestamp_origin(xmin)"
        ),
        "1"
    );
    assert_eq!(n2.value(&precheck), "f");
    let again = recover(n2, "n1");
    assert!(
        again
            .notices
            .iter()
            .any(|n| n.message == "nothing to do: every survivor has the same of \"n1\""),
        "{again:?}"
    );
    n2.call("CALL spock.remove_node('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    for node in [n2, n3] {
        assert_eq!(
            node.value("SELECT string_agg(slot_name, ' ' ORDER BY 1) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'"),
            ""
        );
        node.sql(&format!(
            "INSERT INTO crash_test VALUES (2000 + {}, 'after', NULL)",
            node.port()
        ));
    }
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
}

/// All other subscriptions are suspended too, and the recovery is done in its parts.
#[test]
fn the_stricter_form_and_the_parts() {
    let cluster = mesh(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    papers_crash(&cluster);
    suspend(n2, n3);
    suspend(n3, n2);
    let clone = n2.value(&format!(
        "CALL spock.recover_phase_clone('n1', 'n3', {}, 'n2', {}, NULL)",
        quote_literal(&n3.dsn()),
        quote_literal(&n2.dsn())
    ));
    assert!(clone.starts_with("spk_recovery_"), "{clone}");
    assert_eq!(
        n3.value(&format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{clone}'"
        )),
        "1"
    );
    let finalize = |slot: &str| {
        format!(
            "CALL spock.recover_finalize({}, 'n2', 'n1', {}, '{slot}', true)",
            quote_literal(&n2.dsn()),
            quote_literal(&n3.dsn())
        )
    };
    assert_failed(
        &refused(n2, &finalize("nothing")),
        "42704",
        "argument cloned_slot_name is \"nothing\", which is no slot of a survivor",
        "Give the name that recover_phase_clone returned",
    );
    n2.sql(&finalize(&clone));
    assert_eq!(
        n3.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'"),
        "0"
    );
    assert_same_content(&[n2, n3]);
    for (a, b) in [(n2, n3), (n3, n2)] {
        a.sql(&format!(
            "ALTER SUBSCRIPTION sub_{}_{} ENABLE",
            b.name(),
            a.name()
        ));
    }
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
}

/// Random, but the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// n1 is killed while all write, and its survivors have got different parts of it.
fn killed_under_load(cluster: &Cluster, seed: u64) {
    let mut dice = Dice(seed);
    let n1 = cluster.n(1);
    let survivors: Vec<&Server> = cluster.all()[1..].to_vec();
    let busy = LoadOptions {
        writers: 1,
        rate: Some(200),
    };
    let doomed = Load::start_with(&[n1], &busy);
    let living = Load::start_with(&survivors, &busy);
    // Some get the rest of it, some do not.
    let ahead = dice.below(survivors.len() as u64) as usize;
    for (i, node) in survivors.iter().enumerate() {
        doomed.wait_commits(5 + dice.below(30));
        if i != ahead {
            suspend(node, n1);
        }
        n1.sql(
            "BEGIN; INSERT INTO scratch SELECT generate_series(1, 20); TRUNCATE scratch; COMMIT",
        );
        n1.sql("INSERT INTO scratch SELECT generate_series(1, 10)");
        n1.sql("TRUNCATE scratch");
    }
    doomed.wait_commits(5 + dice.below(50));
    n1.crash();
    drop(doomed.stop());
    let here = survivors[dice.below(survivors.len() as u64) as usize];
    living.wait_commits(10);
    recover(here, "n1");
    living.wait_commits(10);
    let report = living.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&survivors);
    assert_same_content(&survivors);
    for node in &survivors {
        report.assert_present_on(node);
    }
    here.call("CALL spock.remove_node('n1')")
        .unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn ten_times_three_nodes_under_load() {
    for seed in 0..10 {
        killed_under_load(&mesh(3), seed);
    }
}

#[test]
fn ten_times_three_nodes_under_load_by_comparison() {
    for seed in 20..30 {
        killed_under_load(&mesh_without_slots(3), seed);
    }
}

#[test]
fn ten_times_five_nodes_under_load_by_comparison() {
    for seed in 30..40 {
        killed_under_load(&mesh_without_slots(5), seed);
    }
}

#[test]
fn ten_times_five_nodes_under_load() {
    for seed in 10..20 {
        killed_under_load(&mesh(5), seed);
    }
}

/// A survivor has changed rows that the other one had not got: it could do nothing with the changes then.
#[test]
fn later_changes_of_a_survivor_stay() {
    let cluster = mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 5) i");
    wait_quiet(&cluster.all());
    suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'new', NULL FROM generate_series(11, 15) i");
    n1.sql("UPDATE crash_test SET data = 'of n1' WHERE id IN (1, 2)");
    n3.wait_for("SELECT count(*) FROM crash_test WHERE data = 'of n1'", "2");
    n1.crash();
    n3.sql("UPDATE crash_test SET data = 'of n3' WHERE id IN (1, 11)");
    n3.sql("DELETE FROM crash_test WHERE id = 12");
    n2.sql("UPDATE crash_test SET data = 'of n2' WHERE id = 2");
    wait_quiet(&[n2, n3]);
    recover(n2, "n1");
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(
        n2.value("SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test WHERE data <> 'old'"),
        "1 of n3, 2 of n2, 11 of n3, 13 new, 14 new, 15 new"
    );
}

/// What n1 moved between two tables in one transaction is never seen half moved.
#[test]
fn no_transaction_is_torn() {
    let cluster = mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    suspend(n2, n1);
    n1.sql(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP
              INSERT INTO debit VALUES (i, i); INSERT INTO credit (amount) VALUES (i); COMMIT;
            END LOOP; END $$",
    );
    n3.wait_for("SELECT count(*) FROM debit", "3000");
    n1.crash();
    let run = Running::start(n3, &call("n1", None, None, ""));
    let mut seen = 0;
    while !run.is_finished() {
        let sums = n2.value("SELECT (SELECT sum(amount) FROM debit) IS NOT DISTINCT FROM (SELECT sum(amount) FROM credit)");
        assert_eq!(sums, "t");
        seen += 1;
    }
    run.succeeds();
    assert!(seen > 0, "nobody looked");
    assert_same_content(&[n2, n3]);
}

/// Holds the replay up in its middle, at one row of the target.
fn hold_row(target: &Server) -> lab::postgres::Client {
    let mut holder = target.client_named("holder");
    holder
        .batch_execute("BEGIN; INSERT INTO debit VALUES (500, 0)")
        .expect("hold a row");
    holder
}

#[test]
fn what_is_killed_in_the_middle_is_finished_by_the_next_call() {
    for victim in ["backend", "target", "source"] {
        let cluster = mesh(3);
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        suspend(n2, n1);
        n1.sql(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP
                  INSERT INTO debit VALUES (i, i); INSERT INTO credit (amount) VALUES (i); COMMIT;
                END LOOP; END $$",
        );
        n3.wait_for("SELECT count(*) FROM debit", "1000");
        n1.crash();
        // The coordinator is the one that does not fall.
        let here = if victim == "target" { n3 } else { n2 };
        let holder = hold_row(n2);
        let run = Running::start(here, &call("n1", None, None, ""));
        n2.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted", "t");
        match victim {
            "backend" => {
                here.sql(&format!("SELECT pg_terminate_backend({}, 10000)", run.pid));
                run.ends_terminated();
            }
            "target" => {
                n2.crash();
                let failed = run.fails();
                assert_eq!(failed.code(), "08006", "{failed}");
                n2.boot();
            }
            _ => {
                n3.crash();
                drop(holder);
                let failed = run.fails();
                assert!(["08006", "08001"].contains(&failed.code()), "{failed}");
                n3.boot();
                n3.sql("SELECT zodan.keep_recovery_slot()");
                finish(here, n2, n3, &cluster);
                continue;
            }
        }
        drop(holder);
        finish(here, n2, n3, &cluster);
    }
}

fn finish(here: &Server, n2: &Server, n3: &Server, cluster: &Cluster) {
    wait_no_sessions(&[n2, n3]);
    recover(here, "n1");
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(n2.value("SELECT count(*), sum(amount) FROM credit"), "1000");
    assert_eq!(
        n3.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'"),
        "0"
    );
    assert!(!cluster.n(1).is_running());
}

#[test]
fn two_nodes_died_and_nobody_has_all() {
    let cluster = mesh(4);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    // n3 is ahead for n1, n4 for n2.
    suspend(n4, n1);
    suspend(n3, n2);
    n1.sql("INSERT INTO debit SELECT i, 1 FROM generate_series(1, 30) i");
    n2.sql("INSERT INTO debit SELECT i, 2 FROM generate_series(101, 140) i");
    n3.wait_for("SELECT count(*) FROM debit", "30");
    n4.wait_for("SELECT count(*) FROM debit", "40");
    n1.crash();
    n2.crash();
    recover(n3, "n1");
    recover(n3, "n2");
    assert_same_content(&[n3, n4]);
    assert_eq!(n3.value("SELECT count(*) FROM debit"), "70");
    let failed = n3.sql_error("CALL spock.remove_node('n1')");
    assert_eq!(failed.code(), "08001", "n2 cannot be reached: {failed}");
    for (gone, force) in [("n1", true), ("n2", false)] {
        n3.call(&format!(
            "CALL spock.remove_node('{gone}', force := {force})"
        ))
        .unwrap_or_else(|failed| panic!("{failed}"));
    }
    for node in [n3, n4] {
        assert_eq!(node.value("SELECT count(*) FROM zodan.owed"), "0");
    }
    n4.sql("INSERT INTO debit VALUES (1000, 4)");
    n3.wait_for("SELECT count(*) FROM debit", "71");
}

#[test]
fn only_a_part_is_brought_when_asked() {
    let cluster = mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    suspend(n2, n1);
    let mut ends = vec![];
    for i in 1..=4 {
        n1.sql(&format!("INSERT INTO debit VALUES ({i}, {i})"));
        n3.wait_for("SELECT count(*) FROM debit", &i.to_string());
        ends.push(n3.value(
            "SELECT remote_lsn FROM pg_replication_origin_status o JOIN pg_subscription s ON o.external_id = 'pg_' || s.oid WHERE subname = 'sub_n1_n3'",
        ));
    }
    let third = n3.value("SELECT pg_xact_commit_timestamp(xmin) FROM debit WHERE id = 3");
    n1.crash();
    let with = |more: &str| call("n1", Some(n3), Some(n2), more);
    assert_failed(
        &refused(n2, &with(", skip_lsn := '0/1'")),
        "22023",
        "argument skip_lsn is 0/1, but node \"n2\" has applied up to",
        "give a later position of the failed node",
    );
    assert_failed(
        &refused(n2, &with(", stop_lsn := 'FF/FF'")),
        "22023",
        "argument stop_lsn is FF/FF, but node \"n3\" has only up to",
        "Leave it null for all that the source has.",
    );
    assert_failed(
        &refused(n2, &with(", stop_lsn := '0/2'")),
        "22023",
        "argument stop_lsn is 0/2, which is not after",
        "Leave it null for all that the source has.",
    );
    let ids = |node: &Server| node.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM debit");
    let bring = |more: &str| {
        n2.call(&with(more))
            .unwrap_or_else(|failed| panic!("{failed}"));
        ids(n2)
    };
    assert_eq!(bring(&format!(", stop_lsn := '{}'", ends[0])), "1");
    // The second is given up.
    assert_eq!(
        bring(&format!(
            ", skip_lsn := '{}', stop_timestamp := '{third}'",
            ends[1]
        )),
        "1 3"
    );
    assert_eq!(bring(""), "1 3 4");
    assert_eq!(ids(n3), "1 2 3 4");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let cluster = mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let before = fingerprint(&cluster.all());
    assert_failed(
        &refused(n2, &call("n1", None, None, "")),
        "55006",
        "node \"n1\" is alive: it answers",
        "With force := true it is treated as dead.",
    );
    let forced = n2
        .call(&call("n1", None, None, ", force := true"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        forced
            .notices
            .iter()
            .any(|n| n.message.starts_with("nothing to do")),
        "{forced:?}"
    );
    before.assert_same_now(&cluster.all());
    suspend(n2, n1);
    n1.sql("INSERT INTO debit VALUES (1, 1)");
    n3.wait_for("SELECT count(*) FROM debit", "1");
    n1.crash();
    let before = fingerprint(&[n2, n3]);
    for (here, sql, code, message, hint) in [
        (
            n2,
            "CALL spock.recover_run(NULL)",
            "22004",
            "argument failed_node_name must not be null",
            "Give a value",
        ),
        (
            n2,
            "CALL spock.recover_run('n9')",
            "42704",
            "argument failed_node_name is \"n9\", which is no node of this cluster",
            "The nodes are: ",
        ),
        (
            n2,
            "CALL spock.recover_run('n2')",
            "22023",
            "argument failed_node_name is the node that the CALL runs on",
            "Run it on a survivor.",
        ),
        (
            n2,
            "CALL spock.recover_run('n1', 'n8')",
            "42704",
            "argument source_node_name is \"n8\", which is no survivor",
            "See spock.node or zodan.node.",
        ),
        (
            n2,
            "CALL spock.recover_run('n1', 'n3', NULL, 'n3')",
            "22023",
            "argument target_node_name is the source, \"n3\"",
            "Name the node that lacks something.",
        ),
        (
            n2,
            "BEGIN; CALL spock.recover_run('n1')",
            "25001",
            "CALL spock.recover_run cannot run inside a transaction block",
            "Run the CALL on its own",
        ),
    ] {
        assert_failed(&refused(here, sql), code, message, hint);
    }
    let wrong = format!(
        "CALL spock.recover_run('n1', 'n3', {})",
        quote_literal(&n2.dsn())
    );
    assert_failed(
        &refused(n2, &wrong),
        "22023",
        "the connection string of node \"n3\" does not lead to that node",
        "Correct source_dsn or target_dsn",
    );
    before.assert_same_now(&[n2, n3]);
}

/// What the slot of `node` holds of the WAL, in bytes.
fn retained(node: &Server) -> i64 {
    let text = node.value("SELECT DISTINCT retained_bytes FROM zodan.recovery_status");
    text.parse()
        .unwrap_or_else(|_| panic!("retained_bytes is {text:?}"))
}

#[test]
fn the_slot_holds_no_more_than_is_needed() {
    let cluster = mesh(3);
    let n2 = cluster.n(2);
    for node in cluster.all() {
        node.sql("INSERT INTO journal SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i");
    }
    wait_quiet(&cluster.all());
    let place = n2.value("SELECT pg_current_wal_lsn()");
    // Logical decoding gives WAL up when it meets a list of running transactions.
    for _ in 0..3 {
        let before = n2.value("SELECT confirmed_flush_lsn FROM zodan.recovery_status LIMIT 1");
        n2.sql("SELECT pg_log_standby_snapshot(); INSERT INTO debit SELECT coalesce(max(id), 0) + 1, 0 FROM debit");
        n2.wait_for(
            &format!(
                "SELECT bool_and(confirmed_flush_lsn > '{before}') FROM zodan.recovery_status"
            ),
            "t",
        );
    }
    n2.wait_for(
        &format!("SELECT bool_and(restart_lsn >= '{place}') FROM zodan.recovery_status"),
        "t",
    );
    assert!(retained(n2) < 1 << 20, "{} bytes", retained(n2));
}

/// Waits until the server has logged it.
fn wait_log(server: &Server, text: &str) {
    let deadline = std::time::Instant::now() + lab::server::PATIENCE;
    while !server.log().contains(text) {
        assert!(
            std::time::Instant::now() < deadline,
            "{text:?} is not in the log of {}",
            server.name()
        );
        std::thread::sleep(common::POLL);
    }
}

#[test]
fn a_slot_that_holds_too_much_gives_up_and_says_so() {
    let cluster = mesh_with(3, &options().set("zodan.recovery_slot_max_wal", "4MB"));
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    suspend(n2, n1);
    n1.sql(
        "INSERT INTO journal SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i",
    );
    n3.wait_for("SELECT count(*) FROM journal", "20000");
    n3.wait_for(
        "SELECT count(*) FROM zodan.recovery_status WHERE exposed_at IS NOT NULL",
        "2",
    );
    wait_log(n3, "WARNING:  zodan: slot spk_recovery_");
    wait_log(n3, "more than zodan.recovery_slot_max_wal");
    n1.crash();
    let compared = recover(n2, "n1");
    let said = compared.notices.iter().any(|n| {
        n.message.contains("their contents are compared: the recovery slot of node \"n3\" cannot help: it has the transactions after ")
    });
    assert!(said, "{compared:?}");
    assert_same_content(&[n2, n3]);
}

/// The paper's scenario where nobody kept anything.
#[test]
fn without_a_slot_the_contents_are_compared() {
    let cluster = mesh_without_slots(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    papers_crash(&cluster);
    // What the survivors do meanwhile is theirs.
    n2.sql("INSERT INTO crash_test VALUES (5002, 'of n2', NULL)");
    n3.sql("INSERT INTO crash_test VALUES (5003, 'of n3', NULL)");
    assert_failed(
        &refused(n2, &call("n1", None, None, ", stop_timestamp := now()")),
        "22023",
        "without a recovery slot all or nothing can be brought over",
        "Leave skip_lsn, stop_lsn and stop_timestamp null.",
    );
    let compared = recover(n2, "n1");
    let said: Vec<&str> = compared
        .notices
        .iter()
        .map(|n| n.message.as_str())
        .collect();
    assert!(
        said.iter().any(|s| s.contains("their contents are compared: the recovery slot of node \"n3\" cannot help: there is no slot spk_recovery_")),
        "{said:?}"
    );
    assert!(
        !compared.notices.iter().any(|n| n.severity == "WARNING"),
        "{said:?}"
    );
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(rows(n2), "92");
    let times = "SELECT string_agg(id || ' ' || pg_xact_commit_timestamp(xmin), ',' ORDER BY id) FROM crash_test WHERE id < 5000";
    assert_eq!(n2.value(times), n3.value(times));
    let again = recover(n3, "n1");
    assert!(
        again
            .notices
            .iter()
            .any(|n| n.message == "nothing to do: every survivor has the same of \"n1\""),
        "{again:?}"
    );
}

/// What the function finds, and what the procedures say when they are asked to look.
#[test]
fn differences_between_members_are_found() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(1, 500) i");
    n1.sql("INSERT INTO journal VALUES (1, 'a'), (1, 'a')");
    wait_quiet(&cluster.all());
    let all = "SELECT concat_ws('|', table_name, reference_node, node, missing_rows, extra_rows, different_rows, keys)
                 FROM spock.verify_nodes() ORDER BY 1";
    let found = |node: &Server| {
        let rows = node.rows(all).into_iter().flatten().flatten();
        rows.collect::<Vec<String>>()
    };
    let load = Load::start(&cluster.all());
    load.wait_commits(10);
    assert_eq!(found(n2), Vec::<String>::new(), "while all write");
    assert!(load.stop().failures.is_empty());
    // What replication does not send on.
    n3.sql(
        "BEGIN; SELECT zodan.unreplicated(); DELETE FROM crash_test WHERE id IN (7, 8);
            INSERT INTO crash_test VALUES (1000); UPDATE crash_test SET data = NULL WHERE id = 9;
            INSERT INTO journal VALUES (1, 'a'); COMMIT",
    );
    assert_eq!(
        found(n1),
        [
            r#""public"."crash_test"|n1|n3|2|1|1|{(1000),(7),(8),(9)}"#,
            r#""public"."journal"|n1|n3|0|1|0|{"(1,a) (no. 3)"}"#,
        ]
    );
    suspend(n2, n1);
    n1.sql("INSERT INTO debit VALUES (1, 1)");
    n3.wait_for("SELECT count(*) FROM debit", "1");
    n1.crash();
    let recovered = n2
        .call(&call("n1", None, Some(n2), ", verify := true"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    // A comparison by content mends all that n2 lacks of n3, whoever made it so.
    assert!(
        recovered
            .notices
            .iter()
            .any(|n| n.message == "the survivors have the same content"),
        "{recovered:?}"
    );
}

#[test]
fn a_join_can_be_verified() {
    let cluster = Cluster::start_with(2, &options());
    cluster.form_mesh(1, &format!("{CONTENT}{}", load::SCHEMA));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("INSERT INTO crash_test SELECT i, 'row ' || i, NULL FROM generate_series(1, 500) i");
    let call = lab::cluster::add_node_call(n2, "n2", n1, "n1")
        .replace("new_node_dsn", "verify := true, new_node_dsn");
    let load = Load::start(&[n1]);
    let joined = n2.call(&call).unwrap_or_else(|failed| panic!("{failed}"));
    assert!(load.stop().failures.is_empty());
    assert!(
        joined
            .notices
            .iter()
            .any(|n| n.message == "node \"n2\" has the same content as node \"n1\""),
        "{joined:?}"
    );
}

/// A row that the failed node deleted, and that a survivor that did not know has changed since.
#[test]
fn what_cannot_be_told_is_listed() {
    let cluster = mesh_without_slots(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i");
    wait_quiet(&cluster.all());
    suspend(n2, n1);
    n1.sql("DELETE FROM crash_test WHERE id < 3");
    n3.wait_for("SELECT count(*) FROM crash_test", "1");
    n1.crash();
    n2.sql("UPDATE crash_test SET data = 'kept' WHERE id = 2");
    let compared = recover(n2, "n1");
    let warning = compared
        .notices
        .iter()
        .find(|n| n.severity == "WARNING")
        .unwrap_or_else(|| panic!("{compared:?}"));
    assert_eq!(
        warning.message,
        "1 rows differ between node \"n3\" and node \"n2\", and it cannot be told which is right: \"public\".\"crash_test\" (2)"
    );
    assert_eq!(
        n2.value("SELECT string_agg(id || data, ' ' ORDER BY id) FROM crash_test"),
        "2kept 3old"
    );
}

#[test]
fn a_preloaded_library_keeps_slots_by_itself() {
    let cluster = Cluster::start_with(2, &options().set("shared_preload_libraries", "zodan"));
    cluster.form_mesh(2, CONTENT);
    wait_protected(&cluster.all());
    let n2 = cluster.n(2);
    let keeper = n2.value("SELECT keeper_pid FROM zodan.recovery_status");
    assert_eq!(n2.value("SELECT zodan.keep_recovery_slot()"), keeper);
    n2.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    n2.wait_for("SELECT count(*) FROM pg_replication_slots", "0");
    n2.wait_for("SELECT count(*) FROM zodan.recovery", "0");
    let failed = n2.sql_error("SELECT zodan.keep_recovery_slot()");
    assert_failed(
        &failed,
        "55000",
        "the database is no node of a cluster",
        "Add it to one first.",
    );
}
