//! Whether the members of a cluster agree, and what each of them is like.

use super::Check;
use super::every_member::EveryMember;
use crate::engine::{self, Engine, Path, RegisteredNode};
use crate::error::{Error, Finding, Result, SqlState};
use crate::node::server::{self, SequenceState};
use crate::node::{Member, Question, query_with_deadline};
use crate::settings;
use crate::workflow::clocks;
use crate::workflow::lost_wal::LostWal;
use crate::workflow::members;
use crate::workflow::status::{Link, MemberStatus, Mesh, look_from};
use std::collections::BTreeMap;
use zodan_core::sequences::Ahead;

/// A cluster as one of its nodes knows it and all of them answer.
pub struct ObservedCluster {
    pub engine: Box<dyn Engine>,
    pub mesh: Mesh,
    /// The node that was asked, and its registry.
    source: String,
    registry: Vec<RegisteredNode>,
    /// Who is to be a member.
    new: Option<Member>,
}

impl ObservedCluster {
    /// The cluster that `source` is in.
    pub fn look(source: Member, new: Option<Member>) -> Result<Self> {
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
        let registry = engine.members().on(&mut node)?;
        Ok(Self {
            engine,
            mesh,
            source: source.name,
            registry,
            new,
        })
    }

    /// Has every member looked at, as before a join.
    pub(super) fn every_member<T>(&self, look: impl FnOnce(EveryMember) -> Result<T>) -> Result<T> {
        let (engine, mesh) = (&*self.engine, &self.mesh);
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
        look(EveryMember {
            engine,
            ask: &mut |questions, _| self.ask(&questions.to_vec()),
            paths: mesh.links.iter().map(path).collect(),
            bootstrapping: false,
            versions: report.filter_map(|s| major(&s.version)).collect(),
        })
    }

    /// Asks those that have answered already.
    fn ask<Q: Question>(&self, question: &Q) -> Result<Vec<(String, Result<Q::Answer>)>> {
        let asked: Vec<Member> = self.mesh.members.iter().filter_map(answering).collect();
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
}

pub fn connection(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    for member in &cluster.mesh.members {
        let name = &member.registered.name;
        match &member.report {
            Ok(report) => check.pass(name, format!("PostgreSQL {}", report.version)),
            Err(why) => check.fail(Finding::new(
                name,
                SqlState::UNABLE_TO_CONNECT,
                why,
                format!(
                    "Bring the node back, or remove it: CALL spock.remove_node. Its address is that of {}.",
                    cluster.engine.addresses(&cluster.source)
                ),
            )),
        }
    }
    Ok(())
}

pub fn membership(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    let (Some(new), name) = (&cluster.new, &cluster.source) else {
        return Ok(());
    };
    let known = cluster
        .mesh
        .members
        .iter()
        .any(|m| m.registered.name == new.name);
    let missing = (!known).then(|| {
        Finding::new(
            &new.name,
            SqlState::UNDEFINED_OBJECT,
            format!("is not a member of the cluster of node \"{name}\""),
            "Add it: CALL spock.add_node.",
        )
    });
    check.record(&new.name, "is a member", missing);
    Ok(())
}

/// The registries of all that answer say the same as that of the source.
pub fn registry(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    check.want(format!("as on node \"{}\"", cluster.source));
    let registry = &cluster.registry;
    let generations = generations(cluster)?;
    let newest = generations.values().copied().max();
    for (member, answer) in cluster.ask(&cluster.engine.members())? {
        let mut differences = match answer {
            Ok(theirs) => differences(registry, &theirs),
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
        check.record(&member, format!("{} members", registry.len()), wrong);
    }
    Ok(())
}

/// The generations of the registries of all that answer, where the engine has such.
fn generations(cluster: &ObservedCluster) -> Result<BTreeMap<String, i64>> {
    let Some(registry) = cluster.engine.registry() else {
        return Ok(BTreeMap::new());
    };
    let mut all = BTreeMap::new();
    for (member, answer) in cluster.ask(&registry.read())? {
        // Who does not answer any more is told of with its registry.
        let Ok(own) = answer else { continue };
        if let Some(own) = own.first() {
            all.insert(member, own.registry.generation);
        }
    }
    Ok(all)
}

/// What the registry `ours` says otherwise than the one `theirs`. Where an engine keeps who a node is, that
/// and the connection string are compared too.
fn differences(theirs: &[RegisteredNode], ours: &[RegisteredNode]) -> Vec<String> {
    let who = |node: &RegisteredNode| {
        let RegisteredNode {
            dsn,
            system_identifier,
            database,
            ..
        } = node.clone();
        (dsn, system_identifier, database)
    };
    let mut all = vec![];
    for node in theirs {
        match ours.iter().find(|h| h.name == node.name) {
            None => all.push(format!("lacks \"{}\"", node.name)),
            Some(h) if !node.system_identifier.is_empty() && who(h) != who(node) => {
                all.push(format!("has another entry for \"{}\"", node.name));
            }
            Some(_) => {}
        }
    }
    for node in ours {
        if !theirs.iter().any(|t| t.name == node.name) {
            all.push(format!("also has \"{}\"", node.name));
        }
    }
    all
}

fn ahead(s: &SequenceState) -> Ahead {
    let limits = (s.minimum, s.maximum);
    Ahead::new(&s.name, s.next, s.increment, limits, s.cycles)
}

/// Sequences that give the same values on several members. Whether rows meet by that, only the application
/// knows, so it is no failure.
pub fn sequences(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    let mut all: Vec<(String, Vec<Ahead>)> = vec![];
    for (member, answer) in cluster.ask(&server::sequences())? {
        match answer {
            Ok(sequences) => all.push((member, sequences.iter().map(ahead).collect())),
            Err(error) => check.warn(Finding::warning(&member, error.to_string(), "Check again.")),
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
        let listed: Vec<String> = meeting
            .iter()
            .take(5)
            .map(|(name, others)| format!("{name} (also on {})", others.join(", ")))
            .collect();
        let more = match meeting.len() - listed.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match listed.is_empty() {
            true => check.pass(member, format!("{} sequences", sequences.len())),
            false => check.warn(Finding::warning(
                member,
                format!(
                    "gives values that others give too: {}{more}",
                    listed.join(", ")
                ),
                "Give each member values of its own: see docs/operations.md, Sequences.",
            )),
        }
    }
    Ok(())
}

/// Nobody has more of a member than the member itself.
pub fn positions(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    let mesh = &cluster.mesh;
    // In this order: what has been applied had been flushed before.
    let mut states = BTreeMap::new();
    for (member, answer) in cluster.ask(&cluster.engine.subscriptions())? {
        match answer {
            Ok(found) => drop(states.insert(member, found)),
            Err(error) => check.warn(Finding::warning(&member, error.to_string(), "Check again.")),
        }
    }
    let mut ends = BTreeMap::new();
    for (member, answer) in cluster.ask(&server::wal_flushed())? {
        match answer {
            Ok(end) => drop(ends.insert(member, end.into_iter().flatten().next())),
            Err(error) => check.warn(Finding::warning(&member, error.to_string(), "Check again.")),
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
        check.record(subscriber, found, lost.map(|lost| lost.finding()));
    }
    Ok(())
}

/// The clocks of those that answer, in sessions of their own: to connect takes longer than to ask.
pub fn clock(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    let asked: Vec<Member> = cluster.mesh.members.iter().filter_map(answering).collect();
    let mut nodes = vec![];
    for answer in members::connect_each(&asked) {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // That it does not answer any more is told with its registry.
            Err(_) => {}
        }
    }
    clocks::check(&clocks::read(&mut nodes)?, check);
    Ok(())
}

fn answering(member: &MemberStatus) -> Option<Member> {
    member.report.as_ref().ok()?;
    Some(Member {
        name: member.registered.name.clone(),
        dsn: member.registered.dsn.clone().ok()?,
    })
}
