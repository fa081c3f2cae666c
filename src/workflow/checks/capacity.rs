//! Whether the servers have room for what a join makes.

use super::Known;
use crate::error::{Finding, Result, SqlState};
use crate::node::server::{self, Budget, Facts};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;

/// It limits the origins too, before PostgreSQL 18.
pub const SLOTS: &str = "max_replication_slots";

const LOGICAL_WORKERS: &str = "max_logical_replication_workers";

/// From this version on a subscription applies in parallel unless it is told not to.
const PARALLEL_BY_DEFAULT: u32 = 180_000;

/// What a setting limits on one node, and how many more are needed.
type Need = (Budget, i64);

/// Records of every node that `need` gives something for.
fn record(
    nodes: &JoinNodes,
    known: &Known,
    check: &mut Check,
    setting: &str,
    need: impl Fn(&str, &Facts) -> Option<Need>,
) {
    for (name, facts) in nodes.all(known) {
        if let Some((budget, count)) = need(name, facts) {
            check.want(format!("{count} more"));
            let found = format!("{} of {} are in use", budget.used, budget.limit);
            check.record(name, found, too_few(name, setting, budget, count));
        }
    }
}

/// How many paths begin at a node, and as many end there.
fn paths(nodes: &JoinNodes, name: &str) -> i64 {
    match name == nodes.new.name {
        true => 1 + nodes.peers.len() as i64,
        false => 1,
    }
}

/// The new node marks copied rows with one origin more.
fn origins_of(nodes: &JoinNodes, name: &str) -> i64 {
    paths(nodes, name) + i64::from(name == nodes.new.name)
}

/// Where the setting limits the origins too, what is scarcer.
pub fn slots(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    record(nodes, known, check, SLOTS, |name, facts| {
        let slots = (facts.replication_slots, paths(nodes, name));
        let origins = (facts.origins, origins_of(nodes, name));
        let in_use = |(budget, count): &Need| budget.used + count;
        let both = facts.origins_setting == SLOTS;
        Some(match both && in_use(&slots) <= in_use(&origins) {
            true => origins,
            false => slots,
        })
    });
    Ok(())
}

pub fn origins(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let setting = "max_active_replication_origins";
    record(nodes, known, check, setting, |name, facts| {
        let apart = facts.origins_setting != SLOTS;
        apart.then(|| (facts.origins, origins_of(nodes, name)))
    });
    Ok(())
}

pub fn wal_senders(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    record(nodes, known, check, "max_wal_senders", |name, facts| {
        Some((facts.wal_senders, paths(nodes, name)))
    });
    Ok(())
}

pub fn logical_workers(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    record(nodes, known, check, LOGICAL_WORKERS, |name, facts| {
        let used = nodes.engine.uses_logical_workers();
        used.then(|| (facts.logical_workers, paths(nodes, name)))
    });
    Ok(())
}

/// A worker that applies large transactions beside that of its subscription stays when it has nothing to do, and keeps the
/// worker of another subscription from being started.
pub fn parallel_workers(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    if !nodes.engine.uses_logical_workers() {
        return Ok(());
    }
    for (name, facts) in nodes.all(known) {
        let new = paths(nodes, name);
        let parallel = match facts.version >= PARALLEL_BY_DEFAULT {
            true => facts.parallel_subscriptions + new,
            false => facts.parallel_subscriptions,
        };
        let Budget { limit, used } = facts.logical_workers;
        let wanted = used + new + parallel * facts.parallel_workers;
        let short = (limit < wanted).then(|| {
            let message = format!(
                "{LOGICAL_WORKERS} is {limit}; workers that apply large transactions in parallel may take the places of the {} that its subscriptions need",
                used + new
            );
            let wanted = wanted.to_string();
            let hint = format!("Set {LOGICAL_WORKERS} to {wanted} on node \"{name}\" and restart it, or max_parallel_apply_workers_per_subscription to 0.");
            Finding::warning(name, message, hint)
                .fixed_by(server::set_server_setting(LOGICAL_WORKERS, &wanted).inlined())
        });
        check.record(name, limit.to_string(), short);
    }
    Ok(())
}

/// The source also runs the watchdog of the pause, the new node the copy's workers.
pub fn worker_processes(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    record(
        nodes,
        known,
        check,
        "max_worker_processes",
        |name, facts| {
            let watchdog = i64::from(name == nodes.source.name);
            Some((facts.worker_processes, paths(nodes, name) + watchdog))
        },
    );
    Ok(())
}

pub fn disk_space(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let free = server::free_disk_space()? >> 20;
    let needed = known.source.database_size >> 20;
    let new = &nodes.new.name;
    check.want(format!("{needed} MB, which the source's database has"));
    let short = (free < needed).then(|| {
        let message = format!(
            "{free} MB are free for the data directory, the source's database has {needed} MB"
        );
        let hint = "Make room on the new node; the copy also writes WAL.";
        Finding::new(new, SqlState::DISK_FULL, message, hint)
    });
    check.record(new, format!("{free} MB are free"), short);
    Ok(())
}

/// That the node has not `count` more of what `setting` limits.
pub fn too_few(name: &str, setting: &str, budget: Budget, count: i64) -> Option<Finding> {
    let wanted = (budget.used + count).to_string();
    let what = match setting {
        "max_replication_slots" => "replication slots",
        "max_wal_senders" => "WAL senders",
        "max_active_replication_origins" => "replication origins",
        LOGICAL_WORKERS => "logical replication workers",
        _ => "background workers",
    };
    let finding = || {
        Finding::new(
            name,
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            format!(
                "not enough {what}: {count} needed, {} free ({setting} = {})",
                budget.free().max(0),
                budget.limit
            ),
            format!("Set {setting} to at least {wanted} on node \"{name}\" and restart it."),
        )
        .fixed_by(server::set_server_setting(setting, &wanted).inlined())
    };
    (budget.free() < count).then(finding)
}
