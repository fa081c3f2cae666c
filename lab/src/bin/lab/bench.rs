//! `lab bench-join`: how long a join takes, beside other ways to get the same database across.

use crate::{Options, grouped};
use lab::digest::{assert_same_content, assert_same_structure};
use lab::{Cluster, Server, ServerOptions, add_node, dirs, pg, quote_literal};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Every way may use as many processes, workers or connections for the data at a time.
const JOBS: &str = "2";
const DATABASE: &str = "bench";
/// The filled database, copied for every run, so that no run finds what an earlier one left.
const MASTER: &str = "bench_master";
/// An initial copy that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3600);

struct Bench {
    cluster: Cluster,
    scratch: tempfile::TempDir,
}

struct Way {
    name: &'static str,
    /// Copies the database from n1 to n2, where it is empty, and returns the time of the copy alone where it
    /// is known.
    run: fn(&Bench) -> Option<Duration>,
    /// Done on both nodes before the clock starts.
    before: &'static str,
}

/// The way that all others are compared with.
const FLOOR: &str = "binary COPY over pipes";

fn ways() -> Vec<Way> {
    let mut ways = vec![
        Way {
            name: "zodan add_node",
            run: zodan,
            before: "CREATE EXTENSION zodan",
        },
        Way {
            name: "CREATE SUBSCRIPTION",
            run: subscription,
            before: "",
        },
        Way {
            name: "pg_dump | pg_restore",
            run: dump_and_restore,
            before: "",
        },
    ];
    match pgcopydb() {
        Some(_) => ways.push(Way {
            name: "pgcopydb clone",
            run: pgcopydb_clone,
            before: "",
        }),
        None => println!("pgcopydb is not installed: skipped."),
    }
    ways.push(Way {
        name: FLOOR,
        run: floor,
        before: "",
    });
    ways
}

/// Runs the benchmark; true if every copy was exact.
pub fn run(options: &Options) -> bool {
    println!("Two servers, {}, {JOBS} jobs each way.", pg::version());
    let mut ways = ways();
    let bench = Bench::new();
    let size = bench.fill(options.scale);
    println!("The database: {size}.\n");

    let mut times: BTreeMap<&str, (Vec<Duration>, Vec<Duration>)> = BTreeMap::new();
    for round in 1..=options.rounds {
        for way in &ways {
            let (took, copy) = bench.time(way);
            let of_it = copy.map_or(String::new(), |copy| {
                format!(", of it the copy {}", seconds(copy))
            });
            println!("round {round}: {:<24}{:>9}{of_it}", way.name, seconds(took));
            let (all, copies) = times.entry(way.name).or_default();
            all.push(took);
            copies.extend(copy);
        }
        // Who goes first changes from round to round.
        ways.rotate_left(1);
    }

    println!("\n{:<26}{:>10}{:>10}", "", "median", "/ floor");
    let floor = median(&times[FLOOR].0)
        .expect("at least one round")
        .as_secs_f64();
    let line = |name: &str, rounds: &[Duration]| {
        if let Some(time) = median(rounds) {
            println!(
                "{name:<26}{:>10}{:>10.2}",
                seconds(time),
                time.as_secs_f64() / floor
            );
        }
    };
    let mut results: Vec<_> = times.iter().collect();
    results.sort_by_key(|(_, (all, _))| median(all));
    for (name, (all, copies)) in results {
        line(name, all);
        line("  of it the copy", copies);
    }
    println!("\nEvery copy was compared with the source, and was the same.");
    true
}

impl Bench {
    fn new() -> Bench {
        let options = ServerOptions::default()
            .database(DATABASE)
            .set("shared_buffers", "512MB")
            .set("maintenance_work_mem", "128MB")
            .set("max_wal_size", "8GB")
            .set("checkpoint_timeout", "1h")
            .set("max_sync_workers_per_subscription", JOBS);
        let scratch = dirs::scratch("dumps-");
        Bench {
            cluster: Cluster::start_with(2, &options),
            scratch,
        }
    }

    fn source(&self) -> &Server {
        self.cluster.n(1)
    }

    fn target(&self) -> &Server {
        self.cluster.n(2)
    }

    /// Makes the master database: pgbench's tables with secondary indexes, and wide texts.
    fn fill(&self, scale: u64) -> String {
        println!("Filling about {} MB ...", grouped(scale * 100));
        maintain(self.source(), &format!("CREATE DATABASE {MASTER}"));
        let scale_of_pgbench = (scale * 3).to_string();
        finish(
            self.source()
                .tool("pgbench")
                .args(["-i", "-q", "-I", "dtGvp", "-s", &scale_of_pgbench, MASTER])
                .stderr(Stdio::piped()),
        );
        let mut client = self.source().client_as("postgres", MASTER);
        let texts = scale * 25_000;
        let wide = format!(
            "CREATE INDEX accounts_branch ON pgbench_accounts (bid);
             CREATE INDEX accounts_balance ON pgbench_accounts (abalance, aid);
             CREATE TABLE article (id bigint PRIMARY KEY, title text NOT NULL, body text NOT NULL);
             INSERT INTO article
             SELECT i, 'article ' || md5(i::text), (SELECT string_agg(md5((i * 100 + part)::text), ' ') FROM generate_series(1, 40) part)
               FROM generate_series(1, {texts}) i;
             CREATE INDEX article_title ON article (title);
             ANALYZE;
             CHECKPOINT;"
        );
        client
            .batch_execute(&wide)
            .unwrap_or_else(|e| panic!("{}", lab::explain(&e)));
        let size = format!("SELECT pg_size_pretty(pg_database_size('{MASTER}'))");
        client.query_one(&size, &[]).expect("the size").get(0)
    }

    /// One run of one way, from the fresh source to a verified copy.
    fn time(&self, way: &Way) -> (Duration, Option<Duration>) {
        self.cluster
            .all()
            .into_iter()
            .for_each(remove_subscriptions);
        self.cluster.all().into_iter().for_each(remove_database);
        maintain(
            self.source(),
            &format!("CREATE DATABASE {DATABASE} TEMPLATE {MASTER} STRATEGY file_copy"),
        );
        maintain(self.target(), &format!("CREATE DATABASE {DATABASE}"));
        for node in self.cluster.all() {
            node.sql(way.before);
            node.sql("CHECKPOINT");
        }
        let started = Instant::now();
        let copy = (way.run)(self);
        let took = started.elapsed();
        assert_same_content(&self.cluster.all());
        assert_same_structure(self.source(), self.target());
        (took, copy)
    }

    /// A path for a dump, which does not exist.
    fn dump(&self) -> PathBuf {
        let dump = self.scratch.path().join("dump");
        if dump.is_dir() {
            std::fs::remove_dir_all(&dump).expect("remove the last dump");
        }
        dump
    }

    fn restore(&self, arguments: &[&str], dump: &Path) {
        finish(
            self.target()
                .tool("pg_restore")
                .args([
                    "--exit-on-error",
                    "--no-publications",
                    "--no-subscriptions",
                    "-d",
                    DATABASE,
                ])
                .args(arguments)
                .arg(dump),
        );
    }
}

/// (a) The product.
fn zodan(bench: &Bench) -> Option<Duration> {
    if let Err(failed) = add_node(bench.target(), "n2", bench.source(), "n1") {
        panic!("the join failed: {failed}");
    }
    copy_phase(bench.target())
}

/// The time of the copy alone (structure, data, indexes), from the journal of the new node.
fn copy_phase(new: &Server) -> Option<Duration> {
    let milliseconds = new.value(
        "SELECT round(extract(epoch FROM max(ended_at) - min(started_at)) * 1000)
           FROM zodan.step
          WHERE run_id = (SELECT max(id) FROM zodan.run) AND description = 'copy structure and data'",
    );
    milliseconds.parse().ok().map(Duration::from_millis)
}

/// (b) PostgreSQL's own initial copy, into the full schema.
fn subscription(bench: &Bench) -> Option<Duration> {
    let dump = bench.dump();
    finish(
        bench
            .source()
            .tool("pg_dump")
            .args(["-Fd", "--schema-only", "-f"])
            .arg(&dump),
    );
    bench.restore(&[], &dump);
    bench
        .source()
        .sql("CREATE PUBLICATION everything FOR ALL TABLES");
    bench.target().sql(&format!(
        "CREATE SUBSCRIPTION everything CONNECTION {} PUBLICATION everything",
        quote_literal(&bench.source().dsn())
    ));
    bench.target().wait_for_within(
        "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel",
        "t",
        PATIENCE,
    );
    None
}

/// (c) The way of the manual. Without compression: it would only cost time on one machine.
fn dump_and_restore(bench: &Bench) -> Option<Duration> {
    let dump = bench.dump();
    finish(
        bench
            .source()
            .tool("pg_dump")
            .args(["-Fd", "-j", JOBS, "-Z0", "-f"])
            .arg(&dump),
    );
    bench.restore(&["-j", JOBS], &dump);
    None
}

/// (d) pgcopydb, where it is installed.
fn pgcopydb_clone(bench: &Bench) -> Option<Duration> {
    let program = pgcopydb().expect("only called where it is installed");
    let (from, to) = (bench.source().dsn_uri(), bench.target().dsn_uri());
    // It runs pg_dump and pg_restore from the PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [pg::bindir().to_path_buf()]
        .into_iter()
        .chain(std::env::split_paths(&path));
    finish(
        Command::new(program)
            .args(["clone", "--restart", "--source", &from, "--target", &to])
            .args(["--table-jobs", JOBS, "--index-jobs", JOBS, "--dir"])
            .arg(bench.scratch.path().join("pgcopydb"))
            .env(
                "PATH",
                std::env::join_paths(path).expect("a PATH without colons in it"),
            )
            .stdout(Stdio::null())
            // When it fails it signals its whole process group, which must not be ours.
            .process_group(0),
    );
    None
}

fn pgcopydb() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([pg::bindir().to_path_buf()])
        .map(|dir| dir.join("pgcopydb"))
        .find(|program| {
            program
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// (e) The floor: nothing but the data between two psql, and the indexes after it.
fn floor(bench: &Bench) -> Option<Duration> {
    let dump = bench.dump();
    finish(
        bench
            .source()
            .tool("pg_dump")
            .args(["-Fd", "--schema-only", "-f"])
            .arg(&dump),
    );
    bench.restore(&["--section=pre-data"], &dump);
    let tables = bench.source().rows(
        "SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND n.nspname = 'public' ORDER BY pg_relation_size(c.oid)",
    );
    // Taken from the end: the largest first.
    let waiting = Mutex::new(
        tables
            .into_iter()
            .filter_map(|mut row| row.swap_remove(0))
            .collect::<Vec<_>>(),
    );
    thread::scope(|scope| {
        for _ in 0..JOBS.parse().expect("a number") {
            scope.spawn(|| {
                while let Some(table) = { waiting.lock().unwrap().pop() } {
                    pipe(bench, &table);
                }
            });
        }
    });
    bench.restore(&["-j", JOBS, "--section=post-data"], &dump);
    None
}

fn pipe(bench: &Bench, table: &str) {
    let mut sender = psql(
        bench.source(),
        &format!("COPY {table} TO STDOUT (FORMAT binary)"),
    );
    let mut sender = sender.stdout(Stdio::piped()).spawn().expect("run psql");
    let data = sender.stdout.take().expect("a pipe was asked for");
    finish(
        psql(
            bench.target(),
            &format!("COPY {table} FROM STDIN (FORMAT binary)"),
        )
        .stdin(data),
    );
    assert!(
        sender.wait().expect("wait for psql").success(),
        "COPY {table} TO STDOUT failed"
    );
}

fn psql(server: &Server, sql: &str) -> Command {
    let mut command = server.tool("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    command
}

/// Runs a program to its successful end.
fn finish(command: &mut Command) {
    let program = command.get_program().to_os_string();
    let out = command
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
    assert!(
        out.status.success(),
        "{} failed ({})\n{}",
        program.display(),
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Runs one statement outside the benchmark's database.
fn maintain(server: &Server, sql: &str) {
    let mut client = server.client_as("postgres", "postgres");
    client
        .batch_execute(sql)
        .unwrap_or_else(|e| panic!("{}: {}\n{sql}", server.name(), lab::explain(&e)));
}

/// Drops the subscriptions in the benchmark's database. Their slots on the other node go in
/// [`remove_database`], which that node can only do when nobody reads them any more.
fn remove_subscriptions(server: &Server) {
    let mut client = server.client();
    let mine = "SELECT quote_ident(subname) FROM pg_subscription
                 WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for name in names(&mut client, mine) {
        for action in [
            format!("ALTER SUBSCRIPTION {name} DISABLE"),
            format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"),
            format!("DROP SUBSCRIPTION {name}"),
        ] {
            client
                .batch_execute(&action)
                .unwrap_or_else(|e| panic!("{action}: {}", lab::explain(&e)));
        }
    }
}

/// Drops the benchmark's database with its slots.
fn remove_database(server: &Server) {
    let mut client = server.client();
    let slots =
        "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()";
    for slot in names(&mut client, slots) {
        let slot = quote_literal(&slot);
        server.wait_for(
            &format!("SELECT active FROM pg_replication_slots WHERE slot_name = {slot}"),
            "f",
        );
        client
            .batch_execute(&format!("SELECT pg_drop_replication_slot({slot})"))
            .expect("drop a slot");
    }
    drop(client);
    maintain(server, &format!("DROP DATABASE {DATABASE} WITH (FORCE)"));
}

fn names(client: &mut lab::postgres::Client, query: &str) -> Vec<String> {
    client
        .query(query, &[])
        .expect("list what is to be dropped")
        .iter()
        .map(|row| row.get(0))
        .collect()
}

fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let times = [5, 1, 9].map(Duration::from_secs);
        assert_eq!(median(&times), Some(Duration::from_secs(5)));
        assert_eq!(median(&times[..1]), Some(Duration::from_secs(5)));
        assert_eq!(median(&[]), None);
    }
}
