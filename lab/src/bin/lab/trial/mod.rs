//! `lab trial`: clusters and what can happen to them, at random. A seed gives a cluster, its tables and a schedule; when
//! a round is over, every commit that was acknowledged has to be on every member exactly once.

mod actions;
mod change;
mod judge;
mod ledger;
mod play;
mod schedule;
mod shape;
mod tables;
mod world;
mod writer;

use crate::Options;
use lab::{clock, spock};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use schedule::{Schedule, schedules};
use shape::Engine;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use world::World;

/// Rounds until the time is over, or so many; true if none failed.
pub fn run(options: &Options) -> bool {
    let engine = match options.spock {
        false => Engine::Native,
        true => match spock::announced() {
            Some(_) => Engine::Spock,
            None => return true,
        },
    };
    if !clock::available() {
        println!("libfaketime is not installed: all servers have the same clock");
    }
    let began = Instant::now();
    let time = Duration::from_secs(60 * options.minutes);
    let rounds = options.round.map_or(0..u64::MAX, |round| round..round + 1);
    let mut done = 0;
    for round in rounds {
        let limited = options.trials > 0;
        if options.round.is_none()
            && (limited && done == options.trials || !limited && began.elapsed() > time)
        {
            break;
        }
        let mut runner = runner(options.seed, round);
        let mut tree = schedules(engine, &options.without)
            .new_tree(&mut runner)
            .expect("no strategy rejects");
        let schedule = tree.current();
        let at = Instant::now();
        if let Err(failed) = play(&schedule, options.seed) {
            println!(
                "seed {}, round {round} FAILED after {:.0?}\n",
                options.seed,
                began.elapsed()
            );
            println!("{schedule}\n{}", failed.report());
            shrink(&mut *tree, options, failed);
            println!(
                "\nThe same again: lab trial --seed {} --round {round}",
                options.seed
            );
            return false;
        }
        done += 1;
        println!(
            "seed {}, round {round}: {} calls, {:.1?}",
            options.seed,
            schedule.steps.len(),
            at.elapsed()
        );
    }
    println!(
        "{done} rounds on {engine:?}, none failed; {:.0?}",
        began.elapsed()
    );
    true
}

fn runner(seed: u64, round: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&round.to_le_bytes());
    TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
    )
}

/// What was wrong in a round, and what happened before.
struct Failed {
    wrong: Vec<String>,
    log: Vec<String>,
    logs: Vec<(String, String)>,
}

impl Failed {
    fn report(&self) -> String {
        const SHOWN: usize = 20;
        let wrong: Vec<&str> = self.wrong.iter().take(SHOWN).map(String::as_str).collect();
        format!("{}\n\n{}\n", self.log.join("\n"), wrong.join("\n"))
    }
}

/// Plays a schedule with a cluster of its own.
fn play(schedule: &Schedule, seed: u64) -> Result<(), Failed> {
    let world = catch_unwind(|| World::start(&schedule.shape, seed)).map_err(|panic| Failed {
        wrong: vec![said(&*panic)],
        log: vec![],
        logs: vec![],
    })?;
    let played = catch_unwind(AssertUnwindSafe(|| {
        for step in &schedule.steps {
            play::play(&world, step);
            if !world.wrong.lock().unwrap().is_empty() {
                return;
            }
        }
        judge::logs_are_clean(&world);
    }));
    if let Err(panic) = played {
        world.blame(said(&*panic));
    }
    let wrong = std::mem::take(&mut *world.wrong.lock().unwrap());
    if wrong.is_empty() {
        return Ok(());
    }
    let servers = (0..schedule.shape.servers).map(|number| world.server(number));
    Err(Failed {
        wrong,
        log: world.log_lines(),
        logs: servers
            .map(|server| (server.name().into(), server.log()))
            .collect(),
    })
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").into()
}

/// Looks for a smaller schedule that fails too, as long as there is time, and prints it. Keeps the logs of its servers.
fn shrink(tree: &mut dyn ValueTree<Value = Schedule>, options: &Options, first: Failed) {
    let began = Instant::now();
    let time = Duration::from_secs(60 * options.shrink_minutes);
    let (mut smallest, mut failed, mut tried) = (tree.current(), first, 0);
    let mut more = tree.simplify();
    while more && began.elapsed() < time {
        let schedule = tree.current();
        tried += 1;
        // What depends on the moment does not fail every time.
        let outcome = play(&schedule, options.seed).and_then(|()| play(&schedule, options.seed));
        more = match outcome {
            Err(now) => {
                (smallest, failed) = (schedule, now);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
    }
    println!(
        "The smallest of {tried} schedules that fails:\n\n{smallest}\n{}",
        failed.report()
    );
    let dir = std::env::temp_dir().join(format!("zodan-trial-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
    for (name, log) in &failed.logs {
        let path = dir.join(format!("{name}.log"));
        std::fs::write(&path, log)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }
    println!("The logs of its servers are in {}.", dir.display());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn schedule(engine: Engine, seed: u64, round: u64) -> Schedule {
        let tree = schedules(engine, &[]).new_tree(&mut runner(seed, round));
        tree.expect("no strategy rejects").current()
    }

    #[test]
    fn same_seed_gives_the_same_schedule() {
        for engine in [Engine::Native, Engine::Spock] {
            let said = |seed, round| format!("{:?}", schedule(engine, seed, round));
            assert_eq!(said(7, 3), said(7, 3));
            assert_ne!(said(7, 3), said(7, 4));
            assert_ne!(said(7, 3), said(8, 3));
        }
    }

    #[test]
    fn every_action_and_every_kind_of_table_has_its_turn() {
        let (mut actions, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for engine in [Engine::Native, Engine::Spock] {
            for round in 0..300 {
                let schedule = schedule(engine, 1, round);
                assert!((1..schedule.shape.servers).contains(&schedule.shape.members));
                kinds.extend(schedule.shape.kinds.iter().map(|kind| kind.name));
                let beside = schedule.steps.iter().flat_map(|step| &step.beside);
                actions.extend(beside.map(|one| {
                    assert!(one.action.engines.contains(&engine));
                    one.action.name
                }));
            }
        }
        assert_eq!(actions.len(), actions::ACTIONS.len());
        assert_eq!(kinds.len(), tables::KINDS.len());
    }

    #[test]
    fn schedule_is_made_smaller_down_to_one_call_alone() {
        let mut tree = schedules(Engine::Native, &[])
            .new_tree(&mut runner(1, 1))
            .expect("no strategy rejects");
        // As if each smaller one failed too.
        while tree.simplify() {}
        let smallest = tree.current();
        assert_eq!(smallest.steps.len(), 1);
        assert!(smallest.steps[0].beside.is_empty());
        assert_eq!(
            (smallest.shape.kinds.len(), smallest.shape.settings.len()),
            (1, 0)
        );
        let shape = &smallest.shape;
        assert!(!shape.second_database && !shape.recovery_slots && !shape.tight && !shape.clocks);
    }
}
