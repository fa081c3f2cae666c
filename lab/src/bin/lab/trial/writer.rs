//! A writer: one session on a node that makes transactions of every form, and keeps its ledger.

use super::ledger::{Changes, Key, Ledger};
use super::tables::Kind;
use lab::explain;
use lab::postgres::error::SqlState;
use lab::postgres::{self, Client};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Numbers of rows of one writer: `[lane * LANE, (lane + 1) * LANE)`.
pub const LANE: i64 = 1_000_000_000;

/// A transaction is sent about so often.
const PAUSE: Duration = Duration::from_millis(15);

/// How long a transaction manager tries to commit what is prepared.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than `logical_decoding_work_mem` holds.
const MANY: usize = 400;

/// What no default of a server, database or role may change for the writers, who are not on trial.
const SESSION: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name ~ '^[a-z_]+_timeout$' AND context = 'user';
    SET default_transaction_isolation = 'read committed'; SET search_path = pg_catalog;
    SET session_replication_role = origin; SET synchronous_commit = on";

/// A write that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// SQLSTATE; empty for a lost connection.
    pub code: String,
    pub what: String,
}

/// What a writer did since it was started.
#[derive(Default)]
pub struct Report {
    pub failures: Vec<Failure>,
    pub slowest: Duration,
}

/// A writer at work.
pub struct Writer {
    stop: Arc<AtomicBool>,
    leaves: Arc<AtomicBool>,
    commits: Arc<AtomicUsize>,
    thread: JoinHandle<Report>,
}

/// What a writer is given.
pub struct Task {
    pub connect: Box<dyn Fn() -> Result<Client, postgres::Error> + Send>,
    pub kinds: Vec<&'static Kind>,
    pub lane: i64,
    pub ledger: Arc<Mutex<Ledger>>,
    pub seed: u64,
}

impl Writer {
    pub fn start(task: Task) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicUsize::new(0));
        let leaves = Arc::new(AtomicBool::new(false));
        let (stopped, counter, gone) = (stop.clone(), commits.clone(), leaves.clone());
        let thread = thread::spawn(move || {
            let mut session = Session {
                random: StdRng::seed_from_u64(task.seed),
                task,
                stopped: stopped.clone(),
                client: None,
                report: Report::default(),
                prepared: 0,
                over: false,
            };
            while !(stopped.load(Ordering::Relaxed) || session.over && gone.load(Ordering::Relaxed))
            {
                if session.transaction() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
            // A removal waits for prepared transactions, whose end is up to the application.
            while !stopped.load(Ordering::Relaxed) && session.connect().is_err() {
                thread::sleep(PAUSE);
            }
            session.report
        });
        Writer {
            stop,
            leaves,
            commits,
            thread,
        }
    }

    /// How many transactions have been acknowledged.
    pub fn commits(&self) -> usize {
        self.commits.load(Ordering::Relaxed)
    }

    /// Its node is about to leave the cluster: when it says so, by ending the session or refusing a write, the writer
    /// does not come back.
    pub fn leaves(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    /// Ends it after its transaction.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

struct Session {
    task: Task,
    stopped: Arc<AtomicBool>,
    random: StdRng,
    client: Option<Client>,
    report: Report,
    prepared: u64,
    /// The session was ended, or the last write was refused because the node takes none.
    over: bool,
}

/// The forms of a transaction, each with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Single,
    Several,
    RolledBack,
    Savepoint,
    Many,
    Prepared,
    Truncate,
}

const FORMS: [(Form, u32); 7] = [
    (Form::Single, 60),
    (Form::Several, 25),
    (Form::RolledBack, 5),
    (Form::Savepoint, 8),
    (Form::Many, 1),
    (Form::Prepared, 2),
    (Form::Truncate, 1),
];

impl Session {
    /// Whether one was acknowledged.
    fn transaction(&mut self) -> bool {
        // As a pooler does it.
        if self.random.random_bool(0.02) {
            self.client = None;
        }
        if self.client.as_ref().is_none_or(Client::is_closed) {
            match self.connect() {
                Ok(client) => (self.client, self.over) = (Some(client), false),
                Err(e) => {
                    self.failed("connect", &e);
                    thread::sleep(PAUSE);
                    return false;
                }
            }
        }
        let (form, _) = *FORMS
            .choose_weighted(&mut self.random, |(_, weight)| *weight)
            .expect("weights");
        let mut changes = Changes::new();
        let mut committing = false;
        match self.attempt(form, &mut changes, &mut committing) {
            Ok(true) => {
                self.task.ledger.lock().unwrap().acknowledged(changes);
                true
            }
            Ok(false) => false,
            Err(e) => {
                self.failed(&format!("{form:?}"), &e);
                let lost = lost(&e);
                self.over = lost || e.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
                if lost && committing {
                    self.task.ledger.lock().unwrap().unanswered(changes);
                }
                let over = self.client.as_mut().expect("a session");
                if lost || over.batch_execute("ROLLBACK").is_err() {
                    self.client = None;
                }
                false
            }
        }
    }

    fn connect(&self) -> Result<Client, postgres::Error> {
        let mut client = (self.task.connect)()?;
        client.batch_execute(SESSION)?;
        commit_prepared(&mut client, &format!("trial_{:x}_", self.task.seed))?;
        Ok(client)
    }

    fn failed(&mut self, what: &str, error: &postgres::Error) {
        self.report.failures.push(Failure {
            code: error
                .code()
                .map_or(String::new(), |code| code.code().into()),
            what: format!("{what}: {}", explain(error)),
        });
    }

    /// Runs a transaction; `committing` is set before the statement whose loss leaves it open whether it is there.
    fn attempt(
        &mut self,
        form: Form,
        changes: &mut Changes,
        committing: &mut bool,
    ) -> Result<bool, postgres::Error> {
        match form {
            Form::Single => {
                let Some((change, sql)) = self.choose(changes) else {
                    return Ok(false);
                };
                changes.push(change);
                *committing = true;
                self.one_row(&sql)?;
                Ok(true)
            }
            Form::Several | Form::RolledBack | Form::Savepoint | Form::Prepared => {
                self.run("BEGIN")?;
                for _ in 0..self.random.random_range(1..5) {
                    self.change(changes)?;
                }
                if form == Form::Savepoint {
                    self.run("SAVEPOINT s")?;
                    let mut undone = changes.clone();
                    self.change(&mut undone)?;
                    self.run("ROLLBACK TO s")?;
                    self.change(changes)?;
                }
                match form {
                    Form::RolledBack => {
                        self.run("ROLLBACK")?;
                        return Ok(false);
                    }
                    Form::Prepared => {
                        self.prepared += 1;
                        let id = format!("trial_{:x}_{}", self.task.seed, self.prepared);
                        *committing = true;
                        self.run(&format!("PREPARE TRANSACTION '{id}'"))?;
                        thread::sleep(Duration::from_millis(self.random.random_range(0..200)));
                        match self.run(&format!("COMMIT PREPARED '{id}'")) {
                            Err(e) if lost(&e) && self.commits_from_elsewhere(&id) => {
                                (self.client, self.over) = (None, true);
                            }
                            done => done?,
                        }
                    }
                    _ => {
                        *committing = true;
                        self.run("COMMIT")?;
                    }
                }
                Ok(!changes.is_empty())
            }
            Form::Many => {
                self.run("BEGIN")?;
                let kind = self.random.random_range(0..self.task.kinds.len());
                let mut sql = String::new();
                for _ in 0..MANY {
                    let id = self.task.ledger.lock().unwrap().new_number();
                    sql += &self.statement(self.task.kinds[kind].insert, id, 1);
                    sql += ";";
                    changes.push(((kind, id), Some(1)));
                }
                self.run(&sql)?;
                *committing = true;
                self.run("COMMIT")?;
                Ok(true)
            }
            Form::Truncate => {
                let truncates = |kind: &&Kind| kind.truncate.is_some();
                let Some(kind) = self.task.kinds.iter().position(truncates) else {
                    return Ok(false);
                };
                let ledger = self.task.ledger.lock().unwrap();
                // What became of a row without an answer could not be told any more.
                if ledger.has_open(kind) {
                    return Ok(false);
                }
                changes.extend(ledger.free(kind).into_iter().map(|key| (key, None)));
                drop(ledger);
                let sql = self.task.kinds[kind]
                    .truncate
                    .expect("the position says so");
                let sql = self.statement(sql, 0, 0);
                *committing = true;
                self.run(&sql)?;
                Ok(true)
            }
        }
    }

    /// As a transaction manager does it: what is prepared is committed, by whichever session. Whether it is done.
    fn commits_from_elsewhere(&self, id: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !self.stopped.load(Ordering::Relaxed) {
            let done = (self.task.connect)()
                .and_then(|mut client| client.batch_execute(&format!("COMMIT PREPARED '{id}'")));
            match done.as_ref().map_err(postgres::Error::code) {
                // The answer of the first one was lost.
                Ok(()) | Err(Some(&SqlState::UNDEFINED_OBJECT)) => return true,
                Err(_) => thread::sleep(PAUSE),
            }
        }
        false
    }

    fn run(&mut self, sql: &str) -> Result<(), postgres::Error> {
        let began = Instant::now();
        let done = self.client.as_mut().expect("a session").batch_execute(sql);
        self.report.slowest = self.report.slowest.max(began.elapsed());
        done
    }

    /// Runs a statement that changes one row.
    fn one_row(&mut self, sql: &str) -> Result<(), postgres::Error> {
        let began = Instant::now();
        let rows = self.client.as_mut().expect("a session").execute(sql, &[])?;
        self.report.slowest = self.report.slowest.max(began.elapsed());
        if rows != 1 {
            // Nobody else changes it.
            self.report.failures.push(Failure {
                code: "rows".into(),
                what: format!("{rows} rows instead of 1: {sql}"),
            });
        }
        Ok(())
    }

    fn change(&mut self, changes: &mut Changes) -> Result<(), postgres::Error> {
        if let Some((change, sql)) = self.choose(changes) {
            changes.push(change);
            self.one_row(&sql)?;
        }
        Ok(())
    }

    /// A row to insert, update or delete, none that the transaction has touched: often the same few, which are hot.
    fn choose(&mut self, before: &Changes) -> Option<((Key, Option<i32>), String)> {
        let number = self.random.random_range(0..self.task.kinds.len());
        let kind = self.task.kinds[number];
        let mut ledger = self.task.ledger.lock().unwrap();
        let mut known = ledger.free(number);
        known.retain(|key| before.iter().all(|(touched, _)| touched != key));
        if let (Some(update), Some(delete)) = (kind.update, kind.delete)
            && !known.is_empty()
            && self.random.random_bool(0.6)
        {
            let hot = known.len().min(3);
            let key = match self.random.random_bool(0.5) {
                true => known[self.random.random_range(0..hot)],
                false => known[self.random.random_range(0..known.len())],
            };
            let version = ledger.version(key).expect("a known row") + 1;
            drop(ledger);
            return Some(match self.random.random_bool(0.25) {
                true => ((key, None), self.statement(delete, key.1, version)),
                false => ((key, Some(version)), self.statement(update, key.1, version)),
            });
        }
        let id = ledger.new_number();
        drop(ledger);
        Some((((number, id), Some(1)), self.statement(kind.insert, id, 1)))
    }

    fn statement(&self, sql: &str, id: i64, version: i32) -> String {
        statement(sql, self.task.lane, id, version)
    }
}

/// A statement of a kind of table, for a row of this writer.
fn statement(sql: &str, lane: i64, id: i64, version: i32) -> String {
    let number = lane * LANE + id;
    sql.replace("{id}", &number.to_string())
        .replace("{v}", &version.to_string())
        .replace("{lane}", &lane.to_string())
}

/// Statements that insert the first rows of a writer into each table.
pub fn first_rows(kinds: &[&Kind], lane: i64, ledger: &mut Ledger) -> String {
    const ROWS: usize = 200;
    let (mut sql, mut changes) = (String::new(), Changes::new());
    for (number, kind) in kinds.iter().enumerate() {
        for _ in 0..ROWS {
            let id = ledger.new_number();
            sql += &statement(kind.insert, lane, id, 1);
            sql += ";";
            changes.push(((number, id), Some(1)));
        }
    }
    ledger.acknowledged(changes);
    sql
}

/// Commits the prepared transactions of this database whose names begin so. Their session was lost.
pub fn commit_prepared(client: &mut Client, prefix: &str) -> Result<(), postgres::Error> {
    let prepared = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, $1)";
    for row in client.query(prepared, &[&prefix])? {
        client.batch_execute(&format!("COMMIT PREPARED '{}'", row.get::<_, &str>(0)))?;
    }
    Ok(())
}

/// Whether a statement that ended so may have been done.
fn lost(error: &postgres::Error) -> bool {
    error
        .code()
        .is_none_or(|code| code.code().starts_with("57P"))
}
