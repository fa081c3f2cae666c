//! Without a recovery slot: the two nodes are compared, row by row where they differ.
//!
//! After a barrier between all survivors nothing of theirs is on its way. What still differs is what the
//! failed node did, and what a survivor did to a row that the other did not have as it was; and what a member did
//! that is away, too. [`super::judge`] tells them apart, and what it cannot is left alone and listed.

use super::judge::{Doubt, Verdict};
use super::{MissingRange, Recovery, Repair};
use crate::ereport;
use crate::error::{Error, Result, SqlState};
use crate::node::{Node, server};
use crate::quote::qualified;
use crate::replay::content::{Compared, relations};
use crate::replay::share::{Kinds, ORIGIN, Share};
use crate::replay::{Applier, Catalog, Rendering};
use crate::run::Journal;
use crate::run::action::Compare;
use crate::workflow::unfinished::undecided;
use crate::workflow::verify::{self, Comparable, Lack};
use std::collections::{BTreeMap, BTreeSet};
use zodan_core::decoding::{Message, Relation};

/// So many keys of what is left alone are told.
const TOLD: usize = 20;

/// What a comparison left alone for one reason.
#[derive(Default)]
struct Left {
    rows: u64,
    keys: Vec<String>,
}

impl Left {
    fn add(&mut self, table: &str, key: &str) {
        self.rows += 1;
        if self.keys.len() < TOLD {
            self.keys.push(format!("{table} {key}"));
        }
    }

    fn summary(&self) -> String {
        let listed = self.keys.join(", ");
        match self.rows - self.keys.len() as u64 {
            0 => listed,
            more => format!("{listed} and {more} more"),
        }
    }
}

impl Recovery {
    /// Makes the target what the source is, as far as the failed node is concerned.
    pub fn compare(&mut self, repair: &Repair, journal: &mut Journal) -> Result<()> {
        let missing = &repair.missing;
        let origin_here = self.origin_of_target(missing)?;
        let mut arrived = vec![];
        for stream in &missing.streams {
            arrived.push((self.origin_of(missing, &stream.path)?, stream.to.clone()));
        }
        if arrived.is_empty() {
            arrived.push((origin_here.clone(), missing.to.clone()));
        }
        let own_schemas = self.cluster.engine.own_schemas();
        // Before the session that brings it commits anything.
        let mut case = self.case(missing)?;
        let streams = self.streams(missing)?;
        let mut tables = self.compared(missing)?;
        tables.retain(|t| streams.may_be_compared(&t.relation));
        let mut last = self.last_by_stream(missing, &streams, &tables)?;
        let mut session = self.hold(repair, &origin_here, journal)?;
        let step = journal.take::<Compare>(self.report.current(), &missing.target)?;
        let step = journal.begin(step)?;
        let catalog = Catalog::read(&mut session)?;
        let mut applier = Applier::begin(&mut session)?;
        self.note_comparison(missing, &mut last)?;
        let (mut copied, mut deleted, mut own, mut doubtful) = (0, 0, 0, 0);
        let mut left: BTreeMap<Doubt, Left> = BTreeMap::new();
        for (i, table) in tables.iter().enumerate() {
            let name = table.name();
            case.last = match (missing.streams.is_empty(), streams.of(&table.relation)) {
                (true, _) => last.first().copied(),
                (false, stream) => stream.map(|stream| last[stream]),
            };
            self.report.progress(&format!(
                "comparing table {} of {}: {name}",
                i + 1,
                tables.len()
            ));
            let mut rendering = Rendering::new(catalog.clone(), own_schemas).careful();
            rendering.describe(table.relation.clone());
            let engine = &*self.cluster.engine;
            let at = |name: &str| self.cluster.members.iter().position(|n| n.name == name);
            let (Some(source), Some(target)) = (at(&missing.source), at(&missing.target)) else {
                return Err(Error::internal("a node was not connected"));
            };
            let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
            for part in verify::parts(&mut nodes, table, source, target)? {
                let found = verify::settled(engine, &mut nodes, table, &part, source, target)?;
                // One transaction of the failed node has one time. What it replaced goes first.
                let mut by_time: BTreeMap<i64, [Vec<Message>; 2]> = BTreeMap::new();
                for difference in found {
                    let relation = table.relation.id;
                    match case.judge(&table.share, table.relation.full, &difference) {
                        Verdict::Copy(version) => {
                            copied += 1;
                            doubtful += u64::from(case.may_have_met(&difference));
                            let at = version.written.unwrap_or(0);
                            by_time.entry(at).or_default()[1].push(Message::Insert {
                                relation,
                                new: version.values,
                            });
                        }
                        Verdict::Delete(version) => {
                            deleted += 1;
                            // Not before the row was written, or the row would count as the newer.
                            let at = version.written.unwrap_or(0);
                            by_time.entry(at).or_default()[0].push(Message::Delete {
                                relation,
                                old: version.values,
                            });
                        }
                        Verdict::NotSent => own += 1,
                        Verdict::Leave(doubt) => {
                            left.entry(doubt).or_default().add(&name, &difference.key);
                        }
                    }
                }
                for (at, changes) in by_time {
                    rendering.begin(missing.from.lsn(), at);
                    for change in changes.iter().flatten() {
                        rendering.change(change)?;
                    }
                    rendering.commit()?;
                    applier.send(&mut rendering)?;
                }
            }
        }
        applier.finish()?;
        server::end_replay().run(&mut session)?;
        journal.passed("the differences are applied")?;
        let awaits = left.keys().any(|doubt| matches!(doubt, Doubt::Away(_))) || doubtful > 0;
        // What the source is made equal to when all are there the target has to be made equal to then, too.
        let of_source = undecided(&mut self.cluster.members, &self.request.failed)?;
        let awaits = awaits || of_source.contains(&missing.source);
        let again = awaits && !self.request.force;
        if again {
            server::note_undecided(&self.request.failed).run(self.survivor(&missing.target)?)?;
        }
        for (origin, to) in &arrived {
            server::advance_origin_to(&self.request.failed, origin, to)?.run(&mut session)?;
        }
        journal.passed("the progress is moved")?;
        if again {
            let failed = self.request.failed.clone();
            server::forget_unfinished(&failed).run(self.survivor(&missing.target)?)?;
        } else {
            self.note_end(missing)?;
        }
        if left.is_empty() {
            self.decide_others(missing)?;
        }
        if let (1.., Some(away)) = (doubtful, case.ahead.first()) {
            self.report.warn(
                &format!(
                    "{doubtful} of the rows that were copied to node \"{}\" may have been deleted or changed there by node \"{}\", which is away",
                    missing.target, away.name
                ),
                &self.hint_of_absent(&away.name),
            );
        }
        journal.done(step)?;
        self.report.notice(&format!(
            "copied {copied} rows to node \"{}\" and deleted {deleted} there, by comparison with node \"{}\"",
            missing.target, missing.source
        ));
        if own > 0 {
            self.report.notice(&format!(
                "{own} rows that differ between node \"{}\" and node \"{}\" are each node's own: what is sent between them does not make them alike",
                missing.source, missing.target
            ));
        }
        for (doubt, left) in &left {
            self.tell_left(missing, doubt, left);
        }
        Ok(())
    }

    /// The two are alike. If a comparison left rows of the one alone when another node had died, and none of the other one,
    /// these are decided too.
    fn decide_others(&mut self, missing: &MissingRange) -> Result<()> {
        let of_source = server::undecided_recoveries().on(self.survivor(&missing.source)?)?;
        let of_target = server::undecided_recoveries().on(self.survivor(&missing.target)?)?;
        for (node, of_node, of_other) in [
            (&missing.source, &of_source, &of_target),
            (&missing.target, &of_target, &of_source),
        ] {
            let others = of_node
                .iter()
                .filter(|failed| **failed != self.request.failed);
            let decided: Vec<&String> = others.filter(|f| !of_other.contains(f)).collect();
            for failed in decided {
                server::forget_undecided(failed).run(self.survivor(node)?)?;
            }
        }
        Ok(())
    }

    /// What source and target are to have alike. Where a table is sent by none of the survivors, the rows of the failed
    /// node have got into it by what that one sent.
    fn compared(&mut self, missing: &MissingRange) -> Result<Vec<Compared>> {
        let failed = self.request.failed.clone();
        let origins = [
            self.origin_number(&failed, &missing.source)?,
            self.origin_number(&failed, &missing.target)?,
        ];
        // What the one takes and the other does not it has not deleted.
        let parts = |subscriber: &str| -> BTreeSet<String> {
            let paths = self.cluster.engine.paths(&failed, subscriber);
            paths
                .iter()
                .map(|path| self.cluster.engine.part(path))
                .collect()
        };
        let orphaned = parts(&missing.source) == parts(&missing.target);
        let mut nodes: Vec<&mut Node> = self.cluster.members.iter_mut().collect();
        let at = |name: &str| nodes.iter().position(|n| n.name == name);
        let (Some(source), Some(target)) = (at(&missing.source), at(&missing.target)) else {
            return Err(Error::internal("a node was not connected"));
        };
        let Comparable { tables, lacking } =
            verify::comparable(&*self.cluster.engine, &mut nodes, source, target)?;
        for lack in lacking {
            ereport::warning_of(lack.sqlstate(), &lack.to_string(), Lack::HINT);
        }
        let mut tables: Vec<Compared> = tables.into_iter().map(verify::Table::sent).collect();
        let [Some(of_source), Some(of_target)] = origins else {
            return Ok(tables);
        };
        let own_schemas = self.cluster.engine.own_schemas();
        let known: BTreeSet<String> = tables.iter().map(Compared::name).collect();
        let on_target = relations(nodes[target], own_schemas)?;
        for relation in relations(nodes[source], own_schemas)? {
            let same = |other: &Relation| {
                (&other.schema, &other.name) == (&relation.schema, &relation.name)
                    && other.columns == relation.columns
            };
            let name = qualified(&relation.schema, &relation.name);
            if known.contains(&name) || !on_target.iter().any(same) {
                continue;
            }
            let share = Share {
                rows: [of_source, of_target].map(|origin| Some(format!("{ORIGIN} = {origin}"))),
                kinds: Kinds {
                    deletes: false,
                    ..Kinds::ALL
                },
                both_ways: false,
                orphaned,
                ..Share::whole()
            };
            tables.push(Compared::new(relation, share));
        }
        Ok(tables)
    }

    fn tell_left(&self, missing: &MissingRange, doubt: &Doubt, left: &Left) {
        let differ = format!(
            "{} rows differ between node \"{}\" and node \"{}\"",
            left.rows, missing.source, missing.target
        );
        let (why, hint) = match doubt {
            Doubt::Either => (
                "they cannot be resolved automatically".to_owned(),
                "Look at them on both nodes, and write the right ones on either.".to_owned(),
            ),
            Doubt::Orphan => (
                format!("no survivor sends their tables, so it cannot be told whether \"{}\" has deleted them or \"{}\" itself", self.request.failed, missing.source),
                format!("If they are to be gone, delete them on \"{}\".", missing.target),
            ),
            Doubt::Away(name) => (
                format!("are left alone, since they are or may be of node \"{name}\", which is away"),
                self.hint_of_absent(name),
            ),
            Doubt::Undated => (
                "are left alone, since it is not known who wrote them: their commit timestamps are not there".to_owned(),
                "Look at them on both nodes, and write the right ones on either. track_commit_timestamp has to be on when rows are written.".to_owned(),
            ),
            Doubt::Stranger => (
                "are left alone, since no member of the cluster has written them".to_owned(),
                "They are of another subscription of the node, of a former member, or were kept from replication.".to_owned(),
            ),
        };
        self.report
            .warn(&format!("{differ}, and {why}: {}", left.summary()), &hint);
    }

    /// What to do about rows that hang on a member that is away.
    fn hint_of_absent(&self, name: &str) -> String {
        match self.request.force {
            true => format!(
                "They stay as they are, because force is true. When \"{name}\" is back, SELECT * FROM spock.verify_nodes() tells which are not alike."
            ),
            false => format!(
                "When \"{name}\" is back, run the same CALL again. If it is dead, recover from its loss too: CALL spock.recover_run({}).",
                crate::quote::literal(name)
            ),
        }
    }

    /// Transactions are not told apart where contents are compared.
    pub fn require_whole(&self, missing: &MissingRange) -> Result<()> {
        if self.request.skip_lsn.is_none() && missing.whole {
            return Ok(());
        }
        Err(Error::refused(
            SqlState::INVALID_PARAMETER_VALUE,
            "without a recovery slot all or nothing can be brought over",
            "Leave skip_lsn, stop_lsn and stop_timestamp null.",
        ))
    }
}
