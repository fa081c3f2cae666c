//! Without a recovery slot: the two nodes are compared, row by row where they differ.
//!
//! After a barrier between all survivors nothing of theirs is on its way. What still differs is what the
//! failed node did, and what a survivor did to a row that the other did not have as it was:
//! - a row that only the source has was never on the target, whoever wrote it last: it is brought over;
//! - a row that both have is brought over where the source's is the newer;
//! - a row that only the target has was deleted by the failed node, unless the target's is the work of a
//!   survivor that came later: that cannot be told, and is listed.

use super::{Filling, Gap, Recovery};
use crate::error::{Error, Result, SqlState};
use crate::journal::Journal;
use crate::node::{Node, server};
use crate::quote::qualified;
use crate::replay::content::{Difference, Version, newest_of};
use crate::replay::pgoutput::{Message, Relation};
use crate::replay::{Applier, Catalog, Rendering};
use crate::step::{Action, Step};
use crate::workflow::verify;
use std::collections::BTreeMap;

/// So many keys of what cannot be decided are told.
const TOLD: usize = 20;

/// What is done about a row.
enum Verdict {
    Bring(Version),
    Delete(Version),
    Unknown,
}

impl Recovery {
    /// Makes the target what the source is, as far as the failed node is concerned.
    pub fn compare(&mut self, filling: &Filling, journal: &mut Journal) -> Result<()> {
        let gap = &filling.gap;
        let origin_here = self.origin_of_target(gap)?;
        let own_schemas = self.engine.own_schemas();
        let mut session = self.hold(filling, &origin_here, journal)?;
        let (failed, source) = (self.request.failed.clone(), gap.source.clone());
        let step = Step::new(
            self.report.current(),
            &gap.target,
            Action::Compare { failed, source },
        );
        let step = journal.go_on(&step)?;
        let catalog = Catalog::read(&mut session)?;
        let mut applier = Applier::begin(&mut session)?;
        let source = self.survivors.iter_mut().find(|n| n.name == gap.source);
        let source = source.ok_or_else(|| Error::internal("a node was not connected"))?;
        let tables = verify::tables(&*self.engine, source)?;
        let last = self.last_seen_of_failed(gap, &tables)?;
        let (mut brought, mut deleted, mut unknown) = (0, 0, vec![]);
        for (i, table) in tables.iter().enumerate() {
            let name = qualified(&table.schema, &table.name);
            self.report.now(&format!(
                "comparing table {} of {}: {name}",
                i + 1,
                tables.len()
            ));
            let found = self.settled_differences(gap, table)?;
            // One transaction of the failed node has one time.
            let mut by_time: BTreeMap<i64, Vec<Message>> = BTreeMap::new();
            for difference in found {
                let relation = table.id;
                match judge(table, &difference, last) {
                    Verdict::Bring(version) => {
                        brought += 1;
                        let at = version.written.unwrap_or(0);
                        by_time.entry(at).or_default().push(Message::Insert {
                            relation,
                            new: version.values,
                        });
                    }
                    Verdict::Delete(version) => {
                        deleted += 1;
                        // Not before the row was written, or the row would count as the newer.
                        let at = version.written.unwrap_or(0);
                        by_time.entry(at).or_default().push(Message::Delete {
                            relation,
                            old: version.values,
                        });
                    }
                    Verdict::Unknown => unknown.push(format!("{name} {}", difference.key)),
                }
            }
            let mut rendering = Rendering::new(catalog.clone(), own_schemas);
            rendering.describe(table.clone());
            for (at, changes) in by_time {
                rendering.begin(gap.from.lsn(), at);
                for change in changes {
                    rendering.change(&change)?;
                }
                rendering.commit()?;
                applier.send(&mut rendering)?;
            }
        }
        applier.finish()?;
        server::end_replay().run(&mut session)?;
        journal.passed("the differences are applied")?;
        server::advance_origin_to(&origin_here, gap.to.lsn()).run(&mut session)?;
        journal.passed("the progress is moved")?;
        self.note_end(gap)?;
        journal.done(step)?;
        self.report.say(&format!(
            "node \"{}\" has got {brought} rows and lost {deleted} by comparison with node \"{}\"",
            gap.target, gap.source
        ));
        if !unknown.is_empty() {
            let told: Vec<&str> = unknown.iter().take(TOLD).map(String::as_str).collect();
            let more = unknown.len() - told.len();
            let rest = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            self.report.warn(
                &format!(
                    "{} rows differ between node \"{}\" and node \"{}\", and it cannot be told which is right: {}{rest}",
                    unknown.len(), gap.source, gap.target, told.join(", ")
                ),
                "Look at them on both nodes, and write the right ones on either.",
            );
        }
        Ok(())
    }

    /// Transactions are not told apart where contents are compared.
    pub fn require_whole(&self, gap: &Gap) -> Result<()> {
        if self.request.skip_lsn.is_none() && gap.whole {
            return Ok(());
        }
        Err(Error::refused(
            SqlState::INVALID_PARAMETER_VALUE,
            "without a recovery slot all or nothing can be brought over",
            "Leave skip_lsn, stop_lsn and stop_timestamp null.",
        ))
    }

    fn settled_differences(&mut self, gap: &Gap, table: &Relation) -> Result<Vec<Difference>> {
        let at = |name: &str| self.survivors.iter().position(|n| n.name == name);
        let (Some(source), Some(target)) = (at(&gap.source), at(&gap.target)) else {
            return Err(Error::internal("a node was not connected"));
        };
        let engine = &*self.engine;
        let mut nodes: Vec<&mut Node> = self.survivors.iter_mut().collect();
        verify::settled(engine, &mut nodes, table, source, target)
    }

    /// When the newest row was written that the source has of the failed node. What it deleted, it deleted
    /// about then or before.
    fn last_seen_of_failed(&mut self, gap: &Gap, tables: &[Relation]) -> Result<Option<i64>> {
        let path = self.engine.path(&self.request.failed, &gap.source);
        let mark = self.engine.written_as(&path);
        let source = self.survivor(&gap.source)?;
        let mark = mark.run(source)?.one()?.text(0).to_owned();
        let mut last = None;
        for table in tables {
            let rows = newest_of(table, &mark).run(source)?;
            last = last.max(rows.one()?.parse_opt(0)?);
        }
        Ok(last)
    }
}

fn judge(table: &Relation, difference: &Difference, last: Option<i64>) -> Verdict {
    match (&difference.here, &difference.there) {
        (Some(here), None) => Verdict::Bring(here.clone()),
        (Some(here), Some(there)) if !table.full && here.written > there.written => {
            Verdict::Bring(here.clone())
        }
        (None, Some(there)) if there.written <= last => Verdict::Delete(there.clone()),
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::pgoutput::Value;

    fn version(written: Option<i64>) -> Option<Version> {
        Some(Version {
            digest: format!("{written:?}"),
            written,
            origin: String::new(),
            values: vec![Value::Null],
        })
    }

    fn verdict(here: Option<Version>, there: Option<Version>) -> &'static str {
        let table = Relation {
            id: 1,
            schema: "s".into(),
            name: "t".into(),
            full: false,
            columns: vec![],
        };
        let difference = Difference {
            key: "(1)".into(),
            here,
            there,
        };
        match judge(&table, &difference, Some(10)) {
            Verdict::Bring(_) => "bring",
            Verdict::Delete(_) => "delete",
            Verdict::Unknown => "unknown",
        }
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        assert_eq!(verdict(version(Some(99)), None), "bring");
        assert_eq!(verdict(version(Some(9)), version(Some(8))), "bring");
        assert_eq!(verdict(version(Some(8)), version(Some(9))), "unknown");
        assert_eq!(verdict(version(None), version(None)), "unknown");
        assert_eq!(verdict(None, version(Some(10))), "delete");
        assert_eq!(verdict(None, version(Some(11))), "unknown");
        assert_eq!(verdict(None, version(None)), "delete");
    }
}
