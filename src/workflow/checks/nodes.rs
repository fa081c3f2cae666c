//! Which databases the nodes are, and how their cluster divides sequences.

use super::Known;
use crate::error::{Error, Finding, Result, SqlState};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::division::Division;
use crate::workflow::findings::Check;

pub fn membership(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let mut findings = vec![];
    let new = nodes.new.name.clone();
    for (name, facts) in nodes.all(known).filter(|(name, _)| *name != new) {
        if facts.id == known.new.id {
            findings.push(Finding::new(
                    name,
                    SqlState::INVALID_PARAMETER_VALUE,
                    "this member is the database that the CALL runs in",
                    "Run the CALL in the database of the new node, with the connection string of another node as src_dsn.",
                ));
        }
    }
    let registry = nodes.engine.members().on(nodes.new)?;
    if !registry.is_empty() {
        findings.push(Finding::new(
            &new,
            SqlState::OBJECT_IN_USE,
            format!(
                "this database is a member of a cluster already: {}",
                registry
                    .iter()
                    .map(|member| member.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            "Remove it from that cluster first.",
        ));
    }
    let names = nodes.names();
    check.record_all(names.iter().map(String::as_str), findings);
    Ok(())
}

pub fn sequence_policy(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let findings = match Division::wanted(nodes.engine, nodes.source) {
        Ok(_) => vec![],
        Err(Error::Checks(findings)) => findings,
        Err(error) => return Err(error),
    };
    check.record_all([nodes.source.name.as_str()], findings);
    Ok(())
}
