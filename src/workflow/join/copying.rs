//! The copy (the sixth move): structure, data, the rest of the structure, what no snapshot holds.

use super::own_times::{self, Kept};
use super::waiting_slots;
use crate::copy::{
    self, Archive, Broken, CheckConstraints, Excluded, ForeignKeys, InSnapshot, Indexes, Inventory,
    Privileges, SeenBefore, Source, Structure, Target, Unproved, data, matviews, sequences,
    settings,
};
use crate::engine::CopyPlan;
use crate::error::{Error, Result};
use crate::libpq::Conn;
use crate::node::server::{self, TableFile};
use crate::node::{Local, Member, Node, Session, Statement, Tasks, ask_one};
use crate::progress::{self, Work};
use crate::quote::ident;
use crate::run::action::{
    BlockWritesByEngine, BlockWritesOfNew, CopyDatabase, CreateOrigin, ReadOnlyBefore, Restore,
};
use crate::run::{Journal, Running};
use crate::settings::copy_jobs;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::estimate::time_to_build;
use crate::workflow::report::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// So many tables are named.
const MOST_TABLES: usize = 20;

/// No bytes are left for later.
const NOTHING: (u64, Duration) = (0, Duration::ZERO);

pub struct Copying<'a> {
    pub local: &'a Local,
    pub nodes: JoinNodes<'a>,
    /// The new node's database.
    pub database: &'a str,
    pub snapshot: &'a str,
    /// A session on the source, to read in the snapshot.
    pub reader: Option<Conn>,
    pub journal: &'a mut Journal,
    pub report: &'a Report,
    /// Which rows keep their times, if any do.
    pub kept: Option<Kept>,
}

/// What has to be known to let applications write on the new node.
#[derive(Default)]
pub struct Held {
    /// What the database itself had set `default_transaction_read_only` to before.
    pub read_only: Option<String>,
    /// What takes back the engine's own way of keeping applications from writing.
    pub engines: Option<Statement>,
    /// What takes back that apply workers may write meanwhile.
    pub apply: Option<Statement>,
    /// Rows inserted and changed in the database if nobody but the copy wrote; `None` where the
    /// server does not count.
    expected: Option<(u64, u64)>,
    /// The files of tables that nobody but a TRUNCATE would replace.
    files: BTreeMap<String, String>,
    /// Tables whose contents have to be compared when everything has arrived; see
    /// [`data::Copied::unproved`].
    pub unproved: Vec<String>,
    /// Tables of which changes may have come in another order than they were made in.
    pub doubted: BTreeSet<String>,
    /// The tables of the source, where DDL on them is not replicated.
    structure: Option<Structure>,
    /// Those whose rows were copied.
    copied: BTreeSet<String>,
}

impl Held {
    /// Fails if the tables of the source are not those any more that were copied. Those that have got another file
    /// since are to be compared, too.
    pub fn check_structure(&mut self, source: &mut Node) -> Result<()> {
        let Some(structure) = &self.structure else {
            return Ok(());
        };
        for table in structure.check(&mut source.session, &source.name)? {
            if self.copied.contains(&table) && !self.unproved.contains(&table) {
                self.unproved.push(table);
            }
        }
        Ok(())
    }

    /// What has been copied of these tables is to be compared, too; of all where it is not known which.
    pub fn doubt(&mut self, tables: impl Iterator<Item = Option<String>>) {
        for table in tables {
            match table {
                Some(table) => drop(self.doubted.insert(table)),
                None => self.doubted.extend(self.copied.iter().cloned()),
            }
        }
    }

    /// Whether somebody else wrote, in a session that did not heed the setting: one that was open
    /// before, or one that turned it off.
    pub fn written_by_others(&self, new: &mut Node) -> Result<bool> {
        if self.expected.is_some() && rows_written(new)? != self.expected {
            return Ok(true);
        }
        let now = table_files(&mut new.session)?;
        Ok(self
            .files
            .iter()
            .any(|(table, file)| now.get(table) != Some(file)))
    }
}

/// What a copy has made.
struct Stored {
    copied: data::Copied,
    /// The files of the tables when they had been created.
    files: BTreeMap<String, String>,
    /// The tables as they were on the source.
    structure: Option<Structure>,
    /// How many rows were stored once more, to keep their times.
    rows_kept: u64,
}

/// What the source has told before the first change on the new node.
struct Seen {
    plan: CopyPlan,
    of_dump: SeenBefore,
    restorable: BTreeSet<String>,
    search_path: String,
    of_queries: Vec<(String, String)>,
    indexes: Indexes,
    foreign_keys: ForeignKeys,
    /// Where DDL is not replicated.
    structure: Option<Structure>,
    privileges: Privileges,
}

/// On the source.
struct Sessions<'a> {
    source: &'a mut Node,
    snapshot: InSnapshot,
}

impl Sessions<'_> {
    fn nodes(&mut self) -> Vec<&mut Node> {
        vec![&mut *self.source, self.snapshot.node()]
    }
}

/// What the dump leaves out.
fn excluded(plan: &CopyPlan) -> Excluded {
    let mut excluded = Excluded::default();
    excluded.schemas.extend_from_slice(&plan.excluded.schemas);
    let extensions = &plan.excluded.extensions;
    excluded.extensions.extend_from_slice(extensions);
    excluded
}

/// Tables of which nothing is replicated.
fn tell_structure_only(report: &Report, tables: &[String]) {
    let (shown, more) = tables.split_at(tables.len().min(MOST_TABLES));
    let more = match more.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    if !tables.is_empty() {
        report.notice(&format!(
            "copying the structure without the rows of tables of which nobody would send any: {}{more}",
            shown.join(", ")
        ));
    }
}

fn table_files(session: &mut Session) -> Result<BTreeMap<String, String>> {
    let files = server::table_files().on(session)?.into_iter();
    let named = |f: TableFile| (crate::quote::qualified(&f.schema, &f.table), f.file);
    Ok(files.map(named).collect())
}

fn rows_written(node: &mut Node) -> Result<Option<(u64, u64)>> {
    let written = server::rows_written().first(node)?;
    Ok(written.map(|w| (w.inserted, w.changed)))
}

impl Copying<'_> {
    /// Copies, with application writes on the new node held off. They stay so: the caller lets them
    /// in when the join is proved, by [`Held`].
    pub fn run(mut self) -> Result<Held> {
        let mut before = copy::inventory(&mut self.nodes.new.session)?;
        let written = rows_written(self.nodes.new)?;
        let read_only = self.block_writes()?;
        let engines = self.hold_off_by_engine()?;
        let seen = self.see(&before)?;
        tell_structure_only(self.report, &seen.plan.structure_only);
        self.create_origin(&seen.plan.origin)?;
        let restore = Restore {
            before: before.clone(),
            preexisting: seen.plan.preexisting.clone(),
            restorable: Some(seen.restorable.clone()),
        };
        let phase = self.report.current();
        let new = &self.nodes.new.name;
        let step = self.journal.take::<CopyDatabase>(phase, new)?;
        let step = self.journal.begin_with(step, restore)?;
        let tables = seen.plan.tables.iter().filter(|table| !table.extension);
        let labels = tables.map(copy::Table::label).collect();
        let Stored {
            copied,
            mut files,
            structure,
            rows_kept,
        } = self.copy(seen, &step, &mut before)?;
        // Emptied by ourselves.
        files.retain(|table, _| !copied.again.contains(table));
        self.journal
            .note_copy(copied.tables as u64, copied.rows, copied.bytes)?;
        self.journal.done(step)?;
        self.report.notice(&format!(
            "copied {} tables, {} rows, {} MB by {} workers",
            copied.tables,
            copied.rows,
            copied.bytes >> 20,
            copied.workers
        ));
        let expected = written.map(|(inserted, changed)| {
            let copied_rows = copied.rows + copied.discarded - copied.extension_rows;
            (inserted + copied_rows, changed + rows_kept)
        });
        for table in &copied.again {
            self.report.notice(&format!(
                "table {table} was copied again as a whole: it had got another file on node \"{}\" meanwhile",
                self.nodes.source.name
            ));
        }
        Ok(Held {
            read_only,
            engines,
            apply: None,
            expected,
            files,
            unproved: copied.unproved,
            doubted: BTreeSet::new(),
            structure,
            copied: labels,
        })
    }

    /// Where the snapshot is, as others connect to it.
    fn source(&self) -> Member {
        self.nodes.source.member()
    }

    /// Asks the source for all that the copy has to know of it beforehand, as much as can be at a time.
    fn see(&mut self, before: &Inventory) -> Result<Seen> {
        let Member { name, dsn } = self.source();
        let source = Source {
            node: &name,
            dsn: &dsn,
            snapshot: self.snapshot,
        };
        let no_reader = || Error::internal("no session to read in the snapshot");
        let reader = self.reader.take().ok_or_else(no_reader)?;
        let snapshot = InSnapshot::adopt(reader, &source)?;
        let (engine, new) = (self.nodes.engine, &self.nodes.new.name);
        let mut sessions = Sessions {
            source: self.nodes.source,
            snapshot,
        };
        let all = (
            |of: &mut Sessions| {
                let plan = engine.copy_plan(of.source, &mut of.snapshot, new)?;
                let of_dump = SeenBefore::of(&mut of.snapshot, &excluded(&plan))?;
                Ok((plan, of_dump))
            },
            |of: &mut Sessions| copy::restorable(&mut of.source.session),
            |of: &mut Sessions| {
                let asked = (settings::search_path(), settings::of_queries());
                ask_one(of.source, &asked)
            },
            |of: &mut Sessions| Indexes::of(&mut of.source.session),
            |of: &mut Sessions| ForeignKeys::of(&mut of.snapshot),
            |of: &mut Sessions| Structure::of(&mut of.snapshot),
            |of: &mut Sessions| Privileges::of(&mut of.snapshot, before),
        );
        let (planned, restorable, settings, indexes, foreign_keys, structure, privileges) =
            all.make(&mut sessions, Sessions::nodes)?;
        let ((plan, of_dump), (search_path, of_queries)) = (planned, settings);
        Ok(Seen {
            structure: (!plan.names_follow).then_some(structure),
            plan,
            of_dump,
            restorable,
            search_path: search_path.concat(),
            of_queries,
            indexes,
            foreign_keys,
            privileges,
        })
    }

    fn copy(&mut self, seen: Seen, step: &Running, before: &mut Inventory) -> Result<Stored> {
        let Seen {
            plan,
            of_dump,
            search_path,
            of_queries,
            indexes,
            foreign_keys,
            structure,
            privileges,
            ..
        } = seen;
        let report = self.report;
        let kept = self.kept.take().map(|kept| (kept, plan.tables.clone()));
        let Member { name, dsn } = self.source();
        let source = Source {
            node: &name,
            dsn: &dsn,
            snapshot: self.snapshot,
        };
        let target = Target {
            node: &self.nodes.new.name,
            dsn: &self.nodes.new.dsn,
            settings: &plan.settings,
        };

        report.progress("dumping the structure");
        let archive = Archive::dump(
            &source,
            &mut self.nodes.new.session,
            &excluded(&plan),
            of_dump,
        )?;
        report.step(&format!("structure dumped, {} kB", archive.bytes() >> 10));
        self.journal.passed("the structure is dumped")?;
        // What others have made until now is theirs, even if the restore trips over it.
        if before.add_objects(&mut self.nodes.new.session)? {
            self.journal.note_inventory(step, before)?;
        }
        report.progress("creating tables");
        archive.restore_before_data(&target, &mut self.nodes.new.session)?;
        report.step("tables, types and functions created");
        let files = table_files(&mut self.nodes.new.session)?;
        self.journal.passed("tables are created")?;

        let options = data::Options {
            origin: &plan.origin,
            search_path: &search_path,
            jobs: copy_jobs(),
        };
        report.progress("copying rows");
        let mut tables = Work::default();
        let later = (indexes.bytes, time_to_build(indexes.bytes));
        let copied = data::copy(
            &source,
            self.local,
            plan.tables,
            &options,
            |arrived, complete| {
                tables = Work {
                    bytes_done: arrived.planned_done,
                    bytes_total: arrived.planned,
                    rows_done: arrived.rows,
                    rows_total: Some(arrived.rows_expected),
                };
                let all = Work {
                    bytes_total: tables.bytes_total + indexes.bytes,
                    ..tables
                };
                progress::work(all, later, arrived.tables.clone());
                report.activity(&format!(
                    "copying data: {} of {} MB, {}",
                    arrived.planned_done >> 20,
                    arrived.planned >> 20,
                    arrived.tables.join(", ")
                ));
                for table in complete {
                    report.step(&format!(
                        "table {}: {} rows, {} kB",
                        table.table,
                        table.rows,
                        table.bytes >> 10
                    ));
                }
                // When all is there they are looked at once more.
                if arrived.planned_done == arrived.planned {
                    return Ok(());
                }
                let (source, peers) = (&mut *self.nodes.source, &mut *self.nodes.peers);
                let members = std::iter::once(source).chain(peers);
                waiting_slots::check(self.nodes.engine, members, &self.nodes.new.name)
            },
        )?;
        let checks = CheckConstraints::resume(&mut self.nodes.new.session, &copied.unchecked)?;
        report.step(&format!(
            "{} rows copied, {} MB",
            copied.rows,
            copied.bytes >> 20
        ));
        self.journal.passed("rows are copied")?;

        report.progress("building indexes");
        progress::new_pace();
        let session = &mut self.nodes.new.session;
        let mut done = 0;
        archive.restore_after_data(&target, copy_jobs(), || {
            let built = indexes.built(session)?;
            // What is being built counts by a guess of its size.
            done = built.bytes.max(done);
            let all = Work {
                bytes_done: tables.bytes_done + done,
                bytes_total: tables.bytes_total + indexes.bytes,
                ..tables
            };
            progress::work(all, NOTHING, built.tables);
            Ok(())
        })?;
        let bytes = tables.bytes_total + indexes.bytes;
        let all = Work {
            bytes_done: bytes,
            bytes_total: bytes,
            ..tables
        };
        progress::work(all, NOTHING, vec![]);
        progress::worked();
        for broken in foreign_keys.mend(&mut self.nodes.new.session)? {
            let Broken { table, name, rows } = broken;
            let rows = rows.map_or("some".to_owned(), |rows| rows.to_string());
            report.warn(
                &format!(
                    "foreign key \"{name}\" of table {table} is NOT VALID on node \"{}\": rows that break it, on node \"{}\" as well: {rows}",
                    self.nodes.new.name, self.nodes.source.name
                ),
                &format!(
                    "Mend these rows, then run ALTER TABLE {table} VALIDATE CONSTRAINT {} on node \"{}\".",
                    ident(&name), self.nodes.new.name
                ),
            );
        }
        privileges.carry(&mut self.nodes.new.session, before)?;
        archive.restore_last(&target)?;
        report.step("indexes, constraints and triggers created");
        self.journal.passed("indexes are created")?;
        report.progress("setting sequences");
        let name = self.source().name;
        let (values, (populated, own), _) = (
            |source: &mut Node| sequences::values(source),
            |source: &mut Node| ask_one(source, &(matviews::populated(), settings::of_database())),
            |source: &mut Node| match &structure {
                Some(structure) => structure.check(&mut source.session, &name),
                None => Ok(vec![]),
            },
        )
            .make(self.nodes.source, |source| vec![source])?;
        let carried = sequences::carry(&values, &mut self.nodes.new.session)?;
        report.step(&format!("{carried} sequences carry their values"));
        report.progress("refreshing materialized views");
        let refreshed = matviews::refresh(&populated, &mut self.nodes.new.session, &of_queries)?;
        for (view, error) in &refreshed.unfilled {
            report.warn(
                &format!(
                    "materialized view {view} of node \"{}\" has no contents: {error}",
                    self.nodes.new.name
                ),
                &format!("Mend that on every node, then run REFRESH MATERIALIZED VIEW {view}."),
            );
        }
        report.step(&format!(
            "{} materialized views refreshed",
            refreshed.names.len()
        ));
        if !checks.is_empty() {
            report.progress("validating check constraints");
        }
        for unproved in checks.validate(self.local, &search_path)? {
            self.warn_of(&unproved);
        }
        self.journal
            .passed("sequences and materialized views are set")?;
        settings::apply(&mut self.nodes.new.session, &own)?;
        let mut rows_kept = 0;
        if let Some((kept, tables)) = kept {
            report.progress("giving the newest rows their own times");
            let (origin, settings) = (&plan.origin, &plan.settings);
            rows_kept = own_times::keep(
                self.nodes.engine,
                &source,
                self.nodes.new,
                &tables,
                kept,
                origin,
                settings,
            )?;
            if rows_kept > 0 {
                report.step(&format!("{rows_kept} rows keep their commit timestamps"));
            }
        }
        self.journal.passed("the newest rows have their times")?;
        // The rows are stored: the origin has done its work, and its name may be wanted again.
        server::drop_origin(&plan.origin).run(self.nodes.new)?;
        Ok(Stored {
            copied,
            files,
            structure,
            rows_kept,
        })
    }

    fn warn_of(&self, check: &Unproved) {
        let (node, name) = (&self.nodes.new.name, &check.name);
        let (why, mend) = match (&check.error, check.rows) {
            (Some(error), _) => (format!("it could not be validated: {error}"), "Mend that"),
            (None, rows) => {
                let rows = rows.map_or("some".to_owned(), |rows| rows.to_string());
                let source = &self.nodes.source.name;
                let why = format!("rows that break it, on node \"{source}\" as well: {rows}");
                (why, "Mend these rows")
            }
        };
        let validate: Vec<String> = check
            .validate_on
            .iter()
            .map(|table| format!("ALTER TABLE {table} VALIDATE CONSTRAINT {}", ident(name)))
            .collect();
        self.report.warn(
            &format!(
                "check constraint \"{name}\" of table {} is NOT VALID on node \"{node}\": {why}",
                check.table
            ),
            &format!(
                "{mend}, then run {} on node \"{node}\".",
                validate.join("; ")
            ),
        );
    }

    /// New sessions of the database cannot write: what an application wrote before the new node's
    /// slots exist would be on no other node.
    fn block_writes(&mut self) -> Result<Option<String>> {
        let before = server::database_read_only().first(self.nodes.new)?;
        let setting = ReadOnlyBefore {
            database: self.database.to_owned(),
            setting: before.clone(),
        };
        let phase = self.report.current();
        let new = &self.nodes.new.name;
        let step = self.journal.take::<BlockWritesOfNew>(phase, new)?;
        let step = self.journal.begin_with(step, setting)?;
        server::set_database_read_only(self.database, Some("on")).run(self.nodes.new)?;
        self.journal.done(step)?;
        Ok(before)
    }

    fn hold_off_by_engine(&mut self) -> Result<Option<Statement>> {
        let phase = self.report.current();
        let Some(step) = self.journal.take_if::<BlockWritesByEngine>(phase) else {
            return Ok(None);
        };
        let BlockWritesByEngine { block, release } = step.action().clone();
        let step = self.journal.begin(step)?;
        Statement::new(block, &[]).run(self.nodes.new)?;
        self.journal.done(step)?;
        Ok(Some(Statement::new(release, &[])))
    }

    fn create_origin(&mut self, origin: &str) -> Result<()> {
        let phase = self.report.current();
        let new = &self.nodes.new.name;
        let step = self.journal.take::<CreateOrigin>(phase, new)?;
        let step = self.journal.begin_with(step, origin.to_owned())?;
        // One that an earlier run left is of no use to anyone: positions are not read from it.
        server::drop_origin(origin).run(self.nodes.new)?;
        server::create_origin(origin).run(self.nodes.new)?;
        self.journal.done(step)
    }
}
