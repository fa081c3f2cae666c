//! What happens in a trial, as a value: a seed gives it, it can be printed, and it can be made smaller.

use super::actions::{ACTIONS, Action};
use super::tables::{KINDS, Kind};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use proptest::strategy::Union;
use std::fmt;

/// What the servers replicate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Native,
    Spock,
}

/// A cluster, and what happens to it.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub engine: Engine,
    pub servers: usize,
    /// How many of them are a cluster at first.
    pub members: usize,
    /// Another database of the same servers is a cluster too, of nodes with the same names.
    pub second_database: bool,
    /// Each of the first members has a replication set of its own, which the others take.
    pub own_sets: bool,
    /// Every server has node workers, which keep recovery slots.
    pub recovery_slots: bool,
    pub kinds: Vec<&'static Kind>,
    pub settings: Vec<Setting>,
    pub steps: Vec<Step>,
}

/// A setting of all servers, and its value.
pub type Setting = (&'static str, &'static str);

const SETTINGS: &[Setting] = &[
    ("zodan.copy_jobs", "1"),
    ("zodan.copy_jobs", "4"),
    ("max_parallel_workers", "0"),
    ("synchronous_commit", "off"),
    ("datestyle", "German"),
    ("bytea_output", "escape"),
    ("default_transaction_isolation", "serializable"),
    ("idle_in_transaction_session_timeout", "300ms"),
    ("statement_timeout", "700ms"),
    ("lock_timeout", "200ms"),
    ("quote_all_identifiers", "on"),
    ("extra_float_digits", "0"),
    ("row_security", "off"),
    ("max_sync_workers_per_subscription", "0"),
];

/// One of our calls, and what happens beside it.
#[derive(Clone, Debug)]
pub struct Step {
    pub call: Call,
    pub beside: Vec<Beside>,
}

/// A call that changes the membership. The numbers choose among the nodes that there are then.
#[derive(Clone, Debug)]
pub enum Call {
    Join {
        new: Index,
        source: Index,
    },
    /// A living node leaves; the CALL runs on itself or on another member.
    Leave {
        node: Index,
        on: Index,
    },
    /// A node dies, the survivors are made equal, and it is removed.
    Die {
        node: Index,
        on: Index,
        /// One of the survivors had got nothing of it for a while.
        lagging: bool,
        /// A further member cannot be reached while the survivors are made equal, and one of the two has less of it too.
        away: Option<Less>,
    },
}

/// Who has less of a member that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Less {
    /// The survivor that has less of the dead node.
    Same,
    /// The one that has more.
    Other,
}

/// An action so many milliseconds after the beginning of the call. Its numbers choose nodes, tables and durations.
#[derive(Clone, Debug)]
pub struct Beside {
    pub at: u16,
    pub action: &'static Action,
    pub pick: Pick,
}

/// What an action chooses by.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    pub node: Index,
    pub table: Index,
    pub duration: u16,
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
    let settings: Vec<Setting> = SETTINGS.to_vec();
    let shape = (
        3..=5usize,
        any::<Index>(),
        prop::bool::weighted(second),
        prop::bool::weighted(own_sets),
        prop::bool::weighted(0.6),
    );
    (
        shape,
        subsequence(kinds, 1..=all),
        subsequence(settings, 0..=2),
        prop::collection::vec(step(Union::new_weighted(actions).boxed()), 1..=3),
    )
        .prop_map(
            move |(
                (servers, members, second_database, own_sets, recovery_slots),
                kinds,
                settings,
                steps,
            )| {
                Schedule {
                    engine,
                    servers,
                    members: 1 + members.index(servers - 1),
                    second_database,
                    own_sets,
                    recovery_slots,
                    kinds,
                    settings,
                    steps,
                }
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
        let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name).collect();
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|(n, v)| format!("{n} = {v}"))
            .collect();
        let mut with = vec![];
        with.extend(self.recovery_slots.then(|| "recovery slots".to_owned()));
        with.extend(self.own_sets.then(|| "sets of single nodes".to_owned()));
        with.extend(self.second_database.then(|| "a second database".to_owned()));
        with.extend(settings);
        writeln!(
            f,
            "{:?}, {} servers, {} members at first; {}",
            self.engine,
            self.servers,
            self.members,
            if with.is_empty() {
                "nothing else".into()
            } else {
                with.join(", ")
            }
        )?;
        writeln!(f, "tables: {}", kinds.join(", "))?;
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

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Join { new, source } => write!(
                f,
                "a node joins ({}, {})",
                new.index(100),
                source.index(100)
            ),
            Call::Leave { node, on } => {
                write!(f, "a node leaves ({}, {})", node.index(100), on.index(100))
            }
            Call::Die {
                node,
                on,
                lagging,
                away,
            } => write!(
                f,
                "a node dies{}{} ({}, {})",
                if *lagging {
                    " that a survivor had not kept up with"
                } else {
                    ""
                },
                match away {
                    Some(less) =>
                        format!(" while another one is away, of which the {less:?} has less"),
                    None => String::new(),
                },
                node.index(100),
                on.index(100)
            ),
        }
    }
}
