//! `lab demo`: a node joins a mesh that is being written to, and everything is compared afterwards.

use crate::{Options, down, grouped};
use lab::cluster::add_node_call;
use lab::load::LoadOptions;
use lab::{Cluster, Load, Server, ServerOptions, add_node, digest, pg, schema, wait_quiet};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 4;
/// Every node subscribes to every other.
const SUBSCRIPTIONS: usize = NODES * (NODES - 1);
/// How long the writers run alone first, so that there is a latency to compare with.
const BASELINE: Duration = Duration::from_secs(5);

/// Runs the demo; true if the new node has everything and no write failed.
pub fn run(options: &Options) -> bool {
    let Some(_turn) = down::turn() else {
        return false;
    };
    if let Some(stopped) = down::take_down() {
        println!("An earlier demo was still there: {stopped} servers stopped and removed.");
    }
    let cluster = step(
        &format!("Starting {NODES} servers, {}", pg::version()),
        || {
            // Readable by everybody, like any directory of sockets.
            std::fs::create_dir(down::home())
                .unwrap_or_else(|e| panic!("cannot make {}: {e}", down::home().display()));
            Cluster::start_each(NODES, |name| {
                ServerOptions::default().lasting(&down::home().join(name))
            })
        },
    );
    let (nodes, members, new) = (cluster.all(), cluster.first(NODES - 1), cluster.n(NODES));
    step(
        &format!(
            "Filling n1 with tables of many kinds, about {} rows",
            grouped(options.rows)
        ),
        || {
            cluster.create_extension();
            for node in &nodes {
                node.sql(schema::ROLES);
            }
            let first = cluster.n(1);
            first.sql(lab::quiet::SCHEMA);
            first.sql(lab::load::SCHEMA);
            first.sql(&schema::kinds(options.rows));
        },
    );
    for node in &members[1..] {
        step(&format!("{} joins n1", node.name()), || {
            if let Err(failed) = add_node(node, node.name(), cluster.n(1), "n1") {
                panic!("{} could not join: {failed}", node.name());
            }
        });
    }

    let load = Load::start_with(
        &members,
        &LoadOptions {
            writers: 2,
            rate: Some(100),
        },
    );
    let alone_from = Instant::now();
    step(
        "Writers insert, update and delete on all three nodes; measuring their latency",
        || {
            load.wait_commits(1);
            thread::sleep(BASELINE);
        },
    );
    let join_from = Instant::now();
    let joined = join(new, cluster.n(1));
    let join_to = Instant::now();
    assert!(joined, "the join failed: its error is above");
    step("Writing goes on for a moment", || load.wait_commits(50));
    let report = load.stop();

    step(
        "The writers have stopped; waiting until every node has everything",
        || wait_quiet(&nodes),
    );
    let (differences, lost, arrived) = step("Comparing the content of all four nodes", || {
        let differences = digest::compare(&nodes).err();
        let lost: Vec<String> = nodes
            .iter()
            .flat_map(|node| report.wrong_on(node))
            .collect();
        (differences, lost, digest::digest(new))
    });
    let replicating = replicating(&nodes);

    let content = if differences.is_none() && lost.is_empty() {
        "equal on all four nodes"
    } else {
        "NOT EQUAL"
    };
    let ms = |from, to| {
        format!(
            "{:.0} ms",
            report.max_latency_between(from, to).as_secs_f64() * 1000.0
        )
    };
    println!();
    summary(
        "join took",
        &format!("{:.1} s", (join_to - join_from).as_secs_f64()),
    );
    let rows = arrived.values().map(|table| table.rows).sum();
    summary(
        "rows",
        &format!("{} in {} tables", grouped(rows), arrived.len()),
    );
    summary("apply paused for", &apply_pause(new));
    summary("slowest write before", &ms(alone_from, join_from));
    summary("slowest write during", &ms(join_from, join_to));
    summary(
        "transactions",
        &format!(
            "{} ({:.0}/s)",
            grouped(report.commits),
            report.writes_per_second()
        ),
    );
    summary("failed writes", &report.failures.len().to_string());
    summary(
        "subscriptions",
        &format!("{replicating} of {SUBSCRIPTIONS} replicating"),
    );
    summary("content", content);
    for problem in differences.iter().chain(lost.iter().take(10)) {
        println!("{problem}");
    }
    for failure in report.failures.iter().take(10) {
        println!("{}", failure.error);
    }

    let good = differences.is_none()
        && lost.is_empty()
        && report.failures.is_empty()
        && replicating == SUBSCRIPTIONS;
    println!(
        "\nThe four nodes go on running; `make demo-down` stops and removes them. To look around:\n"
    );
    for node in &nodes {
        println!(
            "  {} -h 127.0.0.1 -p {} -U postgres postgres   # {}",
            psql(),
            node.port(),
            node.name()
        );
    }
    if !good {
        println!("\nThe demo FAILED.");
    }
    good
}

/// Said after a failure, whose reason has been printed.
pub fn explain_failure() {
    let home = down::home();
    if home.exists() {
        eprintln!(
            "\nWhat it started is left for inspection in {} (n*/log are the servers' logs);\n\
             `make demo-down` stops and removes it.",
            home.display()
        );
    }
}

/// The call itself, in psql, as a user would run it: its notices appear as they come.
fn join(new: &Server, source: &Server) -> bool {
    let call = add_node_call(new, new.name(), source, source.name());
    println!("\n{}=# {call};", new.name());
    let status = new
        .tool("psql")
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-c", &call])
        .status()
        .unwrap_or_else(|e| panic!("cannot run psql: {e}"));
    println!();
    status.success()
}

/// How many subscriptions of the mesh have a worker that applies, and a slot that this worker reads.
fn replicating(nodes: &[&Server]) -> usize {
    let count = |node: &&Server, query: &str| node.value(query).parse::<usize>().expect("a count");
    let workers: usize = nodes
        .iter()
        .map(|node| {
            count(
                node,
                "SELECT count(DISTINCT s.oid)
                   FROM pg_catalog.pg_subscription s
                   JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL
                   JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                  WHERE s.subenabled",
            )
        })
        .sum();
    let slots: usize = nodes
        .iter()
        .map(|node| {
            count(
                node,
                "SELECT count(*) FROM pg_catalog.pg_replication_slots
                  WHERE slot_type = 'logical' AND active AND database = current_database()",
            )
        })
        .sum();
    workers.min(slots)
}

/// For how long the source did not apply its peers' changes, from the journal of the new node.
fn apply_pause(new: &Server) -> String {
    let pause =
        new.value("SELECT round(apply_pause_ms) FROM zodan.run ORDER BY started_at DESC LIMIT 1");
    if pause.is_empty() {
        "not recorded".into()
    } else {
        format!("{pause} ms")
    }
}

/// Says what is being done, does it, and says how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    print!("{what} ... ");
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    let result = work();
    println!("{:.1} s", started.elapsed().as_secs_f64());
    result
}

pub fn summary(what: &str, value: &str) {
    println!("  {what:<22}{value}");
}

/// How to call psql: by its name if that is on the PATH.
fn psql() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).any(|dir| dir.join("psql").is_file());
    if known {
        "psql".into()
    } else {
        pg::bindir().join("psql").display().to_string()
    }
}
