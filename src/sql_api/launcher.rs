//! The launcher: starts a node worker in every database that is a node. It is connected to no database itself, so it is in
//! nobody's way, and it looks into no other than those that have logical slots, as every node of a cluster has, or a note
//! of where their node is, as its base backups have.

use super::recovery_slot::{count_slots, launch_node_worker};
use crate::libpq::wait;
use crate::{place, settings, worker};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime,
    DynamicBackgroundWorker,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often it looks.
const PAUSE: Duration = Duration::from_secs(5);
/// Between one database and the next, so that those that are no nodes never take more than one worker.
const STEP: Duration = Duration::from_millis(500);
/// A database without a node is looked into less and less often, at last so often; sooner if its slots change.
const LONGEST: Duration = Duration::from_secs(300);
/// `datconnlimit` of a database whose DROP was cut off.
const INVALID: i32 = -2;

/// Registers the launcher, where the library is being preloaded.
pub fn start_launcher() {
    // SAFETY: reads a flag of the server's start.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return;
    }
    BackgroundWorkerBuilder::new("zodan launcher")
        .set_type("zodan launcher")
        .set_library("zodan")
        .set_function("zodan_launcher")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(PAUSE))
        .enable_spi_access()
        .load();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_launcher(_argument: pg_sys::Datum) {
    worker::begin();
    BackgroundWorker::connect_worker_to_spi(None, None);
    let mut launcher = Launcher::default();
    loop {
        worker::reload();
        let more = settings::recovery_slots() && launcher.look();
        if let Err(error) = wait::on_latch(if more { STEP } else { PAUSE }) {
            pgrx::log!("zodan: {error}");
        }
    }
}

#[derive(Default)]
struct Launcher {
    tried: BTreeMap<u32, Tried>,
    /// That no worker is free has been said.
    reported: bool,
}

/// The last node worker that was started in a database.
struct Tried {
    worker: DynamicBackgroundWorker,
    began: Instant,
    /// It was there then.
    seen: Instant,
    /// How many slots the database had.
    slots: i32,
    /// How long after its beginning the next one may begin.
    pause: Duration,
}

impl Tried {
    /// Whether it runs, or it is too early for another one.
    fn stays(&mut self, slots: i32) -> bool {
        let runs = !matches!(self.worker.pid(), Err(BackgroundWorkerStatus::Stopped));
        if runs {
            self.seen = Instant::now();
        }
        runs || slots == self.slots && self.began.elapsed() < self.pause
    }

    /// How long to wait after the next one.
    fn next_pause(&self, slots: i32) -> Duration {
        // One that stayed had something to keep.
        let stayed = self.seen.duration_since(self.began) > LONGEST;
        match stayed || slots != self.slots {
            true => PAUSE,
            false => (self.pause * 2).min(LONGEST),
        }
    }
}

impl Launcher {
    /// Starts one node worker where there is none. Whether there may be more to start.
    fn look(&mut self) -> bool {
        let found = databases_with_slots();
        self.tried
            .retain(|database, _| found.iter().any(|(known, _)| known == database));
        for (database, slots) in found {
            let pause = match self.tried.get_mut(&database) {
                Some(tried) => match tried.stays(slots) {
                    true => continue,
                    false => tried.next_pause(slots),
                },
                None => PAUSE,
            };
            // The next look tries again.
            let Ok(worker) = launch_node_worker(pg_sys::Oid::from(database), None) else {
                if !std::mem::replace(&mut self.reported, true) {
                    pgrx::log!(
                        "zodan: no background worker is free to keep a recovery slot; raise max_worker_processes"
                    );
                }
                return false;
            };
            self.reported = false;
            let now = Instant::now();
            let tried = Tried {
                worker,
                began: now,
                seen: now,
                slots,
                pause,
            };
            self.tried.insert(database, tried);
            return true;
        }
        false
    }
}

/// Databases that sessions may connect to and that may be nodes, and how many logical slots they have.
fn databases_with_slots() -> Vec<(u32, i32)> {
    // SAFETY: the scan of a shared catalog in a transaction, as PostgreSQL's launcher of autovacuum workers does it;
    // the fixed part of a row is the struct. Errors end the process.
    let databases: Vec<pg_sys::Oid> = BackgroundWorker::transaction(|| unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let catalog = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::table_beginscan_catalog(catalog, 0, std::ptr::null_mut());
        let mut found = vec![];
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let row = header.cast::<u8>().add((*header).t_hoff.into());
            let row = &*row.cast::<pg_sys::FormData_pg_database>();
            if row.datallowconn && !row.datistemplate && row.datconnlimit != INVALID {
                found.push(row.oid);
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(catalog, lock);
        found
    });
    let count = |database: pg_sys::Oid| {
        let slots = count_slots(database);
        let may_be_node = slots > 0 || place::is_noted(database);
        may_be_node.then_some((database.to_u32(), slots))
    };
    databases.into_iter().filter_map(count).collect()
}
