//! The health of a cluster, before a node joins and afterwards: what the checks have found, good and bad.
//! Nothing is changed.

use super::checks::{self, ObservedCluster, Stage};
use super::cluster::{Cluster, JoinRequest, Locking};
use super::findings::{Check, Outcome, Severity, Status, failures};
use super::report::table;
use crate::error::{Error, Finding, Result};
use crate::libpq::scrub;
use crate::node::{Member, Mode, Node, Reader, Session};
use crate::run::Interrupted;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

pub struct Request {
    pub source: Member,
    pub new: Option<Member>,
    pub when: When,
}

/// Makes all checks. Without a new node there is nothing to be before.
pub fn check(reader: &Reader, request: Request) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![];
    match (request.when, request.new) {
        (When::Before, Some(new)) => before(reader, request.source, new, &mut outcomes)?,
        (_, new) => after(request.source, new, &mut outcomes)?,
    }
    for outcome in &mut outcomes {
        for text in [&mut outcome.found, &mut outcome.remedy] {
            *text = scrub(text);
        }
        outcome.statement = outcome.statement.as_deref().map(scrub);
    }
    Ok(outcomes)
}

/// Exactly what `add_node` checks, in its order, and as far as it would come.
fn before(reader: &Reader, source: Member, new: Member, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let (new_name, source_name) = (new.name.clone(), source.name.clone());
    let mut connection = checks::begin(Stage::Gathering, "connection");
    let mut local = Node::new(new.name, new.dsn, Session::Reader(reader.clone()));
    let mut interrupted = checks::begin(Stage::Gathering, "interrupted runs");
    match Interrupted::all(&mut local.session)?.first() {
        None => interrupted.pass(&new_name, "none"),
        Some(dead) => interrupted.warn(Finding::warning(
            &new_name,
            format!("run {} ({} of node \"{}\") was interrupted; what it left may be what the other checks find", dead.run, dead.command, dead.node),
            "If it is not in progress, the next CALL on this node undoes it first.",
        )),
    }
    outcomes.extend(interrupted.outcomes());
    let mode = Mode::DryRun(reader.clone());
    let request = JoinRequest {
        source,
        new: local,
        readers: vec![],
    };
    let mut cluster = match Cluster::of_join(request, &Locking::of_join(&mode, &new_name)) {
        Ok(cluster) => cluster,
        Err(error) => {
            connection.record_all([], findings_of(error, &new_name)?);
            outcomes.extend(connection.outcomes());
            outcomes.push(not_made(&new_name));
            return Ok(());
        }
    };
    connection.pass(&source_name, "");
    for peer in cluster.peers() {
        connection.pass(&peer.name, "");
    }
    connection.pass(&new_name, "");
    outcomes.extend(connection.outcomes());
    match cluster.nodes().outcomes(outcomes) {
        Ok(true) => {}
        Ok(false) => outcomes.push(not_made(&new_name)),
        Err(error) => {
            let mut broken = Check::new("checks", "can be made", Severity::Failure);
            broken.record_all([], findings_of(error, &new_name)?);
            outcomes.extend(broken.outcomes());
            outcomes.push(not_made(&new_name));
        }
    }
    Ok(())
}

fn not_made(node: &str) -> Outcome {
    Outcome {
        node: node.to_owned(),
        check: "other checks",
        status: Status::Warning,
        found: "not made, since what has failed comes first".into(),
        wanted: String::new(),
        remedy: "Mend what has failed, then check again.".into(),
        statement: None,
        finding: None,
    }
}

/// What an error tells, as findings. An interrupt is none.
fn findings_of(error: Error, node: &str) -> Result<Vec<Finding>> {
    let node = match &error {
        Error::Interrupted { .. } => return Err(error),
        Error::Checks(findings) => return Ok(findings.clone()),
        Error::Connect { node, .. } | Error::Lost { node, .. } | Error::Deadline { node, .. } => {
            node
        }
        Error::Remote(remote) => &remote.node,
        _ => node,
    };
    Ok(vec![Finding::unanswered(node, &error)])
}

/// Whether the mesh of the cluster that `source` is in is whole.
fn after(source: Member, new: Option<Member>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let name = source.name.clone();
    match ObservedCluster::look(source, new) {
        Ok(cluster) => outcomes.extend(cluster.outcomes()?),
        Err(error) => {
            let mut connection = checks::begin(Stage::Cluster, "connection");
            connection.record_all([], findings_of(error, &name)?);
            outcomes.extend(connection.outcomes());
        }
    }
    Ok(())
}

/// What a person reads: all of it, or only what is not as it should be, and the sum.
pub fn lines(outcomes: &[Outcome], all: bool) -> Vec<String> {
    let shown: Vec<Vec<String>> = outcomes
        .iter()
        .filter(|o| all || o.status != Status::Ok)
        .map(|o| {
            // A message of libpq may have several lines.
            let found = o.found.split_whitespace().collect::<Vec<_>>().join(" ");
            vec![
                o.status.label().into(),
                o.node.clone(),
                o.check.into(),
                found,
            ]
        })
        .collect();
    let mut lines = match shown.is_empty() {
        true => vec![],
        false => table(&["status", "node", "check", "found"], &shown),
    };
    let count = |status| outcomes.iter().filter(|o| o.status == status).count();
    lines.push(format!(
        "{} checks: {} ok, {} warnings, {} failed",
        outcomes.len(),
        count(Status::Ok),
        count(Status::Warning),
        count(Status::Failed)
    ));
    lines
}

/// The error of a CALL whose checks have failed: before a join, the one that the join would raise.
pub fn verdict(outcomes: &[Outcome], when: When) -> Result<()> {
    let findings = failures(outcomes);
    match (when, findings.len()) {
        (_, 0) => Ok(()),
        (When::Before, _) => Err(Error::Checks(findings)),
        (When::After, count) => {
            let line = |f: &Finding| format!("node \"{}\": {}", f.node, f.message);
            let detail: Vec<String> = findings.iter().map(line).collect();
            Err(Error::Refused {
                state: findings[0].state,
                message: format!("{count} checks of the cluster failed"),
                detail: Some(detail.join("\n")),
                hint: findings[0].hint.clone(),
            })
        }
    }
}
