//! Sequences of different members never give the same value, where that is wished: their values are divided, on
//! the members before the new node gets its slots, on the new node before anybody can write there.

use super::membership;
use super::patience::{Seen, wait_until};
use super::report::Report;
use crate::engine::{Engine, Registry, SequencePolicy, division};
use crate::error::{Error, Finding, Result, SqlState};
use crate::journal::{Effect, Journal};
use crate::node::{Node, server};
use crate::settings;
use crate::step::{Action, Step};
use std::collections::BTreeMap;

const HINT: &str =
    "End the transactions that have drawn from the sequence, or run the CALL at a quieter time.";

/// How the sequences of a cluster are divided from this join on.
#[derive(Clone, Copy)]
pub struct Division {
    pub policy: SequencePolicy,
    pub parts: i32,
    /// The new node's.
    part: i32,
    /// How they were divided until now.
    pub before: (SequencePolicy, i32),
}

impl Division {
    /// What the setting and the cluster want; `None` if every member has copies.
    pub fn wanted(engine: &dyn Engine, source: &mut Node) -> Result<Option<Self>> {
        let setting = settings::sequence_policy();
        let name = source.name.clone();
        let refused = |state, message: &str, hint: &str| {
            Err(Error::Checks(vec![Finding::new(
                &name, state, message, hint,
            )]))
        };
        if engine.membership().is_none() {
            return match setting {
                SequencePolicy::Copy => Ok(None),
                _ => refused(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "sequences are divided on the native engine only",
                    "SET zodan.sequence_policy = copy, and see what Spock has for its sequences.",
                ),
            };
        }
        let registry = membership::of(engine, source)?;
        let known = registry
            .as_ref()
            .map_or(SequencePolicy::Copy, |r| r.sequence_policy);
        let policy = match (known, setting) {
            (SequencePolicy::Copy, SequencePolicy::Copy) => return Ok(None),
            (SequencePolicy::Copy, wished) => wished,
            (has, SequencePolicy::Copy) => has,
            (has, wished) if has == wished => has,
            (has, wished) => {
                return refused(
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    &format!(
                        "the cluster divides its sequences by {}, not by {}",
                        has.label(),
                        wished.label()
                    ),
                    "RESET zodan.sequence_policy: the new node gets its part as the others did.",
                );
            }
        };
        let part = registry.as_ref().map_or(1, |r| r.next_number);
        let mut parts = match (known, &registry) {
            (SequencePolicy::Copy, _) | (_, None) => settings::sequence_parts(),
            (_, Some(registry)) => registry.sequence_parts,
        };
        // Every old part is a union of new ones then, so nobody meets those that are not as far yet.
        while policy == SequencePolicy::Stride && part >= parts {
            parts *= 2;
        }
        if part >= parts {
            return refused(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                &format!("all {parts} ranges of the sequences have been given to nodes"),
                "A range is not given again. Found the cluster anew with a higher zodan.sequence_parts, or with strides.",
            );
        }
        Ok(Some(Self {
            policy,
            parts,
            part,
            before: (known, registry.map_or(1, |r| r.sequence_parts)),
        }))
    }

    /// Divides the sequences of the members, the source first.
    pub fn divide_members(
        self,
        engine: &dyn Engine,
        source: &mut Node,
        peers: &mut [Node],
        journal: &mut Journal,
        report: &Report,
    ) -> Result<()> {
        let registry = membership::of(engine, source)?;
        let registry = registry.ok_or_else(|| Error::internal("the source has no registry"))?;
        self.divide_member(source, &registry, None, journal, report)?;
        let elsewhere = divided(source)?;
        for peer in peers {
            self.divide_member(peer, &registry, Some(&elsewhere), journal, report)?;
        }
        Ok(())
    }

    fn divide_member(
        self,
        node: &mut Node,
        registry: &Registry,
        elsewhere: Option<&BTreeMap<String, String>>,
        journal: &mut Journal,
        report: &Report,
    ) -> Result<()> {
        let part = registry
            .number_of(&node.name)
            .ok_or_else(|| Error::internal(format!("node \"{}\" has no number", node.name)))?;
        let undivided = division::undivided(self.policy, self.parts, part).run(node)?;
        let wanted: Vec<(String, bool)> = undivided
            .iter()
            .map(|row| (row.text(0).to_owned(), row.bool(1)))
            .filter(|(name, _)| elsewhere.is_none_or(|all| all.contains_key(name)))
            .collect();
        let new: Vec<String> = wanted
            .iter()
            .filter(|(_, known)| !known)
            .map(|(name, _)| name.clone())
            .collect();
        let effect = Effect::Statement {
            undo: division::restore(&new),
        };
        let step = Step::new(report.current(), &node.name, Action::DivideSequences);
        let step = journal.intend(&step, &effect)?;
        for (name, _) in &wanted {
            let model = elsewhere.and_then(|all| all.get(name)).map(String::as_str);
            let statement = division::divide(name, self.policy, self.parts, part, model).inlined();
            let on = node.name.clone();
            wait_until(&on, &format!("dividing sequence {name}"), HINT, || {
                match server::without_queueing(&statement).run(node) {
                    Ok(_) => Ok(Seen::Done(())),
                    Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
                        Ok(Seen::Pending("the sequence is in use".into()))
                    }
                    Err(error) => Err(error),
                }
            })?;
        }
        report.step(&format!(
            "{} sequences of \"{}\" divided: {}, part {part} of {}",
            wanted.len(),
            node.name,
            self.policy.label(),
            self.parts
        ));
        journal.done(step)
    }

    /// Gives the new node, which has copies, the part that is its own.
    pub fn divide_new(self, source: &mut Node, new: &mut Node) -> Result<()> {
        for (name, model) in &divided(source)? {
            division::divide(name, self.policy, self.parts, self.part, Some(model)).run(new)?;
        }
        Ok(())
    }
}

fn divided(node: &mut Node) -> Result<BTreeMap<String, String>> {
    let rows = division::divided().run(node)?;
    Ok(rows
        .iter()
        .map(|row| (row.text(0).to_owned(), row.text(1).to_owned()))
        .collect())
}
