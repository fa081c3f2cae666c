//! What happens in a trial, as a value: a seed gives it, it can be printed, and it can be made smaller.

use super::actions::{ACTIONS, Action};
use super::shape::{Call, Engine, Less, Pick, SETTINGS, Setting, Shape};
use super::tables::{KINDS, Kind};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use proptest::strategy::Union;
use std::fmt;

/// A cluster, and what happens to it.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub shape: Shape,
    pub steps: Vec<Step>,
}

/// One of our calls, and what happens beside it.
#[derive(Clone, Debug)]
pub struct Step {
    pub call: Call,
    pub beside: Vec<Beside>,
}

/// An action so many milliseconds after the beginning of the call. Its numbers choose nodes, tables and durations.
#[derive(Clone, Debug)]
pub struct Beside {
    pub at: u16,
    pub action: &'static Action,
    pub pick: Pick,
}

/// All trials on this engine.
pub fn schedules(engine: Engine, without: &[String]) -> BoxedStrategy<Schedule> {
    let kinds: Vec<&'static Kind> = KINDS
        .iter()
        .filter(|kind| engine == Engine::Native || kind.not_on_spock.is_none())
        .collect();
    let all = kinds.len();
    let actions: Vec<(u32, BoxedStrategy<&'static Action>)> = ACTIONS
        .iter()
        .filter(|action| {
            action.engines.contains(&engine) && !without.iter().any(|name| name == action.name)
        })
        .map(|action| (action.weight, Just(action).boxed()))
        .collect();
    let second = if engine == Engine::Native { 0.3 } else { 0.0 };
    let own_sets = if engine == Engine::Spock { 0.4 } else { 0.0 };
    let tight = if engine == Engine::Native { 0.2 } else { 0.0 };
    let settings: Vec<Setting> = SETTINGS.to_vec();
    let shape = (
        3..=5usize,
        any::<Index>(),
        prop::bool::weighted(second),
        prop::bool::weighted(own_sets),
        prop::bool::weighted(0.6),
        prop::bool::weighted(tight),
        prop::bool::weighted(0.2),
    );
    (
        shape,
        subsequence(kinds, 1..=all),
        subsequence(settings, 0..=2),
        prop::collection::vec(step(Union::new_weighted(actions).boxed()), 1..=3),
    )
        .prop_map(
            move |(
                (servers, members, second_database, own_sets, recovery_slots, tight, clocks),
                kinds,
                settings,
                steps,
            )| {
                let shape = Shape {
                    engine,
                    servers,
                    members: 1 + members.index(servers - 1),
                    second_database,
                    own_sets,
                    recovery_slots,
                    tight,
                    clocks,
                    kinds,
                    settings,
                };
                Schedule { shape, steps }
            },
        )
        .boxed()
}

fn step(actions: BoxedStrategy<&'static Action>) -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let away = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Less::Same)),
        1 => Just(Some(Less::Other)),
    ];
    let call = prop_oneof![
        5 => (index(), index()).prop_map(|(new, source)| Call::Join { new, source }),
        3 => (index(), index()).prop_map(|(node, on)| Call::Leave { node, on }),
        2 => (index(), index(), any::<bool>(), away).prop_map(|(node, on, lagging, away)| Call::Die { node, on, lagging, away }),
    ];
    let pick = (index(), index(), 0..2000u16).prop_map(|(node, table, duration)| Pick {
        node,
        table,
        duration,
    });
    let at = prop_oneof![3 => 0..600u16, 1 => 600..2000u16];
    let beside = (at, actions, pick).prop_map(|(at, action, pick)| Beside { at, action, pick });
    (call, prop::collection::vec(beside, 0..=6)).prop_map(|(call, mut beside)| {
        beside.sort_by_key(|one| one.at);
        Step { call, beside }
    })
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.shape)?;
        for (i, step) in self.steps.iter().enumerate() {
            writeln!(f, "{}. {}", i + 1, step.call)?;
            for beside in &step.beside {
                let Pick {
                    node,
                    table,
                    duration,
                } = beside.pick;
                writeln!(
                    f,
                    "   at {:4} ms: {} ({}, {}, {duration})",
                    beside.at,
                    beside.action.name,
                    node.index(100),
                    table.index(100)
                )?;
            }
        }
        Ok(())
    }
}
