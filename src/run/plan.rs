//! The plan of a run: its steps, in their order. The run takes them from here, and makes none of its own.

use super::action::{Action, Kind};
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// A step that is planned.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<A = Action> {
    /// Its place in the plan, from 1.
    pub(super) number: i32,
    pub(super) phase: usize,
    pub(super) node: String,
    pub(super) action: A,
}

impl<A> Step<A> {
    /// The phase of the run, from 1.
    pub fn phase(&self) -> usize {
        self.phase
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn action(&self) -> &A {
        &self.action
    }

    pub(super) fn with<B>(self, change: impl FnOnce(A) -> B) -> Step<B> {
        Step {
            number: self.number,
            phase: self.phase,
            node: self.node,
            action: change(self.action),
        }
    }
}

/// What a run is going to do.
#[derive(Debug, Default)]
pub struct Plan {
    steps: VecDeque<Step>,
    added: i32,
}

impl Plan {
    pub fn add(&mut self, phase: usize, node: &str, action: impl Into<Action>) {
        self.added += 1;
        self.steps.push_back(Step {
            number: self.added,
            phase,
            node: node.to_owned(),
            action: action.into(),
        });
    }

    /// Takes the next step, if it is of that kind and phase.
    pub(super) fn take_if<A: Kind>(&mut self, phase: usize) -> Option<Step<A>> {
        let step = self.steps.front()?;
        let action = A::of(&step.action).filter(|_| step.phase == phase)?.clone();
        Some(self.steps.pop_front()?.with(|_| action))
    }

    /// The same, if it is on `node` too.
    pub(super) fn take_on<A: Kind>(&mut self, phase: usize, node: &str) -> Option<Step<A>> {
        self.steps.front().filter(|step| step.node == node)?;
        self.take_if(phase)
    }

    /// Takes the next step, which is of that kind and phase, on `node`.
    pub(super) fn take<A: Kind>(&mut self, phase: usize, node: &str) -> Result<Step<A>> {
        self.take_on(phase, node).ok_or_else(|| {
            Error::internal(format!(
                "{:?} was planned, and not what phase {phase} came to on \"{node}\"",
                self.next()
            ))
        })
    }

    pub(super) fn next(&self) -> Option<&Step> {
        self.steps.front()
    }
}

impl IntoIterator for Plan {
    type Item = Step;
    type IntoIter = std::collections::vec_deque::IntoIter<Step>;

    fn into_iter(self) -> Self::IntoIter {
        self.steps.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::action::{CreateSlot, Marker};

    fn plan() -> Plan {
        let mut plan = Plan::default();
        for (phase, slot) in [(1, "a"), (1, "b"), (2, "c")] {
            let slot = slot.to_owned();
            plan.add(phase, "n1", CreateSlot { slot });
        }
        plan.add(2, "n2", Marker {});
        plan
    }

    #[test]
    fn steps_are_taken_in_their_order() {
        let mut plan = plan();
        assert!(plan.take_if::<Marker>(1).is_none());
        assert_eq!(plan.take::<CreateSlot>(1, "n1").unwrap().action().slot, "a");
        assert_eq!(plan.take_if::<CreateSlot>(1).unwrap().number, 2);
        assert!(plan.take_if::<CreateSlot>(1).is_none());
        assert_eq!(plan.take_if::<CreateSlot>(2).unwrap().action().slot, "c");
        assert_eq!(plan.into_iter().count(), 1);
    }

    #[test]
    fn nothing_is_taken_on_another_node() {
        assert!(plan().take::<CreateSlot>(1, "n2").is_err());
        assert!(plan().take::<CreateSlot>(2, "n1").is_err());
        assert!(plan().take::<Marker>(1, "n1").is_err());
    }
}
