//! Markers: real commits on one node, seen on another. What was committed before one has been applied
//! wherever the marker has been.

use super::lost_wal;
use super::refusal::Refusals;
use crate::engine::{Engine, Path, SubscriptionState};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Limit, Poll, wait_within};
use crate::lsn::Lsn;
use crate::node::{Node, Statement, ask_in_turn, check_open};
use crate::settings;
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
    for node in nodes {
        for marker in markers {
            if marker.provider == node.name {
                Statement::run_in_turn(&engine.forget_marker(&marker.token), node)?;
            }
        }
    }
    Ok(())
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
    let mut wanted: Vec<(&Path, &str)> = inbound
        .iter()
        .filter_map(|path| {
            let marker = markers.iter().find(|m| m.provider == path.provider)?;
            Some((path, marker.token.as_str()))
        })
        .collect();
    let mut lost = lost_wal::Watch::default();
    lost.look(engine, node, others, inbound)?;
    let all = wanted.len();
    let mut watch = WorkerMonitor::new(inbound, new);
    let name = node.name.clone();
    let what = "applying what its peers committed";
    let mut given_up = false;
    let outcome = wait_within(limit(engine), &name, what, HINT, || {
        check_open(others)?;
        let mut missing = vec![];
        for (path, token) in wanted.drain(..) {
            if !has_come(engine, node, path, token)? {
                missing.push((path, token));
            }
        }
        wanted = missing;
        if wanted.is_empty() {
            return Ok(Poll::Ready(()));
        }
        let states = lost
            .look(engine, node, others, inbound)
            .and_then(|()| watch.look(engine, node, others));
        given_up = states.is_err();
        let states = states?;
        Ok(Poll::Pending(format!(
            "{} of {all} markers arrived; {states}",
            all - wanted.len()
        )))
    });
    let missing: Vec<&Path> = wanted.iter().map(|(path, _)| *path).collect();
    match given_up {
        true => outcome,
        false => outcome.map_err(|error| explained(engine, node, &missing, error)),
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
    let mut watch = WorkerMonitor::new(inbound, new);
    let mut lost = lost_wal::Watch::default();
    let mut before = 0;
    let name = node.name.clone();
    let what = "waiting for its subscriptions to replicate";
    let mut given_up = false;
    let outcome = wait_within(limit(engine), &name, what, HINT, || {
        check_open(others)?;
        let text = lost
            .look(engine, node, others, inbound)
            .and_then(|()| watch.look(engine, node, others));
        given_up = text.is_err();
        let text = text?;
        if watch.working > before {
            Statement::run_in_turn(wake_launcher, node)?;
        }
        before = watch.working;
        Ok(if watch.working == inbound.len() {
            Poll::Ready(())
        } else {
            Poll::Pending(text)
        })
    });
    let paths: Vec<&Path> = inbound.iter().collect();
    match given_up {
        true => outcome,
        false => outcome.map_err(|error| explained(engine, node, &paths, error)),
    }
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

    fn look(
        &mut self,
        engine: &dyn Engine,
        node: &mut Node,
        others: &[&mut Node],
    ) -> Result<String> {
        let states = engine.subscriptions().on(node)?;
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
            match others.iter().find(|o| o.name == path.provider) {
                Some(provider) if worker.lost > 0 || !worker.was_working => {
                    let provider = provider.member();
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
