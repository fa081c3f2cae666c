//! A node that was removed while it was away, or a copy of a node, called on itself. There is nothing to wait for, and
//! nothing to do on the others: its name is that of another one by now, or has always been.

use super::Request;
use super::half_added::end_interrupted;
use crate::engine::{self, Engine, Registry};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Mode, Node, server};
use crate::run::revert::run_all;
use crate::workflow::members;
use crate::workflow::membership::reach;
use crate::workflow::removed::{by_members, by_successor, end_replication};
use crate::workflow::report::Report;
use crate::workflow::twin::{self, Twin};

/// A node that the cluster goes on without.
struct FormerMember {
    engine: Box<dyn Engine>,
    me: Node,
    why: Why,
}

enum Why {
    Removed {
        own: Registry,
        newest: Registry,
    },
    /// The same without a registry.
    Forgotten(String),
    Copied(Twin),
}

impl Why {
    fn told(&self, name: &str) -> String {
        match self {
            Self::Removed { newest, .. } => format!(
                "node \"{name}\" was removed from the cluster while it was away: the members have generation {}, without it",
                newest.generation
            ),
            Self::Forgotten(told) => told.clone(),
            Self::Copied(twin) => twin.told(),
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
    if let Some(told) = by_successor(engine, &mut nodes[..1])? {
        return Ok(Some(told));
    }
    let mut reached: Vec<&mut Node> = reached.iter_mut().collect();
    by_members(engine, me, &mut reached, others.len())
}

/// The node, if it is the target.
fn former_member(here: &Mode, request: &Request) -> Result<Option<FormerMember>> {
    let mut me = members::local(&request.target, &Dsn::nowhere(), here);
    let mut engine = engine::detect(&mut me)?;
    if engine.local_name(&mut me)?.as_ref() != Some(&me.name) {
        return Ok(None);
    }
    let why = match Twin::of_registered(&*engine, &mut me)? {
        Some(twin) => Why::Copied(twin),
        None if engine.registry().is_none() => match forgotten(&mut *engine, &mut me)? {
            Some(told) => Why::Forgotten(told),
            None => return Ok(None),
        },
        None => match reach(&*engine, &mut me, None)?.without(&me.name) {
            Some((own, newest)) => Why::Removed {
                own: own.clone(),
                newest: newest.clone(),
            },
            None => return Ok(None),
        },
    };
    if let Some(dsn) = &request.target_dsn {
        let mut given = members::own_session(&Member {
            name: me.name.clone(),
            dsn: dsn.clone(),
        })?;
        let own = members::identity(&mut me)?;
        super::target::same(&own, &mut given, "target_node_dsn")?;
    }
    Ok(Some(FormerMember { engine, me, why }))
}

/// False if it is a member, or another node is the target.
pub fn former_member_here(here: &Mode, request: &Request, report: &Report) -> Result<bool> {
    let Some(FormerMember {
        engine,
        mut me,
        why,
    }) = former_member(here, request)?
    else {
        return Ok(false);
    };
    members::require_superuser([&mut me])?;
    members::lock([&mut me], &format!("remove_node {}", request.target))?;
    let replication = match &why {
        Why::Removed { own, .. } => end_replication(&*engine, &mut me, own),
        Why::Forgotten(_) | Why::Copied(_) => twin::end_replication(&*engine, &mut me),
    };
    let ended = replication
        .and_then(|()| end_interrupted(&*engine, here, &mut me))
        .and_then(|()| run_all(&mut me, &engine.drop_node()));
    server::membership_unlock().run(&mut me)?;
    ended?;
    warn_if_read_only(&mut me, report)?;
    report.notice(&why.told(&request.target));
    report.notice(&format!(
        "node \"{}\" has left: its subscriptions, slots and origins are dropped, its data is kept, and nobody gets what is written in it",
        request.target
    ));
    Ok(true)
}

/// A copy that was made while its node was being removed has the write block, and nobody who knows what was before.
fn warn_if_read_only(me: &mut Node, report: &Report) -> Result<()> {
    let setting = server::database_read_only().run(me)?;
    if setting.first().is_some_and(|row| row.text(0) == "on") {
        let database = members::identity(me)?.1;
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

pub fn refuse_plan(here: &Mode, request: &Request) -> Result<()> {
    match former_member(here, request)? {
        None => Ok(()),
        Some(former_member) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "{}; the CALL ends what it has of it",
                former_member.why.told(&request.target)
            ),
            "That is not planned: run CALL spock.remove_node.",
        )),
    }
}
