//! A CALL can be watched from another session while it runs, and its end can be seen there.

mod common;

use common::{Call, Hang, POLL, Running, quick};
use lab::{Cluster, Server};
use std::thread;
use std::time::{Duration, Instant};

/// What the network of the source carries in a second.
const SLOW: u64 = 2_000_000;

const SAMPLE: &str = "
SELECT state, percent, phase, phases, bytes_done, bytes_total, rows_done, rows_total, extract(epoch FROM time_left),
       coalesce(array_to_string(tables, ' '), ''), activity, phase_name, bytes_per_second
  FROM zodan.progress";

/// One look from another session.
#[derive(Debug)]
struct Look {
    at: Instant,
    state: String,
    percent: f64,
    phase: Option<i64>,
    bytes: Option<(i64, i64)>,
    rows: Option<(i64, i64)>,
    left: Option<f64>,
    tables: String,
    activity: String,
}

fn look(server: &Server) -> Option<Look> {
    let row = server.rows(SAMPLE).into_iter().next()?;
    let number = |i: usize| row[i].as_ref().map(|n| n.parse::<f64>().expect("a number"));
    let pair = |i: usize| Some((number(i)? as i64, number(i + 1)? as i64));
    let text = |i: usize| row[i].clone().unwrap_or_default();
    Some(Look {
        at: Instant::now(),
        state: text(0),
        percent: number(1).unwrap_or(0.0),
        phase: number(2).map(|n| n as i64),
        bytes: pair(4),
        rows: pair(6),
        left: number(8),
        tables: text(9),
        activity: text(10),
    })
}

/// Looks until the call has ended, and once more.
fn watch(server: &Server, call: &Running) -> Vec<Look> {
    let mut looks = vec![];
    loop {
        let ended = call.is_finished();
        looks.extend(look(server));
        if ended {
            return looks;
        }
        thread::sleep(POLL * 10);
    }
}

/// The one test that takes half a minute: nothing shorter has a half-time worth an estimate.
#[test]
fn progress_of_a_long_join_never_decreases_and_estimates_its_end() {
    let cluster = Cluster::start_with(2, &quick().proxy());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(
        "CREATE TABLE counted (i bigint PRIMARY KEY, t text);
         INSERT INTO counted SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 400000) i;
         CREATE INDEX ON counted (t);
         ANALYZE counted;
         CREATE TABLE never_counted (i bigint PRIMARY KEY, t text);
         INSERT INTO never_counted SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 200000) i",
    );
    n2.sql("CREATE EXTENSION zodan");
    n1.sql("CREATE EXTENSION zodan");
    assert!(look(n2).is_none(), "nothing has ever run");
    n1.limit(Some(SLOW));
    let begun = Instant::now();
    let call = Running::start(n2, &Call::of(n2, n1).sql());
    let looks = watch(n2, &call);
    let took = begun.elapsed();
    call.succeeds();
    n1.limit(None);
    assert!(took > Duration::from_secs(30), "{took:?} is no long join");

    for pair in looks.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        assert!(a.percent <= b.percent, "{pair:?}");
        if let (Some(a), Some(b)) = (a.phase, b.phase) {
            assert!(a <= b, "{pair:?}");
        }
        if let (Some(a), Some(b)) = (a.bytes, b.bytes) {
            assert!(a.0 <= b.0 && b.0 <= b.1, "{pair:?}");
        }
        if let (Some(a), Some(b)) = (a.rows, b.rows) {
            assert!(a.0 <= b.0 && b.0 <= b.1, "{pair:?}");
        }
    }
    let last = looks.last().expect("a look");
    assert_eq!((last.state.as_str(), last.percent), ("done", 100.0));
    assert_eq!(last.rows, Some((600_000, 600_000)));
    let copying: Vec<&Look> = looks
        .iter()
        .filter(|l| l.activity == "copying rows" && l.rows.is_some())
        .collect();
    let (first, end) = (copying[0], copying[copying.len() - 1]);
    let mut numbers: Vec<_> = copying.iter().filter_map(|l| l.bytes).collect();
    numbers.dedup();
    let seconds = (end.at - first.at).as_secs() as usize;
    assert!(
        numbers.len() >= seconds,
        "{} numbers in {seconds} s",
        numbers.len()
    );
    assert!(
        copying
            .iter()
            .any(|l| l.tables.contains("\"public\".\"counted\""))
    );

    let half = begun + took / 2;
    let at_half = looks.iter().find(|l| l.at >= half).expect("half-time");
    let truth = (begun + took - at_half.at).as_secs_f64();
    let estimate = at_half.left.expect("an estimate at half-time");
    assert!(
        (truth * 0.5..truth * 1.5).contains(&estimate),
        "{estimate} s were said to be left, and it was {truth} s\n{at_half:?}"
    );
}

#[test]
fn progress_of_a_failed_join_shows_its_end() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE TABLE t (i int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE EXTENSION zodan");
    n2.sql(
        "CREATE EXTENSION zodan; CREATE ROLE nobody; GRANT USAGE ON SCHEMA zodan TO nobody;
         CREATE ROLE watcher; GRANT USAGE ON SCHEMA zodan TO watcher; GRANT SELECT ON zodan.progress TO watcher;
         GRANT EXECUTE ON FUNCTION zodan.progress_rows() TO watcher",
    );
    let call = Call::of(n2, n1).sql();
    let point = "within rows are copied";
    let columns = "SELECT state, run, command, node, phase, phases, phase_name, step, step_node, pid IS NOT NULL,
                          last_progress_at >= started_at, ended_at IS NULL FROM zodan.progress";

    let (hang, running) = Hang::start(n2, "", point, &call);
    assert_eq!(
        row(n2, columns),
        "running|1|spock.add_node|n2|6|9|copy structure and data|copy structure and data|n2|t|t|t"
    );
    // What is in hand shows in pg_stat_activity as well.
    assert_eq!(
        row(
            n2,
            "SELECT a.query LIKE 'CALL spock.add_node phase 6 of 9: copy%' FROM zodan.progress p JOIN pg_stat_activity a USING (pid)"
        ),
        "t"
    );
    // Who may look needs no right to anything else.
    let mut client = n2.client();
    client
        .batch_execute("SET ROLE watcher")
        .expect("become the watcher");
    let seen = client
        .query_one("SELECT state, phase FROM zodan.progress", &[])
        .expect("the watcher may look");
    assert_eq!(
        (seen.get::<_, String>(0), seen.get::<_, i32>(1)),
        ("running".into(), 6)
    );
    client
        .batch_execute("RESET ROLE; SET ROLE nobody")
        .expect("become nobody");
    let refused = client
        .simple_query("TABLE zodan.progress")
        .expect_err("nobody may not");
    assert_eq!(refused.code().map(|c| c.code()), Some("42501"));
    drop(client);
    running.cancel();
    assert_eq!(running.fails().code(), "57014");
    assert_eq!(
        row(
            n2,
            "SELECT state, run, percent, activity, pid, ended_at IS NOT NULL FROM zodan.progress"
        ),
        "undone|1||canceling statement due to user request||t"
    );
    hang.release();

    let (hang, running) = Hang::start(n2, "", point, &call);
    n2.sql("SELECT pg_terminate_backend(pid) FROM zodan.progress");
    running.ends_terminated();
    n2.wait_for(
        "SELECT state || ' ' || run FROM zodan.progress",
        "unfinished 2",
    );
    hang.release();
    let verbose = call.replace("new_node_name :=", "verb := true, new_node_name :=");
    let called = n2
        .call(&verbose)
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = |text: &str| {
        let notice = called.notices.iter().find(|n| n.message.ends_with(text));
        let notice = notice.unwrap_or_else(|| panic!("not told: {text}: {called:?}"));
        notice.message.strip_suffix(text).unwrap_or_default()
    };
    let digits = |time: &str| time.replace(|c: char| c.is_ascii_digit(), "9");
    let table = told("     table \"public\".\"t\": 1 rows, 0 kB");
    assert_eq!(digits(table), "99:99:99.9");
    let begins = [
        "6 of 9: copy structure and data",
        "9 of 9: verify replication between all nodes",
    ]
    .map(|phase| told(&format!(" phase {phase}")));
    assert_eq!(begins.map(digits), ["99:99:99.9"; 2]);
    assert!(begins[0] <= table && table <= begins[1], "{called:?}");
    assert_eq!(
        row(n2, "SELECT state, percent, rows_done FROM zodan.progress"),
        "done|100.00|1"
    );
    // A lock of the same number with nothing behind it is no call.
    n2.sql("SELECT pg_advisory_lock_shared(2054120546, 12345); SELECT 1/count(*) FROM zodan.progress WHERE state = 'done'");
}

#[test]
fn progress_of_a_removal_shows_what_it_waits_for() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    // A lock that the apply worker has to wait for.
    let mut blocker = n1.client_named("zodan test");
    blocker
        .batch_execute("BEGIN; LOCK zodan.marker IN SHARE MODE")
        .expect("lock");
    let running = Running::start(n2, "CALL spock.remove_node('n2')");
    n2.wait_for(
        "SELECT activity LIKE 'node \"n1\": applying what its peers committed: 0 of 1 markers arrived; sub_n2_n1 applied %'
           FROM zodan.progress WHERE command = 'spock.remove_node' AND phase = 3 AND percent < 100",
        "t",
    );
    blocker.batch_execute("ROLLBACK").expect("let go");
    running.succeeds();
    assert_eq!(
        row(
            n2,
            "SELECT state, command, node, percent FROM zodan.progress"
        ),
        "done|spock.remove_node|n2|100.00"
    );
}

fn row(server: &Server, query: &str) -> String {
    let rows = server.rows(query);
    let line = |row: &Vec<Option<String>>| {
        let cells: Vec<String> = row.iter().map(|c| c.clone().unwrap_or_default()).collect();
        cells.join("|")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
