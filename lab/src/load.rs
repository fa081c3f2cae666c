//! Writers: sessions that insert, update and delete while something else happens to the cluster.

use crate::server::{PATIENCE, Server, explain};
use postgres::{CancelToken, Client, NoTls, Statement};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The tables that the writers write to. They must be on a node before [`Load::start`].
pub const SCHEMA: &str = include_str!("load.sql");

/// What the writers do to each of [`SCHEMA`]'s tables: insert `$1`, update it to version `$2`, delete `$1`.
const TABLES: [(&str, [&str; 3]); 3] = [
    (
        "load.account",
        [
            "INSERT INTO load.account (id, version, owner, balance) VALUES ($1, $2, 'owner of ' || $1, $1 % 1000)",
            "UPDATE load.account SET version = $2, balance = balance + 1, touched = now() WHERE id = $1",
            "DELETE FROM load.account WHERE id = $1",
        ],
    ),
    (
        "load.event",
        [
            "INSERT INTO load.event (id, version, kind, payload, tags)
             VALUES ($1, $2, 'opened', jsonb_build_object('id', $1, 'at', now()), ARRAY['new', ($1 % 7)::text])",
            "UPDATE load.event SET version = $2, kind = 'changed', payload = payload || '{\"seen\": true}' WHERE id = $1",
            "DELETE FROM load.event WHERE id = $1",
        ],
    ),
    (
        "load.document",
        [
            // Long enough for a TOAST table, and not compressible to nothing.
            "INSERT INTO load.document (shelf, id, version, body)
             SELECT $1 % 10, $1, $2, string_agg(md5(($1 + i)::text), '') FROM generate_series(1, 100) i",
            // The body stays where it is: replication then sends it as unchanged.
            "UPDATE load.document SET version = $2 WHERE id = $1 AND shelf = $1 % 10",
            "DELETE FROM load.document WHERE id = $1 AND shelf = $1 % 10",
        ],
    ),
];

/// Keys of one writer: `[lane * LANE, (lane + 1) * LANE)`. No two writers share a key, so there are no conflicts.
const LANE: i64 = 1_000_000_000;

/// More writers than this per node would run into the next node's lanes.
const LANES_PER_NODE: u64 = 100;

/// How the load is to be.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Sessions per server.
    pub writers: u64,
    /// Transactions per second and writer; `None` for as many as go.
    pub rate: Option<u32>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            writers: 1,
            rate: Some(100),
        }
    }
}

/// Running writers.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<Running>,
    started: Instant,
}

struct Running {
    name: String,
    commits: Arc<AtomicU64>,
    cancel: CancelToken,
    thread: JoinHandle<Written>,
}

impl Load {
    /// Starts one writer on each of `servers`, at 100 transactions a second.
    pub fn start(servers: &[&Server]) -> Load {
        Load::start_with(servers, &LoadOptions::default())
    }

    /// Starts writers on each of `servers`. Each keeps its one session until the end: it never reconnects.
    pub fn start_with(servers: &[&Server], options: &LoadOptions) -> Load {
        assert!(
            options.writers <= LANES_PER_NODE,
            "at most {LANES_PER_NODE} writers per node"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = BTreeSet::new();
        let mut writers = Vec::new();
        for server in servers {
            for i in 0..options.writers {
                let lane = node_number(server.name()) * LANES_PER_NODE + i;
                assert!(
                    lanes.insert(lane),
                    "two nodes would write the same keys: name them n1, n2, ..."
                );
                let name = format!("load {}/{}", server.name(), i + 1);
                let commits = Arc::new(AtomicU64::new(0));
                let mut client = server.client_named(&name);
                let cancel = client.cancel_token();
                let writer = Writer::new(&name, server.name(), lane, &mut client);
                let (counter, stop, rate) = (commits.clone(), stop.clone(), options.rate);
                let thread = thread::spawn(move || writer.run(&mut client, &stop, &counter, rate));
                writers.push(Running {
                    name,
                    commits,
                    cancel,
                    thread,
                });
            }
        }
        Load {
            stop,
            writers,
            started: Instant::now(),
        }
    }

    /// Transactions committed so far by all writers.
    pub fn commits(&self) -> u64 {
        self.writers
            .iter()
            .map(|writer| writer.commits.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until every writer has committed `n` more transactions: proof that all of them are at work.
    pub fn wait_commits(&self, n: u64) {
        let deadline = Instant::now() + PATIENCE;
        let goals: Vec<u64> = self
            .writers
            .iter()
            .map(|w| w.commits.load(Ordering::Relaxed) + n)
            .collect();
        for (writer, goal) in self.writers.iter().zip(goals) {
            while writer.commits.load(Ordering::Relaxed) < goal {
                assert!(Instant::now() < deadline, "{} stands still", writer.name);
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Stops the writers, each after its transaction, and tells what they did. A statement that hangs is
    /// cancelled, and counted as a failure.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        let mut written = Vec::new();
        for writer in self.writers {
            while !writer.thread.is_finished() {
                if Instant::now() > deadline {
                    // Fails where the server is gone, and then the statement has failed by itself.
                    let _ = writer.cancel.cancel_query(NoTls);
                }
                thread::sleep(Duration::from_millis(5));
            }
            written.push(
                writer
                    .thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
        Report::new(written, self.started)
    }
}

/// A number for a node's name, the same in every run: the digits at its end, or a hash.
fn node_number(name: &str) -> u64 {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..]
        .parse()
        .ok()
        .filter(|n| *n < 10_000)
        .unwrap_or_else(|| {
            10_000
                + name
                    .bytes()
                    .fold(7, |h: u64, b| (h * 31 + u64::from(b)) % 10_000)
        })
}

/// A write that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Where.
    pub node: String,
    /// When.
    pub at: Instant,
    /// What was being done, and what the server said.
    pub error: String,
}

/// One statement, from sending it to having its answer.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    took: Duration,
}

/// What a writer knows when it stops.
struct Written {
    commits: u64,
    rollbacks: u64,
    failures: Vec<Failure>,
    samples: Vec<Sample>,
    lane: u64,
    rows: Rows,
}

/// The rows that a writer's committed transactions have left, by table and key, with their versions.
#[derive(Default)]
struct Rows {
    versions: [BTreeMap<i64, i32>; TABLES.len()],
    /// Keys of a transaction whose COMMIT got no answer: they may be there or not.
    unsure: [BTreeSet<i64>; TABLES.len()],
}

struct Writer {
    name: String,
    node: String,
    dice: Dice,
    next_key: i64,
    statements: Vec<[Statement; 3]>,
    /// The keys of `rows`, to pick one at random.
    keys: [Vec<i64>; TABLES.len()],
    written: Written,
}

/// A change of one row: the version it has afterwards, or none if it is deleted.
struct Change {
    table: usize,
    key: i64,
    version: Option<i32>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    AutoCommit,
    Commit,
    Rollback,
}

/// Why a transaction did not work.
struct Broken {
    doing: String,
    error: String,
    /// The connection went with it: what had been sent may have been done or not.
    lost: bool,
}

impl Writer {
    fn new(name: &str, node: &str, lane: u64, client: &mut Client) -> Writer {
        let low = lane.cast_signed() * LANE;
        let mut writer = Writer {
            name: name.into(),
            node: node.into(),
            dice: Dice(lane),
            next_key: low,
            statements: Vec::new(),
            keys: Default::default(),
            written: Written {
                commits: 0,
                rollbacks: 0,
                failures: Vec::new(),
                samples: Vec::new(),
                lane,
                rows: Rows::default(),
            },
        };
        // What an earlier load of the same lane has left is carried on with.
        for (table, (table_name, texts)) in TABLES.iter().enumerate() {
            let found = client
                .query(
                    &format!("SELECT id, version FROM {table_name} WHERE id >= $1 AND id < $2"),
                    &[&low, &(low + LANE)],
                )
                .unwrap_or_else(|e| panic!("{name}: is load::SCHEMA there? {}", explain(&e)));
            for row in found {
                let key: i64 = row.get(0);
                writer.keys[table].push(key);
                writer.written.rows.versions[table].insert(key, row.get(1));
                writer.next_key = writer.next_key.max(key);
            }
            let types = [postgres::types::Type::INT8, postgres::types::Type::INT4];
            let prepared = texts.map(|text| {
                let arguments = if text.contains("$2") {
                    &types[..]
                } else {
                    &types[..1]
                };
                client
                    .prepare_typed(text, arguments)
                    .unwrap_or_else(|e| panic!("{name}: {}", explain(&e)))
            });
            writer.statements.push(prepared);
        }
        writer
    }

    fn run(
        mut self,
        client: &mut Client,
        stop: &AtomicBool,
        commits: &AtomicU64,
        rate: Option<u32>,
    ) -> Written {
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match self.transaction(client) {
                Ok(End::Rollback) => self.written.rollbacks += 1,
                Ok(_) => {
                    self.written.commits += 1;
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(broken) => {
                    self.fail(&broken);
                    if let Err(lost) = self.timed("ROLLBACK", || client.batch_execute("ROLLBACK")) {
                        if !broken.lost {
                            self.fail(&lost);
                        }
                        break;
                    }
                }
            }
            if let Some(rate) = rate {
                due = (due + Duration::from_secs(1) / rate)
                    .max(Instant::now() - Duration::from_secs(1));
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        self.written
    }

    fn fail(&mut self, broken: &Broken) {
        self.written.failures.push(Failure {
            node: self.node.clone(),
            at: Instant::now(),
            error: format!("{}: {}: {}", self.name, broken.doing, broken.error),
        });
    }

    /// One transaction: mostly a single statement, else several, and some of those are rolled back.
    fn transaction(&mut self, client: &mut Client) -> Result<End, Broken> {
        let (end, count) = match self.dice.below(10) {
            0..6 => (End::AutoCommit, 1),
            6..9 => (End::Commit, 2 + self.dice.below(4)),
            _ => (End::Rollback, 1 + self.dice.below(3)),
        };
        if end != End::AutoCommit {
            self.timed("BEGIN", || client.batch_execute("BEGIN"))?;
        }
        let mut changes: Vec<Change> = Vec::new();
        for _ in 0..count {
            let change = self.choose(&changes);
            let done = self.apply(client, &change);
            changes.push(change);
            if let Err(broken) = done {
                if broken.lost && end == End::AutoCommit {
                    self.forget(&changes);
                }
                return Err(broken);
            }
        }
        let last = match end {
            End::AutoCommit => Ok(()),
            End::Commit => self.timed("COMMIT", || client.batch_execute("COMMIT")),
            End::Rollback => self.timed("ROLLBACK", || client.batch_execute("ROLLBACK")),
        };
        if let Err(broken) = last {
            if broken.lost && end == End::Commit {
                self.forget(&changes);
            }
            return Err(broken);
        }
        if end != End::Rollback {
            self.remember(changes);
        }
        Ok(end)
    }

    /// A row to insert, update or delete. No row is touched twice in a transaction.
    fn choose(&mut self, before: &[Change]) -> Change {
        let table = self.dice.below(TABLES.len() as u64) as usize;
        let known = &self.keys[table];
        let what = self.dice.below(100);
        if what >= 50 && !known.is_empty() {
            let key = known[self.dice.below(known.len() as u64) as usize];
            if !before
                .iter()
                .any(|change| change.table == table && change.key == key)
            {
                let version = self.written.rows.versions[table][&key];
                return Change {
                    table,
                    key,
                    version: (what < 85).then_some(version + 1),
                };
            }
        }
        self.next_key += 1;
        Change {
            table,
            key: self.next_key,
            version: Some(1),
        }
    }

    fn apply(&mut self, client: &mut Client, change: &Change) -> Result<(), Broken> {
        let &Change {
            table,
            key,
            version,
        } = change;
        let statement = match version {
            Some(1) => 0,
            Some(_) => 1,
            None => 2,
        };
        let doing = format!(
            "{} {} of {}",
            ["insert", "update", "delete"][statement],
            key,
            TABLES[table].0
        );
        let prepared = self.statements[table][statement].clone();
        let rows = self.timed(&doing, || match &version {
            Some(version) => client.execute(&prepared, &[&key, version]),
            None => client.execute(&prepared, &[&key]),
        })?;
        if rows == 1 {
            Ok(())
        } else {
            // Nobody else writes this key: the node has lost the row, or has it twice.
            Err(Broken {
                doing,
                error: format!("{rows} rows instead of 1"),
                lost: false,
            })
        }
    }

    fn timed<R>(
        &mut self,
        doing: &str,
        work: impl FnOnce() -> Result<R, postgres::Error>,
    ) -> Result<R, Broken> {
        let at = Instant::now();
        let result = work();
        self.written.samples.push(Sample {
            at,
            took: at.elapsed(),
        });
        // An error without an SQLSTATE is a lost connection; a shutdown (57P..) may come after the commit.
        result.map_err(|e| Broken {
            doing: doing.into(),
            lost: e.code().is_none_or(|code| code.code().starts_with("57P")),
            error: explain(&e),
        })
    }

    fn remember(&mut self, changes: Vec<Change>) {
        for Change {
            table,
            key,
            version,
        } in changes
        {
            let versions = &mut self.written.rows.versions[table];
            match version {
                Some(version) => {
                    if versions.insert(key, version).is_none() {
                        self.keys[table].push(key);
                    }
                }
                None => {
                    versions.remove(&key);
                    let keys = &mut self.keys[table];
                    let at = keys
                        .iter()
                        .position(|known| *known == key)
                        .expect("a known key");
                    keys.swap_remove(at);
                }
            }
        }
    }

    fn forget(&mut self, changes: &[Change]) {
        for change in changes {
            self.written.rows.versions[change.table].remove(&change.key);
            self.keys[change.table].retain(|key| *key != change.key);
            self.written.rows.unsure[change.table].insert(change.key);
        }
    }
}

/// What the writers did, and what the database owes them.
pub struct Report {
    /// Committed transactions.
    pub commits: u64,
    /// Transactions rolled back on purpose.
    pub rollbacks: u64,
    /// Every write that failed.
    pub failures: Vec<Failure>,
    /// From the first writer's start to the last one's end.
    pub elapsed: Duration,
    samples: Vec<Sample>,
    rows: Vec<(u64, Rows)>,
}

impl Report {
    fn new(written: Vec<Written>, started: Instant) -> Report {
        let mut report = Report {
            commits: 0,
            rollbacks: 0,
            failures: Vec::new(),
            elapsed: started.elapsed(),
            samples: Vec::new(),
            rows: Vec::new(),
        };
        for mut one in written {
            report.commits += one.commits;
            report.rollbacks += one.rollbacks;
            report.failures.append(&mut one.failures);
            report.samples.append(&mut one.samples);
            report.rows.push((one.lane, one.rows));
        }
        report
    }

    /// Statements sent, with BEGIN and COMMIT.
    pub fn statements(&self) -> usize {
        self.samples.len()
    }

    /// Committed transactions per second.
    pub fn writes_per_second(&self) -> f64 {
        self.commits as f64 / self.elapsed.as_secs_f64()
    }

    /// The slowest statement.
    pub fn max_latency(&self) -> Duration {
        self.samples
            .iter()
            .map(|sample| sample.took)
            .max()
            .unwrap_or_default()
    }

    /// The slowest statement that was under way at some time between `from` and `to`.
    pub fn max_latency_between(&self, from: Instant, to: Instant) -> Duration {
        let within = |sample: &&Sample| sample.at <= to && sample.at + sample.took >= from;
        self.samples
            .iter()
            .filter(within)
            .map(|sample| sample.took)
            .max()
            .unwrap_or_default()
    }

    /// Compares what the writers' committed transactions left with what `server` has: rows that are missing,
    /// rows that should not be there, rows of another version. Empty when all is right.
    ///
    /// Equal nodes are not enough to know that no acknowledged write was lost: all could have lost it.
    pub fn wrong_on(&self, server: &Server) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut client = server.client();
        for (lane, rows) in &self.rows {
            let low = lane.cast_signed() * LANE;
            for (table, (table_name, _)) in TABLES.iter().enumerate() {
                let query = format!(
                    "SELECT id, version FROM {table_name} WHERE id >= {low} AND id < {}",
                    low + LANE
                );
                let found = client
                    .query(&query, &[])
                    .unwrap_or_else(|e| panic!("{}: {}\n{query}", server.name(), explain(&e)));
                let found: BTreeMap<i64, i32> =
                    found.iter().map(|row| (row.get(0), row.get(1))).collect();
                let expected = &rows.versions[table];
                let keys: BTreeSet<&i64> = expected.keys().chain(found.keys()).collect();
                for key in keys {
                    let (want, have) = (expected.get(key), found.get(key));
                    if want != have && !rows.unsure[table].contains(key) {
                        let said = |version: Option<&i32>| {
                            version.map_or("no row".into(), |v| format!("version {v}"))
                        };
                        wrong.push(format!(
                            "{table_name} {key} on {}: {} instead of {}",
                            server.name(),
                            said(have),
                            said(want)
                        ));
                    }
                }
            }
        }
        wrong
    }

    /// Panics unless `server` has exactly what the writers committed.
    pub fn assert_present_on(&self, server: &Server) {
        let wrong = self.wrong_on(server);
        assert!(
            wrong.is_empty(),
            "{} rows are wrong, among them\n{}",
            wrong.len(),
            first_lines(&wrong)
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits ({:.0}/s), {} rollbacks, slowest statement {:.0?}, {} failed",
            self.commits,
            self.writes_per_second(),
            self.rollbacks,
            self.max_latency(),
            self.failures.len()
        )?;
        let errors: Vec<String> = self
            .failures
            .iter()
            .map(|failure| failure.error.clone())
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            write!(f, "\n{}", first_lines(&errors))
        }
    }
}

fn first_lines(lines: &[String]) -> String {
    lines
        .iter()
        .take(10)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n")
}

/// A small reproducible random generator (splitmix64): a writer does the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_to_numbers() {
        assert_eq!(node_number("n1"), 1);
        assert_eq!(node_number("node-12"), 12);
        assert!(node_number("paris") >= 10_000);
        assert_ne!(node_number("paris"), node_number("london"));
    }

    #[test]
    fn dice_are_fair_enough_and_repeatable() {
        let mut counts = [0; 10];
        let mut dice = Dice(42);
        for _ in 0..10_000 {
            counts[dice.below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
        assert_eq!(Dice(7).below(1 << 40), Dice(7).below(1 << 40));
    }

    #[test]
    fn latency_of_a_window_counts_what_overlaps_it() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let sample = |at, took| Sample {
            at: start + ms(at),
            took: ms(took),
        };
        let mut report = Report::new(Vec::new(), start);
        report.samples = vec![sample(0, 50), sample(100, 200), sample(400, 10)];
        assert_eq!(report.max_latency(), ms(200));
        assert_eq!(report.max_latency_between(start, start + ms(60)), ms(50));
        assert_eq!(
            report.max_latency_between(start + ms(250), start + ms(260)),
            ms(200)
        );
        assert_eq!(
            report.max_latency_between(start + ms(310), start + ms(390)),
            Duration::ZERO
        );
    }
}
