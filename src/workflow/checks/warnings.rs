//! What does no harm now and may do some during a long copy, or afterwards.

use super::Known;
use super::servers::set;
use crate::error::{Finding, Result};
use crate::node::server;
use crate::workflow::clocks;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;

pub fn large_objects(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let count = server::large_objects().one(nodes.source)?;
    let source = &nodes.source.name;
    let some = (count > 0).then(|| {
        let message = "large objects exist, which are not copied and do not replicate";
        Finding::warning(source, message, "Keep such data in columns of type bytea.")
    });
    check.record(source, "none", some);
    Ok(())
}

pub fn other_sessions(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let others = server::other_sessions().on(nodes.new)?;
    let pids: Vec<&str> = others.iter().map(|s| s.pid.as_str()).collect();
    let new = &nodes.new.name;
    let some = (!pids.is_empty()).then(|| {
        let message = format!(
            "other sessions are in its database: pid {}",
            pids.join(", ")
        );
        let hint = "If one of them writes before the CALL has ended, the join fails.";
        Finding::warning(new, message, hint).fixed_by(server::end_sessions(&pids).inlined())
    });
    check.record(new, "none", some);
    Ok(())
}

pub fn slot_wal(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    for (name, facts) in nodes.all(known) {
        let size = facts.max_slot_wal_keep_size;
        let limited = (size >= 0).then(|| {
            let message = format!(
                "max_slot_wal_keep_size is {size} MB; if the copy takes so long that more WAL is written, the new node's slot is lost and the join fails"
            );
            let hint = "Set it to -1 for the time of the join if the source is large.";
            Finding::warning(name, message, hint).fixed_by(set("max_slot_wal_keep_size", "-1"))
        });
        check.record(name, "-1", limited);
    }
    Ok(())
}

pub fn idle_slots(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    for (name, facts) in nodes.all(known) {
        let seconds = facts.idle_slot_timeout;
        let limited = (seconds > 0).then(|| {
            let message = format!(
                "idle_replication_slot_timeout is {seconds} s; a copy that takes longer loses the new node's slot and the join fails"
            );
            let hint = "Set it to 0 for the time of the join if the source is large.";
            Finding::warning(name, message, hint).fixed_by(set("idle_replication_slot_timeout", "0"))
        });
        check.record(name, "0", limited);
    }
    Ok(())
}

pub fn clock(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    clocks::check(&clocks::read(nodes.everyone())?, check);
    Ok(())
}

/// What the engine does not replicate as its user may think.
pub fn replication(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let (engine, source) = (nodes.engine, nodes.source.name.clone());
    let found = engine.warnings(&mut nodes.members())?;
    match found.is_empty() {
        true => check.pass(&source, ""),
        false => found.into_iter().for_each(|finding| check.find(finding)),
    }
    Ok(())
}
