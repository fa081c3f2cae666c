//! The health of a cluster, before a node joins and afterwards: what the checks have found, good and bad.
//! Nothing is changed.

use super::checks::Checks;
use super::checks::everybody::Everybody;
use super::clocks;
use super::findings::{Check, Outcome, Status, failures};
use super::gather::{Party, Wanted, gather};
use super::lost_wal::{LostWal, end_of_wal};
use super::members;
use super::report::table;
use super::status::{Link, MemberStatus, Mesh, look_from};
use crate::engine::{self, Engine, Path, Registry, subscription_states};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Row, Rows, scrub};
use crate::node::{Member, Node, Reader, Session, Statement, query_with_deadline, server};
use crate::run::Interrupted;
use crate::settings;
use std::collections::BTreeMap;
use zodan_core::sequences::Ahead;
use zodan_core::subscription::SubscriptionStatus;

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

/// Slots of a healthy path follow within this time, as the public procedures have it.
const LAG_US: i64 = 59_000_000;

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
    let mut connection = Check::new(
        "connection",
        "every node is reached, as a superuser, and nobody else changes the membership",
    );
    let mut here = Node {
        name: new.name,
        dsn: new.dsn,
        session: Session::Reader(reader.clone()),
    };
    let mut interrupted = Check::new("interrupted runs", "none");
    match Interrupted::all(&mut here.session)?.first() {
        None => interrupted.passed(&new_name, "none"),
        Some(dead) => interrupted.warned(
            &new_name,
            format!("run {} ({} of node \"{}\") was interrupted; what it left may be what the other checks find", dead.run, dead.command, dead.node),
            "If it is not in progress, the next CALL on this node undoes it first.",
        ),
    }
    outcomes.extend(interrupted.outcomes());
    let gathered = gather(Wanted {
        source,
        new: here,
        readers: vec![],
        change: false,
    });
    let mut party = match gathered {
        Ok(party) => party,
        Err(error) => {
            for finding in findings_of(error, &new_name)? {
                connection.failed(finding);
            }
            outcomes.extend(connection.outcomes());
            outcomes.push(not_made(&new_name));
            return Ok(());
        }
    };
    connection.passed(&source_name, "");
    for peer in &party.peers {
        connection.passed(&peer.name, "");
    }
    connection.passed(&new_name, "");
    outcomes.extend(connection.outcomes());
    let Party {
        engine,
        source,
        peers,
        new,
        readers,
        is_member,
        registered_as,
        ..
    } = &mut party;
    let checks = Checks {
        engine: &**engine,
        source,
        peers,
        new,
        readers,
        is_member: *is_member,
        registered_as,
    };
    match checks.outcomes(outcomes) {
        Ok(true) => {}
        Ok(false) => outcomes.push(not_made(&new_name)),
        Err(error) => {
            let mut broken = Check::new("checks", "can be made");
            for finding in findings_of(error, &new_name)? {
                broken.failed(finding);
            }
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
    Ok(vec![Finding::new(
        node,
        error.sqlstate(),
        error.to_string(),
        error.hint().unwrap_or_default(),
    )])
}

/// Whether the mesh of the cluster that `source` is in is whole.
fn after(source: Member, new: Option<Member>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let name = source.name.clone();
    let mut connection = Check::new("connection", "the node answers");
    let found = (|| {
        let mut node = members::own_session(&source)?;
        members::require_superuser([&mut node])?;
        let engine = engine::detect(&mut node)?;
        let survey = engine.survey(&mut node)?;
        if !survey.is_member {
            return Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                "the database is not a cluster node",
                "Give the connection string of a node.",
            ));
        }
        let mesh = look_from(&*engine, &mut node)?;
        let registry = engine.members().run(&mut node)?;
        Ok((engine, mesh, registry))
    })();
    let (engine, mesh, registry) = match found {
        Ok(found) => found,
        Err(error) => {
            for finding in findings_of(error, &name)? {
                connection.failed(finding);
            }
            outcomes.extend(connection.outcomes());
            return Ok(());
        }
    };
    for member in &mesh.members {
        let name = &member.registered.name;
        match &member.report {
            Ok(report) => connection.passed(name, format!("PostgreSQL {}", report.version)),
            Err(why) => connection.failed(Finding::new(
                name,
                SqlState::UNABLE_TO_CONNECT,
                why,
                format!(
                    "Bring the node back, or remove it: CALL spock.remove_node. Its address is that of {}.",
                    engine.addresses(&source.name)
                ),
            )),
        }
    }
    outcomes.extend(connection.outcomes());
    if let Some(new) = new {
        let mut member = Check::new("membership", "is a member of the cluster");
        let known = mesh.members.iter().any(|m| m.registered.name == new.name);
        let missing = (!known).then(|| {
            Finding::new(
                &new.name,
                SqlState::UNDEFINED_OBJECT,
                format!("is not a member of the cluster of node \"{name}\""),
                "Add it: CALL spock.add_node.",
            )
        });
        member.look(&new.name, "is a member", missing);
        outcomes.extend(member.outcomes());
    }
    outcomes.extend(registries(&*engine, &mesh, &name, &registry)?);
    outcomes.extend(sequences(&mesh)?);
    outcomes.extend(clocks_of(&mesh)?);
    outcomes.extend(paths(&*engine, &mesh));
    outcomes.extend(positions(&*engine, &mesh)?);
    outcomes.extend(everybody(&*engine, &mesh)?);
    Ok(())
}

/// What is checked on every member before a join as well.
fn everybody(engine: &dyn Engine, mesh: &Mesh) -> Result<Vec<Outcome>> {
    let name = |member: usize| mesh.members[member].registered.name.clone();
    let path = |link: &Link| {
        let by_rule = engine.path(&name(link.provider), &name(link.subscriber));
        Path {
            subscription: link.subscription.clone().unwrap_or(by_rule.subscription),
            slot: link.slot_name.clone().unwrap_or(by_rule.slot),
            ..by_rule
        }
    };
    let report = mesh.members.iter().filter_map(|m| m.report.as_ref().ok());
    let major = |version: &str| {
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Everybody {
        engine,
        ask: &mut |question, _| ask_again(mesh, question),
        paths: mesh.links.iter().map(path).collect(),
        bootstrapping: false,
        versions: report.filter_map(|s| major(&s.version)).collect(),
    }
    .outcomes()
}

/// The registries of all that answer say the same as that of `first`.
fn registries(
    engine: &dyn Engine,
    mesh: &Mesh,
    first: &str,
    registry: &Rows,
) -> Result<Vec<Outcome>> {
    let mut check = Check::new("registry", format!("as on node \"{first}\""));
    let generations = generations(engine, mesh)?;
    let newest = generations.values().copied().max();
    for (member, answer) in ask_again(mesh, &engine.members())? {
        let mut differences = match answer {
            Ok(rows) => differences(registry, &rows),
            Err(error) => vec![error.to_string()],
        };
        let behind = generations.get(&member).filter(|g| newest > Some(**g));
        if let (Some(own), Some(newest)) = (behind, newest) {
            differences.push(format!("has generation {own} of {newest}"));
        }
        let wrong = (!differences.is_empty()).then(|| {
            Finding::new(
                &member,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                differences.join(", "),
                match behind {
                    Some(_) => {
                        "It was away, and catches up with the next CALL or by its own node worker."
                    }
                    None => "Find out which of the two is right, and correct the other.",
                },
            )
        });
        check.look(&member, format!("{} members", registry.len()), wrong);
    }
    Ok(check.outcomes())
}

/// The generations of the registries of all that answer, where the engine has such.
fn generations(engine: &dyn Engine, mesh: &Mesh) -> Result<BTreeMap<String, i64>> {
    let Some(question) = engine.registry() else {
        return Ok(BTreeMap::new());
    };
    let mut all = BTreeMap::new();
    for (member, answer) in ask_again(mesh, &question)? {
        // Who does not answer any more is told of with its registry.
        let Ok(rows) = answer else { continue };
        if let Some(row) = rows.first() {
            all.insert(member, Registry::parse(row.text(1))?.generation);
        }
    }
    Ok(all)
}

/// Asks those that have answered already.
fn ask_again(mesh: &Mesh, question: &Statement) -> Result<Vec<(String, Result<Rows>)>> {
    let asked: Vec<Member> = mesh.members.iter().filter_map(answering).collect();
    let members: Vec<&Member> = asked.iter().collect();
    let answers = query_with_deadline(&members, question, settings::status_timeout());
    let names = asked.into_iter().map(|m| m.name);
    names
        .zip(answers)
        .map(|(name, answer)| match answer {
            Err(error @ Error::Interrupted { .. }) => Err(error),
            answer => Ok((name, answer)),
        })
        .collect()
}

/// A row of `server::sequences`.
fn ahead(row: &Row) -> Result<Ahead> {
    let limits = (row.parse(3)?, row.parse(4)?);
    let (next, step) = (row.parse(1)?, row.parse(2)?);
    Ok(Ahead::new(row.text(0), next, step, limits, row.bool(5)))
}

/// Sequences that give the same values on several members. Whether rows meet by that, only the application
/// knows, so it is no failure.
fn sequences(mesh: &Mesh) -> Result<Vec<Outcome>> {
    let mut check = Check::new("sequences", "no value that another member gives too");
    let mut all: Vec<(String, Vec<Ahead>)> = vec![];
    for (member, answer) in ask_again(mesh, &server::sequences())? {
        let parsed = answer.and_then(|rows| rows.iter().map(ahead).collect::<Result<_>>());
        match parsed {
            Ok(sequences) => all.push((member, sequences)),
            Err(error) => check.warned(&member, error.to_string(), "Check again."),
        }
    }
    for (member, sequences) in &all {
        let mut meeting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (other, theirs) in all.iter().filter(|(other, _)| other != member) {
            for sequence in sequences {
                let same = theirs.iter().find(|t| t.name == sequence.name);
                if same.is_some_and(|t| t.meets(sequence)) {
                    meeting.entry(&sequence.name).or_default().push(other);
                }
            }
        }
        let told: Vec<String> = meeting
            .iter()
            .take(5)
            .map(|(name, others)| format!("{name} (also on {})", others.join(", ")))
            .collect();
        let more = match meeting.len() - told.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match told.is_empty() {
            true => check.passed(member, format!("{} sequences", sequences.len())),
            false => check.warned(
                member,
                format!(
                    "gives values that others give too: {}{more}",
                    told.join(", ")
                ),
                "Give each member values of its own: see docs/operations.md, Sequences.",
            ),
        }
    }
    Ok(check.outcomes())
}

/// Nobody has more of a member than the member itself.
fn positions(engine: &dyn Engine, mesh: &Mesh) -> Result<Vec<Outcome>> {
    let mut check = Check::new("positions", "within the WAL of the provider");
    // In this order: what has been applied had been flushed before.
    let mut states = BTreeMap::new();
    for (member, answer) in ask_again(mesh, &engine.subscriptions())? {
        match answer.and_then(|rows| subscription_states(&rows)) {
            Ok(found) => drop(states.insert(member, found)),
            Err(error) => check.warned(&member, error.to_string(), "Check again."),
        }
    }
    let mut ends = BTreeMap::new();
    for (member, answer) in ask_again(mesh, &server::wal_flushed())? {
        match answer.and_then(|rows| end_of_wal(&rows)) {
            Ok(end) => drop(ends.insert(member, end)),
            Err(error) => check.warned(&member, error.to_string(), "Check again."),
        }
    }
    for link in &mesh.links {
        let name = |member: usize| mesh.members[member].registered.name.as_str();
        let (provider, subscriber) = (name(link.provider), name(link.subscriber));
        let Some(subscription) = &link.subscription else {
            continue;
        };
        let path = Path {
            subscription: subscription.clone(),
            ..Path::by_rule(provider, subscriber)
        };
        let state = states.get(subscriber).into_iter().flatten();
        let state = state.into_iter().find(|s| s.name == *subscription);
        let (Some(state), Some(end)) = (state, ends.get(provider).copied().flatten()) else {
            continue;
        };
        let lost = LostWal::find(&path, Some(state), Some(end));
        let found = format!("of \"{provider}\": within {end}");
        check.look(subscriber, found, lost.map(|lost| lost.finding()));
    }
    Ok(check.outcomes())
}

/// The clocks of those that answer, in sessions of their own: to connect takes longer than to ask.
fn clocks_of(mesh: &Mesh) -> Result<Vec<Outcome>> {
    let asked: Vec<Member> = mesh.members.iter().filter_map(answering).collect();
    let mut nodes = vec![];
    for answer in members::connect_each(&asked) {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // That it does not answer any more is told with its registry.
            Err(_) => {}
        }
    }
    Ok(clocks::check(&clocks::read(&mut nodes)?).outcomes())
}

fn answering(member: &MemberStatus) -> Option<Member> {
    member.report.as_ref().ok()?;
    Some(Member {
        name: member.registered.name.clone(),
        dsn: member.registered.dsn.clone().ok()?,
    })
}

/// What the registry `here` says otherwise than the one `there`. Where an engine keeps who a node is, that
/// and the connection string are compared too.
fn differences(there: &Rows, here: &Rows) -> Vec<String> {
    let mut all = vec![];
    for row in there {
        match here.iter().find(|h| h.text(0) == row.text(0)) {
            None => all.push(format!("lacks \"{}\"", row.text(0))),
            Some(h) if !row.text(4).is_empty() && (3..6).any(|c| h.text(c) != row.text(c)) => {
                all.push(format!("has another entry for \"{}\"", row.text(0)));
            }
            Some(_) => {}
        }
    }
    for row in here {
        if !there.iter().any(|t| t.text(0) == row.text(0)) {
            all.push(format!("also has \"{}\"", row.text(0)));
        }
    }
    all
}

/// Every path of the mesh, its slot and its lag.
fn paths(engine: &dyn Engine, mesh: &Mesh) -> Vec<Outcome> {
    let mut replicates = Check::new("subscriptions", "replicating");
    let mut wal = Check::new("slots", "reserved: within max_wal_size");
    let mut lag = Check::new("lag", "less than 59 s, or 0 bytes");
    for link in &mesh.links {
        let name = |member: usize| mesh.members[member].registered.name.as_str();
        let (provider, subscriber) = (name(link.provider), name(link.subscriber));
        let subscription = link.subscription.as_deref().unwrap_or("none");
        let last_error = link.last_error.as_ref().map(|t| format!(": {t}"));
        let found = format!(
            "from \"{provider}\": {subscription} is {}{}",
            link.state,
            last_error.unwrap_or_default()
        );
        let broken = (link.state != SubscriptionStatus::Replicating).then(|| {
            let hint = match link.left_out {
                true => {
                    "Compare the nodes, spock.verify_nodes(), and mend what differs: spock.sub_resync_table brings a table anew. Entries of spock.exception_log that are settled can be deleted."
                }
                false => {
                    "The logs of the subscriber and of the provider say more; see spock.cluster_status()."
                }
            };
            let finding = Finding::new(
                subscriber,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                found.as_str(),
                hint,
            );
            match (link.state, &link.subscription) {
                (SubscriptionStatus::Disabled, Some(name)) => {
                    let path = Path {
                        subscription: name.clone(),
                        ..Path::by_rule(provider, subscriber)
                    };
                    finding.fixed_by(engine.enable(&path).inlined())
                }
                _ => finding,
            }
        });
        replicates.look(subscriber, found.as_str(), broken);
        let Some(slot) = &link.slot else { continue };
        let bytes = slot.retained_bytes.unwrap_or_default();
        let status = slot.wal_status.as_deref().unwrap_or("unknown");
        let found = format!("{} is {status}, {bytes} bytes of WAL retained", slot.name);
        match status {
            "reserved" => wal.passed(provider, found),
            "lost" => wal.failed(Finding::new(
                provider,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                found,
                format!(
                    "\"{subscriber}\" has missed changes for good: remove it and add it again."
                ),
            )),
            _ => wal.warned(
                provider,
                found,
                format!(
                    "Make \"{subscriber}\" catch up before the WAL is gone or the disk is full."
                ),
            ),
        }
        let (behind, time) = (slot.lag_bytes.unwrap_or(0), slot.lag_us.unwrap_or(0));
        let found = format!(
            "\"{subscriber}\" is {behind} bytes and {:.1} s behind",
            time as f64 / 1e6
        );
        match behind == 0 || time < LAG_US {
            true => lag.passed(provider, found),
            false => lag.warned(
                provider,
                found,
                format!("See what \"{subscriber}\" is busy with, and whether the path replicates."),
            ),
        }
    }
    let checks = [replicates, wal, lag];
    checks.into_iter().flat_map(Check::outcomes).collect()
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
            let told = |f: &Finding| format!("node \"{}\": {}", f.node, f.message);
            let detail: Vec<String> = findings.iter().map(told).collect();
            Err(Error::Refused {
                state: findings[0].state,
                message: format!("{count} checks of the cluster failed"),
                detail: Some(detail.join("\n")),
                hint: findings[0].hint.clone(),
            })
        }
    }
}
