//! Whether the servers and their databases are of the kind that replication needs.

use super::Known;
use crate::error::{Finding, Result, SqlState};
use crate::node::server;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;

fn unfit(node: &str, message: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding::new(node, SqlState::NOT_IN_PREREQUISITE_STATE, message, hint)
}

pub fn role(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    for (name, facts) in nodes.all(known) {
        let standby = facts.in_recovery.then(|| {
            let hint = "Give the connection string of the primary.";
            unfit(name, "the server is a standby", hint)
        });
        check.record(name, "primary", standby);
    }
    Ok(())
}

pub fn wal_level(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    for (name, facts) in nodes.all(known) {
        let wrong = (facts.wal_level != "logical").then(|| {
            let hint = "Set wal_level = logical in postgresql.conf and restart the server.";
            let message = format!("wal_level is {}, not logical", facts.wal_level);
            unfit(name, message, hint).fixed_by(set("wal_level", "logical"))
        });
        check.record(name, facts.wal_level.as_str(), wrong);
    }
    Ok(())
}

pub fn output_plugins(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let plugin = nodes.engine.plugin();
    check.want(format!("lists {plugin} or *"));
    for (name, facts) in nodes.all(known) {
        let Some(list) = &facts.output_plugins else {
            check.pass(name, "the server has no such setting");
            continue;
        };
        let mut listed: Vec<&str> = list.split(',').map(str::trim).collect();
        let missing = (!listed.iter().any(|p| *p == plugin || *p == "*")).then(|| {
            let message = format!("output_plugin_libraries does not list {plugin}");
            let hint = format!("Add {plugin} to output_plugin_libraries and reload.");
            listed.retain(|library| !library.is_empty());
            listed.push(plugin);
            let all = listed.join(", ");
            unfit(name, message, hint).fixed_by(set("output_plugin_libraries", &all))
        });
        check.record(name, list.as_str(), missing);
    }
    Ok(())
}

pub fn version(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let (ours, theirs) = (known.new.version / 10_000, known.source.version / 10_000);
    let new = &nodes.new.name;
    check.want(format!("PostgreSQL {theirs} or newer"));
    let older = (ours < theirs).then(|| {
        Finding::new(
            new,
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("the new node runs PostgreSQL {ours}, the source the newer {theirs}"),
            "The new node needs the source's major version or a newer one.",
        )
    });
    check.record(new, format!("PostgreSQL {ours}"), older);
    Ok(())
}

pub fn encoding(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let (own, wanted) = (&known.new.encoding, &known.source.encoding);
    same(&nodes.new.name, "encoding", own, wanted, check);
    Ok(())
}

pub fn collation(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let (own, wanted) = (&known.new.collation, &known.source.collation);
    same(&nodes.new.name, "collation", own, wanted, check);
    Ok(())
}

fn same(new: &str, what: &str, own: &str, wanted: &str, check: &mut Check) {
    check.want(wanted);
    let other = (own != wanted).then(|| {
        let message = format!("the {what} of the database is {own}, the source's is {wanted}");
        let hint =
            "Create the new node's database with the encoding and the locale of the source's.";
        unfit(new, message, hint)
    });
    check.record(new, own, other);
}

/// What sets a setting of the whole server; whether it takes a reload or a restart, the hint says.
pub fn set(setting: &str, value: &str) -> String {
    server::set_server_setting(setting, value).inlined()
}
