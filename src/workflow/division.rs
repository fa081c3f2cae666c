//! Sequences of different members never give the same value, where that is wished: their values are divided, on
//! the members before the new node gets its slots, on the new node before anybody can write there.

use super::cluster::JoinNodes;
use super::registries::registry_of;
use super::report::Report;
use crate::copy::sequences::next_values;
use crate::engine::division::{self, Undivided};
use crate::engine::{Engine, Registry, SequencePolicy};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::poll::{Poll, wait_until};
use crate::node::{Node, server};
use crate::run::Journal;
use crate::run::action::DivideSequences;
use crate::settings;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

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
        if engine.registry().is_none() {
            return match setting {
                SequencePolicy::Copy => Ok(None),
                _ => refused(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "sequences are divided on the native engine only",
                    "SET zodan.sequence_policy = copy, and see what Spock has for its sequences.",
                ),
            };
        }
        let registry = registry_of(engine, source)?;
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

    /// Divides the sequences of the members, the source first: beyond what any of them has given.
    pub fn divide_members(
        self,
        nodes: JoinNodes,
        journal: &mut Journal,
        report: &Report,
    ) -> Result<()> {
        let JoinNodes {
            engine,
            source,
            peers,
            ..
        } = nodes;
        let registry = registry_of(engine, source)?;
        let registry = registry.ok_or_else(|| Error::internal("the source has no registry"))?;
        let mut passed = Passed::default();
        for peer in &mut *peers {
            let part = part(&registry, peer)?;
            let undivided = division::undivided(self.policy, self.parts, part).on(peer)?;
            let new = undivided.into_iter().filter(|sequence| !sequence.otherwise);
            let new: BTreeSet<String> = new.map(|sequence| sequence.name).collect();
            if !new.is_empty() {
                let mut next = next_values(peer)?;
                next.retain(|name, _| new.contains(name));
                passed.all(next);
            }
        }
        let models: BTreeMap<String, Value> = passed
            .0
            .iter()
            .map(|(name, (next, _))| {
                let model = serde_json::json!({ "passed": next.to_string() });
                (name.clone(), model)
            })
            .collect();
        let mut this = Dividing {
            division: self,
            registry: &registry,
            journal,
            report,
            passed,
        };
        this.member(source, &models, true)?;
        let elsewhere = divided(source)?;
        for peer in &mut *peers {
            this.member(peer, &elsewhere, false)?;
        }
        // What a member has given while others were divided already is passed by all.
        let passed = this.passed;
        for member in std::iter::once(source).chain(peers) {
            let part = part(&registry, member)?;
            for (name, model) in &elsewhere {
                if passed.is_beyond(name, model["first"].as_i64()) {
                    let model = passed.beyond(name, model);
                    self.divide(member, name, part, Some(&model))?;
                }
            }
        }
        Ok(())
    }

    /// Gives the new node, which has copies, the part that is its own. Of strides some member may have had it until
    /// there became more of them.
    pub fn divide_new(self, mut nodes: JoinNodes) -> Result<()> {
        let models = divided(nodes.source)?;
        let mut passed = Passed::default();
        if self.policy == SequencePolicy::Stride {
            for member in nodes.members() {
                passed.all(next_values(member)?);
            }
        }
        for (name, model) in &models {
            let model = passed.beyond(name, model).to_string();
            division::divide(name, self.policy, self.parts, self.part, Some(&model))
                .run(nodes.new)?;
        }
        Ok(())
    }

    /// Divides one sequence; what it would have given next, if there was something left of it.
    fn divide(
        self,
        node: &mut Node,
        name: &str,
        part: i32,
        model: Option<&Value>,
    ) -> Result<Option<i128>> {
        let model = model.map(Value::to_string);
        let statement = division::divide(name, self.policy, self.parts, part, model.as_deref());
        let statement = statement.inlined();
        let on = node.name.clone();
        let what = format!("dividing sequence {name}");
        let rows = wait_until(&on, &what, HINT, || {
            match server::without_queueing(&statement).run(node) {
                Ok(rows) => Ok(Poll::Ready(rows)),
                Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
                    Ok(Poll::Pending("the sequence is in use".into()))
                }
                Err(error) => Err(error),
            }
        })?;
        let Some(answer) = rows.one()?.only::<Option<&str>>()? else {
            return Ok(None);
        };
        let answer: Value = serde_json::from_str(answer)
            .map_err(|e| Error::internal(format!("zodan.divide_sequence: {e}")))?;
        Ok(answer["passed"].as_str().and_then(|next| next.parse().ok()))
    }
}

/// What the members give next of the sequences that are not divided.
#[derive(Default)]
struct Passed(BTreeMap<String, (i128, bool)>);

impl Passed {
    fn all(&mut self, values: BTreeMap<String, (i128, bool)>) {
        for (name, (next, ascending)) in values {
            self.one(&name, next, ascending);
        }
    }

    fn one(&mut self, name: &str, next: i128, ascending: bool) {
        let (furthest, _) = self.0.entry(name.to_owned()).or_insert((next, ascending));
        *furthest = match ascending {
            true => next.max(*furthest),
            false => next.min(*furthest),
        };
    }

    /// Whether somebody has given values from `first` on.
    fn is_beyond(&self, name: &str, first: Option<i64>) -> bool {
        let known = self.0.get(name).zip(first);
        known.is_some_and(|(&(next, ascending), first)| match ascending {
            true => next > first.into(),
            false => next < first.into(),
        })
    }

    /// `model`, with what has passed.
    fn beyond(&self, name: &str, model: &Value) -> Value {
        let mut model = model.clone();
        if let Some((next, _)) = self.0.get(name) {
            model["passed"] = Value::String(next.to_string());
        }
        model
    }
}

/// The sequences of one member after the other.
struct Dividing<'a> {
    division: Division,
    registry: &'a Registry,
    journal: &'a mut Journal,
    report: &'a Report,
    passed: Passed,
}

impl Dividing<'_> {
    /// `models` say how each sequence is divided elsewhere, or only what has passed; of the first member those that
    /// are not in it are divided too.
    fn member(
        &mut self,
        node: &mut Node,
        models: &BTreeMap<String, Value>,
        first: bool,
    ) -> Result<()> {
        let Division {
            policy: how, parts, ..
        } = self.division;
        let part = part(self.registry, node)?;
        let mut wanted = division::undivided(how, parts, part).on(node)?;
        wanted.retain(|sequence| first || models.contains_key(&sequence.name));
        let new: Vec<String> = wanted
            .iter()
            .filter(|sequence| !sequence.otherwise)
            .map(|sequence| sequence.name.clone())
            .collect();
        let phase = self.report.current();
        let step = self.journal.take::<DivideSequences>(phase, &node.name)?;
        let step = self.journal.begin_with(step, division::restore(&new))?;
        for Undivided { name, otherwise } in &wanted {
            // Of one that is divided already nobody gives what others do.
            let model = models.get(name).filter(|_| !(first && *otherwise));
            let next = self.division.divide(node, name, part, model)?;
            if let (Some(next), false) = (next, otherwise) {
                let ascending = self.passed.0.get(name).is_none_or(|(_, up)| *up);
                self.passed.one(name, next, ascending);
            }
        }
        self.report.step(&format!(
            "{} sequences of \"{}\" divided: {}, part {part} of {parts}",
            wanted.len(),
            node.name,
            how.label(),
        ));
        self.journal.done(step)
    }
}

fn part(registry: &Registry, node: &Node) -> Result<i32> {
    registry
        .number_of(&node.name)
        .ok_or_else(|| Error::internal(format!("node \"{}\" has no number", node.name)))
}

fn divided(node: &mut Node) -> Result<BTreeMap<String, Value>> {
    Ok(division::divided().on(node)?.into_iter().collect())
}
