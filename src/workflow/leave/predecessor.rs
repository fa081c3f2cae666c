//! A node of a cluster on Spock that was removed, and whose name another one has now. What the others call by the name
//! is the successor's, so nothing is done on them.

use super::abandon::end_interrupted;
use super::{Request, find};
use crate::engine::{self, Engine, Path};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Here, Member, Node, server};
use crate::workflow::members;
use crate::workflow::membership::reach;
use crate::workflow::report::Report;
use crate::workflow::twin;
use crate::workflow::undo::run_all;

fn told(to_successor: &Path) -> String {
    format!(
        "node \"{}\" was removed from the cluster: subscription {} of node \"{}\" is to another one that has its name now",
        to_successor.provider, to_successor.subscription, to_successor.subscriber
    )
}

/// Refuses if one of `nodes` is such a node.
pub fn refuse(engine: &dyn Engine, nodes: &mut [&mut Node]) -> Result<()> {
    match engine.succeeded(nodes)? {
        None => Ok(()),
        Some(path) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            told(&path),
            format!(
                "On it, CALL spock.remove_node({}) makes it a database like any other.",
                crate::quote::literal(&path.provider)
            ),
        )),
    }
}

/// The node that the CALL runs on, and how another one subscribes to its successor.
struct Predecessor {
    engine: Box<dyn Engine>,
    me: Node,
    to_successor: Path,
}

/// The node, if it is the target.
fn predecessor(here: &Here, request: &Request) -> Result<Option<Predecessor>> {
    let mut me = members::local(&request.target, &Dsn::nowhere(), here);
    let mut engine = engine::detect(&mut me)?;
    if engine.membership().is_some() || engine.local_name(&mut me)?.as_ref() != Some(&me.name) {
        return Ok(None);
    }
    let answers = reach(&*engine, &mut me, None)?.answers.into_iter();
    let others = answers.filter(|(member, _)| member.name != me.name);
    let mut others: Vec<Node> = others.filter_map(|(_, answer)| answer.ok()).collect();
    let mut nodes: Vec<&mut Node> = std::iter::once(&mut me).chain(&mut others).collect();
    engine.learn(&mut nodes, &[])?;
    let Some(to_successor) = engine.succeeded(&mut nodes[..1])? else {
        return Ok(None);
    };
    if let Some(dsn) = &request.target_dsn {
        let mut given = members::own_session(&Member {
            name: me.name.clone(),
            dsn: dsn.clone(),
        })?;
        let own = members::identity(&mut me)?;
        find::same(&own, &mut given, "target_node_dsn")?;
    }
    Ok(Some(Predecessor {
        engine,
        me,
        to_successor,
    }))
}

/// False if it is a member, or another node is the target.
pub fn on_itself(here: &Here, request: &Request, report: &Report) -> Result<bool> {
    let Some(Predecessor {
        engine,
        mut me,
        to_successor,
    }) = predecessor(here, request)?
    else {
        return Ok(false);
    };
    members::require_superuser([&mut me])?;
    members::lock([&mut me], &format!("remove_node {}", request.target))?;
    let ended = twin::end_replication(&*engine, &mut me)
        .and_then(|()| end_interrupted(&*engine, here, &mut me))
        .and_then(|()| run_all(&mut me, &engine.cease_provider()));
    server::membership_unlock().run(&mut me)?;
    ended?;
    report.say(&told(&to_successor));
    report.say(&format!(
        "node \"{}\" has left: its subscriptions, slots and origins are dropped, its data is kept, and nobody gets what is written in it",
        request.target
    ));
    Ok(true)
}

pub fn refuse_plan(here: &Here, request: &Request) -> Result<()> {
    match predecessor(here, request)? {
        None => Ok(()),
        Some(found) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "{}; the CALL ends what it has of the cluster",
                told(&found.to_successor)
            ),
            "That is not planned: run CALL spock.remove_node.",
        )),
    }
}
