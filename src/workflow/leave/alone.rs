//! A node that was removed while it was away, called on itself. There is nothing to wait for, and nothing to do on the
//! others: they have forgotten it, and its name may be that of another one by now.

use super::Request;
use super::abandon::end_interrupted;
use crate::engine::{self, Engine};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Here, Member, Node, server};
use crate::workflow::members;
use crate::workflow::membership::{Reached, reach};
use crate::workflow::removed::end_replication;
use crate::workflow::report::Report;
use crate::workflow::undo::run_all;

/// A node that the cluster goes on without.
struct Removed {
    engine: Box<dyn Engine>,
    me: Node,
    reached: Reached,
}

/// The node, if it is the target and was removed.
fn removed(here: &Here, request: &Request) -> Result<Option<Removed>> {
    let mut me = members::local(&request.target, &Dsn::nowhere(), here);
    let engine = engine::detect(&mut me)?;
    if engine.membership().is_none() || engine.local_name(&mut me)?.as_ref() != Some(&me.name) {
        return Ok(None);
    }
    let reached = reach(&*engine, &mut me, None)?;
    if reached.without(&me.name).is_none() {
        return Ok(None);
    }
    if let Some(dsn) = &request.target_dsn {
        let mut given = members::own_session(&Member {
            name: me.name.clone(),
            dsn: dsn.clone(),
        })?;
        let own = members::identity(&mut me)?;
        super::find::same(&own, &mut given, "target_node_dsn")?;
    }
    Ok(Some(Removed {
        engine,
        me,
        reached,
    }))
}

/// False if it is a member, or another node is the target.
pub fn on_the_removed_node(here: &Here, request: &Request, report: &Report) -> Result<bool> {
    let Some(Removed {
        engine,
        mut me,
        reached,
    }) = removed(here, request)?
    else {
        return Ok(false);
    };
    let Some((own, newest)) = reached.without(&me.name) else {
        return Ok(false);
    };
    members::require_superuser([&mut me])?;
    members::lock([&mut me], &format!("remove_node {}", request.target))?;
    let ended = end_replication(&*engine, &mut me, own)
        .and_then(|()| end_interrupted(&*engine, here, &mut me))
        .and_then(|()| run_all(&mut me, &engine.cease_provider()));
    server::membership_unlock().run(&mut me)?;
    ended?;
    report.say(&format!(
        "node \"{}\" was removed from the cluster while it was away: the members have generation {}, without it",
        request.target, newest.generation
    ));
    report.say(&format!(
        "node \"{}\" has left: its subscriptions, slots and origins are dropped, its data is kept, and nobody gets what is written in it",
        request.target
    ));
    Ok(true)
}

pub fn refuse_plan(here: &Here, request: &Request) -> Result<()> {
    match removed(here, request)? {
        None => Ok(()),
        Some(_) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "node \"{}\" was removed from the cluster while it was away: the CALL ends what it has of it",
                request.target
            ),
            "That is not planned: run CALL spock.remove_node.",
        )),
    }
}
