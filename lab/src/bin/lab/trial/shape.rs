//! What the cluster of a trial is like, and how its nodes, tables and durations are chosen.

use super::tables::Kind;
use proptest::sample::Index;
use std::fmt;

/// What the servers replicate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Native,
    Spock,
}

/// A cluster before anything happens to it.
#[derive(Clone, Debug)]
pub struct Shape {
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
    /// Servers have room for what docs/operations.md says that a cluster of their number needs, and no more.
    pub tight: bool,
    /// Each server has a clock of its own.
    pub clocks: bool,
    pub kinds: Vec<&'static Kind>,
    pub settings: Vec<Setting>,
}

/// A setting of all servers, and its value.
pub type Setting = (&'static str, &'static str);

pub const SETTINGS: &[Setting] = &[
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

/// What an action chooses by.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    pub node: Index,
    pub table: Index,
    pub duration: u16,
}

impl fmt::Display for Shape {
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
        with.extend(self.tight.then(|| "settings of the least size".to_owned()));
        with.extend(self.clocks.then(|| "clocks that differ".to_owned()));
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
        write!(f, "tables: {}", kinds.join(", "))
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
