//! Recoveries that have no end: what they hold is let go by the next call that is about the same node.

use crate::engine::Engine;
use crate::error::Result;
use crate::libpq::Conn;
use crate::node::{Mode, Node, Session, server};
use crate::run::{Command, Interrupted, Journal, RunState};
use crate::workflow::report::Report;
use crate::workflow::undo::Undo;

/// Why it has not ended.
#[derive(Clone, Copy)]
pub enum Open {
    /// Its CALL did not come to one.
    Interrupted,
    /// It was meant to go on until [`super::finalize`], or its node is given up.
    Finalized,
}

/// Lets go of what recoveries hold, of the loss of `failed` or of any node, whichever of `survivors` they ran on.
pub fn let_go(
    engine: &dyn Engine,
    session: &Mode,
    local_name: &str,
    survivors: &mut [Node],
    report: &Report,
    open: Open,
    failed: Option<&str>,
) -> Result<()> {
    let mut journals = vec![(String::new(), None)];
    for node in survivors.iter_mut().filter(|node| node.name != local_name) {
        if server::has_journal().one(node)? {
            let place = format!(" on node \"{}\"", node.name);
            journals.push((place, Some((node.name.clone(), node.dsn.clone()))));
        }
    }
    for (place, elsewhere) in journals {
        let session = || match &elsewhere {
            Some((name, dsn)) => Conn::open(name, dsn).map(Session::Remote),
            None => Ok(session.session()),
        };
        for dead in Interrupted::undone_by(&mut session()?, Command::RecoverRun)? {
            if failed.is_some_and(|failed| failed != dead.node) {
                continue;
            }
            let (run, node) = (format!("run {}{place}", dead.run), &dead.node);
            report.notice(&match open {
                Open::Finalized => format!("releasing slot and subscriptions of {run}, the recovery of node \"{node}\""),
                Open::Interrupted => format!(
                    "cleaning up after the CALL {} for node \"{node}\" that was interrupted ({run})",
                    dead.command
                ),
            });
            let journal = Journal::reopen(session()?, dead.run);
            let undo = Undo {
                engine,
                journal: &journal,
                subject: &dead.node,
                name_taken: false,
            };
            let mut nodes: Vec<&mut Node> = survivors.iter_mut().collect();
            let state = match open {
                Open::Finalized => RunState::Done,
                Open::Interrupted => RunState::Undone,
            };
            undo.clean_up(dead.run, state, &mut nodes)?;
        }
    }
    Ok(())
}
