//! What the native engine calls on the members of a cluster.

use super::entry::{self, raised};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Node};
use crate::worker;
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder};
use pgrx::prelude::*;
use pgrx::{PgXactCallbackEvent, register_xact_callback};
use std::ffi::c_char;

/// Marks the current transaction as one that replication does not send on. Always true.
#[pg_extern(sql = "")]
fn unreplicated() -> bool {
    set_origin(pg_sys::DoNotReplicateId);
    register_xact_callback(PgXactCallbackEvent::PreCommit, || {
        // SAFETY: the session's variable that commit records take the time of an origin's transaction from, and
        // redo after a crash takes it from there.
        unsafe { pg_sys::replorigin_session_origin_timestamp = pg_sys::GetCurrentTimestamp() };
    });
    register_xact_callback(PgXactCallbackEvent::Commit, || {
        set_origin(pg_sys::InvalidRepOriginId)
    });
    register_xact_callback(PgXactCallbackEvent::Abort, || {
        set_origin(pg_sys::InvalidRepOriginId)
    });
    true
}

fn set_origin(id: u32) {
    // SAFETY: the session's variable that commit records take their origin from. For
    // DoNotReplicateId PostgreSQL advances no origin, so none has to be set up.
    unsafe { pg_sys::replorigin_session_origin = id as pg_sys::RepOriginId };
}

/// Whether this is a worker of logical replication.
#[pg_extern(sql = "")]
fn applying() -> bool {
    // SAFETY: reads what the process is.
    unsafe { pg_sys::IsLogicalWorker() }
}

/// Has a subscription apply the changes of a table, whose rows are there.
#[pg_extern(sql = "")]
fn add_subscription_table(subscription: pg_sys::Oid, relation: pg_sys::Oid) {
    unsafe extern "C-unwind" {
        /// Exported by the server.
        fn AddSubscriptionRelState(
            subscription: pg_sys::Oid,
            relation: pg_sys::Oid,
            state: c_char,
            position: pg_sys::XLogRecPtr,
            #[cfg(not(any(feature = "pg15", feature = "pg16")))] retain_lock: bool,
        );
    }
    /// `SUBREL_STATE_READY`.
    const READY: c_char = b'r' as c_char;
    // SAFETY: in a transaction; what the server raises, as where the row is there, comes through the boundary.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            AddSubscriptionRelState(
                subscription,
                relation,
                READY,
                0,
                #[cfg(not(any(feature = "pg15", feature = "pg16")))]
                false,
            );
        });
    }
}

/// Connects to `dsn` from this server and says who answered.
#[pg_extern(sql = "")]
fn probe(
    dsn: &str,
) -> raised::Result<TableIterator<'static, (name!(server, String), name!(database, String))>> {
    entry::raise(|| probe_dsn(dsn)).map(TableIterator::once)
}

fn probe_dsn(dsn: &str) -> Result<(String, String)> {
    let dsn = Dsn::parse(dsn).map_err(|bad| Error::Argument {
        argument: "dsn",
        problem: bad.problem().into(),
        hint: "Write it as keyword=value pairs or as a postgresql:// URI.".into(),
        state: SqlState::INVALID_PARAMETER_VALUE,
    })?;
    let probed = Member {
        name: "probed".into(),
        dsn,
    };
    let opened = Node::connect(&[probed]).pop();
    let opened = opened.unwrap_or_else(|| Err(Error::internal("no answer")));
    let mut node = opened.map_err(|error| match error {
        // Who asks knows which node it is; we do not.
        Error::Connect { reason, .. } => Error::refused(SqlState::UNABLE_TO_CONNECT, reason, ""),
        error => error,
    })?;
    let id = node.identity()?;
    Ok((id.server, id.database))
}

/// Starts the worker that resumes apply when the coordinator of a pause is gone.
#[pg_extern(sql = "")]
fn start_pause_watchdog(coordinator: i32, limit_ms: i32) -> raised::Result<i32> {
    // SAFETY: reads backend state.
    let (database, role, pid) =
        unsafe { (pg_sys::MyDatabaseId, pg_sys::GetUserId(), pg_sys::MyProcPid) };
    let none_free = || {
        Error::refused(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "no background worker is free to watch over the pause of apply",
            "Raise max_worker_processes on this node.",
        )
    };
    let worker = BackgroundWorkerBuilder::new("zodan pause watchdog")
        .set_type("zodan pause watchdog")
        .set_library("zodan")
        .set_function("zodan_pause_watchdog")
        .set_extra(&format!(
            "{} {} {coordinator} {limit_ms}",
            database.to_u32(),
            role.to_u32()
        ))
        .enable_spi_access()
        .set_notify_pid(pid)
        .load_dynamic()
        .map_err(|_| none_free())?;
    Ok(worker.wait_for_startup().map_err(|_| none_free())?)
}

/// The watchdog: waits for the coordinator's lock in `zodan.watch_pause`, then resumes apply.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_pause_watchdog(_argument: pg_sys::Datum) {
    worker::begin();
    let extra = BackgroundWorker::get_extra().to_owned();
    let numbers: Vec<u32> = extra.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [database, role, coordinator, limit_ms] = numbers[..] else {
        pgrx::error!("zodan pause watchdog started with \"{extra}\"");
    };
    BackgroundWorker::connect_worker_to_spi_by_oid(
        Some(pg_sys::Oid::from(database)),
        Some(pg_sys::Oid::from(role)),
    );
    BackgroundWorker::transaction(|| {
        // select, not update: no transaction id while waiting.
        Spi::connect(|client| {
            client
                .select(
                    "SELECT zodan.watch_pause($1, $2)",
                    None,
                    &[(coordinator as i32).into(), (limit_ms as i32).into()],
                )
                .map(|_| ())
        })
        .unwrap_or_else(|e| pgrx::error!("zodan pause watchdog: {e}"));
    });
}
