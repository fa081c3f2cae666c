//! Every subscription of the cluster knows the tables that its provider has by now.

use super::{members, pause};
use crate::engine::{self, Engine, Path};
use crate::error::{Error, Result, SqlState};
use crate::libpq::poll::holds_within;
use crate::node::{Member, Node, ask, server};

/// Refreshes all, each member from one provider after the other, all members at the same time; `say` is told how many
/// tables each member has got to know. Goes on where one fails, and ends with the first error.
pub fn refresh(own: &Member, mut say: impl FnMut(&str)) -> Result<()> {
    let mut local = members::own_session(own)?;
    members::require_superuser([&mut local])?;
    let mut engine = engine::detect(&mut local)?;
    let survey = engine.survey(&mut local)?;
    let others = survey.members.iter().filter(|m| m.name != own.name);
    let mut others = members::connect(&others.cloned().collect::<Vec<_>>())?;
    let mut nodes: Vec<&mut Node> = std::iter::once(&mut local).chain(&mut others).collect();
    engine.load_paths(&mut nodes, &[])?;
    let before = known(&mut nodes)?;
    let mut outcome = Ok(());
    for turn in 1..nodes.len() {
        let paths: Vec<Path> = (0..nodes.len())
            .map(|i| {
                let provider = &nodes[(i + turn) % nodes.len()].name;
                engine.path(provider, &nodes[i].name)
            })
            .collect();
        let questions = nodes
            .iter_mut()
            .zip(&paths)
            .map(|(node, path)| Ok(engine.refresh(path)?.on(node)));
        let answers = ask(questions.collect::<Result<_>>()?);
        for (i, answer) in answers.into_iter().enumerate() {
            let refreshed = answer.map(drop);
            outcome = outcome.and(
                refreshed.or_else(|failed| after_pause(&*engine, nodes[i], &paths[i], failed)),
            );
        }
    }
    let after = known(&mut nodes)?;
    let mut news = false;
    for (node, (before, after)) in nodes.iter().zip(before.iter().zip(after)) {
        let more = after - before;
        news |= more > 0;
        say(&format!(
            "node \"{}\": its subscriptions know {more} tables more",
            node.name
        ));
    }
    if news {
        say(
            "rows that were written into them before are only where they were written, which SELECT * FROM spock.verify_nodes() shows",
        );
    }
    outcome
}

/// A subscription is disabled for the moment in which a join takes its snapshot, and until somebody resumes it where the
/// join ended in that moment: refreshes it again then.
fn after_pause(engine: &dyn Engine, node: &mut Node, path: &Path, failed: Error) -> Result<()> {
    if failed.sqlstate() != SqlState::NOT_IN_PREREQUISITE_STATE {
        return Err(failed);
    }
    engine.resume_orphaned().first(node)?;
    let over = holds_within(pause::longest(), || {
        Ok(engine.pause_state().one(node)?.paused == 0)
    })?;
    let states = engine.subscriptions().on(node)?;
    let enabled = states
        .iter()
        .any(|state| state.name == path.subscription && state.enabled);
    if over && enabled {
        return engine.refresh(path)?.run(node).map(drop);
    }
    Err(Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!(
            "subscription {} of node \"{}\" is disabled, and cannot be refreshed",
            path.subscription, node.name
        ),
        "Enable it there, unless a join has paused it that is under way, and run the CALL again.",
    ))
}

/// How many tables the subscriptions of each know, all together.
fn known(nodes: &mut [&mut Node]) -> Result<Vec<i64>> {
    let known = |node: &mut &mut Node| server::subscribed_tables().one(node);
    nodes.iter_mut().map(known).collect()
}
