//! The structure: `pg_dump` on the source into a file, `pg_restore` from it in two parts.

use super::contents::{self, Omit, Part};
use super::program::Program;
use super::scratch::Scratch;
use super::sql::array;
use super::{InSnapshot, OURS, Source, Target, conninfo};
use crate::encoding;
use crate::environment::{self, EVENT_TRIGGERS};
use crate::error::{Result, SqlState};
use crate::failpoint;
use crate::libpq::Conn;
use crate::node::{Query, Session, ask_one};
use crate::quote::ident;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::fs;

/// Index builds with less than this sort on disk for no good reason. PostgreSQL's own default.
const LEAST_MAINTENANCE_KB: i32 = 64 * 1024;
/// Always there; pg_dump knows that and never makes it.
const PUBLIC: &str = "public";

/// A structure may hold passwords, in the options of user mappings: keeps the server's log free of it.
/// Only a superuser may set these.
const UNLOGGED: [(&str, &str); 4] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_min_error_statement", "panic"),
];

/// What the new node must not get from the source, by name.
#[derive(Clone, Debug)]
pub struct Excluded {
    pub schemas: Vec<String>,
    pub extensions: Vec<String>,
    pub publications: Vec<String>,
}

impl Default for Excluded {
    /// What each node has of its own: our extension, our publication, and the schemas of the engines.
    fn default() -> Self {
        Self {
            schemas: OURS.map(str::to_owned).to_vec(),
            extensions: vec!["zodan".into()],
            publications: vec!["zodan".into()],
        }
    }
}

/// What has to be known of the source before its structure is dumped.
pub struct SeenBefore {
    /// Settings that a session there may make.
    environment: Vec<(String, String)>,
    named: Vec<Named>,
}

impl SeenBefore {
    pub fn of(source: &mut InSnapshot, excluded: &Excluded) -> Result<Self> {
        let asked = (known_settings(), named_objects(excluded));
        let (environment, named) = ask_one(source.node(), &asked)?;
        Ok(Self { environment, named })
    }
}

/// The structure of the source in a private file, removed with this value.
pub struct Archive {
    scratch: Scratch,
    /// What to run on the new node first, so that the restore finds the schemas it expects.
    preparations: Vec<String>,
    /// Those with entries.
    parts: Vec<Part>,
}

impl Archive {
    /// Dumps the structure that the snapshot shows, for a database with the schemas that `target` has.
    pub fn dump(
        source: &Source<'_>,
        target: &mut Session,
        excluded: &Excluded,
        seen: SeenBefore,
    ) -> Result<Self> {
        let scratch = Scratch::create()?;
        let mut omit = Omit::default();
        let owners: HashMap<String, String> = schema_owners().on(target)?.into_iter().collect();
        let mut preparations = vec![];
        for named in seen.named {
            let Some(owner) = &named.schema_owner else {
                omit.objects.insert(named.object);
                continue;
            };
            let owner_on_target = owners.get(&named.name).map(String::as_str);
            preparations.extend(preparation(&named.name, owner, owner_on_target));
            // pg_dump's entry for schema public does not create it, but carries its owner.
            if owner_on_target.is_some() && named.name != PUBLIC {
                omit.objects.insert(named.object);
            }
        }
        excluded
            .extensions
            .iter()
            .for_each(|name| omit.labels_of("EXTENSION", name));
        excluded
            .publications
            .iter()
            .for_each(|name| omit.labels_of("PUBLICATION", name));

        let (connection, variables) =
            conninfo::of(source.node, source.dsn, &seen.environment, &scratch)?;
        let mut arguments: Vec<String> = [
            "--schema-only",
            "--no-subscriptions",
            "--format=custom",
            "--compress=0",
            "--no-password",
        ]
        .map(String::from)
        .into();
        // Files of this directory are of no use after a crash.
        arguments.push("--no-sync".into());
        arguments.push(format!("--encoding={}", encoding::of_database()));
        arguments.push(format!("--snapshot={}", source.snapshot));
        arguments.push(format!("--file={}", scratch.file(DUMP).display()));
        arguments.extend(
            excluded
                .schemas
                .iter()
                .map(|s| format!("--exclude-schema={}", ident(s))),
        );
        arguments.extend(["--dbname".into(), connection]);
        Program {
            name: "pg_dump",
            node: source.node,
            remote: Some(source.dsn),
            arguments,
            environment: variables,
        }
        .run()?;

        let list = Program {
            name: "pg_restore",
            node: source.node,
            remote: None,
            arguments: vec!["--list".into(), scratch.file(DUMP).display().to_string()],
            environment: vec![],
        }
        .run()?;
        let list = String::from_utf8_lossy(&list);
        let mut parts = vec![];
        for part in [Part::Most, Part::ForeignKeys, Part::Last] {
            let selected = contents::select(&list, &omit, part);
            if !selected.is_empty() {
                scratch.write(list_of(part), selected.as_bytes())?;
                parts.push(part);
            }
        }
        Ok(Self {
            scratch,
            preparations,
            parts,
        })
    }

    /// Size of the structure in bytes, for the report.
    pub fn bytes(&self) -> u64 {
        fs::metadata(self.scratch.file(DUMP)).map_or(0, |m| m.len())
    }

    /// Types, functions, tables: all that data needs.
    pub fn restore_before_data(&self, target: &Target<'_>, session: &mut Session) -> Result<()> {
        for statement in &self.preparations {
            session.query(statement, &[])?;
        }
        self.restore(
            target,
            Part::Most,
            &["--section=pre-data".into()],
            || Ok(()),
        )
    }

    /// Indexes, constraints, triggers and rules, with up to `jobs` sessions at the same time. `beside` is
    /// called about once a second meanwhile.
    pub fn restore_after_data(
        &self,
        target: &Target<'_>,
        jobs: usize,
        mut beside: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let jobs = format!("--jobs={}", jobs.max(1));
        let what = ["--section=post-data".into(), jobs.clone()];
        self.restore(target, Part::Most, &what, &mut beside)?;
        // Those that fail are looked at one by one, and say then why.
        match self.restore(target, Part::ForeignKeys, &[jobs], beside) {
            Err(error) if error.sqlstate() == SqlState::EXTERNAL_ROUTINE_EXCEPTION => Ok(()),
            answer => answer,
        }
    }

    /// Comments on constraints, and event triggers.
    pub fn restore_last(&self, target: &Target<'_>) -> Result<()> {
        self.restore(target, Part::Last, &[], || Ok(()))
    }

    fn restore(
        &self,
        target: &Target<'_>,
        part: Part,
        what: &[String],
        beside: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if !self.parts.contains(&part) {
            return Ok(());
        }
        // Asked first, which also gives a better error than a program's if nobody can connect.
        let mut session = Conn::open(target.node, target.dsn)?;
        let superuser = is_superuser().one(&mut session)?;
        let mut settings = known_settings().on(&mut session)?;
        drop(session);
        let no_event_triggers = settings.iter().any(|(name, _)| name == EVENT_TRIGGERS);
        settings.extend(restore_settings(
            target.settings,
            superuser,
            no_event_triggers,
        ));
        let (connection, environment) =
            conninfo::of(target.node, target.dsn, &settings, &self.scratch)?;
        let mut arguments = vec!["--no-password".to_owned()];
        if part != Part::ForeignKeys {
            arguments.push("--exit-on-error".into());
        }
        arguments.extend_from_slice(what);
        arguments.push(format!(
            "--use-list={}",
            self.scratch.file(list_of(part)).display()
        ));
        arguments.extend(["--dbname".into(), connection]);
        arguments.push(self.scratch.file(DUMP).display().to_string());
        Program {
            name: "pg_restore",
            node: target.node,
            remote: None,
            arguments,
            environment,
        }
        .run_beside(beside)?;
        Ok(())
    }
}

const DUMP: &str = "structure.dump";

fn list_of(part: Part) -> &'static str {
    match part {
        Part::Most => "structure.list",
        Part::ForeignKeys => "foreign_keys.list",
        Part::Last => "last.list",
    }
}

/// An object of the source that has to be looked at by its name.
struct Named {
    /// Its catalog and OID.
    object: (u32, u32),
    name: String,
    /// Of a schema its owner; what is no schema is left out.
    schema_owner: Option<String>,
}

/// The objects that are left out wherever they are, and all schemas with their owners.
fn named_objects(excluded: &Excluded) -> Query<Named> {
    Query::new(
        include_str!("named_objects.sql"),
        &[
            &array(&excluded.extensions),
            &array(&excluded.publications),
            &array(&excluded.schemas),
        ],
        |row| {
            Ok(Named {
                object: (row.get("catalog")?, row.get("oid")?),
                name: row.get("name")?,
                schema_owner: row.get("schema_owner")?,
            })
        },
    )
}

fn schema_owners() -> Query<(String, String)> {
    Query::new(
        "SELECT nspname, pg_get_userbyid(nspowner) AS owner FROM pg_catalog.pg_namespace",
        &[],
        |row| Ok((row.get("nspname")?, row.get("owner")?)),
    )
}

fn is_superuser() -> Query<bool> {
    Query::new(
        "SELECT current_setting('is_superuser')::boolean",
        &[],
        |row| row.only(),
    )
}

/// What makes a schema of the source acceptable on the new node.
fn preparation(name: &str, owner: &str, owner_on_target: Option<&str>) -> Option<String> {
    match owner_on_target {
        Some(same) if same == owner => None,
        Some(_) => Some(format!(
            "ALTER SCHEMA {} OWNER TO {}",
            ident(name),
            ident(owner)
        )),
        None if name == PUBLIC => Some(format!(
            "CREATE SCHEMA {} AUTHORIZATION {}",
            ident(name),
            ident(owner)
        )),
        None => None,
    }
}

/// The settings of all our sessions that the server has.
fn known_settings() -> Query<(String, String)> {
    Query::new(environment::known(), &[], |row| {
        Ok((row.get("name")?, row.get("value")?))
    })
}

fn restore_settings(
    extra: &[(&str, &str)],
    superuser: bool,
    no_event_triggers: bool,
) -> Vec<(String, String)> {
    // SAFETY: a setting, read in the only thread.
    let maintenance = unsafe { pg_sys::maintenance_work_mem }.max(LEAST_MAINTENANCE_KB);
    let maintenance = format!("{maintenance}kB");
    // Before PostgreSQL 17 this keeps event triggers of the usual kind from what the restore does.
    let as_replica = !no_event_triggers && superuser && !failpoint::event_triggers_fire();
    [
        // Made durable by the next commit of the run itself; what a crash loses, it also undoes.
        ("synchronous_commit", "off"),
        ("client_min_messages", "warning"),
        ("maintenance_work_mem", &maintenance),
    ]
    .iter()
    .chain(as_replica.then_some(&("session_replication_role", "replica")))
    .chain(if superuser { &UNLOGGED[..] } else { &[] })
    .chain(extra)
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect()
}
