//! The background workers that keep recovery slots: a launcher for the server where the library is
//! preloaded, a keeper for each database that is a node.

use crate::engine;
use crate::environment;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Dsn, wait};
use crate::node::{Member, Node};
use crate::settings;
use crate::workflow::keeper::{Keeper, Kept};
use crate::workflow::own_session;
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::time::Duration;

const KEEPER: &str = "zodan recovery keeper";
/// How often a keeper looks.
const LOOK: Duration = Duration::from_secs(1);
/// How often the launcher looks for databases that have become nodes, and a keeper tries again after an error.
const PAUSE: Duration = Duration::from_secs(5);

/// Registers the launcher, where the library is being preloaded.
pub fn start_recovery_launcher() {
    // SAFETY: reads a flag of the server's start.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return;
    }
    BackgroundWorkerBuilder::new("zodan recovery launcher")
        .set_type("zodan recovery launcher")
        .set_library("zodan")
        .set_function("zodan_recovery_launcher")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(PAUSE))
        .enable_spi_access()
        .load();
}

/// The launcher: a keeper for every database. One that finds no node there ends at once.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_recovery_launcher(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
    environment::adopt();
    BackgroundWorker::connect_worker_to_spi(Some("postgres"), None);
    loop {
        reload();
        if settings::recovery_slots() {
            for database in databases_without_keeper() {
                // None is free: the next look tries again, and says so.
                if start_keeper(database, None).is_err() {
                    pgrx::log!(
                        "zodan: no background worker is free to keep a recovery slot; raise max_worker_processes"
                    );
                    break;
                }
            }
        }
        rest(PAUSE);
    }
}

fn databases_without_keeper() -> Vec<pg_sys::Oid> {
    BackgroundWorker::transaction(|| {
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT d.oid FROM pg_database d
                  WHERE d.datallowconn AND NOT d.datistemplate AND NOT EXISTS (
                            SELECT FROM pg_stat_activity a
                             WHERE a.datid = d.oid AND a.backend_type = 'zodan recovery keeper')",
                None,
                &[],
            )?;
            rows.map(|row| row.get::<pg_sys::Oid>(1))
                .collect::<std::result::Result<Vec<Option<pg_sys::Oid>>, pgrx::spi::Error>>()
        })
    })
    .map(|all| all.into_iter().flatten().collect())
    .unwrap_or_else(|e| pgrx::error!("zodan recovery launcher: {e}"))
}

fn start_keeper(database: pg_sys::Oid, notify: Option<i32>) -> Result<i32> {
    let none_free = || {
        Error::refused(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "no background worker is free to keep a recovery slot",
            "Raise max_worker_processes on this node.",
        )
    };
    let mut builder = BackgroundWorkerBuilder::new(KEEPER)
        .set_type(KEEPER)
        .set_library("zodan")
        .set_function("zodan_recovery_keeper")
        .set_extra(&database.to_u32().to_string())
        .enable_spi_access();
    if let Some(pid) = notify {
        builder = builder.set_notify_pid(pid).set_restart_time(Some(PAUSE));
    }
    let worker = builder.load_dynamic().map_err(|_| none_free())?;
    match notify {
        Some(_) => worker.wait_for_startup().map_err(|_| none_free()),
        None => Ok(0),
    }
}

/// Starts a keeper for this database, unless one runs.
#[pg_extern(sql = "")]
fn keep_recovery_slot() -> std::result::Result<i32, ErrorReport> {
    let running: Option<i32> = Spi::connect(|client| {
        let rows = client.select(
            "SELECT pid FROM pg_stat_activity
              WHERE backend_type = 'zodan recovery keeper' AND datname = current_database()",
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
    if own()?.is_none() {
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database is no node of a cluster",
            "Add it to one first.",
        )
        .into());
    }
    // SAFETY: reads backend state.
    let (database, pid) = unsafe { (pg_sys::MyDatabaseId, pg_sys::MyProcPid) };
    Ok(start_keeper(database, Some(pid))?)
}

/// The keeper of one database. It ends when the database is no node, and when the server stops.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_recovery_keeper(_argument: pg_sys::Datum) {
    // The default handler ends it on SIGTERM wherever it waits.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
    let Ok(database) = BackgroundWorker::get_extra().parse::<u32>() else {
        pgrx::error!("zodan recovery keeper started without a database");
    };
    environment::adopt();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(pg_sys::Oid::from(database)), None);
    let mut said = String::new();
    loop {
        match keep() {
            Ok(()) => return,
            Err(error) => {
                let text = crate::libpq::scrub(&error.to_string());
                if text != said {
                    pgrx::log!("zodan recovery keeper: {text}");
                    said = text;
                }
            }
        }
        rest(PAUSE);
    }
}

/// Looks after the slot until the database is no node any more.
fn keep() -> Result<()> {
    let own = BackgroundWorker::transaction(own)?;
    let Some(own) = own else { return Ok(()) };
    let mut here: Node = own_session(&own)?;
    let engine = engine::detect(&mut here)?;
    let mut keeper = Keeper::new(engine, here)?;
    loop {
        reload();
        match keeper.look()? {
            Kept::Yes => {}
            Kept::NoNode => return Ok(()),
            Kept::GivenUp(why) => pgrx::warning!("zodan: {why}"),
            Kept::CaughtUp(what) => pgrx::log!("zodan: {what}"),
        }
        wait::on_latch(LOOK)?;
    }
}

/// Which member this database is, and how it reaches itself.
pub fn own() -> Result<Option<Member>> {
    let text = |sql: &str| -> Result<Option<(String, String)>> {
        Spi::connect(|client| {
            let rows = client.select(sql, None, &[])?;
            if rows.is_empty() {
                return Ok(None);
            }
            let row = rows.first();
            let (name, dsn) = (row.get::<String>(1)?, row.get::<String>(2)?);
            Ok(name.zip(dsn))
        })
        .map_err(|e: pgrx::spi::Error| Error::internal(e.to_string()))
    };
    let is_there = |table: &str| -> Result<bool> {
        Ok(text(&format!(
            "SELECT '', '' WHERE to_regclass('{table}') IS NOT NULL"
        ))?
        .is_some())
    };
    let mut found = None;
    if is_there("spock.local_node")? {
        found = text(
            "SELECT n.node_name::text, i.if_dsn FROM spock.local_node l
               JOIN spock.node n USING (node_id)
               JOIN spock.node_interface i ON i.if_id = l.node_local_interface",
        )?;
    }
    if found.is_none() && is_there("zodan.local_node")? {
        found = text("SELECT n.name, n.dsn FROM zodan.node n JOIN zodan.local_node USING (name)")?;
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

/// Takes over changed settings.
fn reload() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: in a background worker, outside a transaction.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

fn rest(time: Duration) {
    if let Err(error) = wait::on_latch(time) {
        pgrx::log!("zodan: {error}");
    }
}
