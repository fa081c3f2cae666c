//! Runs that were interrupted: what each command does with those of each other one.

use crate::error::{Error, Result};
use crate::node::{Query, Session};
use std::fmt;

macro_rules! commands {
    ($($command:ident $name:literal),+ $(,)?) => {
        /// The commands that write a journal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Command {
            $($command),+
        }

        impl Command {
            const ALL: &[Self] = &[$(Self::$command),+];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$command => $name),+
                }
            }
        }
    };
}

commands! {
    AddNode "spock.add_node",
    RemoveNode "spock.remove_node",
    RecoverRun "spock.recover_run",
}

/// What a command does with an interrupted run that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It undoes the run before anything else.
    Undo,
    /// It continues where the run ended.
    Continue,
    /// It leaves the run to others.
    Leave,
}

impl Command {
    fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|command| command.name() == name)
            .ok_or_else(|| Error::internal(format!("zodan.run.command is \"{name}\"")))
    }

    /// What this command does with an interrupted run of `interrupted`.
    pub const fn settles(self, interrupted: Self) -> Settlement {
        match (self, interrupted) {
            // What any run left on a node that is going to join is what the checks would find.
            (Self::AddNode, Self::AddNode | Self::RemoveNode | Self::RecoverRun) => {
                Settlement::Undo
            }
            // Of the same node: a node that is half added goes, and with a node goes what its recovery holds.
            (Self::RemoveNode, Self::AddNode | Self::RecoverRun) => Settlement::Undo,
            // What has been detached cannot be attached again at the same position.
            (Self::RemoveNode, Self::RemoveNode) => Settlement::Continue,
            (Self::RecoverRun, Self::RecoverRun) => Settlement::Undo,
            (Self::RecoverRun, Self::AddNode | Self::RemoveNode) => Settlement::Leave,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A run that nobody runs any more and that was not ended.
#[derive(Clone, Debug)]
pub struct Interrupted {
    pub run: i64,
    pub command: Command,
    pub source: String,
    /// How the source was reached, without secrets.
    pub source_dsn: String,
    /// The node that the run is about.
    pub node: String,
}

impl Interrupted {
    /// All of a node, the last one first. The caller holds the membership lock of the node, so nobody runs them.
    pub fn all(session: &mut Session) -> Result<Vec<Self>> {
        let all = Query::new(
            "SELECT id, command, source_node, source_dsn, node FROM zodan.run
              WHERE state IN ('running', 'failed') ORDER BY id DESC",
            &[],
            |row| {
                Ok(Self {
                    run: row.get("id")?,
                    command: Command::parse(row.get("command")?)?,
                    source: row.get("source_node")?,
                    source_dsn: row.get("source_dsn")?,
                    node: row.get("node")?,
                })
            },
        );
        all.on(session)
    }

    /// Those of `command` about `node`.
    pub fn of(session: &mut Session, command: Command, node: &str) -> Result<Vec<Self>> {
        let mut runs = Self::all(session)?;
        runs.retain(|run| run.command == command && run.node == node);
        Ok(runs)
    }

    /// Those that `by` undoes, of any node.
    pub fn undone_by(session: &mut Session, by: Command) -> Result<Vec<Self>> {
        let mut runs = Self::all(session)?;
        runs.retain(|run| by.settles(run.command) == Settlement::Undo);
        Ok(runs)
    }
}
