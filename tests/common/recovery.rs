//! A node dies, and its survivors are made equal: what is the same on both engines.

use super::{Running, assert_failed, fingerprint, quick, wait_mesh, wait_no_sessions};
use lab::load::LoadOptions;
use lab::postgres::Client;
use lab::spock::{self, Mesh};
use lab::{
    Called, Cluster, Load, Server, ServerOptions, assert_same_content, load, quote_literal,
    wait_quiet,
};

pub const CONTENT: &str = "
CREATE TABLE crash_test (id int PRIMARY KEY, data text, big text);
CREATE TABLE debit (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE credit (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int NOT NULL);
CREATE TABLE journal (at int, what text);
CREATE TABLE scratch (id bigint PRIMARY KEY);
";

/// Transactions of [`move_amounts`].
const MOVED: u32 = 1000;

/// Servers that know when rows were written.
pub fn options() -> ServerOptions {
    quick().set("track_commit_timestamp", "on")
}

/// What the cluster replicates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Native,
    Spock,
}

impl On {
    /// A mesh of `members` that keeps no recovery slots.
    pub fn mesh_without_slots(self, members: usize) -> Cluster {
        match self {
            On::Native => form(members, &options()),
            On::Spock => Mesh {
                content: &content(),
                ..Mesh::default()
            }
            .start_with_extension(members),
        }
    }

    /// A mesh whose members all keep a recovery slot.
    pub fn mesh(self, members: usize) -> Cluster {
        let cluster = self.mesh_without_slots(members);
        keep(&cluster.first(members));
        cluster
    }

    /// From now on `subscriber` gets nothing from `provider`.
    pub fn suspend(self, subscriber: &Server, provider: &Server) {
        let name = format!("sub_{}_{}", provider.name(), subscriber.name());
        match self {
            On::Native => {
                subscriber.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
                subscriber.wait_for(
                    &format!("SELECT count(*) FROM pg_stat_subscription WHERE subname = '{name}' AND pid IS NOT NULL"),
                    "0",
                );
            }
            On::Spock => {
                subscriber.sql(&format!("SELECT spock.sub_disable('{name}', true)"));
                subscriber.wait_for(
                    &format!("SELECT status FROM spock.sub_show_status('{name}')"),
                    "disabled",
                );
                let slot = subscriber.value(&format!(
                    "SELECT sub_slot_name FROM spock.subscription WHERE sub_name = '{name}'"
                ));
                provider.wait_for(
                    &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
                    "f",
                );
            }
        }
    }

    /// It does again.
    pub fn resume(self, subscriber: &Server, provider: &Server) {
        let name = format!("sub_{}_{}", provider.name(), subscriber.name());
        subscriber.sql(&match self {
            On::Native => format!("ALTER SUBSCRIPTION {name} ENABLE"),
            On::Spock => format!("SELECT spock.sub_enable('{name}')"),
        });
    }
}

fn content() -> String {
    format!("{}{CONTENT}", load::SCHEMA)
}

/// A native mesh.
pub fn form(members: usize, options: &ServerOptions) -> Cluster {
    let cluster = Cluster::start_with(members, options);
    cluster.form_mesh(members, &content());
    wait_mesh(&cluster.all());
    cluster
}

/// Has each node keep what the others may lack of each.
pub fn keep(nodes: &[&Server]) {
    for node in nodes {
        node.sql("SELECT zodan.start_node_worker()");
    }
    wait_protected(nodes);
}

/// Waits until each node keeps what the others may lack of each.
pub fn wait_protected(nodes: &[&Server]) {
    for node in nodes {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
            &(nodes.len() - 1).to_string(),
        );
    }
}

pub fn call(failed: &str, source: Option<&Server>, target: Option<&Server>, more: &str) -> String {
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

pub fn recover(here: &Server, failed: &str) -> Called {
    run(here, &call(failed, None, None, ""))
}

pub fn remove(here: &Server, failed: &str) -> Called {
    run(here, &format!("CALL spock.remove_node('{failed}')"))
}

fn run(here: &Server, sql: &str) -> Called {
    here.call(sql).unwrap_or_else(|failed| panic!("{failed}"))
}

pub fn assert_nothing_to_do(called: &Called) {
    let said = |n: &lab::server::Notice| {
        n.message == "nothing to do: every survivor has the same of \"n1\""
    };
    assert!(called.notices.iter().any(said), "{called:?}");
}

pub fn rows(node: &Server) -> String {
    node.value("SELECT count(*) FROM crash_test")
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
pub fn killed_under_load(on: On, cluster: &Cluster, members: usize, seed: u64) {
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

/// What n1 moves between two tables in one transaction is there or not there in both.
pub fn assert_whole(node: &Server) {
    let sums = "SELECT (SELECT sum(amount) FROM debit) IS NOT DISTINCT FROM (SELECT sum(amount) FROM credit)";
    assert_eq!(node.value(sums), "t", "on {}", node.name());
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

pub fn no_transaction_is_torn(on: On) {
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
pub enum Victim {
    Backend,
    Target,
    Source,
}

/// What is killed in the middle is finished by the next call.
pub fn killed_in_the_middle(on: On, victim: Victim) {
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
            n3.crash();
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

/// No slot and no note of a recovery is left.
pub fn assert_nothing_held(nodes: &[&Server]) {
    for node in nodes {
        let left = node.value(
            "SELECT concat_ws(' ',
                (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name LIKE '%clone%'),
                (SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE 'zodan%'))",
        );
        assert_eq!(left, "", "on {}", node.name());
    }
}

/// How two dead nodes are recovered from: what with, and which one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twice {
    pub slots: bool,
    pub first: &'static str,
    pub second: &'static str,
}

/// Both ways in both orders.
pub const TWICE: [Twice; 4] = [
    Twice {
        slots: true,
        first: "n1",
        second: "n2",
    },
    Twice {
        slots: true,
        first: "n2",
        second: "n1",
    },
    Twice {
        slots: false,
        first: "n1",
        second: "n2",
    },
    Twice {
        slots: false,
        first: "n2",
        second: "n1",
    },
];

/// Nobody has all: n3 is ahead for n1, n4 for n2, in what they inserted, and in what they updated and deleted of
/// rows that all had got, whoever had written them.
pub fn two_nodes_died(on: On, how: Twice) -> Cluster {
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

/// A survivor has changed rows that the other one had not got: it could do nothing with the changes then.
pub fn later_changes_of_a_survivor_stay(on: On) {
    let cluster = on.mesh(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    change_later(on, &cluster);
    recover(n2, "n1");
    assert_later_changes(n2, n3);
}

/// n2 lacks what n1 wrote, and n3 changes that when n1 is dead.
pub fn change_later(on: On, cluster: &Cluster) {
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
pub fn assert_later_changes(n2: &Server, n3: &Server) {
    wait_quiet(&[n2, n3]);
    assert_same_content(&[n2, n3]);
    assert_eq!(
        n2.value("SELECT string_agg(id || ' ' || data, ', ' ORDER BY id) FROM crash_test WHERE data <> 'old'"),
        "1 of n3, 2 of n2, 11 of n3, 13 new, 14 new, 15 new"
    );
}

/// A node that lives is refused, and where nothing is missing nothing is changed.
pub fn living_and_equal(on: On) {
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

/// Available where the server under test has Spock; says so where it has not.
pub fn on_spock() -> Option<On> {
    spock::announced().map(|_| On::Spock)
}

/// A call ends when its target has all of n1, and not yet what n3 did to it. The next one, on the other survivor,
/// does that, though the recovery slot could have been moved since.
pub fn interrupted_before_its_end(on: On) {
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
pub fn truncate_takes_what_it_took_on_the_source(on: On) {
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

/// What a recovery that has no end holds goes with the node that it is about, wherever the removal is called.
pub fn removal_lets_go(on: On) {
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
pub fn interrupted_and_it_came_back(on: On) {
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
