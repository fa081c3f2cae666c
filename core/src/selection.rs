//! Which transactions of the source a recovery gives the target, message by message: those of the failed node that the
//! target lacks, and once more those changes of others that could do nothing on the target without them.

use crate::decoding::Message;
use crate::error::Result;
use crate::lsn::{Lsn, Position};
use std::collections::{BTreeMap, HashSet};

/// By what the source tells transactions apart, and how far the target has applied each node's.
pub struct Origins {
    /// The origin on the source of the transactions of the failed node.
    pub failed: String,
    /// The origin of the source's own transactions, where they have one.
    pub source: Option<String>,
    /// How far the target has applied the source, in the WAL of the source.
    pub of_source: Option<Lsn>,
    /// By their origins on the source, how far the target has applied the other nodes.
    pub others: BTreeMap<String, Lsn>,
}

impl Origins {
    fn target_has(&self, origin: &str, end: Lsn) -> bool {
        self.others
            .get(origin)
            .is_some_and(|applied| end <= *applied)
    }
}

/// The transactions of the failed node that the target is to get.
pub struct Wanted {
    /// The target has those that end here or before.
    pub from: Position,
    /// The last one ends here or before.
    pub to: Position,
    /// No later commit than this, in microseconds since 2000.
    pub until: Option<i64>,
}

/// What is done about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A transaction of the failed node begins that the target lacks: all of it is applied.
    Begin,
    /// A change of that transaction.
    Apply,
    /// A change of a transaction that the target has is done again. The first one begins that transaction.
    Repeat { first: bool },
    /// The transaction that was begun ends.
    Commit,
    /// Nothing.
    Skip,
}

/// The transaction that the messages are of.
#[derive(Clone, Copy, PartialEq)]
enum Under {
    /// One of the failed node that the target lacks.
    Missing,
    /// One of the failed node that the target has.
    Had,
    /// One of another node that the target has. A change of it about a row that the target lacked then did nothing
    /// there; where it did something, doing it again changes nothing.
    Repeatable,
    /// Such a one, of which a change is done again.
    Repeated,
    /// The target is not to get it, or gets it by its own subscription.
    Unwanted,
}

/// What the failed node's transactions were about.
#[derive(Default)]
struct Touched {
    rows: HashSet<u64>,
    /// Any row of these tables: one that had come to the source after the TRUNCATE was removed by it on the target, if
    /// it had been written before.
    truncated: HashSet<u32>,
}

impl Touched {
    fn add(&mut self, change: &Message, rows: Vec<u64>) {
        self.rows.extend(rows);
        if let Message::Truncate { relations } = change {
            self.truncated.extend(relations);
        }
    }

    fn has(&self, change: &Message, rows: &[u64]) -> bool {
        let truncated = change.tables().iter().any(|t| self.truncated.contains(t));
        rows.iter().any(|row| self.rows.contains(row) || truncated)
    }
}

pub struct Selection {
    origins: Origins,
    wanted: Wanted,
    /// Whether a repeated change cannot undo a newer one: rows of the target say when they were written.
    repeats: bool,
    touched: Touched,
    under: Under,
    position: Position,
    time: i64,
}

impl Selection {
    pub fn new(origins: Origins, wanted: Wanted, repeats: bool) -> Self {
        Self {
            origins,
            repeats,
            touched: Touched::default(),
            under: Under::Unwanted,
            position: wanted.from.clone(),
            time: 0,
            wanted,
        }
    }

    /// Where the last transaction of the failed node ends that was begun. Repeated ones are committed with it too, so
    /// that they do not move the progress.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// When the transaction under way was committed, in microseconds since 2000.
    pub fn time(&self) -> i64 {
        self.time
    }

    /// What is done about `message`; `rows` says which rows it is about, if it is a change.
    pub fn next(
        &mut self,
        message: &Message,
        rows: impl FnOnce(&Message) -> Vec<u64>,
    ) -> Result<Decision> {
        let decision = match message {
            Message::Begin { timestamp, lsn } => {
                self.time = *timestamp;
                // Without an origin it is the source's own.
                self.under = match self.origins.of_source.is_some_and(|applied| *lsn < applied) {
                    true => Under::Repeatable,
                    false => Under::Unwanted,
                };
                Decision::Skip
            }
            Message::Origin { name, end } if *name == self.origins.failed => {
                self.failed(self.wanted.from.at(*end))?
            }
            Message::Origin { name, .. } if Some(name) == self.origins.source.as_ref() => {
                Decision::Skip
            }
            Message::Origin { name, end } => {
                self.under = match self.origins.target_has(name, *end) {
                    true => Under::Repeatable,
                    false => Under::Unwanted,
                };
                Decision::Skip
            }
            Message::Commit => match std::mem::replace(&mut self.under, Under::Unwanted) {
                Under::Missing | Under::Repeated => Decision::Commit,
                Under::Had | Under::Repeatable | Under::Unwanted => Decision::Skip,
            },
            Message::Relation(_) | Message::Other => Decision::Skip,
            change => self.change(change, rows(change)),
        };
        Ok(decision)
    }

    /// A transaction of the failed node, which ends at `end`.
    fn failed(&mut self, end: Position) -> Result<Decision> {
        let Wanted { from, to, until } = &self.wanted;
        let in_time = until.is_none_or(|until| self.time <= until);
        self.under = if from.reaches(&end)? {
            Under::Had
        } else if to.reaches(&end)? && in_time {
            self.position = end;
            Under::Missing
        } else {
            Under::Unwanted
        };
        Ok(match self.under {
            Under::Missing => Decision::Begin,
            _ => Decision::Skip,
        })
    }

    fn change(&mut self, change: &Message, rows: Vec<u64>) -> Decision {
        match self.under {
            Under::Missing => {
                self.touched.add(change, rows);
                Decision::Apply
            }
            Under::Had => {
                self.touched.add(change, rows);
                Decision::Skip
            }
            Under::Repeatable | Under::Repeated
                if self.repeats && self.touched.has(change, &rows) =>
            {
                self.touched.rows.extend(rows);
                let before = std::mem::replace(&mut self.under, Under::Repeated);
                Decision::Repeat {
                    first: before == Under::Repeatable,
                }
            }
            Under::Repeatable | Under::Repeated | Under::Unwanted => Decision::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoding::Value;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Whose a transaction is.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Of {
        Failed,
        Source,
        Other,
        Unknown,
    }

    #[derive(Clone, Debug)]
    struct Transaction {
        of: Of,
        /// Where it ends on its node; a commit on the source is where it stands among the others.
        end: u64,
        /// The rows that each of its changes is about: two where a key is changed.
        changes: Vec<Vec<u8>>,
        truncates: bool,
    }

    /// How far the target has applied each node, and what it is to get.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        from: u64,
        to: u64,
        until: Option<i64>,
        of_source: u64,
        of_other: u64,
    }

    const TABLE: u32 = 7;

    fn position(lsn: u64) -> Position {
        Position::new("n1", Lsn(lsn))
    }

    fn selection(case: Case) -> Selection {
        Selection::new(
            Origins {
                failed: "failed".into(),
                source: None,
                of_source: Some(Lsn(case.of_source)),
                others: [("other".into(), Lsn(case.of_other))].into(),
            },
            Wanted {
                from: position(case.from),
                to: position(case.to),
                until: case.until,
            },
            true,
        )
    }

    /// What the source sends of the transaction at `at`; its time is `at` as well.
    fn messages(at: u64, transaction: &Transaction) -> Vec<Message> {
        let mut all = vec![Message::Begin {
            timestamp: at.cast_signed(),
            lsn: Lsn(at),
        }];
        let origin = match transaction.of {
            Of::Failed => Some("failed"),
            Of::Source => None,
            Of::Other => Some("other"),
            Of::Unknown => Some("unknown"),
        };
        all.extend(origin.map(|name| Message::Origin {
            name: name.into(),
            end: Lsn(transaction.end),
        }));
        if transaction.truncates {
            all.push(Message::Truncate {
                relations: vec![TABLE],
            });
        }
        for rows in &transaction.changes {
            let rows = rows.iter().map(u8::to_string).map(Value::Text);
            all.push(Message::Other);
            all.push(Message::Delete {
                relation: TABLE,
                old: rows.collect(),
            });
        }
        all.push(Message::Commit);
        all
    }

    fn rows(change: &Message) -> Vec<u64> {
        let row = |value: &Value| match value {
            Value::Text(row) => row.parse().ok(),
            Value::Null | Value::Unchanged => None,
        };
        match change {
            Message::Delete { old, .. } => old.iter().filter_map(row).collect(),
            _ => vec![],
        }
    }

    /// The decisions, each with the number of its transaction, and where that is said to be.
    fn decide(case: Case, transactions: &[Transaction]) -> Vec<(usize, Decision, u64)> {
        let mut selection = selection(case);
        let mut all = vec![];
        for (i, transaction) in transactions.iter().enumerate() {
            for message in messages(i as u64 + 1, transaction) {
                let decision = selection.next(&message, rows).unwrap();
                if decision != Decision::Skip {
                    all.push((i, decision, selection.position().lsn().0));
                }
            }
        }
        all
    }

    /// The transactions that are given to the target as the failed node's.
    fn begun(decisions: &[(usize, Decision, u64)]) -> Vec<usize> {
        let begun = decisions.iter().filter(|(_, d, _)| *d == Decision::Begin);
        begun.map(|(i, ..)| *i).collect()
    }

    fn transaction(of: Of, end: u64, rows: &[u8]) -> Transaction {
        Transaction {
            of,
            end,
            changes: rows.iter().map(|row| vec![*row]).collect(),
            truncates: false,
        }
    }

    const CASE: Case = Case {
        from: 20,
        to: 30,
        until: None,
        of_source: 100,
        of_other: 5,
    };

    #[test]
    fn what_is_missing_is_applied_and_what_is_there_or_not_wanted_is_not() {
        let of_failed = [10, 20, 21, 30, 31].map(|end| transaction(Of::Failed, end, &[1, 2]));
        let decisions = decide(CASE, &of_failed);
        use Decision::{Apply, Begin, Commit};
        let one = |i, end| [Begin, Apply, Apply, Commit].map(|d| (i, d, end));
        assert_eq!(decisions, [one(2, 21), one(3, 30)].concat());
        let until = Case {
            until: Some(3),
            ..CASE
        };
        assert_eq!(begun(&decide(until, &of_failed)), [2]);
    }

    #[test]
    fn changes_of_others_to_rows_of_the_failed_node_are_repeated() {
        use Decision::{Commit, Repeat};
        let mut transactions = vec![
            // Not yet a row of the failed node's.
            transaction(Of::Source, 0, &[1]),
            // One that the target has counts too.
            transaction(Of::Failed, 20, &[1]),
            transaction(Of::Source, 0, &[5, 1, 6, 1]),
            // Comes by itself.
            transaction(Of::Other, 6, &[1]),
            transaction(Of::Other, 5, &[1, 2]),
            transaction(Of::Unknown, 1, &[1]),
        ];
        let expected = [
            (2, Repeat { first: true }, 20),
            (2, Repeat { first: false }, 20),
            (2, Commit, 20),
            (4, Repeat { first: true }, 20),
            (4, Commit, 20),
        ];
        assert_eq!(decide(CASE, &transactions), expected);
        // The source has not been applied so far.
        let behind = Case {
            of_source: 3,
            ..CASE
        };
        assert_eq!(decide(behind, &transactions), expected[3..]);
        // Of a table that was truncated any row is one.
        transactions[1].truncates = true;
        let repeated = decide(CASE, &transactions).into_iter();
        let repeats = repeated.filter(|(_, d, _)| matches!(d, Repeat { .. }));
        assert_eq!(repeats.count(), 6);
    }

    #[test]
    fn nothing_is_repeated_where_rows_do_not_say_when_they_were_written() {
        let mut selection = selection(CASE);
        selection.repeats = false;
        let transactions = [
            transaction(Of::Failed, 21, &[1]),
            transaction(Of::Source, 0, &[1]),
        ];
        let mut decisions = vec![];
        for (i, transaction) in transactions.iter().enumerate() {
            for message in messages(i as u64 + 1, transaction) {
                decisions.push(selection.next(&message, rows).unwrap());
            }
        }
        decisions.retain(|decision| *decision != Decision::Skip);
        use Decision::{Apply, Begin, Commit};
        assert_eq!(decisions, [Begin, Apply, Commit]);
    }

    #[test]
    fn the_sources_own_origin_changes_nothing() {
        let mut selection = selection(CASE);
        selection.origins.source = Some("own".into());
        let own = |lsn| {
            let origin = Message::Origin {
                name: "own".into(),
                end: Lsn(999),
            };
            let begin = Message::Begin {
                timestamp: 1,
                lsn: Lsn(lsn),
            };
            [begin, origin]
        };
        selection.touched.rows.insert(1);
        let change = &messages(1, &transaction(Of::Source, 0, &[1]))[2];
        for (lsn, expected) in [
            (99, Decision::Repeat { first: true }),
            (100, Decision::Skip),
        ] {
            for message in own(lsn) {
                assert_eq!(selection.next(&message, rows).unwrap(), Decision::Skip);
            }
            assert_eq!(selection.next(change, rows).unwrap(), expected);
        }
    }

    /// Transactions in the order in which the source has committed them. Those of one node end in their order.
    fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
        let of = prop_oneof![
            3 => Just(Of::Failed),
            2 => Just(Of::Source),
            2 => Just(Of::Other),
            1 => Just(Of::Unknown)
        ];
        let change = prop::collection::vec(0u8..6, 1..3);
        let changes = prop::collection::vec(change, 0..4);
        let one = (of, 1u64..4, changes, prop::bool::weighted(0.05));
        prop::collection::vec(one, 0..30).prop_map(|all| {
            let mut ends = [0; 4];
            let transaction = |(of, step, changes, truncates)| {
                let end = &mut ends[of as usize];
                *end += step;
                Transaction {
                    of,
                    end: *end,
                    changes,
                    truncates,
                }
            };
            all.into_iter().map(transaction).collect()
        })
    }

    fn case() -> impl Strategy<Value = Case> {
        let until = prop::option::weighted(0.3, 0i64..32);
        (0u64..40, 0u64..40, until, 0u64..32, 0u64..40).prop_map(
            |(from, more, until, of_source, of_other)| Case {
                from,
                to: from + more,
                until,
                of_source,
                of_other,
            },
        )
    }

    proptest! {
        /// Exactly those that are missing, in their order, each once.
        #[test]
        fn what_is_missing_is_begun_once_and_in_order(case in case(), transactions in transactions()) {
            let decisions = decide(case, &transactions);
            let expected: Vec<usize> = (0..transactions.len())
                .filter(|i| {
                    let one = &transactions[*i];
                    let in_time = case.until.is_none_or(|until| (*i as i64) < until);
                    one.of == Of::Failed && case.from < one.end && one.end <= case.to && in_time
                })
                .collect();
            prop_assert_eq!(begun(&decisions), expected);
            let places: Vec<u64> = decisions.iter().map(|(.., at)| *at).collect();
            prop_assert!(places.is_sorted());
            prop_assert!(decisions.iter().all(|(i, d, at)| *d != Decision::Begin || *at == transactions[*i].end));
        }

        /// A transaction is begun, has changes of its own only, and ends; of one that is missing no change is left out.
        #[test]
        fn no_transaction_is_torn(case in case(), transactions in transactions()) {
            let decisions = decide(case, &transactions);
            let numbers: BTreeSet<usize> = decisions.iter().map(|(i, ..)| *i).collect();
            prop_assert!(decisions.iter().map(|(i, ..)| *i).is_sorted());
            for number in numbers {
                let one = &transactions[number];
                let own = decisions.iter().filter(|(i, ..)| *i == number);
                let own: Vec<Decision> = own.map(|(_, d, _)| *d).collect();
                prop_assert_eq!(own.last(), Some(&Decision::Commit));
                let changes = &own[1..own.len() - 1];
                match own[0] {
                    Decision::Begin => {
                        prop_assert!(changes.iter().all(|d| *d == Decision::Apply));
                        prop_assert_eq!(changes.len(), one.changes.len() + usize::from(one.truncates));
                    }
                    first => {
                        prop_assert_eq!(first, Decision::Repeat { first: true });
                        let again = Decision::Repeat { first: false };
                        prop_assert!(changes.iter().all(|d| *d == again));
                    }
                }
            }
        }

        /// Only what the target has, and of that every change to a row that the failed node, or a repeated change, was
        /// about before.
        #[test]
        fn what_the_target_has_is_repeated_where_it_could_do_nothing(case in case(), transactions in transactions()) {
            let decisions = decide(case, &transactions);
            let missing = begun(&decisions);
            let (mut touched, mut truncated) = (BTreeSet::<u8>::new(), false);
            for (i, one) in transactions.iter().enumerate() {
                let repeated = decisions.iter().filter(|(n, d, _)| *n == i && matches!(d, Decision::Repeat { .. })).count();
                let has = match one.of {
                    Of::Source => (i as u64 + 1) < case.of_source,
                    Of::Other => one.end <= case.of_other,
                    Of::Failed | Of::Unknown => false,
                };
                let mut again = 0;
                for rows in one.changes.iter().filter(|_| has) {
                    if truncated || rows.iter().any(|row| touched.contains(row)) {
                        touched.extend(rows);
                        again += 1;
                    }
                }
                prop_assert_eq!(repeated, again);
                if one.of == Of::Failed && (one.end <= case.from || missing.contains(&i)) {
                    touched.extend(one.changes.iter().flatten());
                    truncated |= one.truncates;
                }
            }
        }

        /// A recovery that was interrupted goes on behind what has been committed: together the two give each
        /// transaction once, and the second repeats what the first did not come to.
        #[test]
        fn an_interrupted_recovery_gives_nothing_twice(case in case(), transactions in transactions(), done in 0usize..60) {
            let whole = decide(case, &transactions);
            let commits = whole.iter().enumerate().filter(|(_, (_, d, _))| *d == Decision::Commit);
            let ends: Vec<usize> = commits.map(|(at, _)| at + 1).collect();
            let done = done.checked_sub(1).and_then(|n| ends.get(n)).copied().unwrap_or(0);
            let (first, left) = whole.split_at(done);
            let from = first.last().map_or(case.from, |(.., at)| *at);
            let second = decide(Case { from, ..case }, &transactions);
            prop_assert_eq!([begun(first), begun(&second)].concat(), begun(&whole));
            prop_assert!(left.iter().all(|one| second.contains(one)));
        }
    }
}
