//! Markers: real commits on one node, seen on another. What was committed before one has been applied
//! wherever the marker has been.

use super::lost_wal;
use super::refusal::Refusals;
use crate::engine::{Engine, Path, SubscriptionState};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Limit, Poll, wait_naming};
use crate::lsn::Lsn;
use crate::node::{Node, Statement, ask_each, ask_in_turn, check_open};
use crate::settings;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// A worker that failed this often while it was waited for does not recover by itself: it is
/// restarted after each error and meets the same change again.
const MAX_WORKER_ERRORS: u64 = 3;

pub struct Marker {
    provider: String,
    /// What the engine knows the marker by.
    token: String,
}

/// Commits a marker on each of `nodes`, at the same time.
pub fn emit<'a>(
    engine: &dyn Engine,
    nodes: impl IntoIterator<Item = &'a mut Node>,
) -> Result<Vec<Marker>> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let statements = nodes.into_iter().enumerate().map(|(i, node)| {
        let id = format!("{now:x}-{:x}-{i}", std::process::id());
        let statements = engine.emit_marker(&id, &node.name);
        (node, statements)
    });
    let (mut nodes, statements): (Vec<&mut Node>, Vec<_>) = statements.unzip();
    let answers = ask_in_turn(&mut nodes, &statements)?;
    nodes
        .iter()
        .zip(&answers)
        .map(|(node, rows)| {
            Ok(Marker {
                provider: node.name.clone(),
                token: rows.one()?.only()?,
            })
        })
        .collect()
}

/// Removes those of `markers` that are of one of `nodes`, and no others: other calls wait for theirs.
pub fn forget<'a>(
    engine: &dyn Engine,
    nodes: impl IntoIterator<Item = &'a mut Node>,
    markers: &[Marker],
) -> Result<()> {
    let own = |node: &Node| -> Vec<Statement> {
        let own = markers.iter().filter(|m| m.provider == node.name);
        own.flat_map(|m| engine.forget_marker(&m.token)).collect()
    };
    ask_each(nodes, own).map(|_| ())
}

/// What is waited for on one of several nodes.
pub struct Awaited {
    /// Which of them.
    pub node: usize,
    /// Its subscriptions.
    pub inbound: Vec<Path>,
}

/// Whether every subscription has to have a connected worker, too.
#[derive(Clone, Copy)]
pub enum Workers<'a> {
    MayBeAway,
    /// What is given is run on the node whenever more of them have one.
    Connected(&'a [Statement]),
}

/// Each of `nodes` with its subscriptions to all others.
pub fn all_of_each(engine: &dyn Engine, nodes: &[&mut Node]) -> Vec<Awaited> {
    let awaited = nodes.iter().enumerate().map(|(i, subscriber)| {
        let providers = nodes.iter().filter(|node| node.name != subscriber.name);
        let inbound = providers.flat_map(|node| engine.paths(&node.name, &subscriber.name));
        Awaited {
            node: i,
            inbound: inbound.collect(),
        }
    });
    awaited.collect()
}

/// Waits until `node` has applied the markers of all its providers in `inbound`. `new` is the node
/// that joins. What is waited for may have to come from `others`: when one of them goes away, so does
/// the wait.
pub fn wait(
    engine: &dyn Engine,
    node: &mut Node,
    others: &mut [&mut Node],
    markers: &[Marker],
    inbound: &[Path],
    new: &str,
) -> Result<()> {
    wait_on_one(
        engine,
        node,
        others,
        markers,
        inbound,
        new,
        Workers::MayBeAway,
    )
}

/// Waits until every subscription in `inbound` has a connected worker, as long as `others` are there.
/// `wake_launcher` is run on the node whenever more of them have one.
pub fn wait_for_workers(
    engine: &dyn Engine,
    node: &mut Node,
    others: &mut [&mut Node],
    inbound: &[Path],
    new: &str,
    wake_launcher: &[Statement],
) -> Result<()> {
    let workers = Workers::Connected(wake_launcher);
    wait_on_one(engine, node, others, &[], inbound, new, workers)
}

fn wait_on_one(
    engine: &dyn Engine,
    node: &mut Node,
    others: &mut [&mut Node],
    markers: &[Marker],
    inbound: &[Path],
    new: &str,
    workers: Workers,
) -> Result<()> {
    let awaited = [Awaited {
        node: 0,
        inbound: inbound.to_vec(),
    }];
    let others = others.iter_mut().map(|other| &mut **other);
    let mut nodes: Vec<&mut Node> = std::iter::once(node).chain(others).collect();
    wait_on_all(engine, &mut nodes, &awaited, markers, new, workers)
}

/// As [`wait`], on several of `nodes` at the same time.
pub fn wait_on_all(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    awaited: &[Awaited],
    markers: &[Marker],
    new: &str,
    workers: Workers,
) -> Result<()> {
    let mut waits: Vec<Wait> = awaited
        .iter()
        .map(|awaited| Wait::new(awaited, markers, new, workers))
        .collect();
    let mut lost = lost_wal::Watch::default();
    let mut given_up = false;
    let at = RefCell::new((String::new(), ""));
    let outcome = wait_naming(limit(engine), &at, HINT, || {
        check_open(nodes)?;
        look(engine, nodes, &mut waits, &mut lost)?;
        for wait in waits.iter_mut().filter(|wait| !wait.is_over()) {
            let watched = wait.watch(engine, nodes);
            given_up = watched.is_err();
            watched?;
        }
        let pending: Vec<&Wait> = waits.iter().filter(|wait| !wait.is_over()).collect();
        let Some(first) = pending.first() else {
            return Ok(Poll::Ready(()));
        };
        *at.borrow_mut() = (nodes[first.awaited.node].name.clone(), first.what());
        let states = pending.iter().map(|wait| wait.state());
        Ok(Poll::Pending(states.collect::<Vec<_>>().join("; ")))
    });
    match given_up {
        true => outcome,
        false => outcome.map_err(|error| {
            let pending = waits.iter().filter(|wait| !wait.is_over());
            pending.fold(error, |error, wait| {
                explained(engine, nodes[wait.awaited.node], &wait.missing(), error)
            })
        }),
    }
}

/// Asks the nodes that are waited for, all at the same time.
fn look(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    waits: &mut [Wait],
    lost: &mut lost_wal::Watch,
) -> Result<()> {
    let mut pending: Vec<&mut Wait> = waits.iter_mut().filter(|wait| !wait.is_over()).collect();
    pending.sort_by_key(|wait| wait.awaited.node);
    let questions = pending.iter().map(|wait| {
        let wanted = wait.wanted.iter();
        let seen = wanted.map(|(path, token)| engine.marker_seen(path, token));
        (engine.subscriptions(), seen.collect::<Vec<_>>())
    });
    let questions: BTreeMap<String, _> = pending
        .iter()
        .map(|wait| nodes[wait.awaited.node].name.clone())
        .zip(questions)
        .collect();
    let asked = nodes
        .iter_mut()
        .filter(|node| questions.contains_key(&node.name));
    let answers = ask_each(asked.map(|node| &mut **node), |node| &questions[&node.name])?;
    for (wait, (states, seen)) in pending.iter_mut().zip(answers) {
        let mut seen = seen.into_iter().map(|seen| seen.first() == Some(&true));
        wait.wanted.retain(|_| !seen.next().unwrap_or_default());
        wait.states = states;
    }
    // Where markers have come nothing is lost, unless they only seem to have.
    pending.retain(|wait| {
        let came = wait.all > 0 && wait.wanted.is_empty();
        !came || !engine.marker_tells_itself()
    });
    let states = pending.iter().map(|wait| wait.states());
    lost.look(nodes, &states.collect::<Vec<_>>())
}

/// The wait for one node.
struct Wait<'a> {
    awaited: &'a Awaited,
    /// What has not come yet.
    wanted: Vec<(&'a Path, &'a str)>,
    /// How many were wanted.
    all: usize,
    workers: Workers<'a>,
    monitor: WorkerMonitor<'a>,
    states: Vec<SubscriptionState>,
    /// What the monitor has said last.
    said: Option<String>,
}

impl<'a> Wait<'a> {
    fn new(
        awaited: &'a Awaited,
        markers: &'a [Marker],
        new: &'a str,
        workers: Workers<'a>,
    ) -> Self {
        let inbound = awaited.inbound.iter();
        let wanted: Vec<(&Path, &str)> = inbound
            .filter_map(|path| {
                let marker = markers.iter().find(|m| m.provider == path.provider)?;
                Some((path, marker.token.as_str()))
            })
            .collect();
        Self {
            awaited,
            all: wanted.len(),
            wanted,
            workers,
            monitor: WorkerMonitor::new(&awaited.inbound, new),
            states: vec![],
            said: None,
        }
    }

    fn is_over(&self) -> bool {
        let connected = match self.workers {
            Workers::MayBeAway => true,
            Workers::Connected(_) => {
                self.said.is_some() && self.monitor.working == self.awaited.inbound.len()
            }
        };
        // Before the first look nothing is known.
        self.wanted.is_empty() && connected && !self.states.is_empty()
            || self.awaited.inbound.is_empty()
    }

    /// The subscriptions, and what they were found to be.
    fn states(&self) -> (&[Path], &[SubscriptionState]) {
        (&self.awaited.inbound, &self.states)
    }

    fn missing(&self) -> Vec<&'a Path> {
        match self.wanted.is_empty() {
            true => self.awaited.inbound.iter().collect(),
            false => self.wanted.iter().map(|(path, _)| *path).collect(),
        }
    }

    fn what(&self) -> &'static str {
        match self.wanted.is_empty() {
            true => "waiting for its subscriptions to replicate",
            false => "applying what its peers committed",
        }
    }

    fn state(&self) -> String {
        let said = self.said.as_deref().unwrap_or_default();
        match self.all {
            0 => said.to_owned(),
            all => format!(
                "{} of {all} markers arrived; {said}",
                all - self.wanted.len()
            ),
        }
    }

    fn watch(&mut self, engine: &dyn Engine, nodes: &mut [&mut Node]) -> Result<()> {
        let before = self.monitor.working;
        let said = self
            .monitor
            .look(engine, nodes, self.awaited.node, &self.states)?;
        self.said = Some(said);
        match self.workers {
            Workers::Connected(wake_launcher) if self.monitor.working > before => {
                Statement::run_in_turn(wake_launcher, nodes[self.awaited.node])
            }
            _ => Ok(()),
        }
    }
}

/// Whether the markers of its provider have come by `path`.
pub fn have_come(
    engine: &dyn Engine,
    subscriber: &mut Node,
    path: &Path,
    markers: &[Marker],
) -> Result<bool> {
    for marker in markers.iter().filter(|m| m.provider == path.provider) {
        if !has_come(engine, subscriber, path, &marker.token)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_come(engine: &dyn Engine, node: &mut Node, path: &Path, token: &str) -> Result<bool> {
    engine.marker_seen(path, token).one(node)
}

/// What a wait ended with because it took too long, with what the node knows of the reason.
fn explained(engine: &dyn Engine, node: &mut Node, paths: &[&Path], mut error: Error) -> Error {
    let (Error::Stalled { detail, .. }
    | Error::Refused {
        detail: Some(detail),
        ..
    }) = &mut error
    else {
        return error;
    };
    for path in paths {
        if let Some(trouble) = trouble(engine, node, path) {
            detail.push('\n');
            detail.push_str(&trouble);
        }
    }
    error
}

/// The error that is being told is worth more than one that keeps from telling more.
fn trouble(engine: &dyn Engine, node: &mut Node, path: &Path) -> Option<String> {
    engine.worker_error(path).first(node).ok()?
}

/// Where the engine's own limit for such a wait is set, it takes the place of ours.
fn limit(engine: &dyn Engine) -> Limit {
    match engine.sync_timeout() {
        Some((setting, seconds)) => Limit::Whole { seconds, setting },
        None => Limit::Progress(settings::no_progress_timeout()),
    }
}

const HINT: &str = "The log of the subscriber says why its apply worker makes no progress.";

/// Looks after the workers that something is waited from: a state that cannot get better ends the
/// wait at once.
struct WorkerMonitor<'a> {
    inbound: &'a [Path],
    /// The node that joins. What is given up on its paths is the join's own loss.
    new: &'a str,
    errors_before: Option<Vec<u64>>,
    workers: Vec<Worker>,
    working: usize,
}

/// The worker of one path as the last look found it.
#[derive(Clone, Default)]
struct Worker {
    was_working: bool,
    applied: Option<Lsn>,
    /// How often it has gone away without having applied anything more.
    lost: u64,
    /// What its provider has against it.
    refusals: Refusals,
}

impl<'a> WorkerMonitor<'a> {
    fn new(inbound: &'a [Path], new: &'a str) -> Self {
        Self {
            inbound,
            new,
            errors_before: None,
            workers: vec![Worker::default(); inbound.len()],
            working: 0,
        }
    }

    /// `states` are those of the subscriptions of `nodes[subscriber]`.
    fn look(
        &mut self,
        engine: &dyn Engine,
        nodes: &mut [&mut Node],
        subscriber: usize,
        states: &[SubscriptionState],
    ) -> Result<String> {
        let node = &*nodes[subscriber];
        let mut found: Vec<&SubscriptionState> = vec![];
        for path in self.inbound {
            let state = states.iter().find(|s| s.name == path.subscription);
            match state {
                Some(state) => {
                    let skipped_change = state.skipped_change.as_deref();
                    if !state.enabled {
                        return Err(worker_failed(node, path, "is disabled", skipped_change));
                    }
                    let ours = path.provider == self.new || path.subscriber == self.new;
                    if skipped_change.is_some() && ours {
                        let what = "skipped a change that could not be applied";
                        return Err(worker_failed(node, path, what, skipped_change));
                    }
                    found.push(state);
                }
                None => return Err(worker_failed(node, path, "does not exist any more", None)),
            }
        }
        for (state, worker) in found.iter().zip(&mut self.workers) {
            if state.applied != worker.applied {
                worker.applied = state.applied;
                worker.lost = 0;
            }
            worker.lost += u64::from(worker.was_working && !state.working);
            worker.was_working = state.working;
        }
        for (path, worker) in self.inbound.iter().zip(&mut self.workers) {
            match nodes.iter().find(|o| o.name == path.provider) {
                Some(provider) if worker.lost > 0 || !worker.was_working => {
                    let provider = provider.member();
                    let node = &mut *nodes[subscriber];
                    let lost = worker.lost > 0;
                    worker.refusals.look(engine, node, &provider, path, lost)?;
                }
                _ => worker.refusals.forget(),
            }
        }
        let errors: Vec<u64> = found.iter().map(|s| s.errors).collect();
        let before = self.errors_before.get_or_insert_with(|| errors.clone());
        for ((path, now), before) in self.inbound.iter().zip(&errors).zip(before) {
            if now.saturating_sub(*before) >= MAX_WORKER_ERRORS {
                let what = "keeps failing on the same change";
                let node = &mut *nodes[subscriber];
                let mut error = worker_failed(node, path, what, None);
                if let Error::Refused { detail, .. } = &mut error {
                    *detail = trouble(engine, node, path);
                }
                return Err(error);
            }
        }
        self.working = found.iter().filter(|s| s.working).count();
        Ok(found
            .iter()
            .zip(&self.workers)
            .map(|(s, worker)| {
                let applied = s.applied.map_or("nothing".into(), |lsn| lsn.to_string());
                // One that comes and goes makes no progress by that: its provider may be starting
                // again, or never will.
                let state = match (worker.lost, s.working) {
                    (1.., _) => ", loses its connection",
                    (0, true) => "",
                    (0, false) => ", no connection",
                };
                let said = worker.refusals.said().or(s.skipped_change.as_deref());
                let said = said.map_or(String::new(), |said| format!(" ({said})"));
                format!("{} applied {applied}{state}{said}", s.name)
            })
            .collect::<Vec<_>>()
            .join(", "))
    }
}

fn worker_failed(node: &Node, path: &Path, what: &str, error: Option<&str>) -> Error {
    Error::Refused {
        state: SqlState::NOT_IN_PREREQUISITE_STATE,
        message: format!(
            "subscription {} of node \"{}\" {what}",
            path.subscription, node.name
        ),
        detail: error.map(|error| format!("Its worker said: {error}")),
        hint: HINT.into(),
    }
}
