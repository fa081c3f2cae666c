//! A step of a trial: what is done before its call, beside it, and when it has failed.

use super::actions::{Judged, Scene};
use super::change::{Change, again, is_to_be_repeated, watched};
use super::judge;
use super::schedule::Step;
use super::shape::{Engine, Less};
use super::world::{Node, World};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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
        by_times: matches!(change, Change::Die { .. }),
        call: Mutex::default(),
        second_succeeded: AtomicBool::new(false),
        dropped: Mutex::default(),
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
            let outcome = watched(world, group, change.on(), &text, &scene.call);
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
            judge::subscriptions_work(world, group, change.subject());
            again(world, group, change);
        }
        None if let Some(at) = *scene.dropped.lock().unwrap() => {
            if at < world.last_look() {
                world.blame("a node has joined without a subscription".into());
            }
            // All had been seen to work. The operator mends it by adding the node again. Without the subscription the node
            // may take its provider for one that only reads, so another member is asked to remove it.
            change.done(world, group);
            let mut others = world.members(group);
            others.retain(|number| *number != change.subject());
            let node = change.subject();
            again(
                world,
                group,
                Change::Leave {
                    node,
                    on: others[0],
                },
            );
            world.node(node, group).renew();
            again(world, group, change);
        }
        None => change.done(world, group),
    }
    world.finish_tables(group);
    if matches!(change, Change::Leave { .. }) {
        end_former_member(world, group, change.subject());
    }
    for group in 0..world.groups.len() {
        judge::judge(world, group, change.subject(), excused);
    }
    if matches!(change, Change::Leave { .. }) {
        world.node(change.subject(), group).renew();
    }
}

/// A node that was down while it was removed, and is back: the operator has it leave by itself, as docs/operations.md says.
fn end_former_member(world: &World, group: usize, number: usize) {
    let node = world.node(number, group);
    if !world.disturbed().contains(&number) || node.rows(world.subscriptions()).is_empty() {
        return;
    }
    let itself = Change::Leave {
        node: number,
        on: number,
    };
    let call = &itself.texts(world, group)[0];
    let outcome = watched(world, group, number, call, &Mutex::default());
    if outcome.result.is_err() {
        world.blame(format!("a node that is back: {}", outcome.said()));
    }
}

/// Makes the survivors equal while one of them is away, of which `less` has less than the others, and lets that one come back.
fn recover_without(world: &World, group: usize, change: Change, away: usize, less: usize) {
    world.log(&format!("n{} is away", away + 1));
    let text = &change.texts(world, group)[0];
    let outcome = watched(world, group, change.on(), text, &Mutex::default());
    if outcome.result.is_err() {
        world.blame(format!("with one away: {}", outcome.said()));
    }
    world.network.heal();
    resume(&world.node(less, group), &world.node(away, group));
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
