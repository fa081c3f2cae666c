//! What is done about a row that is not the same on source and target. Only what is known is decided: who wrote
//! the versions that there are, and whether a member that is away can have had a hand in it.

use super::streams::Last;
use crate::replay::content::{Difference, Version};
use crate::replay::share::Share;
use std::collections::BTreeMap;

/// So far apart clocks of a member that is away and of others may be, in microseconds.
const CLOCKS: i64 = 5_000_000;

/// Commits of a node that are so close to each other may be dated in another order than they are sent in, in
/// microseconds.
const DISORDER: i64 = 50_000;

/// What is done about a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target gets the version of the source.
    Copy(Version),
    /// The target loses its version.
    Delete(Version),
    /// Nothing, since nothing is sent that would make the two alike.
    NotSent,
    Leave(Doubt),
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// It is, or may be, the work of that member, which is away.
    Away(String),
    /// A node does not know when, and so by whom, its version was written.
    Undated,
    /// The version is of no member of the cluster.
    Stranger,
    /// Each of the versions may be the right one.
    Either,
    /// The failed node has deleted it, or the source, which would not have sent that.
    Orphan,
}

/// Who wrote a version of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Author {
    Failed,
    /// A member whose write source and target have both got.
    Survivor,
    /// Whoever it was, all members have had it: it came with the copy, or before it.
    Common,
    /// A member that is away, and the other node has not got that write.
    Away(String),
    /// No member of the cluster.
    Stranger,
    /// The node knows no commit timestamp of it.
    Unknown,
}

/// The authors of the rows of one node.
pub struct Authors {
    /// By the number of the origin.
    pub of: BTreeMap<u32, Author>,
    /// What the other node lacks of members that are away.
    pub lacking: BTreeMap<String, Lacking>,
    /// When the last member joined. What was there then was proved to be on all.
    pub joined: Option<i64>,
}

/// What one node has of a member that is away, and the other has not.
#[derive(Clone, Copy, Debug)]
pub struct Lacking {
    /// When the member committed the first of it.
    pub from: i64,
    /// The first transaction of the node that brought of it; `None` if that is not known.
    pub first: Option<i64>,
}

impl Lacking {
    pub const UNKNOWN: Self = Self {
        from: i64::MIN,
        first: None,
    };

    /// Whether the version, which is of the node that has more, may have been written when that was there. Its author
    /// has another clock than the member, so the order on the node counts, too.
    fn may_precede(&self, version: &Version) -> bool {
        version.written >= Some(self.from)
            || self.first.is_some_and(|first| follows(version.xid, first))
    }
}

/// Whether a transaction id comes after another one, which has its epoch. One without a place in that order does not.
fn follows(xid: u32, first: i64) -> bool {
    const FIRST_NORMAL: u32 = 3;
    xid >= FIRST_NORMAL && xid.wrapping_sub(first as u32) < 1 << 31
}

impl Authors {
    pub fn of(&self, version: &Version) -> Author {
        let (Some(origin), Some(written)) = (version.origin, version.written) else {
            return Author::Unknown;
        };
        // Copied rows bear an origin that is gone, and whose number may be another's now; they are dated back to 1970.
        if written < 0 {
            return Author::Common;
        }
        match self.of.get(&origin) {
            Some(Author::Away(name)) if !self.lacks(name, version) => Author::Survivor,
            Some(author) => author.clone(),
            // Of a former member.
            None if Some(written) <= self.joined => Author::Common,
            None => Author::Stranger,
        }
    }

    fn lacks(&self, member: &str, version: &Version) -> bool {
        let lacking = self.lacking.get(member);
        lacking.is_some_and(|lacking| lacking.may_precede(version))
    }

    /// A member that is away, if the version may be of a row that it wrote and the other node has not got: whoever wrote
    /// the version may have changed that row.
    fn may_come_from(&self, version: &Version) -> Option<&String> {
        self.lacking.keys().find(|name| self.lacks(name, version))
    }
}

/// A member that is away, of which the target has got more than the source.
#[derive(Clone, Debug)]
pub struct Ahead {
    pub name: String,
    /// What the target has and the source has not.
    pub unseen: Lacking,
    /// When it committed the last that the target has; `None` if that is not known.
    pub last_seen: Option<i64>,
}

/// What is known of the two nodes.
pub struct Case {
    pub source: Authors,
    pub target: Authors,
    /// How far the two had got the failed node's changes of the table; `None` if that is not known.
    pub last: Option<Last>,
    pub ahead: Vec<Ahead>,
    /// One that is away and of which the two have got different amounts.
    pub unequal: Option<String>,
}

impl Case {
    pub fn judge(&self, share: &Share, keyless: bool, difference: &Difference) -> Verdict {
        let kinds = share.kinds;
        // That the one has deleted it the other would know.
        let deletable = |row: &Version| kinds.deletes && share.both_ways && row.deletable;
        match (&difference.left, &difference.right) {
            (Some(source), None) => {
                if !kinds.inserts || !got_through(&self.source, source) {
                    return Verdict::NotSent;
                }
                if !deletable(source) || !kinds.truncates {
                    match source.written {
                        None => return Verdict::Leave(Doubt::Undated),
                        // The target has had it, here and below.
                        _ if self.source.of(source) == Author::Common => return Verdict::NotSent,
                        Some(at) => match self.last.map(|last| last.target) {
                            None => return Verdict::Leave(Doubt::Either),
                            Some(Some(last)) if at < last - DISORDER => return Verdict::NotSent,
                            Some(Some(last)) if at <= last => return Verdict::Leave(Doubt::Either),
                            Some(_) => {}
                        },
                    }
                }
                // What it inserted itself has arrived; what it made of a row of another's is not sent.
                if !kinds.updates && self.source.of(source) == Author::Survivor {
                    return Verdict::Leave(Doubt::Either);
                }
                self.only_on_source(source)
            }
            // Nothing that is left tells who has deleted what the source has had too.
            (None, Some(target)) if share.orphaned && self.target.of(target) == Author::Failed => {
                Verdict::Leave(Doubt::Orphan)
            }
            (None, Some(target)) => {
                let own = !kinds.inserts && self.target.of(target) == Author::Survivor;
                if own || !deletable(target) || !got_through(&self.target, target) {
                    return Verdict::NotSent;
                }
                match self.only_on_target(target) {
                    // Or the source has removed it by a TRUNCATE, which is not sent.
                    Verdict::Delete(_) if !kinds.truncates => Verdict::Leave(Doubt::Either),
                    verdict => verdict,
                }
            }
            (Some(source), Some(target)) => {
                let replaced = got_through(&self.target, target) || source.written > target.written;
                if !kinds.updates || !replaced || !got_through(&self.source, source) {
                    return Verdict::NotSent;
                }
                self.on_both(keyless, source, target)
            }
            (None, None) => Verdict::Leave(Doubt::Either),
        }
    }

    /// Whether a row that only the source has may have been deleted, or was to be changed, on the target by a member that is
    /// away and of which the target has more. It knew the row then, so it did that after the row was written.
    pub fn may_have_met(&self, difference: &Difference) -> bool {
        let (Some(source), None) = (&difference.left, &difference.right) else {
            return false;
        };
        let after = |seen: i64| source.written.is_none_or(|at| at <= seen + CLOCKS);
        self.ahead
            .iter()
            .any(|other| other.last_seen.is_none_or(after))
    }

    /// The target never had it, and is given it; unless it had it and one that is away deleted it there.
    fn only_on_source(&self, source: &Version) -> Verdict {
        let copy = Verdict::Copy(source.clone());
        let author = self.source.of(source);
        if let Some(name) = self.source.may_come_from(source)
            && matches!(author, Author::Failed | Author::Survivor)
        {
            return Verdict::Leave(Doubt::Away(name.clone()));
        }
        match (author, self.ahead.first()) {
            (Author::Away(name), _) => Verdict::Leave(Doubt::Away(name)),
            (Author::Stranger, _) => Verdict::Leave(Doubt::Stranger),
            // Nothing of any member's is lost by it.
            (Author::Unknown, None) if self.unequal.is_none() => copy,
            (Author::Unknown, _) => Verdict::Leave(Doubt::Undated),
            (_, None) => copy,
            // All members have had it.
            (Author::Common, Some(other)) => Verdict::Leave(Doubt::Away(other.name.clone())),
            (Author::Failed | Author::Survivor, Some(_))
                if self.last.is_some_and(|last| source.written > last.target) =>
            {
                copy
            }
            (_, Some(other)) => Verdict::Leave(Doubt::Away(other.name.clone())),
        }
    }

    /// The source has had it, and the failed node deleted it there: no survivor did, or the barrier would have
    /// brought that. Unless it comes from one that is away, and the source never had it.
    fn only_on_target(&self, target: &Version) -> Verdict {
        let delete = Verdict::Delete(target.clone());
        let comes_after = |other: &&Ahead| other.unseen.may_precede(target);
        let unseen = self.ahead.iter().find(comes_after);
        match (self.target.of(target), unseen) {
            (Author::Away(name), _) => Verdict::Leave(Doubt::Away(name)),
            (Author::Stranger, _) => Verdict::Leave(Doubt::Stranger),
            (Author::Unknown, _) => Verdict::Leave(Doubt::Undated),
            (Author::Common, _) => delete,
            (_, Some(other)) => Verdict::Leave(Doubt::Away(other.name.clone())),
            (Author::Failed, None) => delete,
            // A survivor may have written it after the failed node had deleted it, knowing nothing of that.
            (Author::Survivor, None)
                if self.last.is_some_and(|last| target.written <= last.source) =>
            {
                delete
            }
            (Author::Survivor, None) => Verdict::Leave(Doubt::Either),
        }
    }

    /// The newer one is right, if both are of somebody who is accounted for.
    fn on_both(&self, keyless: bool, source: &Version, target: &Version) -> Verdict {
        for author in [self.target.of(target), self.source.of(source)] {
            match author {
                Author::Away(name) => return Verdict::Leave(Doubt::Away(name)),
                Author::Stranger => return Verdict::Leave(Doubt::Stranger),
                Author::Unknown => return Verdict::Leave(Doubt::Undated),
                Author::Common | Author::Failed | Author::Survivor => {}
            }
        }
        // An older change of that member would come to the target after this one.
        if let Some(name) = self.source.may_come_from(source) {
            return Verdict::Leave(Doubt::Away(name.clone()));
        }
        match !keyless && source.written > target.written {
            true => Verdict::Copy(source.clone()),
            false => Verdict::Leave(Doubt::Either),
        }
    }
}

/// Whether others are to have the version: by what its node sends, or since it has come from the failed node.
fn got_through(authors: &Authors, version: &Version) -> bool {
    version.sent || authors.of(version) == Author::Failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::share::Kinds;
    use std::collections::BTreeMap;

    const OWN: u32 = 0;
    const FAILED: u32 = 1;
    const AWAY: u32 = 2;
    const STRANGER: u32 = 3;

    /// The node got it in transactions from `FIRST` on.
    const FIRST: i64 = (7 << 32) + 1_000;

    fn since(from: i64) -> Lacking {
        let first = (from > i64::MIN).then_some(FIRST);
        Lacking { from, first }
    }

    fn authors(lacking: Option<i64>) -> Authors {
        let of = BTreeMap::from([
            (OWN, Author::Survivor),
            (FAILED, Author::Failed),
            (AWAY, Author::Away("n2".into())),
        ]);
        Authors {
            of,
            lacking: lacking
                .map(|at| ("n2".into(), since(at)))
                .into_iter()
                .collect(),
            joined: Some(5),
        }
    }

    fn case(ahead: Option<i64>) -> Case {
        let target = authors(ahead);
        let ahead = ahead.map(|at| Ahead {
            name: "n2".into(),
            unseen: since(at),
            last_seen: Some(28),
        });
        Case {
            source: authors(None),
            target,
            last: Some(Last {
                source: Some(30),
                target: Some(20),
            }),
            unequal: ahead.as_ref().map(|a| a.name.clone()),
            ahead: ahead.into_iter().collect(),
        }
    }

    fn version(origin: u32, written: i64) -> Option<Version> {
        Some(Version {
            digest: format!("{origin} {written}"),
            shared: String::new(),
            written: Some(written),
            xid: 500,
            origin: Some(origin),
            sent: true,
            deletable: true,
            values: vec![],
        })
    }

    fn undated() -> Option<Version> {
        Some(Version {
            digest: String::new(),
            shared: String::new(),
            written: None,
            xid: 500,
            origin: None,
            sent: true,
            deletable: true,
            values: vec![],
        })
    }

    fn verdict(case: &Case, source: Option<Version>, target: Option<Version>) -> String {
        verdict_within(case, &Share::whole(), source, target)
    }

    fn verdict_within(
        case: &Case,
        share: &Share,
        left: Option<Version>,
        right: Option<Version>,
    ) -> String {
        let key = "(1)".into();
        match case.judge(share, false, &Difference { key, left, right }) {
            Verdict::Copy(_) => "copy".into(),
            Verdict::Delete(_) => "delete".into(),
            Verdict::NotSent => "not sent".into(),
            Verdict::Leave(doubt) => format!("{doubt:?}"),
        }
    }

    const AWAY_N2: &str = "Away(\"n2\")";

    #[test]
    fn when_all_others_are_there_the_failed_node_did_it() {
        let case = case(None);
        for (origin, expected) in [
            (OWN, "copy"),
            (FAILED, "copy"),
            // Both have got the same of it.
            (AWAY, "copy"),
            (STRANGER, "Stranger"),
        ] {
            assert_eq!(verdict(&case, version(origin, 10), None), expected);
        }
        assert_eq!(verdict(&case, undated(), None), "copy");
        for (origin, written, expected) in [
            (OWN, 30, "delete"),
            (OWN, 31, "Either"),
            (FAILED, 10, "delete"),
            (AWAY, 10, "delete"),
            (STRANGER, 10, "Stranger"),
            // Of a former member, from before the last joining: all have had it.
            (STRANGER, 5, "delete"),
        ] {
            assert_eq!(verdict(&case, None, version(origin, written)), expected);
        }
        assert_eq!(verdict(&case, None, undated()), "Undated");
    }

    #[test]
    fn of_two_versions_the_newer_where_both_are_accounted_for() {
        let case = case(None);
        let of = |source, target| verdict(&case, source, target);
        assert_eq!(of(version(FAILED, 9), version(OWN, 8)), "copy");
        assert_eq!(of(version(FAILED, 8), version(OWN, 9)), "Either");
        assert_eq!(of(version(FAILED, 9), undated()), "Undated");
        assert_eq!(of(version(STRANGER, 9), version(OWN, 8)), "Stranger");
    }

    #[test]
    fn what_the_target_alone_has_of_one_that_is_away_is_not_touched() {
        let case = case(Some(12));
        // Written before anything that the source lacks.
        assert_eq!(verdict(&case, None, version(FAILED, 11)), "delete");
        assert_eq!(verdict(&case, None, version(OWN, 11)), "delete");
        assert_eq!(verdict(&case, None, version(AWAY, 11)), "delete");
        let of_both = |written| verdict(&case, version(FAILED, 29), version(AWAY, written));
        assert_eq!((of_both(11), of_both(12)), ("copy".into(), AWAY_N2.into()));
        // It may be a row of the other, changed since.
        assert_eq!(verdict(&case, None, version(FAILED, 12)), AWAY_N2);
        assert_eq!(verdict(&case, None, version(OWN, 12)), AWAY_N2);
        assert_eq!(verdict(&case, None, version(AWAY, 12)), AWAY_N2);
        // The target has not had it yet, or has and the other deleted it.
        assert_eq!(verdict(&case, version(FAILED, 21), None), "copy");
        assert_eq!(verdict(&case, version(FAILED, 20), None), AWAY_N2);
        assert_eq!(verdict(&case, version(OWN, 3), None), AWAY_N2);
        assert_eq!(verdict(&case, undated(), None), "Undated");
        let nothing_known = self::case(Some(i64::MIN));
        assert_eq!(verdict(&nothing_known, None, version(FAILED, 6)), AWAY_N2);
    }

    #[test]
    fn what_the_source_has_of_a_row_of_one_that_is_away_is_not_brought() {
        let case = Case {
            source: authors(Some(12)),
            target: authors(None),
            ..case(None)
        };
        // The row may be one of n2, changed since, which is still to come to the target.
        for origin in [OWN, FAILED, AWAY] {
            assert_eq!(verdict(&case, version(origin, 12), None), AWAY_N2);
        }
        assert_eq!(verdict(&case, version(FAILED, 11), None), "copy");
        assert_eq!(
            verdict(&case, version(FAILED, 12), version(OWN, 8)),
            AWAY_N2
        );
        assert_eq!(verdict(&case, version(FAILED, 11), version(OWN, 8)), "copy");
        // What only the target has is not n2's.
        assert_eq!(verdict(&case, None, version(FAILED, 20)), "delete");
    }

    #[test]
    fn order_on_the_node_counts_where_clocks_are_behind() {
        let after = |origin, written| {
            let row: Option<Version> = version(origin, written);
            row.map(|row| Version { xid: 1_001, ..row })
        };
        let ahead = case(Some(12));
        // The target changed a row of n2, or n2 wrote it with a clock that had gone back.
        assert_eq!(verdict(&ahead, None, after(OWN, 9)), AWAY_N2);
        assert_eq!(verdict(&ahead, None, after(AWAY, 9)), AWAY_N2);
        let ahead = Case {
            source: authors(Some(12)),
            target: authors(None),
            ..case(None)
        };
        assert_eq!(verdict(&ahead, after(FAILED, 9), None), AWAY_N2);
        assert_eq!(verdict(&ahead, after(OWN, 9), version(OWN, 8)), AWAY_N2);
        // Ids go round.
        assert!(follows(5, (1 << 32) - 5));
        assert!(!follows(u32::MAX, (1 << 32) + 5));
        assert!(!follows(2, (1 << 32) - 5));
    }

    #[test]
    fn row_that_is_brought_may_have_met_one_that_is_away() {
        let met = |case: &Case, left, right| {
            let key = "(1)".into();
            case.may_have_met(&Difference { key, left, right })
        };
        let ahead = case(Some(12));
        assert!(met(&ahead, version(FAILED, 28), None));
        assert!(!met(&ahead, version(FAILED, 29 + CLOCKS), None));
        assert!(!met(&ahead, version(FAILED, 28), version(OWN, 8)));
        assert!(!met(&case(None), version(FAILED, 28), None));
    }

    fn within(share: &Share, source: Option<Version>, target: Option<Version>) -> String {
        let case = Case {
            last: Some(Last {
                source: Some(30),
                target: Some(20 + DISORDER),
            }),
            ..case(None)
        };
        verdict_within(&case, share, source, target)
    }

    /// After the last that the target has of the failed node.
    const NEW: i64 = 25 + DISORDER;

    /// A row that a filter keeps, on its node.
    fn kept(origin: u32, written: i64) -> Option<Version> {
        let row = version(origin, written)?;
        Some(Version {
            sent: false,
            deletable: false,
            ..row
        })
    }

    /// One that it lets through, by what no DELETE says.
    fn passed(origin: u32, written: i64) -> Option<Version> {
        let row = version(origin, written)?;
        Some(Version {
            deletable: false,
            ..row
        })
    }

    #[test]
    fn what_a_filter_keeps_is_of_its_node() {
        let within = |source, target| within(&Share::whole(), source, target);
        assert_eq!(within(kept(OWN, 25), None), "not sent");
        assert_eq!(within(None, kept(OWN, 25)), "not sent");
        assert_eq!(within(kept(OWN, 25), kept(OWN, 22)), "not sent");
        assert_eq!(within(kept(OWN, 25), passed(FAILED, 22)), "not sent");
        // It has come through, whatever the filter of the node that has it says.
        assert_eq!(within(kept(FAILED, NEW), None), "copy");
        assert_eq!(within(passed(FAILED, NEW), None), "copy");
        assert_eq!(within(passed(FAILED, 25), kept(OWN, 22)), "copy");
        assert_eq!(within(passed(FAILED, 22), kept(OWN, 25)), "not sent");
        // One of the two has deleted it, and the other was not told.
        assert_eq!(within(passed(FAILED, 15), None), "not sent");
        assert_eq!(within(passed(FAILED, 25), None), "Either");
        assert_eq!(within(passed(FAILED, 3), None), "not sent");
        assert_eq!(within(None, passed(FAILED, 15)), "not sent");
    }

    #[test]
    fn of_a_set_of_inserts_nothing_but_inserts() {
        let share = Share {
            kinds: Kinds {
                updates: false,
                deletes: false,
                ..Kinds::ALL
            },
            ..Share::whole()
        };
        let within = |source, target| within(&share, source, target);
        assert_eq!(within(version(FAILED, NEW), None), "copy");
        assert_eq!(within(version(FAILED, 15), None), "not sent");
        assert_eq!(within(undated(), None), "Undated");
        assert_eq!(within(version(OWN, NEW), None), "Either");
        assert_eq!(within(None, version(FAILED, 15)), "not sent");
        assert_eq!(within(version(FAILED, 25), version(OWN, 22)), "not sent");
    }

    #[test]
    fn of_a_table_that_no_survivor_sends_nobody_knows_who_deleted() {
        let share = Share {
            kinds: Kinds {
                deletes: false,
                ..Kinds::ALL
            },
            both_ways: false,
            orphaned: true,
            ..Share::whole()
        };
        assert_eq!(within(&share, None, version(FAILED, 15)), "Orphan");
        assert_eq!(within(&share, None, version(OWN, 15)), "not sent");
        assert_eq!(within(&share, version(FAILED, NEW), None), "copy");
        let not_taken = Share {
            orphaned: false,
            ..share
        };
        assert_eq!(within(&not_taken, None, version(FAILED, 15)), "not sent");
    }

    #[test]
    fn what_no_truncate_is_sent_for_is_not_deleted() {
        let share = Share {
            kinds: Kinds {
                truncates: false,
                ..Kinds::ALL
            },
            ..Share::whole()
        };
        assert_eq!(within(&share, None, version(FAILED, 15)), "Either");
        assert_eq!(within(&share, version(FAILED, 15), None), "not sent");
        assert_eq!(within(&share, version(FAILED, NEW), None), "copy");
        assert_eq!(within(&Share::whole(), None, version(FAILED, 15)), "delete");
    }
}
