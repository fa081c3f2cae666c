//! What a writer knows of its own rows, outside of the servers: what was acknowledged, and what may have been.

use std::collections::{BTreeMap, BTreeSet};

/// A table kind's place in the trial's list, and the number of the row.
pub type Key = (usize, i64);

/// Versions of rows.
pub type Rows = BTreeMap<Key, i32>;

/// The changes of a transaction: the version that a row has afterwards, or none.
pub type Changes = Vec<(Key, Option<i32>)>;

/// The rows of one writer, whom alone they belong to.
#[derive(Default)]
pub struct Ledger {
    /// All rows as the last judgement found them.
    settled: Rows,
    /// What was acknowledged since, in the order of the commits.
    since: Vec<Changes>,
    /// What got no answer: each of them is there wholly or not at all. Their rows are left alone until the judgement.
    open: Vec<Changes>,
    now: Rows,
    last: i64,
}

impl Ledger {
    /// The number of a new row, within the writer's own billion.
    pub fn new_number(&mut self) -> i64 {
        self.last += 1;
        self.last
    }

    pub fn version(&self, key: Key) -> Option<i32> {
        self.now.get(&key).copied()
    }

    /// The rows of a kind that may be changed.
    pub fn free(&self, kind: usize) -> Vec<Key> {
        let open: BTreeSet<Key> = self.open.iter().flatten().map(|(key, _)| *key).collect();
        let of_kind = self.now.range((kind, i64::MIN)..=(kind, i64::MAX));
        of_kind
            .map(|(key, _)| *key)
            .filter(|key| !open.contains(key))
            .collect()
    }

    /// Whether a change of this kind got no answer.
    pub fn has_open(&self, kind: usize) -> bool {
        self.open.iter().flatten().any(|((of, _), _)| *of == kind)
    }

    pub fn acknowledged(&mut self, changes: Changes) {
        apply(&mut self.now, &changes);
        self.since.push(changes);
    }

    pub fn unanswered(&mut self, changes: Changes) {
        self.open.push(changes);
    }

    pub fn commits(&self) -> usize {
        self.since.len()
    }

    /// Takes `found` as the state from now on.
    pub fn settle(&mut self, found: Rows) {
        self.since.clear();
        self.open.clear();
        self.now.clone_from(&found);
        self.settled = found;
    }

    /// What is wrong with `found`, the writer's rows on a node that has everything.
    pub fn wrong(&self, found: &Rows) -> Vec<String> {
        let unanswered: BTreeSet<Key> = self.open.iter().flatten().map(|(key, _)| *key).collect();
        let mut wrong = differences(&self.now, found, &unanswered);
        for changes in &self.open {
            let done = |(key, after): &(Key, Option<i32>)| found.get(key).copied() == *after;
            let before = |(key, _): &(Key, Option<i32>)| found.get(key) == self.now.get(key);
            if !changes.iter().all(done) && !changes.iter().all(before) {
                wrong.push(format!("half of a transaction: {changes:?}"));
            }
        }
        wrong
    }

    /// What is wrong with `found`, the writer's rows on the survivors of its node: all transactions up to some
    /// one have to be there, and none after it. How many are, or what is wrong.
    pub fn survived(&self, found: &Rows) -> Result<usize, Vec<String>> {
        // A transaction without an answer may be anywhere between the others.
        let unanswered: BTreeSet<Key> = self.open.iter().flatten().map(|(key, _)| *key).collect();
        let mut state = self.settled.clone();
        let mut fewest = differences(&state, found, &unanswered);
        if fewest.is_empty() {
            return Ok(0);
        }
        for (i, changes) in self.since.iter().enumerate() {
            apply(&mut state, changes);
            // Comparing all rows each time would take the square of their number.
            if changes
                .iter()
                .any(|(key, after)| !unanswered.contains(key) && found.get(key).copied() != *after)
            {
                continue;
            }
            let wrong = differences(&state, found, &unanswered);
            if wrong.is_empty() {
                return Ok(i + 1);
            }
            if wrong.len() < fewest.len() {
                fewest = wrong;
            }
        }
        Err(fewest)
    }
}

fn apply(rows: &mut Rows, changes: &Changes) {
    for (key, version) in changes {
        match version {
            Some(version) => rows.insert(*key, *version),
            None => rows.remove(key),
        };
    }
}

fn differences(want: &Rows, found: &Rows, except: &BTreeSet<Key>) -> Vec<String> {
    let keys: BTreeSet<&Key> = want.keys().chain(found.keys()).collect();
    let differing = keys
        .into_iter()
        .filter(|key| want.get(key) != found.get(key) && !except.contains(key));
    let said = |version: Option<&i32>| version.map_or("no row".into(), |v| format!("version {v}"));
    differing
        .map(|key| {
            let (want, found) = (said(want.get(key)), said(found.get(key)));
            format!("row {} of kind {}: {found} instead of {want}", key.1, key.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = (0, 1);
    const B: Key = (1, 2);

    fn rows(of: &[(Key, i32)]) -> Rows {
        of.iter().copied().collect()
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.settle(rows(&[(A, 1)]));
        ledger.acknowledged(vec![(A, Some(2))]);
        ledger.acknowledged(vec![(A, None), (B, Some(1))]);
        ledger
    }

    #[test]
    fn lost_doubled_and_changed_rows_are_wrong() {
        let ledger = ledger();
        assert!(ledger.wrong(&rows(&[(B, 1)])).is_empty());
        assert_eq!(ledger.wrong(&rows(&[])).len(), 1);
        assert_eq!(ledger.wrong(&rows(&[(A, 2), (B, 1)])).len(), 1);
        assert_eq!(ledger.wrong(&rows(&[(B, 2)])).len(), 1);
    }

    #[test]
    fn transaction_without_an_answer_is_there_wholly_or_not_at_all() {
        let mut ledger = ledger();
        ledger.unanswered(vec![(B, Some(2)), ((2, 3), Some(1))]);
        assert!(ledger.wrong(&rows(&[(B, 1)])).is_empty());
        assert!(ledger.wrong(&rows(&[(B, 2), ((2, 3), 1)])).is_empty());
        assert_eq!(ledger.wrong(&rows(&[(B, 2)])).len(), 1);
        assert_eq!(ledger.wrong(&rows(&[(B, 3), ((2, 3), 1)])).len(), 1);
        assert!(ledger.free(1).is_empty());
    }

    #[test]
    fn survivors_have_the_first_transactions_of_a_dead_node() {
        let ledger = ledger();
        assert_eq!(ledger.survived(&rows(&[(A, 1)])), Ok(0));
        assert_eq!(ledger.survived(&rows(&[(A, 2)])), Ok(1));
        assert_eq!(ledger.survived(&rows(&[(B, 1)])), Ok(2));
        assert!(ledger.survived(&rows(&[(A, 2), (B, 1)])).is_err());
        assert!(ledger.survived(&rows(&[])).is_err());
    }
}
