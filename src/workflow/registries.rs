//! The registry as each member has it, where the engine keeps one.

use super::members::changed_meanwhile;
use crate::engine::{Engine, Registry};
use crate::error::Result;
use crate::node::{Node, ask};
use std::time::{SystemTime, UNIX_EPOCH};

/// The registry as each of `nodes` has it; `None` of one that is no member in its own view, or not under its
/// name.
pub fn registries(engine: &dyn Engine, nodes: &mut [&mut Node]) -> Vec<Result<Option<Registry>>> {
    let Some(registry) = engine.registry() else {
        return nodes.iter().map(|_| Ok(None)).collect();
    };
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let question = registry.read();
    let questions = nodes.iter_mut().map(|n| question.ask(n)).collect();
    ask(questions)
        .into_iter()
        .zip(names)
        .map(|(answer, name)| match answer {
            Ok(rows) => Ok(question
                .read_first(&rows)?
                .filter(|own| own.name == name)
                .map(|own| own.registry)),
            // The extension is not there any more.
            Err(error) if error.is_undefined() => Ok(None),
            Err(error) => Err(error),
        })
        .collect()
}

/// The registry as `node`, a member, has it.
pub fn registry_of(engine: &dyn Engine, node: &mut Node) -> Result<Option<Registry>> {
    registries(engine, &mut [node])
        .pop()
        .transpose()
        .map(Option::flatten)
}

/// Gives `next` to those of `nodes` that are members by it, all at the same time; the answers are in their order.
pub fn publish_registry(
    engine: &dyn Engine,
    nodes: &mut [&mut Node],
    next: &Registry,
) -> Result<Vec<Result<()>>> {
    let Some(registry) = engine.registry() else {
        return Ok(nodes.iter().map(|_| Ok(())).collect());
    };
    let applied = registry.apply(next)?;
    let members: Vec<bool> = nodes.iter().map(|n| next.has(&n.name)).collect();
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let questions = nodes
        .iter_mut()
        .filter(|n| next.has(&n.name))
        .map(|n| applied.ask(n))
        .collect();
    let mut answers = ask(questions).into_iter();
    let answer = |(name, member): (String, bool)| match member.then(|| answers.next()).flatten() {
        Some(answer) => match applied.read_one(&answer?)? {
            true => Ok(()),
            false => Err(changed_meanwhile(&name)),
        },
        None => Ok(()),
    };
    Ok(names.into_iter().zip(members).map(answer).collect())
}

/// Microseconds since 1970, as a registry dates its changes.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}
