//! The servers of a trial, who is a member of what, and who was disturbed.

use super::ledger::Ledger;
use super::shape::{Engine, Shape};
use super::tables::ROLES;
use super::writer::{Report, Task, Writer, commit_prepared, first_rows};
use lab::postgres::{self, CancelToken, Client, NoTls};
use lab::server::{Notice, text_rows};
use lab::{Network, Server, ServerOptions, clock, explain, quote_literal, spock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The password of all nodes. It may be in no log.
pub const PASSWORD: &str = "tR1alHush4711";

/// The settings of sessions of the trial itself, and of its CALLs. Nobody limits their time. Rows look the same in all of
/// them, although a join carries the settings of a database. The server does not log their text when it fails, which has
/// the password in it.
const SESSION: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name ~ '^[a-z_]+_timeout$' AND context = 'user';
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
    SET quote_all_identifiers = off; SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC';
    SET extra_float_digits = 3; SET bytea_output = hex;
    SET log_min_error_statement = panic";

/// The only table without a key on Spock.
const KEYLESS: &str = "trial.keyless";

/// A cluster in one database of the servers.
pub struct Group {
    pub database: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: BTreeSet<usize>,
    ledgers: BTreeMap<usize, Arc<Mutex<Ledger>>>,
    writers: BTreeMap<usize, Writer>,
    /// Nodes that have begun to leave since the last judgement.
    leaving: BTreeSet<usize>,
    /// Writers that have been stopped, with what they saw, since the last judgement.
    reports: Vec<(usize, Report)>,
    generation: u64,
}

pub struct World {
    pub engine: Engine,
    pub network: Network,
    pub groups: Vec<Group>,
    pub shape: Shape,
    seed: u64,
    log: Log,
    /// Servers whose sessions may have been lost since the last judgement.
    disturbed: Mutex<BTreeSet<usize>>,
    /// A server of this trial has crashed and come back.
    crashed: AtomicBool,
    /// A server has had no room, and may have stopped for that with a PANIC.
    disk_was_full: AtomicBool,
    /// Those whose processes have begun without room, and are started anew when there is some.
    starved: Mutex<BTreeSet<usize>>,
    /// Servers that are down for good.
    dead: Mutex<BTreeSet<usize>>,
    /// Held while a server is stopped, started, frozen or killed at.
    power: Vec<Mutex<()>>,
    /// What undoes what actions have left: a server's number, its database, and the statement.
    pub undo: Mutex<Vec<(usize, &'static str, String)>>,
    /// What was wrong.
    pub wrong: Mutex<Vec<String>>,
    /// Markers of an application that a node took while it left.
    pub owed: Mutex<Vec<String>>,
    numbers: AtomicU64,
    /// Tables that an operator has begun to make.
    made: Mutex<Vec<Made>>,
    /// Calls in the other database that failed, to be made again.
    pub unfinished: Mutex<Vec<Finish>>,
}

/// A table that an operator makes on all members, as docs/operations.md says.
struct Made {
    group: usize,
    /// Who was a member then.
    members: Vec<usize>,
    table: String,
    /// When it was on all of them, on the clock of the log.
    at: f64,
}

/// Makes a call again.
pub type Finish = Box<dyn FnOnce(&World) + Send>;

/// What happened, in the order of time.
#[derive(Clone)]
struct Log {
    began: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn add(&self, what: &str) {
        let line = format!("{:7.3} {what}", self.now());
        self.lines.lock().unwrap().push(line);
    }
}

/// One database of one server.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub world: &'a World,
    pub number: usize,
    pub database: &'static str,
}

/// A CALL that runs.
#[derive(Clone)]
pub struct Underway {
    pub on: usize,
    pub pid: i32,
    pub cancel: CancelToken,
    pub text: String,
}

/// How a CALL ended.
pub struct Outcome {
    pub took: Duration,
    /// SQLSTATE and the whole error.
    pub result: Result<(), (String, String)>,
}

impl Outcome {
    /// In a line.
    pub fn said(&self) -> String {
        match &self.result {
            Ok(()) => format!("succeeded after {:.1?}", self.took),
            Err((_, error)) => format!("failed after {:.1?}: {error}", self.took),
        }
    }
}

impl World {
    pub fn start(shape: &Shape, seed: u64) -> World {
        let engine = shape.engine;
        let mut options = match engine {
            Engine::Native => ServerOptions::default(),
            Engine::Spock => spock::options(),
        };
        let mut preload = vec![];
        preload.extend((engine == Engine::Spock).then_some("spock"));
        preload.extend(shape.recovery_slots.then_some("zodan"));
        options = options
            .password(PASSWORD)
            .set("shared_preload_libraries", &preload.join(", "))
            .set("track_commit_timestamp", "on")
            .set("wal_retrieve_retry_interval", "100ms")
            .set("wal_receiver_timeout", "5s")
            .set("wal_sender_timeout", "5s")
            .set("max_prepared_transactions", "20")
            .set("logical_decoding_work_mem", "64kB")
            .set("deadlock_timeout", "200ms")
            .set("zodan.no_progress_timeout", "30s");
        for (name, value) in &shape.settings {
            options = options.set(name, value);
        }
        let mut databases = vec!["postgres"];
        databases.extend(shape.second_database.then_some("other"));
        if shape.tight {
            for (name, value) in least(shape, databases.len()) {
                options = options.set(name, &value.to_string());
            }
        }
        let network = Network::start(shape.servers, |name| match shape.clocks {
            true => with_clock(options.clone(), name),
            false => options.clone(),
        });
        let world = World {
            engine,
            network,
            groups: databases
                .into_iter()
                .map(|database| Group {
                    database,
                    state: Mutex::default(),
                })
                .collect(),
            shape: shape.clone(),
            seed,
            log: Log {
                began: Instant::now(),
                lines: Arc::default(),
            },
            disturbed: Mutex::default(),
            crashed: AtomicBool::default(),
            disk_was_full: AtomicBool::default(),
            starved: Mutex::default(),
            dead: Mutex::default(),
            power: (0..shape.servers).map(|_| Mutex::default()).collect(),
            undo: Mutex::default(),
            wrong: Mutex::default(),
            owed: Mutex::default(),
            numbers: AtomicU64::default(),
            made: Mutex::default(),
            unfinished: Mutex::default(),
        };
        for number in 0..shape.servers {
            world.node(number, 0).sql(ROLES);
        }
        for group in 0..world.groups.len() {
            world.form(group);
        }
        world.log.lines.lock().unwrap().clear();
        world
    }

    /// Makes a cluster of the first servers, one join after the other, with the tables on the first.
    fn form(&self, group: usize) {
        for number in 0..self.shape.servers {
            let node = self.node(number, group);
            if group > 0 {
                self.node(number, 0)
                    .sql(&format!("CREATE DATABASE {}", node.database));
            }
            node.prepare();
        }
        let first = self.node(0, group);
        first.sql("CREATE SCHEMA trial; CREATE TABLE trial.marker (token uuid PRIMARY KEY)");
        for kind in &self.shape.kinds {
            first.sql(kind.create);
        }
        let mut ledger = Ledger::default();
        first.sql(&first_rows(&self.shape.kinds, 1, &mut ledger));
        let mut state = self.groups[group].state.lock().unwrap();
        state.members.insert(0);
        state.ledgers.insert(0, Arc::new(Mutex::new(ledger)));
        drop(state);
        if self.engine == Engine::Spock {
            let dsn = quote_literal(&first.dsn());
            first.sql(&format!("SELECT spock.node_create('n1', {dsn})"));
            first.sql(spock::ADD_ALL);
            // Spock starts workers in databases without it, which get in the way of others.
            for number in 0..self.shape.servers {
                self.node(number, 0)
                    .sql("ALTER DATABASE template1 WITH ALLOW_CONNECTIONS false");
            }
        }
        for number in 1..self.shape.members {
            let call = self.node(number, group).join_call(first);
            let outcome = self.node(number, group).call(&call, |_| {});
            if let Err((_, error)) = outcome.result {
                panic!(
                    "n{} could not join the cluster of the trial: {error}",
                    number + 1
                );
            }
            self.set_member(group, number, true);
        }
        if self.shape.own_sets {
            self.divide_into_sets(group);
        }
    }

    /// Gives each member a set that no other one has and all others take. That of the last one has the table of the markers.
    fn divide_into_sets(&self, group: usize) {
        let members = self.members(group);
        for number in &members {
            let (node, set) = (self.node(*number, group), format!("of n{}", number + 1));
            node.sql(&format!("SELECT spock.repset_create('{set}')"));
            for other in members.iter().filter(|other| *other != number) {
                self.node(*other, group).sql(&format!(
                    "SELECT spock.sub_add_repset(sub_name, '{set}') FROM spock.subscription JOIN spock.node
                         ON node_id = sub_origin WHERE node_name = {}",
                    quote_literal(node.name())
                ));
                // The worker starts again with the other sets.
                let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
                let others = (members.len() - 1).to_string();
                node.server().wait_for(active, &others);
            }
        }
        if let (Some(last), true) = (members.last(), members.len() > 1) {
            self.node(*last, group).sql(&format!(
                "SELECT spock.repset_remove_table('default', 'trial.marker'),
                        spock.repset_add_table('of n{}', 'trial.marker')",
                last + 1
            ));
        }
    }

    pub fn node(&self, number: usize, group: usize) -> Node<'_> {
        Node {
            world: self,
            number,
            database: self.groups[group].database,
        }
    }

    pub fn server(&self, number: usize) -> &Server {
        self.network.cluster.n(number + 1)
    }

    /// A line of the trial's log.
    pub fn log(&self, what: &str) {
        self.log.add(what);
    }

    pub fn log_lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().clone()
    }

    /// A number that nothing else of the trial has.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst)
    }

    /// Something that should not be.
    pub fn blame(&self, what: String) {
        self.log(&format!("WRONG: {what}"));
        self.wrong.lock().unwrap().push(what);
    }

    pub fn members(&self, group: usize) -> Vec<usize> {
        let state = self.groups[group].state.lock().unwrap();
        state.members.iter().copied().collect()
    }

    /// Servers that are no members and can become one.
    pub fn spares(&self, group: usize) -> Vec<usize> {
        let (members, dead) = (self.members(group), self.dead());
        (0..self.shape.servers)
            .filter(|number| !members.contains(number) && !dead.contains(number))
            .collect()
    }

    pub fn set_member(&self, group: usize, number: usize, is: bool) {
        let mut state = self.groups[group].state.lock().unwrap();
        match is {
            true => state.members.insert(number),
            false => state.members.remove(&number),
        };
    }

    pub fn dead(&self) -> BTreeSet<usize> {
        self.dead.lock().unwrap().clone()
    }

    /// Writers who fail there from now on are not to blame anybody.
    pub fn disturb(&self, number: usize) {
        self.disturbed.lock().unwrap().insert(number);
    }

    /// A server is about to crash, and comes back.
    pub fn crashes(&self, number: usize) {
        self.crashed.store(true, Ordering::SeqCst);
        self.disturb(number);
    }

    /// Whether rows of `table` may be there more than once: Spock 6.0.0 and 5.0.11 apply a few transactions once more after
    /// a crash of the subscriber, without any of our calls. Where a table has a key that changes nothing.
    pub fn may_double(&self, table: &str) -> bool {
        table == KEYLESS && self.engine == Engine::Spock && self.crashed.load(Ordering::SeqCst)
    }

    pub fn disk_is_full(&self, number: usize) {
        self.disk_was_full.store(true, Ordering::SeqCst);
        self.starved.lock().unwrap().insert(number);
        self.crashes(number);
    }

    pub fn disk_was_full(&self) -> bool {
        self.disk_was_full.load(Ordering::SeqCst)
    }

    pub fn disturbed(&self) -> BTreeSet<usize> {
        self.disturbed.lock().unwrap().clone()
    }

    pub fn nobody_disturbed(&self) {
        self.disturbed.lock().unwrap().clear();
    }

    /// Does something to a server, if it runs, while nobody else does.
    pub fn with_power(&self, number: usize, what: impl FnOnce(&Server)) {
        let _power = self.power[number].lock().unwrap();
        let server = self.server(number);
        if server.is_running() {
            what(server);
        }
    }

    /// A server dies for good.
    pub fn die(&self, number: usize) {
        self.disturb(number);
        self.dead.lock().unwrap().insert(number);
        let _power = self.power[number].lock().unwrap();
        self.server(number).crash();
    }

    /// Puts right what actions have left: servers run, the network is whole, settings are as they were.
    pub fn heal(&self) {
        self.network.heal();
        let starved = std::mem::take(&mut *self.starved.lock().unwrap());
        let dead = self.dead();
        for number in (0..self.shape.servers).filter(|number| !dead.contains(number)) {
            let _power = self.power[number].lock().unwrap();
            let server = self.server(number);
            if starved.contains(&number) || !server.is_running() {
                // Also a server that has ended by itself.
                server.crash();
                server.boot();
            }
            server.wait_for("SELECT 1", "1");
        }
        let undo: Vec<_> = self.undo.lock().unwrap().drain(..).collect();
        for (number, database, sql) in undo {
            if dead.contains(&number) {
                continue;
            }
            let node = Node {
                world: self,
                number,
                database,
            };
            if let Err(e) = node.try_sql(&sql) {
                self.log(&format!("{}: {sql}: {e}", node.name()));
            }
        }
        for (group, number) in self.alive() {
            let node = self.node(number, group);
            // A writer that lost its session, and has been stopped since, does not know of them any more.
            if self.groups[group].state.lock().unwrap().writers.is_empty() {
                let done = node
                    .connect()
                    .map(|mut client| commit_prepared(&mut client, "trial_"));
                if let Ok(Err(e)) = done {
                    panic!("{}: {}", node.name(), explain(&e));
                }
            }
        }
    }

    /// Makes a table on all members that can be reached.
    pub fn make_table(&self, group: usize, table: &str) {
        let members = self.members(group);
        for number in &members {
            // One that is down, or leaves, gets it later.
            if let Err(e) = self.node(*number, group).try_sql(&create(table)) {
                self.log(&format!("{table}: {e}"));
            }
        }
        self.log(&format!("{table} is on all members"));
        self.made.lock().unwrap().push(Made {
            group,
            members,
            table: table.into(),
            at: self.log.now(),
        });
    }

    /// The operator makes them on the members that had lacked them, lets all subscriptions know them, and writes to them.
    pub fn finish_tables(&self, group: usize) {
        let members = self.members(group);
        // With a member that is dead nothing is refreshed: it is removed first.
        if members.iter().any(|number| self.dead().contains(number)) {
            return;
        }
        let mut made = self.made.lock().unwrap();
        let mine: Vec<Made> = made.extract_if(.., |made| made.group == group).collect();
        drop(made);
        let (Some(first), false) = (members.first(), mine.is_empty()) else {
            return;
        };
        for Made {
            members: then,
            table,
            at,
            ..
        } in &mine
        {
            for number in &members {
                let node = self.node(*number, group);
                let lacks = node.column(&format!("SELECT to_regclass('{table}') IS NULL")) == ["t"];
                // When a join has looked for such tables for the last time it has said so before.
                if lacks && !then.contains(number) && *at < self.last_look() {
                    self.blame(format!("{} has joined without {table}", node.name()));
                }
                node.sql(&create(table));
            }
        }
        if members.len() > 1 {
            self.node(*first, group)
                .sql("CALL spock.refresh_subscriptions()");
        }
        for Made { table, .. } in &mine {
            for number in &members {
                let node = self.node(*number, group);
                node.sql(&format!(
                    "INSERT INTO {table} VALUES ({number}, '{}')",
                    node.name()
                ));
            }
        }
    }

    /// The query for the names of a node's subscriptions.
    pub fn subscriptions(&self) -> &'static str {
        match self.engine {
            Engine::Native => {
                "SELECT quote_ident(subname) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
                  WHERE datname = current_database() ORDER BY 1"
            }
            Engine::Spock => "SELECT sub_name FROM spock.subscription ORDER BY 1",
        }
    }

    /// On the clock of the log.
    pub fn now(&self) -> f64 {
        self.log.now()
    }

    /// When the last phase of the last join began.
    pub fn last_look(&self) -> f64 {
        let lines = self.log_lines();
        let line = lines
            .iter()
            .rfind(|line| line.contains(": verify replication"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0)
    }

    fn alive(&self) -> Vec<(usize, usize)> {
        let dead = self.dead();
        let groups = 0..self.groups.len();
        groups
            .flat_map(|group| (0..self.shape.servers).map(move |number| (group, number)))
            .filter(|(_, number)| !dead.contains(number))
            .collect()
    }

    /// Starts a writer on each member that has none.
    pub fn start_writers(&self, group: usize) {
        for number in self.members(group) {
            let config = self
                .server(number)
                .config_of("trial writer", self.groups[group].database);
            let mut state = self.groups[group].state.lock().unwrap();
            if state.writers.contains_key(&number) || self.dead().contains(&number) {
                continue;
            }
            state.generation += 1;
            let seed =
                self.seed ^ (state.generation << 32) ^ ((group as u64) << 16) ^ number as u64;
            let ledger = state.ledgers.entry(number).or_default().clone();
            let task = Task {
                connect: Box::new(move || config.connect(NoTls)),
                kinds: self.shape.kinds.clone(),
                lane: number as i64 + 1,
                ledger,
                seed,
            };
            state.writers.insert(number, Writer::start(task));
        }
    }

    /// The writer of a node that is to leave goes when it is told to.
    pub fn writer_leaves(&self, group: usize, number: usize) {
        let mut state = self.groups[group].state.lock().unwrap();
        state.leaving.insert(number);
        state.writers.get(&number).inspect(|writer| writer.leaves());
    }

    /// Ends the writers, or that of one node.
    pub fn stop_writers(&self, group: usize, only: Option<usize>) {
        let mut state = self.groups[group].state.lock().unwrap();
        let numbers: Vec<usize> = state.writers.keys().copied().collect();
        for number in numbers {
            if only.is_none_or(|only| only == number) {
                let writer = state.writers.remove(&number).expect("a key");
                let report = writer.stop();
                state.reports.push((number, report));
            }
        }
    }

    /// Who has begun to leave since the last judgement.
    pub fn take_leaving(&self, group: usize) -> BTreeSet<usize> {
        std::mem::take(&mut self.groups[group].state.lock().unwrap().leaving)
    }

    pub fn take_reports(&self, group: usize) -> Vec<(usize, Report)> {
        std::mem::take(&mut self.groups[group].state.lock().unwrap().reports)
    }

    pub fn ledgers(&self, group: usize) -> Vec<(usize, Arc<Mutex<Ledger>>)> {
        let state = self.groups[group].state.lock().unwrap();
        let ledgers = state.ledgers.iter();
        ledgers
            .map(|(number, ledger)| (*number, ledger.clone()))
            .collect()
    }

    /// Waits until each writer has had so many transactions acknowledged, or a while has passed.
    pub fn wait_commits(&self, group: usize, more: usize) {
        let counts = || -> BTreeMap<usize, usize> {
            let state = self.groups[group].state.lock().unwrap();
            state
                .writers
                .iter()
                .map(|(n, w)| (*n, w.commits()))
                .collect()
        };
        let (goal, deadline) = (counts(), Instant::now() + Duration::from_secs(5));
        while Instant::now() < deadline {
            let now = counts();
            if goal
                .iter()
                .all(|(n, count)| now.get(n).is_none_or(|now| *now >= count + more))
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for group in 0..self.groups.len() {
            self.stop_writers(group, None);
        }
    }
}

impl<'a> Node<'a> {
    pub fn server(&self) -> &'a Server {
        self.world.server(self.number)
    }

    pub fn name(&self) -> &'a str {
        self.server().name()
    }

    /// How other nodes connect.
    pub fn dsn(&self) -> String {
        format!(
            "service={} user=postgres dbname={} password={PASSWORD}",
            self.name(),
            self.database
        )
    }

    pub fn connect(&self) -> Result<Client, String> {
        let config = self.server().config_of("trial", self.database);
        let connected = config.connect(NoTls).and_then(|mut client| {
            client.batch_execute(SESSION)?;
            Ok(client)
        });
        connected.map_err(|e| explain(&e))
    }

    pub fn try_sql(&self, sql: &str) -> Result<(), String> {
        let mut client = self.connect()?;
        client.batch_execute(sql).map_err(|e| explain(&e))
    }

    /// Runs these one after the other in one session, each by itself.
    pub fn try_each(&self, statements: &[&str]) -> Result<(), String> {
        let mut client = self.connect()?;
        let mut run = |sql: &&str| client.batch_execute(sql).map_err(|e| explain(&e));
        statements.iter().try_for_each(&mut run)
    }

    pub fn sql(&self, sql: &str) {
        self.try_sql(sql)
            .unwrap_or_else(|e| panic!("{}: {e}\n{sql}", self.name()));
    }

    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        rows_of(&mut self.connect()?, sql)
    }

    pub fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_rows(sql)
            .unwrap_or_else(|e| panic!("{}: {e}\n{sql}", self.name()))
    }

    /// The first column of all rows.
    pub fn column(&self, sql: &str) -> Vec<String> {
        let rows = self.rows(sql).into_iter();
        rows.filter_map(|row| row.into_iter().next()).collect()
    }

    /// Runs a CALL; `started` is given the session first.
    pub fn call(&self, call: &str, started: impl FnOnce(&mut Client)) -> Outcome {
        let (log, name) = (self.world.log.clone(), self.name().to_owned());
        let mut config = self.server().config_of("trial call", self.database);
        // The list of nodes at the end says nothing new.
        config.notice_callback(move |notice| match Notice::from(&notice) {
            notice if notice.message.contains(" | ") || notice.message.contains("-+-") => {}
            notice => log.add(&format!("{name}: {notice}")),
        });
        let began = Instant::now();
        let result = config.connect(NoTls).and_then(|mut client| {
            client.batch_execute(SESSION)?;
            started(&mut client);
            client.simple_query(call)?;
            Ok(())
        });
        let code = |e: &postgres::Error| e.code().map_or(String::new(), |code| code.code().into());
        Outcome {
            took: began.elapsed(),
            result: result.map_err(|e| (code(&e), explain(&e))),
        }
    }

    /// The call that makes this node a member, to be run here.
    pub fn join_call(&self, source: Node) -> String {
        format!(
            "CALL spock.add_node({}, {}, {}, {})",
            quote_literal(source.name()),
            quote_literal(&source.dsn()),
            quote_literal(self.name()),
            quote_literal(&self.dsn())
        )
    }

    /// An empty database with the extensions.
    pub fn prepare(&self) {
        if self.world.engine == Engine::Spock {
            self.sql("CREATE EXTENSION IF NOT EXISTS spock");
        }
        self.sql("CREATE EXTENSION zodan");
    }

    /// Makes the database of a former node empty again.
    pub fn renew(&self) {
        match self.world.engine {
            Engine::Native => {
                let admin = Node {
                    database: "template1",
                    ..*self
                };
                let name = self.database;
                admin.sql(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                admin.sql(&format!("CREATE DATABASE {name}"));
                self.prepare();
            }
            Engine::Spock => self.sql(
                "SET spock.enable_ddl_replication = off;
                 DROP EXTENSION IF EXISTS zodan; DROP SCHEMA IF EXISTS trial CASCADE; CREATE EXTENSION zodan",
            ),
        }
    }
}

/// The settings that docs/operations.md gives as the least, for these databases; and a few slots and WAL senders for others,
/// and for connections that were cut and are not noticed yet.
fn least(shape: &Shape, databases: usize) -> [(&'static str, usize); 4] {
    const OF_OTHERS: usize = 4;
    /// Those of a subscription, its own and two beside it.
    const WORKERS: usize = 3;
    let (nodes, slots) = (shape.servers, usize::from(shape.recovery_slots));
    let workers = databases * WORKERS * (nodes - 1);
    [
        (
            "max_replication_slots",
            databases * (nodes + 2 * slots) + OF_OTHERS,
        ),
        ("max_wal_senders", databases * nodes + OF_OTHERS),
        ("max_logical_replication_workers", workers),
        (
            "max_worker_processes",
            workers + databases * (2 + slots) + 3 * slots,
        ),
    ]
}

/// The server is some seconds ahead of the others, or behind them.
fn with_clock(options: ServerOptions, name: &str) -> ServerOptions {
    let seconds = match name {
        "n1" => "+0",
        "n2" => "+1.5",
        "n3" => "-2.5",
        "n4" => "+0.3",
        _ => "-0.7",
    };
    match clock::available() {
        true => clock::set_off(options, seconds),
        false => options,
    }
}

fn create(table: &str) -> String {
    format!("CREATE TABLE IF NOT EXISTS {table} (id bigint PRIMARY KEY, made_by text)")
}

/// The rows of a query as text.
pub fn rows_of(client: &mut Client, sql: &str) -> Result<Vec<Vec<String>>, String> {
    let messages = client.simple_query(sql).map_err(|e| explain(&e))?;
    let text = |value: Option<String>| value.unwrap_or_else(|| "NULL".into());
    let rows = text_rows(&messages).into_iter();
    Ok(rows
        .map(|row| row.into_iter().map(text).collect())
        .collect())
}
