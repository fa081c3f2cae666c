//! Of two updates of a row the later one stays, on every member: the guard is installed on all of them in one go.

use super::cluster::{Cluster, Locking};
use super::members;
use super::membership::reach;
use crate::engine::{self, ConflictRule};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::node::{Member, Node, Statement, ask, ask_each, server};

const HINT: &str = "End the transactions that hold locks on the table.";

/// Installs the guard on the table, or takes it away; the number of members that it was changed on. `own` is the
/// node that the call runs on, `command` what its sessions are called.
pub fn set(own: &Member, table: u32, command: &str, wanted: bool) -> Result<i32> {
    let mut local = members::own_session(own)?;
    let engine = engine::detect(&mut local)?;
    let reached = reach(&*engine, &mut local, None)?;
    reached.require_own(&*engine, &mut local, true)?;
    let Some(name) = server::table_name(table).first(&mut local)? else {
        return Err(Error::Argument {
            argument: "relation",
            problem: "is not a table of this database".into(),
            hint: "Give the name of a table.".into(),
            state: SqlState::UNDEFINED_TABLE,
        });
    };
    let change = match engine.last_update_wins(&name, wanted) {
        ConflictRule::Trigger(change) => change.statement,
        ConflictRule::OfTheEngine { hint } => {
            return Err(Error::refused(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("{command} is for clusters on PostgreSQL's own replication"),
                hint,
            ));
        }
    };
    let mut cluster = Cluster {
        engine,
        members: members::all(reached.answers)?,
        unreachable: vec![],
        registry: reached.registry,
        confirmed: reached.confirmed,
        subject: (),
    };
    // A node that is joining gets the structure that the source had before.
    let locking = Locking::Take(command.to_owned());
    cluster.lock(Some(&mut local), &reached.own, &locking, &[])?;
    let mut in_the_way = own.name.clone();
    let locked = wait_until(&own.name, &format!("locking {name}"), HINT, || {
        on_all(&change, &mut cluster.members, &mut in_the_way)
    });
    locked.map_err(|error| error.of_node(&in_the_way))
}

/// On all members at the same time or on none, with the table locked everywhere meanwhile: what one of them sends
/// with the new column is applied where it is there too.
fn on_all(statement: &Statement, nodes: &mut [Node], in_the_way: &mut String) -> Result<Poll<i32>> {
    let held = server::held(&statement.inlined());
    let answers = ask(nodes.iter_mut().map(|n| held.clone().on(n)).collect());
    let end = match answers.iter().all(Result::is_ok) {
        true => server::commit(),
        false => server::rollback(),
    };
    ask_each(&mut *nodes, |_| end.clone())?;
    let mut changed = 0;
    let mut in_use = vec![];
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(rows) => changed += i32::from(rows.one()?.only::<bool>()?),
            Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
                in_use.push(node.name.clone());
            }
            Err(error) => return Err(error),
        }
    }
    match in_use.first() {
        None => Ok(Poll::Ready(changed)),
        Some(first) => {
            in_the_way.clone_from(first);
            let nodes = in_use.join("\" and node \"");
            Ok(Poll::Pending(format!(
                "the table is in use on node \"{nodes}\""
            )))
        }
    }
}
