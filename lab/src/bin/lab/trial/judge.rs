//! What has to be so when a step is over and everything has come to rest.

use super::ledger::Rows;
use super::shape::Engine;
use super::world::{Node, PASSWORD, World, rows_of};
use super::writer::LANE;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

/// A subscription has come back, and everything is applied, within this time.
const REST: Duration = Duration::from_secs(60);

/// No write on a node that nobody disturbed takes longer.
const SLOWEST_WRITE: Duration = Duration::from_secs(10);

/// Waits until every subscription of a member is at work that is enabled and not to `subject`, who joins, leaves or is dead.
/// A run that could not be undone may have left the source's apply paused until the next call.
pub fn subscriptions_work(world: &World, group: usize, subject: usize) {
    let idle = match world.engine {
        Engine::Native => {
            "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid
              WHERE datname = current_database() AND subenabled AND subname ~ '^sub_' AND NOT EXISTS (
                    SELECT FROM pg_stat_subscription w
                     WHERE w.subid = s.oid AND w.pid IS NOT NULL AND w.received_lsn IS NOT NULL)"
        }
        Engine::Spock => {
            "SELECT sub_name FROM spock.subscription s
              WHERE sub_enabled AND NOT EXISTS (
                    SELECT FROM pg_stat_activity a JOIN pg_database d ON d.datname = current_database()
                     WHERE a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)
                       AND a.wait_event IS NOT NULL)"
        }
    };
    let to_subject = format!("sub_{}_", world.server(subject).name());
    let others = world.members(group).into_iter().filter(|n| *n != subject);
    let deadline = Instant::now() + REST;
    for node in others.map(|number| world.node(number, group)) {
        loop {
            let mut waits = node.column(idle);
            waits.retain(|name| !name.starts_with(&to_subject));
            if waits.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                world.blame(format!("{} does not apply by {waits:?}", node.name()));
                world.log(&node.server().activity());
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Waits until each member has what was committed on any of them before.
fn members_are_quiet(world: &World, group: usize) {
    let alive: Vec<Node> = world
        .members(group)
        .into_iter()
        .map(|number| world.node(number, group))
        .collect();
    let tokens: Vec<String> = alive
        .iter()
        .flat_map(|node| {
            node.column("INSERT INTO trial.marker VALUES (gen_random_uuid()) RETURNING token")
        })
        .collect();
    let list = tokens.join("','");
    let there = format!("SELECT count(*) FROM trial.marker WHERE token IN ('{list}')");
    let deadline = Instant::now() + REST;
    for node in &alive {
        loop {
            let found = node.try_rows(&there);
            if matches!(&found, Ok(rows) if rows[0][0] == tokens.len().to_string()) {
                break;
            }
            if Instant::now() > deadline {
                world.blame(format!(
                    "{} has {found:?} of {} markers after {REST:?}",
                    node.name(),
                    tokens.len()
                ));
                for node in &alive {
                    world.log(&node.server().activity());
                }
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Judges a group, and takes what it finds as the state from now on. `subject` is who joined or left; `ddl` says that
/// statements on tables may have met those of the writers.
pub fn judge(world: &World, group: usize, subject: usize, ddl: bool) {
    let unfinished: Vec<_> = match group {
        0 => vec![],
        _ => std::mem::take(&mut *world.unfinished.lock().unwrap()),
    };
    for finish in unfinished {
        finish(world);
    }
    world.start_writers(group);
    world.wait_commits(group, 3);
    world.stop_writers(group, None);
    world.heal();
    writes_succeeded(world, group, subject, ddl);
    members_are_quiet(world, group);
    owed_is_there(world, group);
    members_are_equal(world, group);
    ledgers_hold(world, group);
    nothing_is_left(world, group);
    if group + 1 == world.groups.len() {
        world.nobody_disturbed();
    }
}

fn writes_succeeded(world: &World, group: usize, subject: usize, ddl: bool) {
    let (disturbed, leaving) = (world.disturbed(), world.take_leaving(group));
    for (number, report) in world.take_reports(group) {
        if disturbed.contains(&number) {
            continue;
        }
        let excused = |code: &str| match code {
            // A node that leaves takes no writes any more, and its sessions are ended with that reason.
            "25006" | "57P01" | "" => number == subject || leaving.contains(&number),
            // A deadlock with one of the statements beside it: PostgreSQL picks either.
            "40P01" => ddl,
            _ => false,
        };
        for failure in report
            .failures
            .iter()
            .filter(|failure| !excused(&failure.code))
        {
            world.blame(format!(
                "a write on n{} failed: {}",
                number + 1,
                failure.what
            ));
        }
        if report.slowest > SLOWEST_WRITE {
            world.blame(format!(
                "a write on n{} took {:.1?}",
                number + 1,
                report.slowest
            ));
        }
    }
}

fn owed_is_there(world: &World, group: usize) {
    if group > 0 {
        return;
    }
    let owed = std::mem::take(&mut *world.owed.lock().unwrap());
    for number in world.members(group) {
        let node = world.node(number, group);
        let lacking = node.column(&format!(
            "SELECT unnest('{{{}}}'::uuid[]) EXCEPT SELECT token FROM trial.marker",
            owed.join(",")
        ));
        if let Some(token) = lacking.first() {
            world.blame(format!(
                "{} lacks {} rows that were committed on a node that left, {token} is one",
                node.name(),
                lacking.len()
            ));
        }
    }
}

/// Every table of the trial, with the text of its rows.
fn content(node: &Node) -> Result<BTreeMap<String, BTreeMap<String, usize>>, String> {
    let mut client = node.connect()?;
    let tables = rows_of(
        &mut client,
        "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE nspname = 'trial' AND relkind = 'r' AND relpersistence = 'p' ORDER BY 1",
    )?;
    let mut rows = |table: String| {
        let texts = rows_of(&mut client, &format!("SELECT t::text FROM ONLY {table} t"))?;
        let mut counts = BTreeMap::new();
        for text in texts.into_iter().flatten() {
            *counts.entry(text).or_default() += 1;
        }
        Ok((table, counts))
    };
    tables.into_iter().flatten().map(&mut rows).collect()
}

fn members_are_equal(world: &World, group: usize) {
    let members = world.members(group);
    let first = world.node(members[0], group);
    let content = |node: &Node| content(node).unwrap_or_else(|e| panic!("{}: {e}", node.name()));
    let want = content(&first);
    for number in &members[1..] {
        let node = world.node(*number, group);
        let have = content(&node);
        let tables: BTreeSet<&String> = want.keys().chain(have.keys()).collect();
        for table in tables {
            let (Some(want), Some(have)) = (want.get(table), have.get(table)) else {
                world.blame(format!(
                    "{table} is on one of {} and {} only",
                    first.name(),
                    node.name()
                ));
                continue;
            };
            let rows: BTreeSet<&String> = want.keys().chain(have.keys()).collect();
            let differing: Vec<String> = rows
                .into_iter()
                .filter(|row| want.get(*row) != have.get(*row))
                .filter(|row| {
                    !(world.may_double(table) && want.contains_key(*row) && have.contains_key(*row))
                })
                .map(|row| {
                    let count =
                        |side: &BTreeMap<String, usize>| side.get(row).copied().unwrap_or(0);
                    let short: String = row.chars().take(100).collect();
                    format!("{short} ({} times and {})", count(want), count(have))
                })
                .collect();
            if !differing.is_empty() {
                world.blame(format!(
                    "{} rows of {table} differ on {} and {}: {}",
                    differing.len(),
                    first.name(),
                    node.name(),
                    differing[..differing.len().min(5)].join("; ")
                ));
            }
        }
    }
}

/// Every acknowledged commit is there exactly once. Of a dead node its first ones are.
fn ledgers_hold(world: &World, group: usize) {
    let members = world.members(group);
    let node = world.node(members[0], group);
    let mut found: BTreeMap<usize, Rows> = BTreeMap::new();
    for (kind, of) in world.shape.kinds.iter().enumerate() {
        for row in node.rows(of.read) {
            let (number, version): (i64, i32) = match (row[0].parse(), row[1].parse()) {
                (Ok(number), Ok(version)) => (number, version),
                _ => panic!("{}: {row:?}", of.name),
            };
            let lane = (number / LANE - 1) as usize;
            let rows = found.entry(lane).or_default();
            let again = rows.insert((kind, number % LANE), version).is_some();
            let table = of.read.rsplit(' ').next().unwrap_or_default();
            if again && !world.may_double(table) {
                world.blame(format!("row {number} of {} is there twice", of.name));
            }
        }
    }
    let dead = world.dead();
    for (number, ledger) in world.ledgers(group) {
        let found = found.remove(&number).unwrap_or_default();
        let mut ledger = ledger.lock().unwrap();
        let wrong = match dead.contains(&number) {
            false => ledger.wrong(&found),
            true => match ledger.survived(&found) {
                Ok(commits) => {
                    world.log(&format!(
                        "of n{}, which is dead, {commits} of {} commits are there",
                        number + 1,
                        ledger.commits()
                    ));
                    vec![]
                }
                Err(wrong) => wrong,
            },
        };
        if !wrong.is_empty() {
            world.blame(format!(
                "{} rows of the writer on n{} are wrong on {}: {}",
                wrong.len(),
                number + 1,
                node.name(),
                wrong[..wrong.len().min(5)].join("; ")
            ));
        }
        ledger.settle(found);
    }
}

/// No member has anything of a node that is none, and no other database of the trial is a node.
fn nothing_is_left(world: &World, group: usize) {
    let members = world.members(group);
    let names = match world.engine {
        Engine::Native => {
            "SELECT 'subscription ' || subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
              WHERE datname = current_database()
             UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
              WHERE database = current_database() AND slot_name !~ '^foreign'
             UNION ALL SELECT 'node ' || name FROM zodan.node"
        }
        Engine::Spock => {
            "SELECT 'subscription ' || sub_name FROM spock.subscription
             UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
              WHERE database = current_database() AND slot_name !~ '^foreign'
             UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
             UNION ALL SELECT 'node ' || node_name FROM spock.node"
        }
    };
    let dead = world.dead();
    for number in (0..world.shape.servers).filter(|number| !dead.contains(number)) {
        let node = world.node(number, group);
        let is_member = members.contains(&number);
        let names = match node.try_rows(names) {
            Ok(rows) => rows,
            // A former node without the extension, perhaps.
            Err(_) if !is_member => continue,
            Err(e) => panic!("{}: {e}", node.name()),
        };
        for name in names.into_iter().flatten() {
            let of = |other: usize| {
                let other = format!("n{}", other + 1);
                name.split(|c: char| !c.is_ascii_alphanumeric())
                    .any(|word| word == other)
            };
            let gone: Vec<usize> = (0..world.shape.servers)
                .filter(|n| !members.contains(n) && of(*n))
                .collect();
            if is_member && !gone.is_empty() || !is_member && !name.starts_with("node ") {
                world.blame(format!("{} has still the {name}", node.name()));
            }
        }
        let sessions =
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()
             AND application_name ~ '^zodan' AND application_name !~ '^zodan node worker'";
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = node.column(sessions);
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                world.blame(format!("{} has still sessions: {left:?}", node.name()));
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What the logs of the servers may not say.
pub fn logs_are_clean(world: &World) {
    for number in 0..world.shape.servers {
        let server = world.server(number);
        for line in server.log().lines() {
            let crashed = line.contains("was terminated by signal 11")
                || line.contains("was terminated by signal 6") && !world.disk_was_full();
            // Spock writes the connection string when its worker cannot connect, and does not hide anything in it.
            let secret = line.contains(PASSWORD) && !line.contains("DETAIL:  dsn was:");
            if secret || crashed || line.contains("PANIC:") && !world.disk_was_full() {
                let hidden = line.replace(PASSWORD, "(the password)");
                world.blame(format!("the log of {}: {hidden}", server.name()));
            }
        }
    }
}
