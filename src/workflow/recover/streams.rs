//! Survivors that have several subscriptions to the failed node, each with a position of its own. One may be ahead in what
//! the one brings, another in what the other brings.

use super::connect::Inbound;
use super::{MissingRange, Recovery};
use crate::engine::{Path, PathTables};
use crate::error::{Error, Result, SqlState};
use crate::lsn::{Lsn, Position};
use crate::node::{Node, Query, server};
use crate::quote::qualified;
use crate::replay::content::Compared;
use crate::replay::share::{ORIGIN, WRITTEN};
use crate::workflow::unfinished::undecided;
use std::collections::BTreeMap;
use zodan_core::decoding::Relation;

/// One of several subscriptions of the target to the failed node, by which it lacks something.
pub struct Stream {
    pub path: Path,
    /// What the source has by it.
    pub to: Position,
}

/// How far a survivor is, by what its subscriptions take.
#[derive(Clone)]
struct Survivor {
    node: String,
    streams: BTreeMap<String, (Path, Lsn)>,
}

impl Survivor {
    fn lacks_of(&self, other: &Self) -> Vec<&String> {
        let more = |part: &&String| other.streams[*part].1 > self.streams[*part].1;
        self.streams.keys().filter(more).collect()
    }
}

impl Recovery {
    /// As [`Recovery::plan`]. Each target gets what it lacks from who has all, else by each subscription from who has
    /// most.
    pub fn plan_of_several(&mut self, states: Vec<Vec<Inbound>>) -> Result<Vec<MissingRange>> {
        let failed = self.request.failed.clone();
        let mut all = vec![];
        for (node, states) in self.cluster.members.iter().zip(states) {
            let mut streams = BTreeMap::new();
            for inbound in states {
                let lsn = inbound.applied();
                self.report.step(&format!(
                    "node \"{}\" has applied it by {} up to {}",
                    node.name,
                    inbound.state.name,
                    Position::new(&failed, lsn)
                ));
                streams.insert(inbound.part, (inbound.path, lsn));
            }
            let node = node.name.clone();
            all.push(Survivor { node, streams });
        }
        self.require_alike(&all)?;
        let named = |name: &Option<String>, standing: &&Survivor| {
            name.as_ref().is_none_or(|name| *name == standing.node)
        };
        let sources: Vec<&Survivor> = all
            .iter()
            .filter(|s| named(&self.request.source, s))
            .collect();
        let undecided = undecided(&mut self.cluster.members, &failed)?;
        let mut missing_ranges = vec![];
        for target in all.iter().filter(|s| named(&self.request.target, s)) {
            // Most of what is lacking first: often one has all.
            let mut sources: Vec<(&Survivor, Vec<&String>)> = sources
                .iter()
                .filter(|s| s.node != target.node)
                .map(|s| (*s, target.lacks_of(s)))
                .collect();
            let best = |part: &String| sources.iter().map(|(s, _)| s.streams[part].1).max();
            let best: BTreeMap<&String, Option<Lsn>> = target
                .streams
                .keys()
                .map(|part| (part, best(part)))
                .collect();
            for (source, parts) in &mut sources {
                parts.retain(|part| best[part] == Some(source.streams[*part].1));
            }
            sources.sort_by_key(|(_, parts)| std::cmp::Reverse(parts.len()));
            let again = undecided.contains(&target.node);
            let planned = missing_ranges.len();
            let mut target = target.clone();
            for (source, _) in &sources {
                let mut parts = target.lacks_of(source);
                parts.retain(|part| best[part] == Some(source.streams[*part].1));
                if parts.is_empty() {
                    continue;
                }
                missing_ranges.push(self.gap_of(source, &target, &parts, again));
                let parts: Vec<String> = parts.into_iter().cloned().collect();
                for part in parts {
                    let has = source.streams[&part].1;
                    target
                        .streams
                        .entry(part)
                        .and_modify(|stream| stream.1 = has);
                }
            }
            if again && missing_ranges.len() == planned {
                let has_all = |(source, _): &&(&Survivor, Vec<&String>)| {
                    source.lacks_of(&target).is_empty() && !undecided.contains(&source.node)
                };
                if let Some((source, _)) = sources.iter().find(has_all) {
                    let parts: Vec<&String> = target.streams.keys().collect();
                    missing_ranges.push(self.gap_of(source, &target, &parts, true));
                }
            }
        }
        Ok(missing_ranges)
    }

    fn gap_of(
        &self,
        source: &Survivor,
        target: &Survivor,
        parts: &[&String],
        undecided: bool,
    ) -> MissingRange {
        let failed = &self.request.failed;
        let of = |standing: &Survivor| parts.iter().map(|part| standing.streams[*part].1).collect();
        let (had, has): (Vec<Lsn>, Vec<Lsn>) = (of(target), of(source));
        let from = Position::new(failed, had.into_iter().min().unwrap_or(Lsn::ZERO));
        let to = Position::new(failed, has.into_iter().max().unwrap_or(Lsn::ZERO));
        let stream = |part: &&String| Stream {
            path: target.streams[*part].0.clone(),
            to: Position::new(failed, source.streams[*part].1),
        };
        let request = &self.request;
        let limited = request.skip_lsn.is_some() || request.stop_lsn.is_some();
        MissingRange {
            source: source.node.clone(),
            target: target.node.clone(),
            since: from.clone(),
            from,
            to,
            whole: !limited && request.stop_timestamp.is_none(),
            undecided,
            streams: parts.iter().map(stream).collect(),
            // Where the target has more by another one, what that brings is not the source's to decide.
            all_streams: source.lacks_of(target).is_empty(),
        }
    }

    fn require_alike(&self, all: &[Survivor]) -> Result<()> {
        for (argument, name) in [
            ("source_node_name", &self.request.source),
            ("target_node_name", &self.request.target),
        ] {
            if let Some(name) = name
                && !all.iter().any(|s| s.node == *name)
            {
                return Err(super::connect::unknown(argument, name));
            }
        }
        let Some((first, others)) = all.split_first() else {
            return Ok(());
        };
        for other in others {
            if first.streams.keys().eq(other.streams.keys()) {
                continue;
            }
            let described = |standing: &Survivor| {
                let parts = standing.streams.iter();
                let described =
                    parts.map(|(part, (path, _))| format!("{} ({part})", path.subscription));
                format!(
                    "node \"{}\" has {}",
                    standing.node,
                    described.collect::<Vec<_>>().join(", ")
                )
            };
            return Err(Error::Refused {
                state: SqlState::FEATURE_NOT_SUPPORTED,
                message: format!(
                    "nodes \"{}\" and \"{}\" have several subscriptions to node \"{}\", and not with the same replication sets",
                    first.node, other.node, self.request.failed
                ),
                detail: Some(format!("{}; {}.", described(first), described(other))),
                hint: "What the one lacks cannot be told from what the other has. Compare the nodes, write what is missing, and remove the failed node with force := true.".into(),
            });
        }
        Ok(())
    }

    /// What the subscriptions of the target to the failed node bring.
    pub fn streams(&mut self, missing: &MissingRange) -> Result<Streams> {
        if missing.streams.is_empty() {
            return Ok(Streams::default());
        }
        let failed = self.request.failed.clone();
        let paths = self.cluster.engine.paths(&failed, &missing.target);
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        let path_tables = self.cluster.engine.tables_of(&mut nodes, &paths)?;
        let ours = |path: &Path| {
            missing.all_streams || missing.streams.iter().any(|stream| stream.path == *path)
        };
        let streams = Streams {
            ours: paths.iter().map(ours).collect(),
            path_tables,
        };
        if let Some(why) = streams.unclear() {
            return Err(Error::refused(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "node \"{}\" has more of \"{failed}\" by one subscription and node \"{}\" by another one, and {why}",
                    missing.source, missing.target
                ),
                "Make each replication set that the subscriptions name on a survivor, each table in one of them: spock.repset_create, spock.repset_add_table.",
            ));
        }
        Ok(streams)
    }
}

/// What each subscription of the target to the failed node brings.
#[derive(Default)]
pub struct Streams {
    path_tables: Vec<PathTables>,
    /// Whether the source has at least as much by it as the target.
    ours: Vec<bool>,
}

impl Streams {
    /// The subscription that brings the table; `None` if that is not known.
    pub fn of(&self, relation: &Relation) -> Option<usize> {
        let table = (relation.schema.clone(), relation.name.clone());
        self.only(|b| b.tables.contains(&table)).or_else(|| {
            let named = self.path_tables.iter().any(|b| b.tables.contains(&table));
            // What is in sets that the failed node alone had comes by the one that names such.
            (!named).then(|| self.only(|b| !b.known)).flatten()
        })
    }

    /// The one that it holds for, if it is one.
    fn only(&self, holds: impl Fn(&PathTables) -> bool) -> Option<usize> {
        let mut found = (0..self.path_tables.len()).filter(|i| holds(&self.path_tables[*i]));
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether the source has all of the failed node's changes of the table that the target has.
    pub fn may_be_compared(&self, relation: &Relation) -> bool {
        match self.of(relation) {
            Some(stream) => self.ours[stream],
            None => self.ours.iter().all(|ours| *ours),
        }
    }

    /// Why some tables could be of a subscription that is ours and of one that is not.
    fn unclear(&self) -> Option<&'static str> {
        let of = |ours: bool| {
            let streams = self.path_tables.iter().zip(&self.ours);
            streams.filter(move |(_, is)| **is == ours).map(|(b, _)| b)
        };
        let unknown = |ours| of(ours).any(|b| !b.known);
        if unknown(true) && unknown(false) {
            return Some("which tables come by which nobody knows");
        }
        let both = of(true).any(|a| of(false).any(|b| !a.tables.is_disjoint(&b.tables)));
        both.then_some("tables come by both")
    }
}

/// When the failed node committed the last that source and target have got of it.
#[derive(Clone, Copy, Default)]
pub struct Last {
    pub source: Option<i64>,
    pub target: Option<i64>,
}

impl Recovery {
    /// That by each subscription, of which `tables` are brought. Of several nobody dates the transactions apart, so it
    /// is that of the rows that there are.
    pub fn last_by_stream(
        &mut self,
        missing: &MissingRange,
        streams: &Streams,
        tables: &[Compared],
    ) -> Result<Vec<Last>> {
        let failed = self.request.failed.clone();
        if missing.streams.is_empty() {
            // What was there before the last member joined came to the target with its copy, if by nothing else.
            let joined = self.joined(&missing.target)?;
            return Ok(vec![Last {
                source: self.last_commit(&failed, &missing.source)?,
                target: self.last_commit(&failed, &missing.target)?.max(joined),
            }]);
        }
        let mut last = vec![Last::default(); streams.path_tables.len()];
        for node in [&missing.source, &missing.target] {
            let Some(origin) = self.origin_number(&failed, node)? else {
                continue;
            };
            let is_source = *node == missing.source;
            let node = self.survivor(node)?;
            for table in tables {
                let Some(stream) = streams.of(&table.relation) else {
                    continue;
                };
                let found = last_written(&table.relation, origin).one(node)?;
                let last = match is_source {
                    true => &mut last[stream].source,
                    false => &mut last[stream].target,
                };
                *last = found.max(*last);
            }
        }
        Ok(last)
    }

    /// With what the target had when a comparison that was interrupted began; notes it where there was none.
    pub fn note_comparison(&mut self, missing: &MissingRange, last: &mut [Last]) -> Result<()> {
        let failed = self.request.failed.clone();
        let target = self.survivor(&missing.target)?;
        for (stream, last) in last.iter().enumerate() {
            server::note_comparison(&failed, stream, last.target).run(target)?;
        }
        for comparison in server::unfinished_comparison(&failed).on(target)? {
            if let Some(last) = last.get_mut(comparison.lane) {
                last.target = comparison.had;
            }
        }
        Ok(())
    }
}

/// When the last row of the table with that origin was written.
fn last_written(relation: &Relation, origin: u32) -> Query<Option<i64>> {
    let table = qualified(&relation.schema, &relation.name);
    Query::new(
        format!("SELECT max({WRITTEN}) FROM {table} WHERE {ORIGIN} = {origin}"),
        &[],
        |row| row.only(),
    )
}
