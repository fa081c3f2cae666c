//! Who wrote the rows of a node, told by the origins that they bear there, and how far the node has got with each
//! member, told by the commit timestamps of its transactions.

use super::judge::{Ahead, Author, Authors, Case, Lacking};
use super::{MissingRange, Recovery};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::node::{Node, Query, server};
use crate::workflow::unfinished::unfinished;
use std::collections::BTreeMap;

/// Transactions whose commit timestamps are looked at in one go.
const WINDOW: i64 = 1_000_000;

/// What one of the two nodes has of a member that is away, and the other has not.
struct Lead {
    member: String,
    /// The node that has more.
    node: String,
    more: Lacking,
}

/// Before that, by any clock, there is nothing of what came after a commit, in microseconds.
const LONG_BEFORE: i64 = 3_600_000_000;

impl Recovery {
    /// What has to be known to judge the rows of the two nodes.
    pub fn case(&mut self, missing: &MissingRange) -> Result<Case> {
        let mut leads = vec![];
        for member in self.cluster.unreachable_names() {
            leads.extend(self.leads(missing, &member)?);
        }
        let mut ahead = vec![];
        for lead in leads.iter().filter(|lead| lead.node == missing.target) {
            ahead.push(Ahead {
                name: lead.member.clone(),
                unseen: lead.more,
                last_seen: self.last_commit(&lead.member, &missing.target)?,
            });
        }
        Ok(Case {
            source: self.authors(&missing.source, &leads)?,
            target: self.authors(&missing.target, &leads)?,
            last: None,
            unequal: leads.into_iter().map(|lead| lead.member).next(),
            ahead,
        })
    }

    /// Which of the two has more of a member that is away, and since when; both, as long as one of them is connected
    /// to it.
    fn leads(&mut self, missing: &MissingRange, member: &str) -> Result<Vec<Lead>> {
        let connected = self.still_connected(member, false)?;
        let states = self.inbound(member)?;
        let mut applied: BTreeMap<String, BTreeMap<String, Lsn>> = BTreeMap::new();
        for (node, states) in self.cluster.members.iter_mut().zip(states) {
            // One that has been given only a part of it counts as having what it had before.
            let from = unfinished(node)?.remove(member);
            let streams = applied.entry(node.name.clone()).or_default();
            for inbound in states {
                if let Some(lsn) = inbound.state.applied {
                    streams.insert(inbound.part, from.map_or(lsn, |from| lsn.min(from)));
                }
            }
        }
        let (source, target) = (&applied[&missing.source], &applied[&missing.target]);
        let moves = [&missing.source, &missing.target]
            .iter()
            .any(|node| connected.contains(node));
        let unlike = source.is_empty() || !source.keys().eq(target.keys());
        let unknown = moves || unlike;
        let ahead = |a: &BTreeMap<String, Lsn>, b: &BTreeMap<String, Lsn>| {
            a.iter()
                .any(|(part, lsn)| b.get(part).is_some_and(|other| lsn > other))
        };
        let several = source.len() > 1;
        let mut leads = vec![];
        for (node, other, more) in [
            (&missing.source, &missing.target, ahead(source, target)),
            (&missing.target, &missing.source, ahead(target, source)),
        ] {
            // Of several subscriptions one may have brought later transactions than those that another one lacks.
            let more = if unknown || more && several {
                Some(Lacking::UNKNOWN)
            } else if more {
                self.lacking(member, node, other)?
            } else {
                None
            };
            leads.extend(more.map(|more| Lead {
                member: member.to_owned(),
                node: node.clone(),
                more,
            }));
        }
        Ok(leads)
    }

    /// What `node` has of `member` and `other` has not. The node has applied it in the order of the member's commits,
    /// whatever their times say: so it is what came after the last that the other has.
    fn lacking(&mut self, member: &str, node: &str, other: &str) -> Result<Option<Lacking>> {
        let seen = self.last_applied(member, other)?;
        let Some((origin, range)) = self.commits(member, node)? else {
            return Ok(Some(Lacking::UNKNOWN));
        };
        let oldest = seen.max(self.joined(node)?).map(|at| at - LONG_BEFORE);
        let node = self.survivor(node)?;
        let mut more: Option<Lacking> = None;
        for window in range.backwards() {
            let found = server::commits_after(origin, window, seen).one(node)?;
            if let (Some(from), Some(first)) = (found.at, found.first) {
                let from = more.map_or(from, |more| from.min(more.from));
                let first = Some(first);
                more = Some(Lacking { from, first });
            }
            if found.known {
                return Ok(more);
            }
            if found.begins.is_some() && found.begins < oldest {
                break;
            }
        }
        // The last that the other has is not known here.
        Ok(more.or(Some(Lacking::UNKNOWN)))
    }

    fn authors(&mut self, node: &str, leads: &[Lead]) -> Result<Authors> {
        let failed = self.request.failed.clone();
        let away = self.cluster.unreachable_names();
        let others = self.cluster.names();
        let mut of = BTreeMap::from([(0, Author::Survivor)]);
        let authors = others
            .iter()
            .map(|name| (name, Author::Survivor))
            .chain(away.iter().map(|name| (name, Author::Away(name.clone()))))
            .chain([(&failed, Author::Failed)]);
        for (name, author) in authors {
            if let Some(origin) = self.origin_number(name, node)? {
                of.insert(origin, author);
            }
        }
        let lacking = leads.iter().filter(|lead| lead.node == node);
        Ok(Authors {
            of,
            lacking: lacking
                .map(|lead| (lead.member.clone(), lead.more))
                .collect(),
            joined: self.joined(node)?,
        })
    }

    /// The number that what `provider` wrote bears on `node`.
    pub fn origin_number(&mut self, provider: &str, node: &str) -> Result<Option<u32>> {
        let path = self.cluster.engine.path(provider, node);
        let mark = self.cluster.engine.row_origin(&path);
        let node = self.survivor(node)?;
        let Some(mark) = mark.first(node)? else {
            return Ok(None);
        };
        let number = Query::new(
            "SELECT coalesce((SELECT roident FROM pg_replication_origin WHERE roname = $1),
                             (CASE WHEN $1 ~ '^[0-9]+$' THEN $1 END)::oid)",
            &[&mark],
            |row| row.only(),
        );
        number.one(node)
    }

    /// When the last of the members that there are joined, as `node` knows it.
    pub fn joined(&mut self, node: &str) -> Result<Option<i64>> {
        let registry = self.cluster.engine.members();
        let node = self.survivor(node)?;
        let members = registry.on(node)?.into_iter();
        // Not every engine keeps it.
        let times: Vec<String> = members
            .map(|m| m.joined_at)
            .filter(|at| !at.is_empty())
            .collect();
        let last = Query::<Option<i64>>::new(
            "SELECT (extract(epoch FROM max(j::timestamptz) - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint
               FROM unnest(string_to_array($1, ',')) j",
            &[&times.join(",")],
            |row| row.only(),
        );
        let last = last.one(node)?;
        // What a node whose clock is behind wrote after that may bear an earlier time.
        Ok(last.map(|at| at - self.clocks_apart))
    }

    /// When `provider` committed the last that `node` has of it.
    pub fn last_commit(&mut self, provider: &str, node: &str) -> Result<Option<i64>> {
        self.last(provider, node, server::last_commit)
    }

    /// When `provider` committed what `node` has applied last of it.
    fn last_applied(&mut self, provider: &str, node: &str) -> Result<Option<i64>> {
        self.last(provider, node, server::last_applied)
    }

    /// What `of` finds in the last window in which it finds anything.
    fn last(
        &mut self,
        provider: &str,
        node: &str,
        of: fn(u32, (i64, i64)) -> Query<i64>,
    ) -> Result<Option<i64>> {
        let Some((origin, range)) = self.commits(provider, node)? else {
            return Ok(None);
        };
        let node = self.survivor(node)?;
        for window in range.backwards() {
            if let Some(at) = of(origin, window).first(node)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// The origin of `provider` on `node`, and the transactions whose commit timestamps that one knows.
    fn commits(&mut self, provider: &str, node: &str) -> Result<Option<(u32, Range)>> {
        let Some(origin) = self.origin_number(provider, node)? else {
            return Ok(None);
        };
        let node = self.survivor(node)?;
        Ok(Range::of(node)?.map(|range| (origin, range)))
    }
}

/// Transaction ids, with their epoch.
struct Range {
    first: i64,
    next: i64,
}

impl Range {
    fn of(node: &mut Node) -> Result<Option<Self>> {
        if !server::has_commit_timestamps(node)? {
            return Ok(None);
        }
        let ids = server::commit_timestamp_range().one(node)?;
        Ok(Some(Self {
            first: ids.first,
            next: ids.next,
        }))
    }

    /// Windows from the last to the first.
    fn backwards(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        let first = self.first;
        std::iter::successors(Some(self.next), move |end| {
            (*end - WINDOW > first).then(|| *end - WINDOW)
        })
        .map(move |end| (first.max(end - WINDOW), end - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_every_transaction_once() {
        let windows = |first, next| Range { first, next }.backwards().collect::<Vec<_>>();
        assert_eq!(windows(3, 10), [(3, 9)]);
        assert_eq!(windows(3, WINDOW + 10), [(10, WINDOW + 9), (3, 9)]);
        assert_eq!(windows(3, WINDOW + 3), [(3, WINDOW + 2)]);
    }
}
