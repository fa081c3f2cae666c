//! Whether nodes can connect to the new node by its connection string. That the new node can connect to every member
//! is known: it did.

use super::Known;
use crate::engine::Engine;
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Dsn, Rows};
use crate::node::server::DatabaseId;
use crate::node::{Node, ask};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;

pub fn from_members(nodes: &mut JoinNodes, known: &Known, check: &mut Check) -> Result<()> {
    let (names, engine, dsn) = (nodes.member_names(), nodes.engine, nodes.new.dsn.clone());
    let findings = cannot_reach(engine, &mut nodes.members(), &dsn, known, "every member")?;
    check.record_all(names.iter().map(String::as_str), findings);
    Ok(())
}

/// Those of `nodes` from which `dsn` does not lead to the new node. It has to from `whom`.
pub fn cannot_reach(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    dsn: &Dsn,
    known: &Known,
    whom: &str,
) -> Result<Vec<Finding>> {
    let mut answers: Vec<Result<Rows>> = nodes.iter().map(|_| Ok(Rows::default())).collect();
    for statement in engine.probe(&dsn.reveal()) {
        let open: Vec<usize> = (0..nodes.len()).filter(|i| answers[*i].is_ok()).collect();
        let questions = nodes
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| open.contains(i))
            .map(|(_, node)| statement.clone().on(node))
            .collect();
        for (i, answer) in open.iter().zip(ask(questions)) {
            answers[*i] = answer;
        }
    }
    let mut findings = vec![];
    for (node, answer) in nodes.iter().zip(answers) {
        let problem = match answer {
            Ok(rows) => {
                let id = rows.first().map(DatabaseId::read).transpose()?;
                if id.is_none_or(|id| id == known.new.id) {
                    continue;
                }
                "new_node_dsn leads from here to another database than from the new node".into()
            }
            Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => return Err(error),
            Err(Error::Remote(remote)) => {
                format!(
                    "the new node cannot be reached from here: {}",
                    remote.message
                )
            }
            Err(error) => format!("the new node cannot be reached from here: {error}"),
        };
        findings.push(Finding::new(
            &node.name,
            SqlState::UNABLE_TO_CONNECT,
            problem,
            format!("Give a new_node_dsn by which {whom} reaches the new node, and allow it in its pg_hba.conf."),
        ));
    }
    Ok(findings)
}
