//! The background workers that keep recovery slots: a node worker for each database that is a node. Where the library is
//! preloaded a launcher starts them.

use super::entry::{self, raised};
use crate::engine::{self, LocalMember, Registry};
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Dsn, wait};
use crate::node::server::{self, DatabaseId};
use crate::node::{Member, Mode, Node, Reader, Statement};
use crate::workflow::node_copy::{self, NodeCopy};
use crate::workflow::node_worker::{NodeWorker, Outcome};
use crate::workflow::{members, own_session, removed};
use crate::{place, worker};
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, DynamicBackgroundWorker};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

const NODE_WORKER: &str = "zodan node worker";
/// Behind the database, where it had slots or a note of its place when its node worker was started.
const SEEN_SLOTS: &str = " with slots";
/// How often a node worker looks.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks it makes sure that the address of the node still leads to this server.
const LOOKS: u32 = 30;
/// How soon a node worker tries again after an error.
const PAUSE: Duration = Duration::from_secs(5);
/// How often, and after how long each time, slots are dropped again whose readers are being ended.
const TRIES: usize = 50;
const TRY: Duration = Duration::from_millis(100);

/// The advisory lock of the node worker of a database; `zodk` in ASCII.
const NODE_WORKER_LOCK: &str = "2054120555, 1";

/// Starts a node worker. One that `notify` is told of is started again whenever it dies.
pub fn launch_node_worker(
    database: pg_sys::Oid,
    notify: Option<i32>,
) -> Result<DynamicBackgroundWorker> {
    builder(database, notify)
        .load_dynamic()
        .map_err(|_| none_free())
}

fn none_free() -> Error {
    Error::refused(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "no background worker is free to keep a recovery slot",
        "Raise max_worker_processes on this node.",
    )
}

fn builder(database: pg_sys::Oid, notify: Option<i32>) -> BackgroundWorkerBuilder {
    // The launcher has seen what nodes have.
    let by_launcher = if notify.is_none() { SEEN_SLOTS } else { "" };
    let builder = BackgroundWorkerBuilder::new(NODE_WORKER)
        .set_type(NODE_WORKER)
        .set_library("zodan")
        .set_function("zodan_node_worker")
        .set_extra(&format!("{}{by_launcher}", database.to_u32()))
        .enable_spi_access();
    match notify {
        Some(pid) => builder.set_notify_pid(pid).set_restart_time(Some(PAUSE)),
        None => builder,
    }
}

/// Starts a node worker for this database, unless one runs.
#[pg_extern(sql = "")]
fn start_node_worker() -> raised::Result<i32> {
    entry::raise(|| {
        let running: Option<i32> = Spi::connect(|client| {
            let rows = client.select(
                "SELECT pid FROM pg_stat_activity
              WHERE backend_type = 'zodan node worker' AND datname = current_database()",
                None,
                &[],
            )?;
            if rows.is_empty() {
                return Ok(None);
            }
            rows.first().get::<i32>(1)
        })
        .map_err(|e: pgrx::spi::Error| Error::internal(e.to_string()))?;
        if let Some(pid) = running {
            return Ok(pid);
        }
        require_own("Add it to one first.")?;
        // SAFETY: reads backend state.
        let (database, pid) = unsafe { (pg_sys::MyDatabaseId, pg_sys::MyProcPid) };
        let worker = launch_node_worker(database, Some(pid))?;
        worker.wait_for_startup().map_err(|_| none_free())
    })
}

/// The node worker of one database. It ends when the database is no node, and when the server stops.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_node_worker(_argument: pg_sys::Datum) {
    worker::begin();
    let extra = BackgroundWorker::get_extra();
    let (known, seen_slots) = match extra.strip_suffix(SEEN_SLOTS) {
        Some(known) => (known, true),
        None => (extra, false),
    };
    let Ok(database) = known.parse::<u32>() else {
        pgrx::error!("zodan node worker started without a database");
    };
    // Where it is gone, to connect would fail and the worker be started again, for ever. DROP DATABASE takes the slots
    // first, the files last.
    let oid = pg_sys::Oid::from(database);
    let seen = || count_slots(oid) > 0 || place::is_noted(oid);
    if !has_files(database) || seen_slots && !seen() {
        return;
    }
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(pg_sys::Oid::from(database)), None);
    if !is_alone() {
        return;
    }
    let mut said = String::new();
    loop {
        match keep() {
            Ok(()) => return,
            Err(error) => {
                let text = crate::libpq::scrub(&error.to_string());
                if text != said {
                    pgrx::log!("zodan node worker: {text}");
                    said = text;
                }
            }
        }
        rest(PAUSE);
    }
}

/// How many logical slots a database has.
pub fn count_slots(database: pg_sys::Oid) -> i32 {
    let (mut slots, mut active) = (0, 0);
    // SAFETY: counts in shared memory, under its lock.
    unsafe { pg_sys::ReplicationSlotsCountDBSlots(database, &mut slots, &mut active) };
    slots
}

/// Whether the database is there. Its files go with it.
fn has_files(database: u32) -> bool {
    let database = database.to_string();
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    // The working directory is that of the data. A tablespace has one directory for each version of the catalogs.
    let elsewhere = below(Path::new("pg_tblspc"))
        .into_iter()
        .flat_map(|space| below(&space));
    std::iter::once(PathBuf::from("base"))
        .chain(elsewhere)
        .any(|dir| dir.join(&database).is_dir())
}

/// Whether this is the one node worker of the database from now on.
fn is_alone() -> bool {
    let lock = format!("SELECT pg_try_advisory_lock({NODE_WORKER_LOCK})");
    BackgroundWorker::transaction(|| {
        Spi::connect(|client| client.select(&lock, None, &[])?.first().get::<bool>(1))
    })
    .unwrap_or_else(|e| pgrx::error!("zodan node worker: {e}"))
        == Some(true)
}

/// Looks after the slot until the database is not a cluster node any more.
fn keep() -> Result<()> {
    let own = BackgroundWorker::transaction(own)?;
    // SAFETY: backend state.
    let database = unsafe { pg_sys::MyDatabaseId };
    let Some(own) = own else {
        return match BackgroundWorker::transaction(is_joining)? {
            true => Ok(()),
            false => place::forget(database),
        };
    };
    let mut local: Node = match own_session(&own) {
        Ok(local) => local,
        Err(error) => return Err(perhaps_copied(error, &own, database)),
    };
    // A copy of a node, of the whole server too, has the connection string of the original.
    let identity = format!(
        "SELECT s, d::text FROM ({}) AS i (s, d)",
        server::identity().statement.sql
    );
    let ours = BackgroundWorker::transaction(|| two_texts(&identity))?;
    let ours = ours.map(|(server, database)| DatabaseId { server, database });
    if ours != Some(members::identity(&mut local)?) {
        if end_if_removed(&own, &mut local)? {
            return place::forget(database);
        }
        stop_if_copied(&own, &mut local)?;
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "the connection string of node \"{}\" leads from here to another database than this one, so its recovery slot is not kept",
                own.name
            ),
            "",
        ));
    }
    let engine = engine::detect(&mut local)?;
    place::keep(database)?;
    let mut worker = NodeWorker::new(engine, local)?;
    for look in 1.. {
        worker::reload();
        // The address may lead to another server since.
        if look % LOOKS == 0 && ours != Some(members::identity(&mut own_session(&own)?)?) {
            break;
        }
        match worker.look()? {
            Outcome::Yes => {}
            Outcome::NoNode => return place::forget(database),
            Outcome::Removed(what) => {
                pgrx::log!("zodan: {what}");
                // It has nothing any more that could apply.
                return place::forget(database);
            }
            Outcome::GivenUp(why) | Outcome::WentBack(why) => pgrx::warning!("zodan: {why}"),
            Outcome::CaughtUp(what) | Outcome::Resumed(what) => pgrx::log!("zodan: {what}"),
        }
        wait::on_latch(LOOK)?;
    }
    Ok(())
}

/// What is said where nobody answers at the address of the node, which this server may be a copy of.
fn perhaps_copied(error: Error, own: &Member, database: pg_sys::Oid) -> Error {
    let Some(noted) = place::noted_elsewhere(database) else {
        return error;
    };
    Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!(
            "the database was node \"{}\" on {noted}, and nobody answers at the address of the node: {error}. Nothing is applied until it leads here, or SELECT zodan.become_standalone() has run",
            own.name
        ),
        "",
    )
}

/// An error if this server is a copy of `node`, which is where the registry says; it subscribes to nobody any more.
fn stop_if_copied(own: &Member, node: &mut Node) -> Result<()> {
    let engine = engine::detect(node)?;
    let look = AssertUnwindSafe(|| {
        let mode = Mode::DryRun(Reader::enter("the node worker")?);
        let mut me = members::local(&own.name, &own.dsn, &mode);
        let copied = NodeCopy::of(&*engine, &mut me, node)?;
        if copied.is_some() {
            run(&engine.stop_subscriptions())?;
        }
        Ok::<_, Error>(copied)
    });
    let found = BackgroundWorker::transaction(look)?;
    match found {
        Some(copied) => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "{}. The members mean the second, so the subscriptions of the first are disabled; if it is a copy, run SELECT zodan.become_standalone() on it",
                copied.message()
            ),
            "",
        )),
        None => Ok(()),
    }
}

/// Whether the node was removed, and its successor, `other`, is where it was itself. It has no session of its own then
/// by which it could end what it has of the cluster, so this worker does.
fn end_if_removed(own: &Member, other: &mut Node) -> Result<bool> {
    let question = "SELECT current_database()::text, registry::text FROM zodan.registry()";
    let registry = BackgroundWorker::transaction(|| match has_table("zodan.membership")? {
        true => two_texts(question),
        false => Ok(None),
    })?;
    let Some((database, registry)) = registry else {
        return Ok(false);
    };
    let registry = Registry::parse(&registry)?;
    let engine = engine::detect(other)?;
    let found = removed::by_another(&*engine, &own.name, &database, &registry, other)?;
    let Some((message, slots)) = found else {
        return Ok(false);
    };
    for statement in engine.end_subscriptions() {
        BackgroundWorker::transaction(|| run(&statement))?;
    }
    for _ in 0..TRIES {
        if BackgroundWorker::transaction(|| drop_own_slots(&slots))? {
            BackgroundWorker::transaction(|| run(&server::forget_recovery()))?;
            pgrx::log!("zodan: {message}");
            return Ok(true);
        }
        wait::on_latch(TRY)?;
    }
    Err(in_use(&own.name))
}

fn in_use(name: &str) -> Error {
    Error::refused(
        SqlState::OBJECT_IN_USE,
        format!(
            "somebody streams from the slots that this server has of its time as node \"{name}\""
        ),
        "",
    )
}

/// Notes where this database is a node.
#[pg_extern(sql = "")]
fn keep_place() -> raised::Result<()> {
    entry::superuser_function("zodan.keep_place()", || {
        // SAFETY: backend state.
        place::keep(unsafe { pg_sys::MyDatabaseId })
    })
}

/// Makes a database that was copied from a node an ordinary one.
#[pg_extern(sql = "")]
fn become_standalone() -> raised::Result<()> {
    const NAME: &str = "zodan.become_standalone()";
    entry::superuser_function(NAME, || {
        let mode = Mode::DryRun(Reader::enter(NAME)?);
        let own = require_own("Add it to one first.")?;
        let mut me = members::local(&own.name, &own.dsn, &mode);
        let engine = engine::detect(&mut me)?;
        node_copy::require_copy(&*engine, &mut me)?;
        let slots = node_copy::own_slots(&*engine, &mut me)?;
        run(&engine.stop_subscriptions())?;
        let mut tries = 0..TRIES;
        while !drop_own_slots(&slots)? {
            if tries.next().is_none() {
                return Err(in_use(&own.name));
            }
            wait::on_latch(TRY)?;
        }
        let statements = node_copy::unsubscribe(&*engine).into_iter();
        for statement in statements.chain(engine.drop_node()) {
            run(&statement)?;
        }
        // SAFETY: backend state.
        let database = unsafe { pg_sys::MyDatabaseId };
        place::forget(database)?;
        crate::ereport::notice(&format!(
            "the database is not a copy of node \"{}\" any more: its data is kept, and nobody gets what is written in it",
            own.name
        ));
        Ok(())
    })
}

/// As [`own`], where it has to be one; `hint` says what to do else.
pub fn require_own(hint: &'static str) -> Result<Member> {
    own()?.ok_or_else(|| {
        Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database is not a cluster node",
            hint,
        )
    })
}

/// Ends who reads them and drops them, with the recovery slots. False if some are left for the next try.
fn drop_own_slots(slots: &[String]) -> Result<bool> {
    run(&server::end_users_of_own_slots(slots))?;
    run(&server::drop_own_slots(slots))?;
    Ok(two_texts(&server::own_slots_left(slots).inlined())?.is_none())
}

/// In the transaction that there is.
fn run(statement: &Statement) -> Result<()> {
    Spi::run(&statement.inlined()).map_err(|e| Error::internal(e.to_string()))
}

fn has_table(name: &str) -> Result<bool> {
    let question = format!("SELECT '', '' WHERE to_regclass('{name}') IS NOT NULL");
    Ok(two_texts(&question)?.is_some())
}

/// Whether a join has made this database a node that has no registry yet.
fn is_joining() -> Result<bool> {
    Ok(has_table("zodan.local_node")?
        && two_texts("SELECT name, name FROM zodan.local_node")?.is_some())
}

/// Which member this database is, and how it reaches itself.
pub fn own() -> Result<Option<Member>> {
    let mut found = None;
    for LocalMember { table, question } in engine::LOCAL_MEMBER {
        if found.is_none() && has_table(table)? {
            found = two_texts(question)?;
        }
    }
    found
        .map(|(name, dsn)| {
            let dsn = Dsn::parse(&dsn).map_err(|bad| {
                Error::internal(format!(
                    "the connection string of \"{name}\" {}",
                    bad.problem()
                ))
            })?;
            Ok(Member { name, dsn })
        })
        .transpose()
}

/// The two columns of the first row.
fn two_texts(sql: &str) -> Result<Option<(String, String)>> {
    Spi::connect(|client| {
        let rows = client.select(sql, None, &[])?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        let (first, second) = (row.get::<String>(1)?, row.get::<String>(2)?);
        Ok(first.zip(second))
    })
    .map_err(|e: pgrx::spi::Error| Error::internal(e.to_string()))
}

fn rest(time: Duration) {
    if let Err(error) = wait::on_latch(time) {
        pgrx::log!("zodan: {error}");
    }
}
