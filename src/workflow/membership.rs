//! The membership as the members that can be reached know it: the newest registry, whether they are a majority,
//! and how a change reaches them. An engine that makes nodes known to each other by itself has no generations,
//! and nothing of this is done for it.

use super::members::{changed_meanwhile, connect_each, with_address};
use super::node_copy::NodeCopy;
use super::registries::{now, publish_registry, registries, registry_of};
use super::removed::{end_on, end_replication, removed};
use crate::engine::{
    Engine, Identity, PendingCleanup, Registry, SequencePolicy, Survey, registered_members,
};
use crate::error::{Error, Result};
use crate::libpq::Dsn;
use crate::node::{Member, Node, Tasks, ask};
use crate::run::action::{CreateSlot, Register, Subscribe};
use crate::run::{Act, Action};
use crate::settings;
use std::collections::BTreeSet;

pub use zodan_core::quorum::Quorum;

/// The members, found from one node on.
pub struct ReachableMembers {
    /// As that node knows them.
    pub own: Survey,
    /// As the newest registry has them.
    pub survey: Survey,
    pub registry: Option<Registry>,
    own_registry: Option<Registry>,
    /// Every member but the one that was spared, with a session or why there is none.
    pub answers: Vec<(Member, Result<Node>)>,
    /// Those that answer and are members in their own view.
    pub confirmed: BTreeSet<String>,
}

/// Opens a session on every member but `spared`. A member that was away knows them by an old registry: whoever
/// answers may know a newer one, and so more members. An error where `start` is a copy of the member of its name.
pub fn reach(
    engine: &dyn Engine,
    start: &mut Node,
    spared: Option<&str>,
) -> Result<ReachableMembers> {
    let (own, own_registry) = (
        |start: &mut Node| engine.survey(start),
        |start: &mut Node| registry_of(engine, start),
    )
        .make(start, |start| vec![start])?;
    let mut registry = own_registry.clone();
    let mut members = own.members.clone();
    let mut answers: Vec<(Member, Result<Node>)> = vec![];
    let mut confirmed = BTreeSet::new();
    loop {
        let as_known = |a: &Member, b: &Member| a.name == b.name && a.dsn == b.dsn;
        answers.retain(|(known, _)| members.iter().any(|m| as_known(m, known)));
        let missing: Vec<Member> = members
            .iter()
            .filter(|m| spared != Some(m.name.as_str()))
            .filter(|m| !answers.iter().any(|(known, _)| known.name == m.name))
            .cloned()
            .collect();
        for (member, answer) in missing.iter().zip(connect_each(&missing)) {
            if let Err(error @ Error::Interrupted { .. }) = answer {
                return Err(error);
            }
            let answer = answer.map_err(|error| {
                with_address(error, || {
                    format!(
                        "Its address is not an argument, but that of {}.",
                        engine.addresses(&start.name)
                    )
                })
            });
            answers.push((member.clone(), answer));
        }
        let Some(newest) = &mut registry else { break };
        confirmed = look(engine, newest, &mut answers)?;
        let found = registered_members(newest)?;
        let same =
            found.len() == members.len() && found.iter().zip(&members).all(|(a, b)| as_known(a, b));
        if same {
            break;
        }
        members = found;
    }
    for (member, answer) in &mut answers {
        if let Ok(node) = answer
            && member.name == start.name
            && let Some(copied) = NodeCopy::of(engine, start, node)?
        {
            return Err(copied.refusal());
        }
    }
    answers.sort_by_key(|(known, _)| members.iter().position(|m| m.name == known.name));
    Ok(ReachableMembers {
        survey: Survey {
            members,
            is_member: own.is_member,
        },
        own,
        registry,
        own_registry,
        answers,
        confirmed,
    })
}

/// Asks those that answer for their registries, and takes the newest. Who is a member in its own view.
fn look(
    engine: &dyn Engine,
    newest: &mut Registry,
    answers: &mut [(Member, Result<Node>)],
) -> Result<BTreeSet<String>> {
    let mut confirmed = BTreeSet::new();
    let mut lost = vec![];
    let mut nodes: Vec<&mut Node> = answers
        .iter_mut()
        .filter_map(|(_, answer)| answer.as_mut().ok())
        .collect();
    let registries = registries(engine, &mut nodes);
    for (node, theirs) in nodes.iter().zip(registries) {
        match theirs {
            Ok(Some(theirs)) if theirs.cluster == newest.cluster => {
                confirmed.insert(node.name.clone());
                if theirs.is_newer_than(newest) {
                    *newest = theirs;
                }
            }
            Ok(_) => {}
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => lost.push((node.name.clone(), error)),
        }
    }
    for (name, error) in lost {
        if let Some((_, answer)) = answers.iter_mut().find(|(m, _)| m.name == name) {
            *answer = Err(error);
        }
    }
    Ok(confirmed)
}

impl ReachableMembers {
    /// A node that was removed while it was away still takes itself for a member.
    pub fn require_member(&self, start: &str) -> Result<()> {
        match self.without(start) {
            Some((own, newest)) => Err(removed(start, own, newest, false)),
            None => Ok(()),
        }
    }

    /// The same of the node that the CALL runs on, which ends by itself then.
    pub fn require_own(&self, engine: &dyn Engine, me: &mut Node, changes: bool) -> Result<()> {
        let Some((own, newest)) = self.without(&me.name) else {
            return Ok(());
        };
        if changes {
            end_replication(engine, me, own)?;
        }
        Err(removed(&me.name, own, newest, changes))
    }

    /// The registry of `start` and the newest, where that is without it.
    pub fn without(&self, start: &str) -> Option<(&Registry, &Registry)> {
        let (newest, own) = (self.registry.as_ref()?, self.own_registry.as_ref()?);
        (!newest.has_same(start, own)).then_some((own, newest))
    }

    /// Fewer than half of the members change nothing.
    pub fn require_half(&self) -> Result<()> {
        let Some(registry) = &self.registry else {
            return Ok(());
        };
        match Quorum::of(self.confirmed.len(), registry.size()) {
            Quorum::Minority if settings::require_majority() => Err(no_majority(
                self.confirmed.len(),
                registry.size(),
                self.away(),
            )),
            _ => Ok(()),
        }
    }

    /// The members that do not answer, and why.
    fn away(&self) -> impl Iterator<Item = (&String, &Error)> {
        self.answers
            .iter()
            .filter_map(|(member, answer)| Some((&member.name, answer.as_ref().err()?)))
    }
}

pub fn no_majority<'a>(
    reached: usize,
    members: usize,
    away: impl IntoIterator<Item = (&'a String, &'a Error)>,
) -> Error {
    let line = |(name, error): (&String, &Error)| format!("Node \"{name}\": {error}");
    Error::NoMajority {
        reached,
        members,
        away: away.into_iter().map(line).collect(),
        hint: "Make the others reachable and run the CALL again, or run it where most of them are. Only if they are lost for good: SET zodan.require_majority = off.".into(),
    }
}

/// What a member that was behind has done about nodes that were removed meanwhile.
pub struct CaughtUp {
    pub member: String,
    /// Those that it has forgotten.
    pub forgotten: BTreeSet<String>,
    /// Those that did not know of their removal, and have ended what they had of the cluster.
    pub ended: Vec<String>,
}

/// Whoever is behind `newest` catches up. The caller holds the membership lock of `nodes`.
pub fn sync_lagging_members(
    engine: &mut dyn Engine,
    nodes: &mut [&mut Node],
    newest: Option<&Registry>,
) -> Result<Vec<CaughtUp>> {
    let Some(newest) = newest else {
        return Ok(vec![]);
    };
    let read = &*engine;
    let (registries, pending) = (
        |nodes: &mut [&mut Node]| {
            registries(read, nodes)
                .into_iter()
                .collect::<Result<Vec<_>>>()
        },
        |nodes: &mut [&mut Node]| pending_cleanups(read, nodes),
    )
        .make(nodes, |nodes| {
            nodes.iter_mut().map(|node| &mut **node).collect()
        })?;
    let mut caught_up = vec![];
    let mut members = vec![];
    for (i, theirs) in registries.into_iter().enumerate() {
        let Some(theirs) = theirs else { continue };
        members.push(nodes[i].name.clone());
        if theirs.is_newer_than(newest) {
            return Err(changed_meanwhile(&nodes[i].name));
        }
        if newest.is_newer_than(&theirs) && newest.has_same(&nodes[i].name, &theirs) {
            caught_up.push(catch_up(engine, nodes, i, &theirs, newest)?);
        }
    }
    let pending = match caught_up.is_empty() {
        true => pending,
        false => pending_cleanups(engine, nodes)?,
    };
    for (node, pending) in nodes.iter_mut().zip(pending) {
        if members.contains(&node.name) {
            delete_done(engine, node, pending, &members, newest)?;
        }
    }
    Ok(caught_up)
}

/// What a member that is away when `removed` leaves has to take back later.
pub fn cleanup_of(engine: &dyn Engine, removed: &str, member: &str) -> Vec<Action> {
    let (from, to) = (engine.path(removed, member), engine.path(member, removed));
    vec![
        Subscribe {
            provider: removed.to_owned(),
            subscription: from.subscription,
            one_of_several: false,
            by_reader: false,
        }
        .into(),
        CreateSlot { slot: to.slot }.into(),
        Register {
            member: removed.to_owned(),
            divided_before: None,
        }
        .into(),
    ]
}

/// One of `nodes`, which has the registry `old`, was away when the membership changed: it drops what it has of nodes that were removed since,
/// and takes the registry over. Those of them that can be connected to end what they have. Who still has it noted is
/// told with [`forget_done`].
pub fn catch_up(
    engine: &mut dyn Engine,
    nodes: &mut [&mut Node],
    behind: usize,
    old: &Registry,
    newest: &Registry,
) -> Result<CaughtUp> {
    let name = nodes[behind].name.clone();
    // By its own registry: the name of one that is gone may be that of another one by now.
    let names = old.names().filter(|gone| !newest.has_same(gone, old));
    let gone: Vec<String> = names.map(str::to_owned).collect();
    let absent: Vec<Member> = gone
        .iter()
        .map(|name| Member {
            name: name.clone(),
            dsn: Dsn::nowhere(),
        })
        .collect();
    engine.unload_paths();
    engine.load_paths(&mut [&mut *nodes[behind]], &absent)?;
    let mut cleanups: Vec<(String, Action)> = vec![];
    for cleanup in pending_cleanups(engine, nodes)?.into_iter().flatten() {
        if cleanup.member.name == name {
            cleanups.push((cleanup.removed, Action::parse(&cleanup.action)?));
        }
    }
    // Who noted it may be away itself by now.
    for gone in &gone {
        let actions = cleanup_of(engine, gone, &name);
        cleanups.extend(actions.into_iter().map(|action| (gone.clone(), action)));
    }
    engine.unload_paths();
    let mut forgotten = BTreeSet::new();
    let mut reverted: Vec<Action> = vec![];
    for (removed, action) in cleanups {
        if !reverted.contains(&action) {
            action.undo(engine, nodes[behind])?;
            reverted.push(action);
        }
        forgotten.insert(removed);
    }
    publish_registry(engine, &mut [&mut *nodes[behind]], newest)?
        .pop()
        .unwrap_or(Ok(()))?;
    Ok(CaughtUp {
        member: name,
        forgotten,
        ended: end_on(engine, old, &gone, newest)?,
    })
}

/// What is recorded on each of `nodes` of members that were away when others were removed. Nothing on one that has no
/// registry any more.
pub fn pending_cleanups(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
) -> Result<Vec<Vec<PendingCleanup>>> {
    match engine.registry() {
        Some(registry) => {
            let pending = registry.pending_cleanups();
            let questions = nodes.iter_mut().map(|node| pending.ask(node)).collect();
            let answers = ask(questions).into_iter().map(|answer| match answer {
                Err(error) if error.is_undefined() => Ok(vec![]),
                answer => pending.read(&answer?),
            });
            answers.collect()
        }
        None => Ok(nodes.iter().map(|_| vec![]).collect()),
    }
}

/// Deletes the records on `nodes` of cleanups that `members` have done: they have the registry `newest`, which is taken over after that.
pub fn forget_done(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    members: &[String],
    newest: &Registry,
) -> Result<()> {
    let pending = pending_cleanups(engine, nodes)?;
    let mut recorded = nodes.iter_mut().zip(pending);
    recorded.try_for_each(|(node, pending)| delete_done(engine, node, pending, members, newest))
}

fn delete_done(
    engine: &dyn Engine,
    node: &mut Node,
    pending: Vec<PendingCleanup>,
    members: &[String],
    newest: &Registry,
) -> Result<()> {
    let Some(registry) = engine.registry() else {
        return Ok(());
    };
    let done: BTreeSet<(String, String)> = pending
        .into_iter()
        .map(|cleanup| (cleanup.removed, cleanup.member.name))
        .filter(|(removed, member)| members.contains(member) && !newest.has(removed))
        .collect();
    for (removed, member) in done {
        registry.cleaned_up(&removed, &member).run(node)?;
    }
    Ok(())
}

/// The first member of a cluster, which has no other.
pub fn bootstrap(engine: &dyn Engine, first: &mut Node, identity: &Identity) -> Result<()> {
    let Some(cluster) = engine.cluster() else {
        return Ok(());
    };
    let registry = Registry::first(cluster, identity, now());
    publish_registry(engine, &mut [first], &registry)?
        .pop()
        .unwrap_or(Ok(()))
}

/// Takes `name` out of the registries of those of `nodes` that have a session. An error if they are no majority,
/// or if `on`, one of them, still has it. Its coming may have changed how sequences are divided.
pub fn remove_member(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    name: &str,
    divided_before: Option<(SequencePolicy, i32)>,
    on: &str,
) -> Result<()> {
    let mut usable: Vec<&mut Node> = nodes
        .iter_mut()
        .map(|n| &mut **n)
        .filter(|n| n.session.is_usable())
        .collect();
    let mut newest: Option<Registry> = None;
    let mut confirmed = vec![];
    let registries = registries(engine, &mut usable);
    for (node, theirs) in usable.iter().zip(registries) {
        match theirs {
            Ok(Some(theirs)) => {
                confirmed.push(node.name.clone());
                if newest.as_ref().is_none_or(|n| theirs.is_newer_than(n)) {
                    newest = Some(theirs);
                }
            }
            Ok(None) => {}
            Err(error) if node.name == on || matches!(error, Error::Interrupted { .. }) => {
                return Err(error);
            }
            // Its own step says so.
            Err(_) => {}
        }
    }
    let Some(mut next) = newest else {
        return Ok(());
    };
    confirmed.retain(|n| next.has(n));
    if next.has(name) {
        let quorum = Quorum::of(confirmed.len(), next.size());
        if quorum != Quorum::Majority && settings::require_majority() {
            return Err(no_majority(confirmed.len(), next.size(), []));
        }
        next = next.without(name, now());
        if let Some((policy, parts)) = divided_before {
            (next.sequence_policy, next.sequence_parts) = (policy, parts);
        }
    }
    usable.retain(|n| confirmed.contains(&n.name));
    let answers = publish_registry(engine, &mut usable, &next)?;
    for (node, answer) in usable.iter().zip(answers) {
        match answer {
            Err(error) if node.name == on || matches!(error, Error::Interrupted { .. }) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}
