//! The calls of a trial: what is done before them, beside them and when they have failed.

use super::actions::{Judged, Scene, Underway};
use super::judge;
use super::schedule::{Call, Engine, Less, Pick, Step};
use super::world::{Node, Outcome, World};
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
enum Change {
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
    fn of(world: &World, group: usize, call: &Call) -> Option<Change> {
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

    fn subject(self) -> usize {
        match self {
            Change::Join { new, .. } => new,
            Change::Leave { node, .. } | Change::Die { node, .. } => node,
        }
    }

    fn on(self) -> usize {
        match self {
            Change::Join { new, .. } => new,
            Change::Leave { on, .. } | Change::Die { on, .. } => on,
        }
    }

    /// The calls, one after the other.
    fn texts(self, world: &World, group: usize) -> Vec<String> {
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
    fn done(self, world: &World, group: usize) {
        world.set_member(group, self.subject(), matches!(self, Change::Join { .. }));
    }
}

/// Plays a step, and judges what it comes to.
pub fn play(world: &World, step: &Step) {
    let group = 0;
    let Some(change) = Change::of(world, group, &step.call) else {
        return;
    };
    world.log(&format!("{change:?}"));
    for group in 0..world.groups.len() {
        world.start_writers(group);
        world.wait_commits(group, 5);
    }
    if let Change::Die {
        node,
        on,
        lagging,
        away,
    } = change
    {
        let mut survivors = world.members(group);
        survivors.retain(|other| *other != node && *other != on);
        let lags = survivors[0];
        let away = away.and_then(|less| Some((less, *survivors.get(1)?)));
        if away.is_some() {
            // While a member is away, a row that only a lagging survivor has may be of that one, whoever wrote it. It is
            // left alone and told of, so what the dead node deletes would stay.
            world.writer_only_inserts(group, node);
            world.wait_commits(group, 2);
        }
        if lagging || away.is_some() {
            suspend(&world.node(lags, group), &world.node(node, group));
        }
        if let Some((less, away)) = away {
            let less = if less == Less::Same { lags } else { on };
            suspend(&world.node(less, group), &world.node(away, group));
        }
        if lagging || away.is_some() {
            world.wait_commits(group, 10);
        }
        if let Some((_, away)) = away {
            world.network.part(&[world.server(away).name()]);
        }
        world.die(node);
        world.stop_writers(group, Some(node));
        world.log(&format!("n{} is dead", node + 1));
        if let Some((less, away)) = away {
            let less = if less == Less::Same { lags } else { on };
            recover_without(world, group, change, away, less);
        }
    }
    if matches!(change, Change::Leave { .. }) {
        world.writer_leaves(group, change.subject());
    }
    let scene = Scene {
        world,
        group,
        subject: change.subject(),
        call: Mutex::default(),
        second_succeeded: AtomicBool::new(false),
    };
    let mut outcomes = Vec::new();
    thread::scope(|scope| {
        let began = Instant::now();
        let scene = &scene;
        for beside in &step.beside {
            scope.spawn(move || {
                let due = Duration::from_millis(beside.at.into());
                thread::sleep(due.saturating_sub(began.elapsed()));
                world.log(&format!("{} begins", beside.action.name));
                let done = (beside.action.run)(scene, beside.pick);
                if let Err(e) = &done {
                    world.log(&format!("{}: {e}", beside.action.name));
                    if beside.action.judged == Judged::HasToSucceed && world.disturbed().is_empty()
                    {
                        world.blame(format!("{} failed: {e}", beside.action.name));
                    }
                }
            });
        }
        for text in change.texts(world, group) {
            let outcome = watched(scene, change.on(), &text);
            let failed = outcome.result.is_err();
            outcomes.push(outcome);
            if failed {
                break;
            }
        }
    });
    let failed = outcomes.last().filter(|outcome| outcome.result.is_err());
    let excused = step
        .beside
        .iter()
        .any(|beside| beside.action.judged == Judged::MayEndTheCall);
    if let Some(outcome) = failed
        && !excused
        && !is_to_be_repeated(world, outcome)
    {
        world.blame(format!(
            "nothing beside it should end this call: {}",
            outcome.said()
        ));
    }
    world.heal();
    match failed {
        Some(_) if scene.second_succeeded.load(Ordering::SeqCst) => change.done(world, group),
        Some(_) => {
            world.finish_tables(group);
            judge::members_are_quiet(world, group, Some(change.subject()));
            again(world, group, change);
        }
        None => change.done(world, group),
    }
    world.finish_tables(group);
    for group in 0..world.groups.len() {
        judge::judge(world, group, change.subject(), step);
    }
    if matches!(change, Change::Leave { .. }) {
        world.node(change.subject(), group).renew();
    }
}

/// Makes the survivors equal while one of them is away, of which `less` has less than the others, and lets that one come back.
fn recover_without(world: &World, group: usize, change: Change, away: usize, less: usize) {
    world.log(&format!("n{} is away", away + 1));
    let scene = Scene {
        world,
        group,
        subject: change.subject(),
        call: Mutex::default(),
        second_succeeded: AtomicBool::new(false),
    };
    let outcome = watched(&scene, change.on(), &change.texts(world, group)[0]);
    if outcome.result.is_err() {
        world.blame(format!("with one away: {}", outcome.said()));
    }
    world.network.heal();
    resume(&world.node(less, group), &world.node(away, group));
}

/// The same calls again, now that nothing is in their way.
fn again(world: &World, group: usize, change: Change) {
    const TRIES: usize = 10;
    for text in change.texts(world, group) {
        let scene = Scene {
            world,
            group,
            subject: change.subject(),
            call: Mutex::default(),
            second_succeeded: AtomicBool::new(false),
        };
        let mut tries = 1;
        let mut outcome = watched(&scene, change.on(), &text);
        while is_to_be_repeated(world, &outcome) && tries < TRIES {
            tries += 1;
            outcome = watched(&scene, change.on(), &text);
        }
        if outcome.result.is_err() {
            world.blame(format!("the same call again: {}", outcome.said()));
            return;
        }
    }
    change.done(world, group);
}

/// Whether a call failed for what the writers may be about at any moment, so that the next one may succeed.
fn is_to_be_repeated(world: &World, outcome: &Outcome) -> bool {
    let Err((code, error)) = &outcome.result else {
        return false;
    };
    // A removal wants no prepared transaction, and a writer has one open now and then.
    let prepared = code == "55006" && error.contains("prepared transaction");
    // TRUNCATE heeds no snapshot. What was updated between the snapshot and a TRUNCATE before the copy is not there, and
    // Spock then discards the whole transaction of the update, which the join notices.
    let truncated = world.engine == Engine::Spock
        && world
            .schedule
            .kinds
            .iter()
            .any(|kind| kind.truncate.is_some())
        && error.contains("skipped a change that could not be applied");
    prepared || truncated
}

/// Runs a call, with an eye on its time and memory.
fn watched(scene: &Scene, on: usize, text: &str) -> Outcome {
    let world = scene.world;
    let over = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let (watch, node) = (&over, world.node(on, scene.group));
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
            *scene.call.lock().unwrap() = Some(underway.clone());
            scope.spawn(move || keep_watch(world, &underway, watch));
        });
        over.store(true, Ordering::SeqCst);
        outcome
    });
    *scene.call.lock().unwrap() = None;
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
            for number in 0..world.schedule.servers {
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

/// From now on `subscriber` gets nothing from `provider`.
fn suspend(subscriber: &Node, provider: &Node) {
    switch(subscriber, provider, "DISABLE");
}

/// It does again.
fn resume(subscriber: &Node, provider: &Node) {
    switch(subscriber, provider, "ENABLE");
}

fn switch(subscriber: &Node, provider: &Node, how: &str) {
    let name = provider.name();
    let statement = match subscriber.world.engine {
        Engine::Native => format!(
            "DO $$ BEGIN EXECUTE (SELECT format('ALTER SUBSCRIPTION %I {how}', subname) FROM pg_subscription
                JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database() AND subname ~ '^sub_{name}_'); END $$"
        ),
        Engine::Spock => format!(
            "SELECT spock.sub_{}(sub_name, true) FROM spock.subscription JOIN spock.node ON node_id = sub_origin
              WHERE node_name = '{name}'",
            how.to_lowercase()
        ),
    };
    subscriber.sql(&statement);
    let log = format!("{}: {how} what it takes of {name}", subscriber.name());
    subscriber.world.log(&log);
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
                judge::members_are_quiet(world, group, Some(change.subject()));
                again(world, group, change);
            })),
    }
    Ok(())
}
