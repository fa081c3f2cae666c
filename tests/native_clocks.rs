//! Recovery by comparison where clocks differ, or are set: what a member that is away wrote is neither deleted nor brought
//! as another's.

mod common;

use common::engines::On;
use common::recovery::{CONTENT, assert_nothing_held, options, recover, remove};
use common::wait_mesh;
use lab::clock::{self, Clock};
use lab::{Called, Cluster, Server, assert_same_content, wait_quiet};

const ROWS: &str = "SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test";

/// Four members; the clock of `name` is ahead by 30 s. `None` where there are no such clocks.
fn mesh(name: &str) -> Option<(Cluster, Clock)> {
    if !clock::announced() {
        return None;
    }
    let clock = Clock::new("+30");
    let cluster = Cluster::start_each(4, |server| match server == name {
        true => clock.of(options()),
        false => options(),
    });
    cluster.form_mesh(4, CONTENT);
    wait_mesh(&cluster.all());
    cluster
        .n(2)
        .sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i");
    wait_quiet(&cluster.all());
    Some((cluster, clock))
}

/// The failed node deletes a row and inserts one, of which n2 hears and n3 does not.
fn unequal_survivors(cluster: &Cluster, failed: &Server) {
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    On::Native.suspend(n3, failed);
    failed.sql("DELETE FROM crash_test WHERE id = 3; INSERT INTO crash_test VALUES (200, 'of failed', NULL)");
    n2.wait_for("SELECT count(*) FROM crash_test WHERE id IN (3, 200)", "1");
}

/// Both nodes die, and only that of `failed` is recovered from: the rows of `away` are left alone as such.
fn recover_beside(cluster: &Cluster, failed: &Server, away: &Server, left: &[&str]) {
    failed.crash();
    away.crash();
    let compared = recover(cluster.n(2), failed.name());
    let warnings = compared.warnings();
    let told = format!(
        "since they are or may be of node \"{}\", which is away",
        away.name()
    );
    let told = warnings.iter().find(|w| w.contains(&told));
    for key in left {
        assert!(
            told.is_some_and(|told| told.contains(key)),
            "{key}: {compared:?}"
        );
    }
}

/// The member is back, and the recovery of `failed` is made again.
fn recover_again<'a>(
    cluster: &'a Cluster,
    failed: &Server,
    away: &Server,
) -> (Called, Vec<&'a Server>) {
    let all = cluster.all().into_iter();
    let others: Vec<&Server> = all.filter(|n| n.name() != failed.name()).collect();
    away.boot();
    for node in [cluster.n(2), cluster.n(3)] {
        On::Native.resume(node, away);
    }
    wait_quiet(&others);
    let called = recover(cluster.n(2), failed.name());
    wait_quiet(&others);
    (called, others)
}

/// All becomes alike when the member is back, and the dead node can go.
fn assert_decided(cluster: &Cluster, failed: &Server, away: &Server, rows: &str) {
    let (decided, others) = recover_again(cluster, failed, away);
    assert!(decided.warnings().is_empty(), "{decided:?}");
    assert_same_content(&others);
    assert_eq!(cluster.n(3).value(ROWS), rows);
    remove(cluster.n(2), failed.name());
    assert_nothing_held(&others);
}

#[test]
fn rows_of_a_member_whose_clock_went_back_stay() {
    let Some((cluster, clock)) = mesh("n4") else {
        return;
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n4.sql("INSERT INTO crash_test VALUES (100, 'of n4', NULL)");
    wait_quiet(&cluster.all());
    clock.set("+0");
    On::Native.suspend(n2, n4);
    n4.sql("INSERT INTO crash_test VALUES (101, 'of n4', NULL); UPDATE crash_test SET data = 'n4' WHERE id = 1");
    n3.wait_for("SELECT data FROM crash_test WHERE id = 1", "n4");
    unequal_survivors(&cluster, n1);
    recover_beside(&cluster, n1, n4, &["(1)", "(101)", "(200)"]);
    assert_eq!(n3.value(ROWS), "1 n4, 2 old, 100 of n4, 101 of n4");
    assert_decided(
        &cluster,
        n1,
        n4,
        "1 n4, 2 old, 100 of n4, 101 of n4, 200 of failed",
    );
}

#[test]
fn rows_written_before_the_joining_by_a_clock_that_was_ahead_stay() {
    let Some((cluster, _clock)) = mesh("n4") else {
        return;
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    On::Native.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test VALUES (101, 'of n1', NULL); UPDATE crash_test SET data = 'n1' WHERE id = 1");
    n3.wait_for("SELECT data FROM crash_test WHERE id = 1", "n1");
    unequal_survivors(&cluster, n4);
    recover_beside(&cluster, n4, n1, &["(1)", "(101)"]);
    assert_eq!(n3.value(ROWS), "1 n1, 2 old, 101 of n1, 200 of failed");
    assert_decided(&cluster, n4, n1, "1 n1, 2 old, 101 of n1, 200 of failed");
}

#[test]
fn own_change_of_a_row_of_a_member_whose_clock_is_ahead_stays() {
    let Some((cluster, _clock)) = mesh("n1") else {
        return;
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    On::Native.suspend(n2, n1);
    n1.sql("INSERT INTO crash_test VALUES (101, 'of n1', NULL)");
    n3.wait_for("SELECT count(*) FROM crash_test", "4");
    n3.sql("UPDATE crash_test SET data = 'of n3' WHERE id = 101");
    unequal_survivors(&cluster, n4);
    recover_beside(&cluster, n4, n1, &["(101)"]);
    assert_eq!(n3.value(ROWS), "1 old, 2 old, 101 of n3, 200 of failed");
}

#[test]
fn rows_of_a_member_whose_clock_is_ahead_are_not_brought_as_those_of_others() {
    let Some((cluster, _clock)) = mesh("n1") else {
        return;
    };
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    On::Native.suspend(n3, n1);
    n1.sql("INSERT INTO crash_test VALUES (101, 'of n1', NULL)");
    for node in [n2, n4] {
        node.wait_for("SELECT count(*) FROM crash_test", "4");
    }
    n4.sql("UPDATE crash_test SET data = 'of n4' WHERE id = 101");
    n2.wait_for("SELECT data FROM crash_test WHERE id = 101", "of n4");
    unequal_survivors(&cluster, n4);
    recover_beside(&cluster, n4, n1, &["(101)"]);
    assert_eq!(
        n3.value("SELECT count(*) FROM crash_test WHERE id = 101"),
        "0"
    );
    // It comes from n1 itself. By the clocks it is later than what n4 made of it, so that is told and not decided.
    let (told, _) = recover_again(&cluster, n4, n1);
    let told = told.warnings();
    let undecided = "1 rows differ between node \"n2\" and node \"n3\", and they cannot be resolved automatically: \"public\".\"crash_test\" (101)";
    assert!(told.iter().any(|w| w.contains(undecided)), "{told:?}");
    assert_eq!(n3.value(ROWS), "1 old, 2 old, 101 of n1, 200 of failed");
}
