//! Recoveries that have no end: what they hold is let go by the next call that is about the same node.

use crate::engine::Engine;
use crate::error::Result;
use crate::libpq::Conn;
use crate::node::{Member, Mode, Node, Session, server, side_by_side};
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
    let all = survivors.len();
    let interrupted = side_by_side(
        survivors,
        |survivors| survivors.iter_mut().collect(),
        all,
        |i, survivors| {
            let node = &mut survivors[i];
            match node.name != local_name && server::has_journal().one(node)? {
                true => Interrupted::undone_by(&mut node.session, Command::RecoverRun),
                false => Ok(vec![]),
            }
        },
    );
    let here = Interrupted::undone_by(&mut session.session(), Command::RecoverRun)?;
    let mut journals = vec![(String::new(), None, here)];
    for (node, interrupted) in survivors.iter().zip(interrupted) {
        let place = format!(" on node \"{}\"", node.name);
        journals.push((place, Some(node.member()), interrupted?));
    }
    for (place, elsewhere, interrupted) in journals {
        for dead in interrupted {
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
            let own = match &elsewhere {
                Some(Member { name, dsn }) => Session::Remote(Conn::open(name, dsn)?),
                None => session.session(),
            };
            let journal = Journal::reopen(own, dead.run);
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
