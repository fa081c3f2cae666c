//! A node died, and the survivors have different parts of what it wrote. Afterwards they have the same: each
//! transaction once, whole, with its time, whatever happens on the way, and whatever the cluster replicates with.

mod common;

use common::engines::{On, on_both_engines};
use common::recovery::{
    CONTENT, assert_nothing_held, assert_nothing_to_do, assert_whole, call, crash_with_all_on_disk,
    crash_with_unequal_survivors, recover, remove, rows, run,
};
use common::{Running, assert_failed, fingerprint, wait_no_sessions};
use lab::load::LoadOptions;
use lab::postgres::Client;
use lab::{Cluster, Load, Server, add_node, assert_same_content, quote_literal, wait_quiet};

on_both_engines! {
    survivors_are_equal_after_a_recovery_from_a_slot,
    survivors_are_equal_after_a_recovery_in_its_parts,
    survivors_are_equal_after_a_recovery_without_slots,
    copied_rows_are_decided_after_a_crash_of_their_node,
    comparison_is_made_again_when_the_member_that_was_away_is_back,
    comparison_with_an_undecided_survivor_is_made_again_too,
    note_of_an_undecided_comparison_goes_with_the_dead_node,
    deletions_of_the_member_that_was_away_hold_when_it_is_back,
    rows_of_the_member_that_was_away_come_when_it_is_back,
    three_nodes_recover_under_load_from_slots,
    five_nodes_recover_under_load_from_slots,
    three_nodes_recover_under_load_without_slots,
    five_nodes_recover_under_load_without_slots,
    no_transaction_is_seen_in_part_during_a_recovery,
    recovery_that_was_killed_is_finished_by_the_next_call,
    recovery_that_was_killed_is_finished_from_another_node,
    replayed_truncate_deletes_what_it_deleted_on_the_source,
    survivors_are_equal_when_two_nodes_died_and_none_has_all,
    changes_that_a_survivor_makes_after_the_crash_stay,
    recovery_of_a_living_node_is_refused_and_of_equal_survivors_changes_nothing,
    recovery_with_wrong_arguments_is_refused,
    removal_drops_what_an_unfinished_recovery_holds,
    unfinished_recovery_of_a_node_that_is_back_is_ended_by_force,
}

fn survivors_are_equal_after_a_recovery_from_a_slot(on: On) {
    let cluster = on.mesh(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    crash_with_unequal_survivors(on, &cluster);
    let failed = n2.sql_error("CALL spock.remove_node('n1')");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\" lacks transactions of \"n1\" that node \"n3\" has",
        "CALL spock.recover_run(failed_node_name := 'n1', source_node_name := 'n3', ...)",
    );
    // Nothing had been done.
    let told: Vec<&str> = failed.notices.iter().map(|n| n.message.as_str()).collect();
    assert!(!told.iter().any(|t| t.contains("undoing")), "{told:?}");
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
    assert_nothing_to_do(&recover(n2, "n1"));
    remove(n2, "n1");
    assert_nothing_held(&[n2, n3]);
    for node in [n2, n3] {
        node.sql(&format!(
            "INSERT INTO crash_test VALUES (2000 + {}, 'after', NULL)",
            node.port()
        ));
    }
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
}

/// All other subscriptions are suspended too, and the recovery is done in its parts.
fn survivors_are_equal_after_a_recovery_in_its_parts(on: On) {
    let cluster = on.mesh(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    crash_with_unequal_survivors(on, &cluster);
    on.suspend(n2, n3);
    on.suspend(n3, n2);
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
        &n2.sql_error(&finalize("nothing")),
        "42704",
        "argument cloned_slot_name is \"nothing\", which is not a slot of a survivor",
        "Give the name that recover_phase_clone returned",
    );
    n2.sql(&finalize(&clone));
    assert_eq!(
        n3.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'"),
        "0"
    );
    assert_same_content(&[n2, n3]);
    for (a, b) in [(n2, n3), (n3, n2)] {
        on.resume(a, b);
    }
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
}

/// The paper's scenario where nobody kept anything.
fn survivors_are_equal_after_a_recovery_without_slots(on: On) {
    let cluster = on.mesh_without_slots(3);
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    crash_with_unequal_survivors(on, &cluster);
    // What the survivors do meanwhile is theirs.
    n2.sql("INSERT INTO crash_test VALUES (5002, 'of n2', NULL)");
    n3.sql("INSERT INTO crash_test VALUES (5003, 'of n3', NULL)");
    assert_failed(
        &n2.sql_error(&call("n1", None, None, ", stop_timestamp := now()")),
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
        said.iter().any(|s| s.contains("their contents are compared: cannot recover from the slot of node \"n3\": there is no slot spk_recovery_")),
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
    assert_nothing_to_do(&recover(n3, "n1"));
}

/// By their times all members have had them, also when redo has made them again.
fn copied_rows_are_decided_after_a_crash_of_their_node(on: On) {
    let timestamps = [("track_commit_timestamp", "on")];
    let cluster = on.start_with(2, 1, CONTENT, &timestamps);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 4) i");
    wait_quiet(&[n1, n2]);
    add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    on.suspend(n3, n1);
    n1.sql("UPDATE crash_test SET data = 'new' WHERE id = 1; DELETE FROM crash_test WHERE id = 2");
    n2.wait_for(ROWS, "1 new, 3 old, 4 old");
    n1.crash();
    n3.crash();
    n3.boot();
    assert_eq!(n3.value(ROWS), "1 old, 2 old, 3 old, 4 old");
    let undated = "SELECT count(*) FROM crash_test WHERE pg_xact_commit_timestamp(xmin) IS NULL";
    assert_eq!(n3.value(undated), "0");
    let decided = recover(n3, "n1");
    assert!(decided.warnings().is_empty(), "{decided:?}");
    wait_quiet(&[n2, n3]);
    assert_eq!(n3.value(ROWS), "1 new, 3 old, 4 old");
    assert_same_content(&[n2, n3]);
}

/// n1 is dead and n4 is away. n3 lacks deletions of n1, as n4 does if it `lags`, and has rows of n4 that n2 lacks: nobody
/// knows which is which.
fn one_dead_one_away(on: On, lags: bool) -> Cluster {
    let cluster = on.mesh_without_slots(4);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 4) i");
    wait_quiet(&[n1, n2, n3, n4]);
    on.suspend(n2, n4);
    n4.sql("INSERT INTO crash_test VALUES (9, 'of n4', NULL)");
    for node in [n1, n3] {
        node.wait_for("SELECT count(*) FROM crash_test", "5");
    }
    n3.sql("UPDATE crash_test SET data = 'of n3' WHERE id <= 3");
    for node in [n1, n2, n4] {
        let changed = "SELECT count(*) FROM crash_test WHERE data = 'of n3'";
        node.wait_for(changed, "3");
    }
    on.suspend(n3, n1);
    if lags {
        on.suspend(n4, n1);
    }
    n1.sql(
        "DELETE FROM crash_test WHERE id = 1; UPDATE crash_test SET id = 20 WHERE id = 2;
         INSERT INTO crash_test VALUES (30, 'of n1', NULL)",
    );
    for node in [n2, n4].into_iter().take(if lags { 1 } else { 2 }) {
        let ids = "SELECT count(*) FROM crash_test WHERE id IN (1, 2, 20, 30)";
        node.wait_for(ids, "2");
    }
    n4.stop();
    n1.crash();
    cluster
}

/// All members are there: a recovery, called on `node`, decides everything. Each member has `rows` then, and n1 can be
/// removed.
fn assert_decides(cluster: &Cluster, node: &Server, rows: &str) {
    let [n2, n3, n4] = [2, 3, 4].map(|i| cluster.n(i));
    let decided = recover(node, "n1");
    assert!(decided.warnings().is_empty(), "{decided:?}");
    wait_quiet(&[n2, n3, n4]);
    assert_eq!(n3.value(ROWS), rows);
    assert_same_content(&[n2, n3, n4]);
    assert_nothing_to_do(&recover(n3, "n1"));
    remove(n2, "n1");
    assert_nothing_held(&[n2, n3, n4]);
}

/// What [`one_dead_one_away`] comes to.
const DECIDED: &str = "3 of n3, 4 old, 9 of n4, 20 of n3, 30 of n1";

const ROWS: &str = "SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test";

fn comparison_is_made_again_when_the_member_that_was_away_is_back(on: On) {
    let cluster = one_dead_one_away(on, false);
    let [n2, n3, n4] = [2, 3, 4].map(|i| cluster.n(i));
    let ids = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM crash_test";
    let left_alone = |node: &Server| {
        let called = recover(node, "n1");
        let warnings = called.warnings();
        assert!(
            warnings.iter().any(|w| w.contains("3 rows differ between node \"n2\" and node \"n3\", and are left alone, since they are or may be of node \"n4\", which is away: ")),
            "{called:?}"
        );
        assert_eq!(n2.value(ids), "3 4 20 30");
        assert_eq!(n3.value(ids), "1 2 3 4 9 20 30");
    };
    left_alone(n2);
    let told =
        "SELECT last_error FROM spock.cluster_status() WHERE provider = 'n1' AND subscriber = 'n3'";
    let told = n2.value(told);
    assert!(
        told.contains("a recovery by comparison left rows alone while a member was away: CALL spock.recover_run('n1') when all members are there"),
        "{told}"
    );
    // It knows still what n3 had of n1 before the first comparison.
    left_alone(n3);
    n4.boot();
    on.resume(n2, n4);
    assert_failed(
        &n2.sql_error("CALL spock.remove_node('n1')"),
        "55000",
        "a recovery from the loss of \"n1\" left rows of node \"n3\" alone while a member was away",
        "When all members are there, CALL spock.recover_run('n1') decides them.",
    );
    n2.wait_for("SELECT count(*) FROM crash_test WHERE id = 9", "1");
    assert_decides(&cluster, n2, DECIDED);
}

/// n4 is made what n3 is, which is not decided yet, while n2 is away.
fn comparison_with_an_undecided_survivor_is_made_again_too(on: On) {
    let cluster = one_dead_one_away(on, true);
    let [n2, n3, n4] = [2, 3, 4].map(|i| cluster.n(i));
    recover(n2, "n1");
    n2.stop();
    n4.boot();
    wait_quiet(&[n3, n4]);
    recover(n3, "n1");
    n2.boot();
    on.resume(n2, n4);
    n2.wait_for("SELECT count(*) FROM crash_test WHERE id = 9", "1");
    assert_decides(&cluster, n2, DECIDED);
}

/// n1 is removed by force while n3 is away.
fn note_of_an_undecided_comparison_goes_with_the_dead_node(on: On) {
    let cluster = one_dead_one_away(on, false);
    let [n2, n3, n4] = [2, 3, 4].map(|i| cluster.n(i));
    recover(n2, "n1");
    let notes = "SELECT count(*) FROM pg_replication_origin WHERE roname ~ '^zodan_'";
    assert_eq!(n3.value(notes), "1");
    n4.boot();
    on.resume(n2, n4);
    n2.wait_for("SELECT count(*) FROM crash_test WHERE id = 9", "1");
    n3.stop();
    let removed = run(n2, "CALL spock.remove_node('n1', force := true)");
    n3.boot();
    // Spock has nobody who remembers it.
    for notice in removed.notices {
        let hint = notice.hint.unwrap_or_default();
        if let Some((_, statements)) = hint.split_once("Run there when it can be reached: ") {
            n3.sql(statements);
        }
    }
    run(n2, "CALL spock.remove_node('n1')");
    assert_eq!(n3.value(notes), "0");
}

/// n3 has got what n4 did to rows of n1 and n2, and some of these rows it gets by the comparison only.
fn deletions_of_the_member_that_was_away_hold_when_it_is_back(on: On) {
    let cluster = on.mesh_without_slots(4);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    on.suspend(n3, n1);
    on.suspend(n2, n4);
    n1.sql("INSERT INTO crash_test VALUES (50, 'of n1', NULL), (51, 'of n1', NULL), (52, 'of n1', NULL)");
    n2.sql("INSERT INTO crash_test VALUES (60, 'of n2', NULL)");
    n2.wait_for("SELECT count(*) FROM crash_test", "4");
    n4.wait_for("SELECT count(*) FROM crash_test", "4");
    n3.wait_for("SELECT count(*) FROM crash_test", "1");
    // Apart, or Spock discards all of it with the row that it does not find.
    n4.sql("UPDATE crash_test SET data = 'of n4' WHERE id = 51");
    n4.sql("DELETE FROM crash_test WHERE id IN (50, 60)");
    n3.wait_for("SELECT count(*) FROM crash_test", "0");
    n4.stop();
    n1.crash();
    let called = recover(n2, "n1");
    let told = "4 of the rows that were copied to node \"n3\" may have been deleted or changed there by node \"n4\", which is away";
    assert_eq!(called.warnings().last(), Some(&told), "{called:?}");
    n4.boot();
    on.resume(n2, n4);
    n2.wait_for("SELECT count(*) FROM crash_test", "2");
    assert_decides(&cluster, n3, "51 of n4, 52 of n1");
}

/// n3 has not got a row of n4 that others have changed. To bring it would have n4's own INSERT fail.
fn rows_of_the_member_that_was_away_come_when_it_is_back(on: On) {
    let cluster = on.mesh_without_slots(4);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    on.suspend(n3, n4);
    n4.sql("INSERT INTO crash_test VALUES (71, 'of n4', NULL), (72, 'of n4', NULL)");
    for node in [n1, n2] {
        node.wait_for("SELECT count(*) FROM crash_test", "2");
    }
    on.suspend(n3, n1);
    n2.sql("UPDATE crash_test SET data = 'of n2' WHERE id = 71");
    n1.wait_for("SELECT count(*) FROM crash_test WHERE data = 'of n2'", "1");
    n1.sql("UPDATE crash_test SET data = 'of n1' WHERE id = 72; INSERT INTO crash_test VALUES (80, 'of n1', NULL)");
    n2.wait_for(ROWS, "71 of n2, 72 of n1, 80 of n1");
    n4.wait_for(ROWS, "71 of n2, 72 of n1, 80 of n1");
    n4.stop();
    n1.crash();
    let called = recover(n2, "n1");
    assert!(
        called.warnings().iter().any(|w| w.contains("3 rows differ between node \"n2\" and node \"n3\", and are left alone, since they are or may be of node \"n4\", which is away: ")),
        "{called:?}"
    );
    n4.boot();
    on.resume(n3, n4);
    n4.sql("INSERT INTO crash_test VALUES (90, 'of n4', NULL)");
    n3.wait_for("SELECT count(*) FROM crash_test", "3");
    assert_decides(&cluster, n3, "71 of n2, 72 of n1, 80 of n1, 90 of n4");
}

/// Transactions of [`move_amounts`].
const MOVED: u32 = 1000;

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
fn killed_under_load(on: On, cluster: &Cluster, members: usize, seed: u64) {
    let mut dice = Dice(seed);
    let n1 = cluster.n(1);
    let survivors: Vec<&Server> = cluster.first(members)[1..].to_vec();
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
            on.suspend(node, n1);
        }
        n1.sql(
            "BEGIN; INSERT INTO scratch SELECT generate_series(1, 20); TRUNCATE scratch; COMMIT",
        );
        n1.sql("INSERT INTO scratch SELECT generate_series(1, 10)");
        n1.sql(&format!(
            "BEGIN; INSERT INTO debit VALUES ({i}, 7); INSERT INTO credit (amount) VALUES (7); COMMIT"
        ));
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
        assert_whole(node);
    }
    remove(here, "n1");
}

fn three_nodes_recover_under_load_from_slots(on: On) {
    for seed in 0..10 {
        killed_under_load(on, &on.mesh(3), 3, seed);
    }
}

fn five_nodes_recover_under_load_from_slots(on: On) {
    for seed in 10..20 {
        killed_under_load(on, &on.mesh(5), 5, seed);
    }
}

fn three_nodes_recover_under_load_without_slots(on: On) {
    for seed in 20..30 {
        killed_under_load(on, &on.mesh_without_slots(3), 3, seed);
    }
}

fn five_nodes_recover_under_load_without_slots(on: On) {
    for seed in 30..40 {
        killed_under_load(on, &on.mesh_without_slots(5), 5, seed);
    }
}

/// n1 moves amounts between two tables, which n3 gets and n2 does not, and dies.
fn move_amounts(on: On, cluster: &Cluster) {
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    on.suspend(n2, n1);
    n1.sql(&format!(
        "DO $$ BEGIN FOR i IN 1..{MOVED} LOOP
              INSERT INTO debit VALUES (i, i); INSERT INTO credit (amount) VALUES (i); COMMIT;
            END LOOP; END $$"
    ));
    n3.wait_for("SELECT count(*) FROM debit", &MOVED.to_string());
    n1.crash();
}

fn no_transaction_is_seen_in_part_during_a_recovery(on: On) {
    let cluster = on.mesh(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    move_amounts(on, &cluster);
    let run = Running::start(n3, &call("n1", None, None, ""));
    let mut seen = 0;
    while !run.is_finished() {
        assert_whole(n2);
        seen += 1;
    }
    run.succeeds();
    assert!(seen > 0, "nobody looked");
    assert_same_content(&[n2, n3]);
}

/// Holds the replay up in its middle, at one row of the target.
fn hold_row(target: &Server) -> Client {
    let mut holder = target.client_named("holder");
    holder
        .batch_execute("BEGIN; INSERT INTO debit VALUES (500, 0)")
        .expect("hold a row");
    holder
}

/// What falls in the middle of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Backend,
    Target,
    Source,
}

/// What is killed in the middle is finished by the next call.
fn kill_and_recover_again(on: On, victim: Victim) {
    let cluster = on.mesh(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    move_amounts(on, &cluster);
    // The coordinator is one that does not fall.
    let here = if victim == Victim::Target { n3 } else { n2 };
    let holder = hold_row(n2);
    let run = Running::start(here, &call("n1", None, None, ""));
    n2.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted", "t");
    match victim {
        Victim::Backend => {
            here.sql(&format!("SELECT pg_terminate_backend({}, 10000)", run.pid));
            run.ends_terminated();
            drop(holder);
        }
        Victim::Target => {
            n2.crash();
            let failed = run.fails();
            assert_eq!(failed.code(), "08006", "{failed}");
            n2.boot();
            drop(holder);
        }
        Victim::Source => {
            crash_with_all_on_disk(n3);
            drop(holder);
            let failed = run.fails();
            assert!(["08006", "08001"].contains(&failed.code()), "{failed}");
            n3.boot();
            n3.sql("SELECT zodan.start_node_worker()");
        }
    }
    wait_no_sessions(&[n2, n3]);
    assert_whole(n2);
    recover(here, "n1");
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    let sum = MOVED * (MOVED + 1) / 2;
    assert_eq!(
        n2.value("SELECT count(*) || ' ' || sum(amount) FROM credit"),
        format!("{MOVED} {sum}")
    );
    assert_nothing_held(&[n2, n3]);
}

fn recovery_that_was_killed_is_finished_by_the_next_call(on: On) {
    for victim in [Victim::Backend, Victim::Target, Victim::Source] {
        kill_and_recover_again(on, victim);
    }
}

/// A call ends when its target has all of n1, and not yet what n3 did to it. The next one, on the other survivor,
/// does that, though the recovery slot could have been moved since.
fn recovery_that_was_killed_is_finished_from_another_node(on: On) {
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    on.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'new', NULL FROM generate_series(11, 15) i");
    n3.wait_for("SELECT count(*) FROM crash_test", "5");
    n1.crash();
    n3.sql("UPDATE crash_test SET id = 30 WHERE id = 11");
    wait_quiet(&[n2, n3]);
    let mut holder = n2.client_named("holder");
    holder
        .batch_execute("BEGIN; INSERT INTO crash_test VALUES (30)")
        .expect("hold the row up");
    let run = Running::start(n2, &call("n1", None, None, ""));
    n2.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted", "t");
    assert_eq!(rows(n2), "5");
    n2.sql(&format!("SELECT pg_terminate_backend({}, 10000)", run.pid));
    run.ends_terminated();
    drop(holder);
    wait_no_sessions(&[n2, n3]);
    let failed = n3.sql_error("CALL spock.remove_node('n1')");
    assert_failed(
        &failed,
        "55000",
        "node \"n2\" lacks transactions of \"n1\" that node \"n3\" has",
        "Bring them over first",
    );
    // n3's node worker has looked at n2 since.
    let now = n2.value("SELECT clock_timestamp()");
    n2.wait_for(
        &format!(
            "SELECT bool_and(query_start > timestamptz '{now}' + interval '1 s') FROM pg_stat_activity WHERE application_name = 'zodan node worker'"
        ),
        "t",
    );
    recover(n3, "n1");
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(
        n2.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM crash_test"),
        "12 13 14 15 30"
    );
    assert_nothing_held(&[n2, n3]);
    assert_nothing_to_do(&recover(n2, "n1"));
}

/// n1's TRUNCATE comes to n3 between two rows of n2 that are both older.
fn replayed_truncate_deletes_what_it_deleted_on_the_source(on: On) {
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n2.sql("INSERT INTO scratch VALUES (1)");
    wait_quiet(&[n1, n2, n3]);
    on.suspend(n3, n2);
    on.suspend(n2, n1);
    n2.sql("INSERT INTO scratch VALUES (2)");
    n1.sql("TRUNCATE scratch; INSERT INTO scratch VALUES (3)");
    n3.wait_for("SELECT string_agg(id::text, ' ') FROM scratch", "3");
    n1.crash();
    on.resume(n3, n2);
    n2.sql("INSERT INTO scratch VALUES (4)");
    wait_quiet(&[n2, n3]);
    recover(n2, "n1");
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(
        n2.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM scratch"),
        "2 3 4"
    );
}

/// How two dead nodes are recovered from: what with, and which one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TwoDeaths {
    slots: bool,
    first: &'static str,
    second: &'static str,
}

/// Both ways in both orders.
const TWO_DEATHS: [TwoDeaths; 4] = [
    TwoDeaths {
        slots: true,
        first: "n1",
        second: "n2",
    },
    TwoDeaths {
        slots: true,
        first: "n2",
        second: "n1",
    },
    TwoDeaths {
        slots: false,
        first: "n1",
        second: "n2",
    },
    TwoDeaths {
        slots: false,
        first: "n2",
        second: "n1",
    },
];

/// Nobody has all: n3 is ahead for n1, n4 for n2, in what they inserted, and in what they updated and deleted of
/// rows that all had got, whoever had written them.
fn recover_from_two_deaths(on: On, how: TwoDeaths) -> Cluster {
    let cluster = match how.slots {
        true => on.mesh(4),
        false => on.mesh_without_slots(4),
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'n1', NULL FROM generate_series(1, 20) i");
    n2.sql("INSERT INTO crash_test SELECT i, 'n2', NULL FROM generate_series(21, 40) i");
    n3.sql("INSERT INTO crash_test SELECT i, 'n3', NULL FROM generate_series(41, 60) i");
    wait_quiet(&cluster.first(4));
    on.suspend(n4, n1);
    on.suspend(n3, n2);
    // n2 first: what it wrote is older than the newest of n1 on n3.
    n2.sql("INSERT INTO debit SELECT i, 2 FROM generate_series(101, 140) i");
    n2.sql("UPDATE crash_test SET data = 'by n2' WHERE id IN (1, 21, 41)");
    n2.sql("DELETE FROM crash_test WHERE id IN (2, 22, 42)");
    n4.wait_for("SELECT count(*) FROM crash_test", "57");
    wait_quiet(&[n1, n2]);
    n1.sql("INSERT INTO debit SELECT i, 1 FROM generate_series(1, 30) i");
    n1.sql("UPDATE crash_test SET data = 'by n1' WHERE id IN (3, 23, 43)");
    n1.sql("DELETE FROM crash_test WHERE id IN (4, 24, 44)");
    n3.wait_for("SELECT count(*) FROM crash_test", "57");
    // A survivor goes on with what only it has of n2.
    n4.sql("UPDATE debit SET amount = 4 WHERE id = 140");
    wait_quiet(&[n3, n4]);
    n1.crash();
    n2.crash();
    if !how.slots {
        // As they were while the nodes lived, so that nothing but their death keeps them.
        on.resume(n4, n1);
        on.resume(n3, n2);
    }
    recover(n3, how.first);
    recover(n3, how.second);
    wait_quiet(&[n3, n4]);
    assert_same_content(&[n3, n4]);
    assert_eq!(
        n4.value("SELECT string_agg(c, ' ' ORDER BY c) FROM (SELECT amount || ':' || count(*) AS c FROM debit GROUP BY amount) x"),
        "1:30 2:39 4:1"
    );
    assert_eq!(
        n4.value("SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test WHERE data LIKE 'by%'"),
        "1 by n2, 3 by n1, 21 by n2, 23 by n1, 41 by n2, 43 by n1"
    );
    assert_eq!(rows(n4), "54");
    let failed = n3.sql_error("CALL spock.remove_node('n1')");
    assert_eq!(failed.code(), "08001", "n2 cannot be reached: {failed}");
    for (gone, force) in [("n1", true), ("n2", false)] {
        run(
            n3,
            &format!("CALL spock.remove_node('{gone}', force := {force})"),
        );
    }
    n4.sql("INSERT INTO debit VALUES (1000, 4)");
    n3.wait_for("SELECT count(*) FROM debit", "71");
    cluster
}

/// By the slots and by comparison, in both orders.
fn survivors_are_equal_when_two_nodes_died_and_none_has_all(on: On) {
    for how in TWO_DEATHS {
        eprintln!("{how:?}");
        let cluster = recover_from_two_deaths(on, how);
        for node in [3, 4].map(|i| cluster.n(i)) {
            assert_eq!(
                node.value("SELECT count(*) FROM zodan.pending_cleanup"),
                "0"
            );
        }
    }
}

/// A survivor has changed rows that the other one had not got: it could do nothing with the changes then.
fn changes_that_a_survivor_makes_after_the_crash_stay(on: On) {
    let cluster = on.mesh(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    change_later(on, &cluster);
    recover(n2, "n1");
    assert_later_changes(n2, n3);
}

/// n2 lacks what n1 wrote, and n3 changes that when n1 is dead.
fn change_later(on: On, cluster: &Cluster) {
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 5) i");
    wait_quiet(&[n1, n2, n3]);
    on.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test SELECT i, 'new', NULL FROM generate_series(11, 15) i");
    n1.sql("UPDATE crash_test SET data = 'of n1' WHERE id IN (1, 2)");
    n3.wait_for("SELECT count(*) FROM crash_test WHERE data = 'of n1'", "2");
    n1.crash();
    n3.sql("UPDATE crash_test SET data = 'of n3' WHERE id IN (1, 11)");
    n3.sql("DELETE FROM crash_test WHERE id = 12");
    n2.sql("UPDATE crash_test SET data = 'of n2' WHERE id = 2");
    wait_quiet(&[n2, n3]);
}

/// What [`change_later`] leads to.
fn assert_later_changes(n2: &Server, n3: &Server) {
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(
        n2.value("SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test WHERE data <> 'old'"),
        "1 of n3, 2 of n2, 11 of n3, 13 new, 14 new, 15 new"
    );
}

/// A node that lives is refused, and where nothing is missing nothing is changed.
fn recovery_of_a_living_node_is_refused_and_of_equal_survivors_changes_nothing(on: On) {
    let cluster = on.mesh(3);
    let nodes = cluster.first(3);
    let n2 = cluster.n(2);
    let before = fingerprint(&nodes);
    assert_failed(
        &n2.sql_error(&call("n1", None, None, "")),
        "55006",
        "node \"n1\" is alive: it answers",
        "With force := true it is treated as dead.",
    );
    assert_nothing_to_do(&run(n2, &call("n1", None, None, ", force := true")));
    before.assert_same_now(&nodes);
    cluster.n(1).crash();
    let before = fingerprint(&nodes[1..]);
    assert_nothing_to_do(&recover(n2, "n1"));
    before.assert_same_now(&nodes[1..]);
}

fn recovery_with_wrong_arguments_is_refused(on: On) {
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    on.suspend(n2, n1);
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
            "argument failed_node_name is \"n9\", which is not a node of this cluster",
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
            "argument source_node_name is \"n8\", which is not a survivor",
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
        assert_failed(&here.sql_error(sql), code, message, hint);
    }
    let wrong = format!(
        "CALL spock.recover_run('n1', 'n3', {})",
        quote_literal(&n2.dsn())
    );
    assert_failed(
        &n2.sql_error(&wrong),
        "22023",
        "the connection string of node \"n3\" does not lead to that node",
        "Correct source_dsn or target_dsn",
    );
    before.assert_same_now(&[n2, n3]);
}

/// What a recovery that has no end holds goes with the node that it is about, wherever the removal is called.
fn removal_drops_what_an_unfinished_recovery_holds(on: On) {
    for interrupted in [true, false] {
        let cluster = on.mesh(3);
        let [n2, n3] = [2, 3].map(|i| cluster.n(i));
        move_amounts(on, &cluster);
        let more = if interrupted {
            let holder = hold_row(n2);
            let run = Running::start(n2, &call("n1", None, None, ""));
            n2.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted", "t");
            n2.sql(&format!("SELECT pg_terminate_backend({}, 10000)", run.pid));
            run.ends_terminated();
            drop(holder);
            wait_no_sessions(&[n2, n3]);
            ", force := true"
        } else {
            n2.sql("CALL spock.recover_phase_clone('n1', NULL, NULL, NULL, NULL, NULL)");
            ""
        };
        assert_eq!(
            n3.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'"),
            "1"
        );
        run(n3, &format!("CALL spock.remove_node('n1'{more})"));
        assert_nothing_held(&[n2, n3]);
        n3.sql("INSERT INTO scratch VALUES (3)");
        n2.wait_for("SELECT count(*) FROM scratch", "1");
        let failed =
            n2.sql_error("CALL spock.recover_finalize(NULL, NULL, 'n1', NULL, 'gone', true)");
        assert_failed(
            &failed,
            "42704",
            "argument cloned_slot_name is \"gone\", which is not a slot of a survivor",
            "Give the name that recover_phase_clone returned",
        );
    }
}

/// It is refused for a node that has come back, and what was held is let go all the same.
fn unfinished_recovery_of_a_node_that_is_back_is_ended_by_force(on: On) {
    let cluster = on.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    move_amounts(on, &cluster);
    let holder = hold_row(n2);
    let run = Running::start(n3, &call("n1", None, None, ""));
    n2.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted", "t");
    n3.sql(&format!("SELECT pg_terminate_backend({}, 10000)", run.pid));
    run.ends_terminated();
    drop(holder);
    wait_no_sessions(&[n2, n3]);
    n1.boot();
    let failed = n3.sql_error("CALL spock.recover_run('n1')");
    assert_failed(
        &failed,
        "55006",
        "node \"n1\" is alive: it answers",
        "CALL spock.recover_run('n1', force := true) comes to its end, also beside the node",
    );
    on.resume(n2, n1);
    wait_quiet(&[n1, n2, n3]);
    assert_same_content(&[n1, n2, n3]);
    let told = "SELECT count(*) FROM spock.cluster_status()
                 WHERE provider = 'n1' AND subscriber = 'n2' AND last_error LIKE 'a recovery of \"n1\" for it is not finished%'";
    assert_eq!(n3.value(told), "1");
    n3.call("CALL spock.recover_run('n1', force := true)")
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(n3.value(told), "0");
    wait_quiet(&[n1, n2, n3]);
    assert_same_content(&[n1, n2, n3]);
    let slots =
        n3.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'");
    assert_eq!(slots, "0");
}
