//! The calls that change the membership, and what is watched while they run.

use super::judge;
use super::shape::{Call, Engine, Less, Pick};
use super::world::{Outcome, Underway, World};
use lab::quote_literal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// No CALL takes longer, whatever happens beside it.
const BOUND: Duration = Duration::from_secs(150);

/// The backend of a CALL has no more memory of its own.
const MEMORY: u64 = 300 << 20;

/// A call with the nodes that it is about.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Join {
        new: usize,
        source: usize,
    },
    Leave {
        node: usize,
        on: usize,
    },
    Die {
        node: usize,
        on: usize,
        lagging: bool,
        away: Option<Less>,
    },
}

impl Change {
    /// What the call comes to with the nodes that there are.
    pub fn of(world: &World, group: usize, call: &Call) -> Option<Change> {
        let (members, spares) = (world.members(group), world.spares(group));
        let others = |node: usize| -> Vec<usize> {
            members
                .iter()
                .copied()
                .filter(|other| *other != node)
                .collect()
        };
        match call {
            Call::Join { new, source } if !spares.is_empty() => Some(Change::Join {
                new: *new.get(&spares),
                source: *source.get(&members),
            }),
            // A majority has to live, and the other database has a node of its own on every server.
            Call::Die {
                node,
                on,
                lagging,
                away,
            } if members.len() > 2 && world.groups.len() == 1 => {
                let node = *node.get(&members);
                let on = *on.get(&others(node));
                Some(Change::Die {
                    node,
                    on,
                    lagging: *lagging,
                    away: *away,
                })
            }
            Call::Leave { node, on } | Call::Die { node, on, .. } if members.len() > 1 => {
                let node = *node.get(&members);
                let on = *on.get(&members);
                Some(Change::Leave { node, on })
            }
            Call::Leave { node, on } | Call::Die { node, on, .. } if !spares.is_empty() => {
                Some(Change::Join {
                    new: *node.get(&spares),
                    source: *on.get(&members),
                })
            }
            _ => None,
        }
    }

    pub fn subject(self) -> usize {
        match self {
            Change::Join { new, .. } => new,
            Change::Leave { node, .. } | Change::Die { node, .. } => node,
        }
    }

    pub fn on(self) -> usize {
        match self {
            Change::Join { new, .. } => new,
            Change::Leave { on, .. } | Change::Die { on, .. } => on,
        }
    }

    /// The calls, one after the other.
    pub fn texts(self, world: &World, group: usize) -> Vec<String> {
        let name = |number: usize| quote_literal(world.node(number, group).name());
        match self {
            Change::Join { new, source } => {
                vec![world.node(new, group).join_call(world.node(source, group))]
            }
            Change::Leave { node, .. } => vec![format!("CALL spock.remove_node({})", name(node))],
            Change::Die { node, .. } => vec![
                format!("CALL spock.recover_run({})", name(node)),
                format!("CALL spock.remove_node({})", name(node)),
            ],
        }
    }

    /// Notes that it is done.
    pub fn done(self, world: &World, group: usize) {
        world.set_member(group, self.subject(), matches!(self, Change::Join { .. }));
    }
}

/// The same calls again, now that nothing is in their way.
pub fn again(world: &World, group: usize, change: Change) {
    const TRIES: usize = 10;
    for text in change.texts(world, group) {
        let run = || watched(world, group, change.on(), &text, &Mutex::default());
        let mut tries = 1;
        let mut outcome = run();
        while is_to_be_repeated(world, &outcome) && tries < TRIES {
            tries += 1;
            outcome = run();
        }
        if outcome.result.is_err() {
            world.blame(format!("the same call again: {}", outcome.said()));
            return;
        }
    }
    change.done(world, group);
}

/// Whether a call failed for what the writers may be about at any moment, so that the next one may succeed.
pub fn is_to_be_repeated(world: &World, outcome: &Outcome) -> bool {
    let Err((code, error)) = &outcome.result else {
        return false;
    };
    // A removal wants no prepared transaction, and a writer has one open now and then.
    let prepared = code == "55006" && error.contains("prepared transaction");
    // TRUNCATE heeds no snapshot. What was updated between the snapshot and a TRUNCATE before the copy is not there, and
    // Spock then discards the whole transaction of the update, which the join notices.
    let truncated = world.engine == Engine::Spock
        && world.shape.kinds.iter().any(|kind| kind.truncate.is_some())
        && error.contains("skipped a change that could not be applied");
    prepared || truncated
}

/// Runs a call, with an eye on its time and memory. `call` is what it is while it runs.
pub fn watched(
    world: &World,
    group: usize,
    on: usize,
    text: &str,
    call: &Mutex<Option<Underway>>,
) -> Outcome {
    let over = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let (watch, node) = (&over, world.node(on, group));
        let outcome = node.call(text, |client| {
            let pid = client
                .query_one("SELECT pg_backend_pid()", &[])
                .map_or(0, |row| row.get(0));
            let underway = Underway {
                on,
                pid,
                cancel: client.cancel_token(),
                text: text.into(),
            };
            *call.lock().unwrap() = Some(underway.clone());
            scope.spawn(move || keep_watch(world, &underway, watch));
        });
        over.store(true, Ordering::SeqCst);
        outcome
    });
    *call.lock().unwrap() = None;
    let public = text.split('(').next().unwrap_or(text);
    world.log(&format!("{public} on n{}: {}", on + 1, outcome.said()));
    outcome
}

fn keep_watch(world: &World, call: &Underway, over: &AtomicBool) {
    let began = Instant::now();
    let mut late = false;
    let mut most = 0;
    while !over.load(Ordering::SeqCst) {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", call.pid)).unwrap_or_default();
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes =
            anonymous.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(kilobytes.unwrap_or(0) << 10);
        if began.elapsed() > BOUND && !late {
            late = true;
            world.blame(format!("a call has not ended after {BOUND:?}"));
            for number in 0..world.shape.servers {
                let server = world.server(number);
                if server.is_running() {
                    world.log(&server.activity());
                }
            }
            // A server that is frozen for good would keep the trial for ever.
            let _ = call.cancel.cancel_query(lab::postgres::NoTls);
        }
        thread::sleep(Duration::from_millis(20));
    }
    if most > MEMORY {
        world.blame(format!(
            "the backend of a call had {} MB of memory",
            most >> 20
        ));
    }
}

/// A node joins or leaves the cluster in the other database, beside another call.
pub fn change_beside(world: &World, group: usize, pick: Pick) -> Result<(), String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Ok(_one) = ONE_AT_A_TIME.try_lock() else {
        return Ok(());
    };
    let call = match pick.duration % 2 {
        0 => Call::Join {
            new: pick.node,
            source: pick.table,
        },
        _ => Call::Leave {
            node: pick.node,
            on: pick.table,
        },
    };
    let Some(change) = Change::of(world, group, &call) else {
        return Ok(());
    };
    world.log(&format!("in the other database: {change:?}"));
    if matches!(change, Change::Leave { .. }) {
        world.writer_leaves(group, change.subject());
    }
    let texts = change.texts(world, group);
    let outcome = world.node(change.on(), group).call(&texts[0], |_| {});
    world.log(&format!("in the other database: {}", outcome.said()));
    match outcome.result {
        Ok(()) => {
            change.done(world, group);
            if matches!(change, Change::Leave { .. }) {
                world.stop_writers(group, Some(change.subject()));
            }
        }
        Err(_) => world
            .unfinished
            .lock()
            .unwrap()
            .push(Box::new(move |world: &World| {
                judge::subscriptions_work(world, group, change.subject());
                again(world, group, change);
            })),
    }
    Ok(())
}
