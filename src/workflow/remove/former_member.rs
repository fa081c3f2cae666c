//! A node that was removed while it was away, or a copy of a node, called on itself. There is nothing to wait for, and
//! nothing to do on the others: its name is that of another one by now, or has always been.

use super::Request;
use super::half_added::interrupted;
use crate::engine::{Engine, Registry};
use crate::error::{Error, Result, SqlState};
use crate::node::{Member, Mode, Node, server};
use crate::run::revert::run_all;
use crate::run::{Act, Action, Command, Journal, RunState};
use crate::workflow::members;
use crate::workflow::membership::{ReachableMembers, reach};
use crate::workflow::node_copy::{self, NodeCopy};
use crate::workflow::removed::{by_members, by_successor, end_replication};
use crate::workflow::report::Report;

/// A node that the cluster goes on without.
pub struct FormerMember {
    pub engine: Box<dyn Engine>,
    pub mode: Mode,
    pub me: Node,
    pub why: Why,
    pub report: Report,
}

/// How the cluster goes on without it.
pub enum Why {
    Removed {
        own: Registry,
        newest: Registry,
    },
    /// The same without a registry.
    Forgotten(String),
    Copied(NodeCopy),
}

impl Why {
    /// `None` if the cluster goes on with `me`; the members may have been `reached` by then.
    pub fn find(
        engine: &mut dyn Engine,
        me: &mut Node,
        request: &Request,
        reached: &mut Option<ReachableMembers>,
    ) -> Result<Option<Self>> {
        let why = match NodeCopy::of_registered(engine, me)? {
            Some(copied) => Self::Copied(copied),
            None if engine.registry().is_none() => match forgotten(engine, me)? {
                Some(message) => Self::Forgotten(message),
                None => return Ok(None),
            },
            None => {
                let found = reached.insert(reach(engine, me, None)?);
                match found.without(&me.name) {
                    Some((own, newest)) => Self::Removed {
                        own: own.clone(),
                        newest: newest.clone(),
                    },
                    None => return Ok(None),
                }
            }
        };
        if let Some(dsn) = &request.target_dsn {
            let mut given = members::own_session(&Member {
                name: me.name.clone(),
                dsn: dsn.clone(),
            })?;
            let own = members::identity(me)?;
            members::require_same(&own, &mut given, "target_node_dsn")?;
        }
        Ok(Some(why))
    }

    fn message(&self, name: &str) -> String {
        match self {
            Self::Removed { newest, .. } => format!(
                "node \"{name}\" was removed from the cluster while it was away: the members have generation {}, without it",
                newest.generation
            ),
            Self::Forgotten(message) => message.clone(),
            Self::Copied(copied) => copied.message(),
        }
    }
}

/// What the members say of a node that takes itself for one, where they keep no registry.
fn forgotten(engine: &mut dyn Engine, me: &mut Node) -> Result<Option<String>> {
    let members = engine.survey(me)?.members;
    let others: Vec<Member> = members.into_iter().filter(|m| m.name != me.name).collect();
    let mut reached = vec![];
    for answer in members::connect_each(&others) {
        match answer {
            Ok(node) => reached.push(node),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // It says nothing.
            Err(_) => {}
        }
    }
    let mut nodes: Vec<&mut Node> = std::iter::once(&mut *me).chain(&mut reached).collect();
    engine.load_paths(&mut nodes, &[])?;
    if let Some(message) = by_successor(engine, &mut nodes[..1])? {
        return Ok(Some(message));
    }
    let mut reached: Vec<&mut Node> = reached.iter_mut().collect();
    by_members(engine, me, &mut reached, others.len())
}

impl FormerMember {
    /// Ends what it has of the cluster.
    pub fn end_membership(mut self) -> Result<()> {
        let Self {
            engine,
            mode,
            me,
            why,
            report,
        } = &mut self;
        let engine = &**engine;
        members::require_superuser([&mut *me])?;
        let purpose = format!("remove_node {}", me.name);
        members::lock([&mut *me], &purpose)?;
        let replication = match why {
            Why::Removed { own, .. } => end_replication(engine, me, own),
            Why::Forgotten(_) | Why::Copied(_) => node_copy::end_replication(engine, me),
        };
        let ended = replication
            .and_then(|()| end_interrupted(engine, mode, me))
            .and_then(|()| run_all(me, &engine.drop_node()));
        server::membership_unlock().run(me)?;
        ended?;
        warn_if_read_only(me, report)?;
        report.notice(&why.message(&me.name));
        report.notice(&format!(
            "node \"{}\" has left: its subscriptions, slots and origins are dropped, its data is kept, and nobody gets what is written in it",
            me.name
        ));
        Ok(())
    }

    pub fn refuse_plan(&self) -> Error {
        Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "{}; the CALL ends what it has of it",
                self.why.message(&self.me.name)
            ),
            "That is not planned: run CALL spock.remove_node.",
        )
    }
}

/// A database that is a node no more, by a removal that was interrupted after that.
pub struct FormerNode {
    pub engine: Box<dyn Engine>,
    pub mode: Mode,
    pub me: Node,
    pub report: Report,
}

impl FormerNode {
    /// Writes are let in again.
    pub fn end_removal(mut self) -> Result<()> {
        end_interrupted(&*self.engine, &self.mode, &mut self.me)?;
        let text = format!("node \"{}\" has left already", self.me.name);
        self.report.notice(&text);
        Ok(())
    }
}

/// Removals of `me` on itself that were interrupted have come to their end: writes are let in again.
fn end_interrupted(engine: &dyn Engine, mode: &Mode, me: &mut Node) -> Result<()> {
    while let Some(run) = interrupted(&mut me.session, Command::RemoveNode, &me.name)? {
        let journal = Journal::reopen(mode.session(), run.run);
        for begun in journal.begun()? {
            if let Action::BlockWrites(block) = begun.action {
                block.undo(engine, me)?;
            }
        }
        journal.end(RunState::Done, None)?;
    }
    Ok(())
}

/// A copy that was made while its node was being removed has the write block, and nobody who knows what was before.
fn warn_if_read_only(me: &mut Node, report: &Report) -> Result<()> {
    let setting = server::database_read_only().first(me)?;
    if setting.is_some_and(|value| value == "on") {
        let database = members::identity(me)?.database;
        report.warn(
            &format!("new sessions of database \"{database}\" are read-only"),
            &format!(
                "Where that is not meant: ALTER DATABASE {} RESET default_transaction_read_only;",
                crate::quote::ident(&database)
            ),
        );
    }
    Ok(())
}
