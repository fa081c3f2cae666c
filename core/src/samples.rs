//! Where the recovery slot of a node may be moved: it keeps what some other member may still lack of a third, and no
//! more.
//!
//! A sample is a position in the WAL of the node, and how far each provider had been applied when everything before that
//! position was finished. So what a provider committed after that is behind the position, and once every other member
//! has applied as much, the slot can be moved there. Reading both at once would not do: progress is moved after the
//! commit is in the WAL.

use crate::lsn::Lsn;
use std::collections::{BTreeMap, VecDeque};

/// More samples than this are thinned out: the slot then moves in larger steps.
const MOST_SAMPLES: usize = 512;

/// How far each provider has been applied.
pub type Progress = BTreeMap<String, Lsn>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub position: Lsn,
    pub progress: Progress,
}

impl Sample {
    /// Whether `member` may lack something that is behind the position, going by what it has `applied`.
    fn is_ahead_of(&self, member: &str, applied: &Progress) -> bool {
        let mut others = self.progress.iter().filter(|(p, _)| *p != member);
        others.any(|(provider, lsn)| applied.get(provider).is_none_or(|has| has < lsn))
    }
}

/// The samples of a node, the oldest first.
#[derive(Default)]
pub struct Samples(VecDeque<Sample>);

impl Samples {
    /// Adds a sample. While nothing is applied the newest position is the best.
    pub fn add(&mut self, sample: Sample) {
        let samples = &mut self.0;
        let newest = samples.back();
        if samples.len() > 1 && newest.is_some_and(|n| n.progress == sample.progress) {
            samples.pop_back();
        }
        samples.push_back(sample);
        if samples.len() > MOST_SAMPLES {
            let mut i = 0;
            samples.retain(|_| {
                i += 1;
                i % 2 == 1
            });
        }
    }

    pub fn oldest(&self) -> Option<&Sample> {
        self.0.front()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The newest sample to which the slot may be moved, by what the `others`, all members but the node itself, have
    /// applied; one that does not answer is not in `applied`. Older samples are of no use any more.
    pub fn release(
        &mut self,
        others: &[&str],
        applied: &BTreeMap<String, Progress>,
    ) -> Option<Sample> {
        let none = Progress::new();
        let may_go = |sample: &Sample| {
            let mut lacking = others.iter();
            !lacking.any(|o| sample.is_ahead_of(o, applied.get(*o).unwrap_or(&none)))
        };
        let newest = self.0.iter().rposition(may_go)?;
        self.0.drain(..newest);
        self.0.front().cloned()
    }

    /// The sample to which a slot that holds too much is moved, whoever may still need what it has: the newest, the
    /// others are dropped. `None` if the slot, which is `confirmed` up to there, has nothing to give up.
    pub fn give_up(&mut self, confirmed: Lsn) -> Option<Sample> {
        let newest = self.0.back()?.clone();
        if self.0.len() < 2 && newest.position <= confirmed {
            return None;
        }
        self.0 = [newest.clone()].into();
        Some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(position: u64, n1: u64) -> Sample {
        Sample {
            position: Lsn(position),
            progress: [("n1".to_owned(), Lsn(n1))].into(),
        }
    }

    #[test]
    fn idle_samples_do_not_pile_up() {
        let mut samples = Samples::default();
        samples.add(sample(1, 10));
        for position in 2..100 {
            samples.add(sample(position, 10));
        }
        assert_eq!(samples.0, [sample(1, 10), sample(99, 10)]);
        samples.add(sample(100, 11));
        assert_eq!(samples.0.back(), Some(&sample(100, 11)));
    }

    #[test]
    fn many_samples_are_thinned_out_from_the_oldest_on() {
        let mut samples = Samples::default();
        for i in 0..2000 {
            samples.add(sample(i, i));
            assert!(samples.len() <= MOST_SAMPLES);
            assert_eq!(samples.oldest(), Some(&sample(0, 0)));
            assert_eq!(samples.0.back(), Some(&sample(i, i)));
        }
    }

    #[test]
    fn a_slot_waits_for_every_other_member_but_not_for_the_provider() {
        let mut samples = Samples::default();
        for i in 1..=3 {
            samples.add(sample(i, i * 10));
        }
        let has = |lsn| Progress::from([("n1".to_owned(), Lsn(lsn))]);
        let mut applied = BTreeMap::from([("n2".to_owned(), has(25))]);
        // Who does not answer may need all of it.
        assert_eq!(samples.release(&["n1", "n2", "n3"], &applied), None);
        assert_eq!(samples.len(), 3);
        applied.insert("n3".into(), has(30));
        let others = ["n1", "n2", "n3"];
        assert_eq!(samples.release(&others, &applied), Some(sample(2, 20)));
        assert_eq!(samples.0, [sample(2, 20), sample(3, 30)]);
        // With nobody else there is nobody to wait for.
        assert_eq!(samples.release(&["n1"], &applied), Some(sample(3, 30)));
    }

    #[test]
    fn what_holds_too_much_is_given_up_once() {
        let mut samples = Samples::default();
        assert_eq!(samples.give_up(Lsn(0)), None);
        samples.add(sample(1, 10));
        samples.add(sample(2, 20));
        assert_eq!(samples.give_up(Lsn(2)), Some(sample(2, 20)));
        assert_eq!(samples.give_up(Lsn(2)), None);
        assert_eq!(samples.give_up(Lsn(1)), Some(sample(2, 20)));
    }

    /// What happens to a node: it samples, after its providers have committed; members apply.
    #[derive(Clone, Debug)]
    enum Event {
        Sample([u64; 3]),
        Apply(usize, [u64; 3]),
        Release,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let steps = [0u64..3, 0u64..3, 0u64..3];
        let event = prop_oneof![
            steps.clone().prop_map(Event::Sample),
            (0usize..3, steps).prop_map(|(member, steps)| Event::Apply(member, steps)),
            Just(Event::Release),
        ];
        prop::collection::vec(event, 0..80)
    }

    proptest! {
        /// The slot never passes what a member lacks, never goes back, and goes as far as it may.
        #[test]
        fn a_slot_is_moved_as_far_as_nobody_needs_it(events in events()) {
            let names = ["n1", "n2", "n3"];
            let progress = |has: &[u64; 3]| -> Progress {
                names.iter().zip(has).map(|(n, lsn)| ((*n).to_owned(), Lsn(*lsn))).collect()
            };
            let (mut samples, mut here) = (Samples::default(), [0; 3]);
            let (mut applied, mut slot) = ([[0; 3]; 3], Lsn(0));
            for (at, event) in events.iter().enumerate() {
                match event {
                    Event::Sample(steps) => {
                        here.iter_mut().zip(steps).for_each(|(has, step)| *has += step);
                        samples.add(Sample { position: Lsn(at as u64 + 1), progress: progress(&here) });
                    }
                    Event::Apply(member, steps) => {
                        applied[*member].iter_mut().zip(steps).for_each(|(has, step)| *has += step);
                    }
                    Event::Release => {
                        let before = samples.0.clone();
                        let all = names.iter().zip(&applied).map(|(n, has)| ((*n).to_owned(), progress(has))).collect();
                        let lacks = |s: &Sample| names.iter().zip(&applied).any(|(member, has)| {
                            names.iter().zip(has).any(|(provider, has)| provider != member && *has < s.progress[*provider].0)
                        });
                        let released = samples.release(&names, &all);
                        prop_assert_eq!(released.as_ref(), before.iter().rfind(|s| !lacks(s)));
                        if let Some(released) = released {
                            prop_assert!(released.position >= slot);
                            slot = released.position;
                            prop_assert_eq!(samples.oldest(), Some(&released));
                        } else {
                            prop_assert_eq!(&samples.0, &before);
                        }
                    }
                }
            }
        }
    }
}
