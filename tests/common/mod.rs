//! What the scenario tests share: the CALL with any argument replaced, a CALL that runs beside the test,
//! and a fingerprint of everything that a join touches.

// Cargo compiles this into each of the test programs, and each uses its part.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod engines;
pub mod gate;
pub mod joining;
pub mod plan;
pub mod recovery;
pub mod removal;

use lab::postgres::{CancelToken, Client, NoTls, SimpleQueryMessage};
use lab::server::{Notices, PATIENCE};
use lab::{CallFailed, Called, Server, ServerOptions, digest, explain, quote_literal};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a condition is looked at that no server can be asked for.
pub const POLL: Duration = Duration::from_millis(5);

/// How many apply workers a server has. Before PostgreSQL 17 they are called otherwise.
pub const APPLY_WORKERS: &str = "
SELECT count(*) FROM pg_stat_activity
 WHERE backend_type IN ('logical replication apply worker', 'logical replication worker')";

/// What a CALL that waits for another node shows as its wait event: before PostgreSQL 17 the server's own word.
pub const WAITS_FOR_ANOTHER: &str = "'ZodanRemote', 'Extension'";

/// Servers whose subscriptions come back at once after a restart of their provider.
pub fn quick() -> ServerOptions {
    ServerOptions::default().set("wal_retrieve_retry_interval", "100ms")
}

/// How often a test repeats what may go wrong now and then: `few`, or what the environment says.
pub fn rounds(few: usize) -> usize {
    match std::env::var("ZODAN_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("ZODAN_ROUNDS is a number"),
        Err(_) => few,
    }
}

/// The rows of a query, columns joined by a bar, null as nothing.
pub fn table(server: &Server, query: &str) -> Vec<String> {
    let line = |row: Vec<Option<String>>| {
        let cells: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        cells.join("|")
    };
    server.rows(query).into_iter().map(line).collect()
}

/// Ends threads that look at the flag, also where a test fails.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What [`chase`] needs.
pub const CHASED: &str =
    "CREATE TABLE chased (id bigint PRIMARY KEY, v text, at timestamptz DEFAULT clock_timestamp())";

/// What `first` inserts from `id` on, `then` changes a second later, and `first` deletes some of that after as long.
/// Among members that is long enough for the row to be everywhere before it is changed.
pub fn chase(first: &Server, then: &Server, mut id: u64, over: &AtomicBool) {
    let (mut one, mut other) = (first.client(), then.client());
    let range = format!("id BETWEEN {id} AND {}", id + 999_999);
    let later = "at < clock_timestamp() - interval '1 s'";
    let update = format!(
        "UPDATE chased SET v = 'upd', at = clock_timestamp() WHERE v = 'ins' AND {range} AND {later}"
    );
    let delete =
        format!("DELETE FROM chased WHERE v = 'upd' AND id % 3 = 0 AND {range} AND {later}");
    while !over.load(Ordering::Relaxed) {
        one.execute(
            &format!("INSERT INTO chased (id, v) VALUES ({id}, 'ins')"),
            &[],
        )
        .unwrap();
        id += 1;
        other.execute(&update, &[]).unwrap();
        one.execute(&delete, &[]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Each of three nodes inserts rows that the next one changes, during `meanwhile`. Rounds have rows of their own.
pub fn chasing<T>(nodes: [&Server; 3], round: u64, meanwhile: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Over(&over);
        for (i, first) in nodes.into_iter().enumerate() {
            let (then, over) = (nodes[(i + 1) % 3], &over);
            let from = (10 * round + i as u64 + 1) * 1_000_000;
            scope.spawn(move || chase(first, then, from, over));
        }
        let came = meanwhile();
        drop(end);
        came
    })
}

/// The arguments of `spock.add_node`; `None` is NULL.
#[derive(Clone)]
pub struct Call {
    pub src_node_name: Option<String>,
    pub src_dsn: Option<String>,
    pub new_node_name: Option<String>,
    pub new_node_dsn: Option<String>,
}

impl Call {
    /// The call that adds `new` to the cluster of `source`, under the servers' own names.
    pub fn of(new: &Server, source: &Server) -> Call {
        Call {
            src_node_name: Some(source.name().into()),
            src_dsn: Some(source.dsn()),
            new_node_name: Some(new.name().into()),
            new_node_dsn: Some(new.dsn()),
        }
    }

    pub fn sql(&self) -> String {
        let argument = |name: &str, value: &Option<String>| {
            let value = value
                .as_ref()
                .map_or("NULL".into(), |text| quote_literal(text));
            format!("{name} := {value}")
        };
        format!(
            "CALL spock.add_node({}, {}, {}, {})",
            argument("src_node_name", &self.src_node_name),
            argument("src_dsn", &self.src_dsn),
            argument("new_node_name", &self.new_node_name),
            argument("new_node_dsn", &self.new_node_dsn)
        )
    }

    /// Runs it on `new` and returns the error; panics if there is none.
    pub fn fails_on(&self, new: &Server) -> CallFailed {
        new.sql_error(&self.sql())
    }
}

/// Panics unless the error is the one that is meant: SQLSTATE, message and hint.
pub fn assert_failed(failed: &CallFailed, code: &str, message: &str, hint: &str) {
    assert_eq!(failed.code(), code, "{failed}");
    assert!(
        failed.message().contains(message),
        "the message should say: {message}\n{failed}"
    );
    assert!(!hint.is_empty(), "no hint is no help");
    assert!(
        failed.hint().contains(hint),
        "the hint should say: {hint}\n{failed}"
    );
}

/// Panics unless the error reports exactly these findings together, each with its hint.
pub fn assert_findings(failed: &CallFailed, findings: &[(&str, &str, &str)]) {
    assert_eq!(failed.code(), findings[0].0, "{failed}");
    assert_eq!(
        failed.message(),
        format!("{} checks failed before the first change", findings.len()),
        "{failed}"
    );
    for (code, message, hint) in findings {
        // A message of libpq may have several lines.
        let said = failed
            .detail()
            .split_once(message)
            .is_some_and(|(_, rest)| rest.contains(&format!("({code})")));
        assert!(said, "the detail should say: {message} ({code})\n{failed}");
        assert!(
            failed.hint().contains(hint),
            "the hint should say: {hint}\n{failed}"
        );
    }
}

/// A statement that runs while the test goes on.
pub struct Running {
    thread: JoinHandle<Result<Called, CallFailed>>,
    notices: Notices,
    cancel: CancelToken,
    /// The process id of its backend.
    pub pid: u32,
}

impl Running {
    /// Starts `sql` in a session of its own.
    pub fn start(server: &Server, sql: &str) -> Running {
        Running::start_after(server, "", sql)
    }

    /// Starts `sql` after `first` in the same session.
    pub fn start_after(server: &Server, first: &str, sql: &str) -> Running {
        let (mut client, notices) = server.client_with_notices();
        client
            .batch_execute(first)
            .unwrap_or_else(|e| panic!("{}: {}\n{first}", server.name(), explain(&e)));
        let pid: i32 = client
            .query_one("SELECT pg_backend_pid()", &[])
            .expect("ask for the process id")
            .get(0);
        let cancel = client.cancel_token();
        let (said, sql) = (notices.clone(), sql.to_string());
        let thread = thread::spawn(move || run(&mut client, &said, &sql));
        Running {
            thread,
            notices,
            cancel,
            pid: pid.cast_unsigned(),
        }
    }

    /// Waits until the statement has said something that contains `text`.
    pub fn wait_notice(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said: Vec<String> = {
                let notices = self.notices.lock().unwrap();
                notices.iter().map(ToString::to_string).collect()
            };
            if said.iter().any(|notice| notice.contains(text)) {
                return;
            }
            assert!(
                !self.thread.is_finished(),
                "the statement ended without a notice of {text:?}:\n{}",
                said.join("\n")
            );
            assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for a notice of {text:?}:\n{}",
                said.join("\n")
            );
            thread::sleep(POLL);
        }
    }

    /// Whether the statement has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ctrl-C.
    pub fn cancel(&self) {
        self.cancel
            .cancel_query(NoTls)
            .expect("send the cancel request");
    }

    /// Waits for the end.
    pub fn join(self) -> Result<Called, CallFailed> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Waits for the end, which must be an error.
    pub fn fails(self) -> CallFailed {
        match self.join() {
            Err(failed) => failed,
            Ok(called) => panic!("this was expected to fail: {called:?}"),
        }
    }

    /// Waits for the end, which must be that its backend was terminated. The word of it may be lost with the
    /// connection.
    pub fn ends_terminated(self) {
        let failed = self.fails();
        assert!(["57P01", ""].contains(&failed.code()), "{failed}");
    }

    /// Waits for the end, which must be a success.
    pub fn succeeds(self) -> Called {
        self.join().unwrap_or_else(|failed| panic!("{failed}"))
    }
}

fn run(client: &mut Client, notices: &Notices, sql: &str) -> Result<Called, CallFailed> {
    let started = Instant::now();
    let result = client.simple_query(sql);
    let elapsed = started.elapsed();
    let notices = notices.lock().unwrap().clone();
    match result {
        Ok(_) => Ok(Called {
            notices,
            rows: vec![],
            elapsed,
        }),
        Err(error) => Err(CallFailed {
            error,
            notices,
            elapsed,
        }),
    }
}

/// Writes a file that only the servers' account may read: libpq ignores a password file that others could
/// read, and a server does so with its key.
pub fn write_private(file: &Path, text: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    fs::write(file, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("make it private");
    let owner = fs::metadata(file.parent().expect("a directory")).expect("look at the directory");
    chown(file, Some(owner.uid()), Some(owner.gid())).expect("give it to the servers' account");
}

/// Keeps a CALL at a fault point where `zodan.failpoint` makes it hang.
pub struct Hang<'a> {
    server: &'a Server,
    holder: Client,
}

impl<'a> Hang<'a> {
    /// Sessions of such a name are not ended when a node leaves.
    const SPARED: &'static str = "zodan test";

    pub fn hold(server: &'a Server) -> Hang<'a> {
        let mut holder = server.client_named(Hang::SPARED);
        holder
            .batch_execute("SELECT pg_advisory_lock(2054120550, 1)")
            .expect("hold what a CALL hangs on");
        Hang { server, holder }
    }

    /// Starts `call`, after `settings`, and waits until it hangs at `point`.
    pub fn start(
        server: &'a Server,
        settings: &str,
        point: &str,
        call: &str,
    ) -> (Hang<'a>, Running) {
        let hang = Hang::hold(server);
        let arm = format!(
            "SET zodan.failpoint = {}",
            quote_literal(&format!("hang {point}"))
        );
        let running = Running::start_after(server, &format!("{arm}; {settings}"), call);
        hang.wait(&running);
        (hang, running)
    }

    /// Waits until `call` hangs.
    pub fn wait(&self, call: &Running) {
        let deadline = Instant::now() + PATIENCE;
        let hanging = "SELECT count(*) FROM pg_locks WHERE classid = 2054120550 AND NOT granted";
        let mut client = self.server.client_named(Hang::SPARED);
        loop {
            let count: i64 = client
                .query_one(hanging, &[])
                .expect("look at the locks")
                .get(0);
            if count == 1 {
                return;
            }
            assert!(!call.is_finished(), "the point was not reached");
            assert!(Instant::now() < deadline, "the point is not reached");
            thread::sleep(POLL);
        }
    }

    /// Its server may be down by now.
    pub fn release(mut self) {
        let _ = self.holder.batch_execute("SELECT pg_advisory_unlock_all()");
    }
}

/// A transaction with an id, which the creation of a slot on the same server has to wait for.
pub fn open_writer(server: &Server) -> Client {
    let mut writer = server.client_named("writer");
    writer
        .batch_execute("BEGIN; SELECT pg_current_xact_id()")
        .expect("open a write transaction");
    writer
}

/// Waits until every subscription of `servers` has a worker that is connected.
pub fn wait_mesh(servers: &[&Server]) {
    let expected = servers.len() - 1;
    for server in servers {
        server.wait_for(
            "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND relid IS NULL",
            &expected.to_string(),
        );
    }
}

/// Waits until the product has no session and no worker on `servers` any more. A session ends a moment
/// after the one that had opened it.
pub fn wait_no_sessions(servers: &[&Server]) {
    for server in servers {
        server.wait_for(
            "SELECT count(*) FROM pg_stat_activity
              WHERE pid <> pg_backend_pid() AND (application_name LIKE 'zodan%' OR backend_type LIKE 'zodan%')
                AND application_name NOT LIKE 'zodan node worker%' AND backend_type NOT LIKE 'zodan %'",
            "0",
        );
    }
}

/// Everything of some nodes that a join touches, without what changes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, Vec<String>>);

/// Topic and the query for its lines. The zodan tables are asked for only where they exist.
const TOPICS: &[(&str, &str)] = &[
    (
        "slots",
        "SELECT to_jsonb(s) - '{active,active_pid,xmin,catalog_xmin,restart_lsn,confirmed_flush_lsn,
                safe_wal_size,wal_status,inactive_since,conflicting,invalidation_reason,two_phase_at}'::text[]
           FROM pg_replication_slots s",
    ),
    ("subscriptions", "SELECT to_jsonb(s) FROM pg_subscription s"),
    ("tables of subscriptions", "SELECT to_jsonb(s) FROM pg_subscription_rel s"),
    ("publications", "SELECT to_jsonb(p) FROM pg_publication p"),
    ("tables of publications", "SELECT to_jsonb(p) FROM pg_publication_rel p"),
    ("schemas of publications", "SELECT to_jsonb(p) FROM pg_publication_namespace p"),
    ("origins", "SELECT roname FROM pg_replication_origin"),
    (
        "settings of databases and roles",
        "SELECT to_jsonb(s) FROM pg_db_role_setting s",
    ),
    ("databases", "SELECT to_jsonb(d) - '{datfrozenxid,datminmxid}'::text[] FROM pg_database d"),
    ("roles", "SELECT rolname FROM pg_roles"),
    ("schemas", "SELECT to_jsonb(n) FROM pg_namespace n WHERE nspname !~ '^pg_(temp|toast_temp)_'"),
    (
        "relations",
        "SELECT to_jsonb(c) - '{relfilenode,relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,
                relminmxid,relhasindex}'::text[] || jsonb_build_object('name', c.oid::regclass::text)
           FROM pg_class c WHERE oid >= 16384",
    ),
    (
        "columns",
        "SELECT to_jsonb(a) FROM pg_attribute a WHERE attrelid >= 16384",
    ),
    ("defaults", "SELECT to_jsonb(d) FROM pg_attrdef d WHERE oid >= 16384"),
    ("sequences", "SELECT to_jsonb(s) FROM pg_sequence s WHERE seqrelid >= 16384"),
    ("constraints", "SELECT to_jsonb(c) FROM pg_constraint c WHERE oid >= 16384"),
    ("triggers", "SELECT to_jsonb(t) FROM pg_trigger t WHERE oid >= 16384"),
    ("rules", "SELECT to_jsonb(r) FROM pg_rewrite r WHERE oid >= 16384"),
    ("policies", "SELECT to_jsonb(p) FROM pg_policy p"),
    ("routines", "SELECT to_jsonb(p) FROM pg_proc p WHERE oid >= 16384"),
    ("types", "SELECT to_jsonb(t) FROM pg_type t WHERE oid >= 16384"),
    ("event triggers", "SELECT to_jsonb(e) FROM pg_event_trigger e"),
    ("extensions", "SELECT to_jsonb(e) FROM pg_extension e"),
    ("default privileges", "SELECT to_jsonb(d) FROM pg_default_acl d"),
    ("foreign servers", "SELECT to_jsonb(f) FROM pg_foreign_server f"),
    ("large objects", "SELECT to_jsonb(l) FROM pg_largeobject_metadata l"),
    (
        "prepared transactions",
        "SELECT gid FROM pg_prepared_xacts",
    ),
    (
        "advisory locks",
        "SELECT format('%s %s', classid, objid) FROM pg_locks WHERE locktype = 'advisory'",
    ),
    (
        "scratch files",
        "SELECT 'base/pgsql_tmp/' || f FROM pg_ls_dir('base/pgsql_tmp', true, false) f",
    ),
];

const RECORDS: [&str; 12] = [
    "spock.node",
    "spock.node_interface",
    "spock.local_node",
    "spock.subscription",
    "spock.replication_set",
    "spock.replication_set_table",
    "spock.replication_set_seq",
    "zodan.node",
    "zodan.local_node",
    "zodan.marker",
    "zodan.sequence",
    "zodan.paused_subscription",
];

/// The fingerprint of `servers`, taken when the product's sessions have ended and the removal of its markers
/// has arrived everywhere. The writers must stand still.
pub fn fingerprint(servers: &[&Server]) -> Fingerprint {
    wait_no_sessions(servers);
    for server in servers {
        if !server
            .value("SELECT to_regclass('zodan.marker')")
            .is_empty()
        {
            server.wait_for("SELECT string_agg(m::text, ' ') FROM zodan.marker m", "");
        }
    }
    fingerprint_meanwhile(servers)
}

/// The fingerprint of `servers` while the product may be at work.
pub fn fingerprint_meanwhile(servers: &[&Server]) -> Fingerprint {
    let mut all = BTreeMap::new();
    for server in servers {
        let mut client = server.client();
        let name = |topic: &str| format!("{topic} of {}", server.name());
        for (topic, query) in TOPICS {
            all.insert(name(topic), lines(server, &mut client, query));
        }
        for table in RECORDS {
            let exists = format!("SELECT to_regclass('{table}')");
            if !lines(server, &mut client, &exists)[0].is_empty() {
                let query = format!("SELECT to_jsonb(t) FROM {table} t");
                all.insert(name(table), lines(server, &mut client, &query));
            }
        }
        let content = digest(server)
            .iter()
            .map(|(table, digest)| format!("{table} {digest:?}"))
            .collect();
        all.insert(name("content"), content);
    }
    Fingerprint(all)
}

fn lines(server: &Server, client: &mut Client, query: &str) -> Vec<String> {
    let messages = client
        .simple_query(query)
        .unwrap_or_else(|e| panic!("{}: {}\n{query}", server.name(), explain(&e)));
    let mut lines: Vec<String> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().into()),
            _ => None,
        })
        .collect();
    lines.sort();
    lines
}

impl Fingerprint {
    /// The part of it that is about `servers`.
    pub fn of(&self, servers: &[&Server]) -> Fingerprint {
        let about = |topic: &str| {
            let is = |s: &&Server| topic.ends_with(&format!(" of {}", s.name()));
            servers.iter().any(is)
        };
        let kept = self.0.iter().filter(|(topic, _)| about(topic));
        Fingerprint(kept.map(|(t, l)| (t.clone(), l.clone())).collect())
    }

    /// The same without a topic.
    pub fn without(mut self, topic: &str) -> Fingerprint {
        self.0
            .retain(|t, _| !t.starts_with(&format!("{topic} of ")));
        self
    }

    /// Panics with the differences unless `servers` are now as they were.
    pub fn assert_same_now(&self, servers: &[&Server]) {
        self.assert_same(&fingerprint(servers));
    }

    /// Panics with the differences.
    pub fn assert_same(&self, now: &Fingerprint) {
        let mut differences = String::new();
        let topics: std::collections::BTreeSet<&String> =
            self.0.keys().chain(now.0.keys()).collect();
        for topic in topics {
            let none = vec![];
            let (before, after) = (
                self.0.get(topic).unwrap_or(&none),
                now.0.get(topic).unwrap_or(&none),
            );
            for (sign, from, other) in [("-", before, after), ("+", after, before)] {
                for line in from.iter().filter(|line| !other.contains(line)) {
                    differences += &format!("{topic}: {sign} {line}\n");
                }
            }
            if differences.is_empty() && before.len() != after.len() {
                differences += &format!("{topic}: {before:?} became {after:?}\n");
            }
        }
        assert!(differences.is_empty(), "something changed\n{differences}");
    }
}

/// The runs in the journals of `servers`, which a refusal does not add to.
pub fn runs(servers: &[&Server]) -> Vec<Vec<Option<String>>> {
    servers
        .iter()
        .flat_map(|server| {
            server.rows("SELECT to_jsonb(r), (SELECT count(*) FROM zodan.step) FROM zodan.run r ORDER BY id")
        })
        .collect()
}
