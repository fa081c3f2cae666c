//! Where a node lives: host, port and data directory, noted in a file for each database that is a node. A base backup,
//! a copy of the files and a snapshot take the file along, so a server that finds another place in it than its own was
//! moved or copied. So may be one that finds none although its database is a node: a standby gets the rows of a node that
//! has joined since by replication, and not the file. Which of them it was, the node worker finds out; until then the apply
//! workers of the database end before they connect, since they would read what the original is to get.

use crate::engine::{APPLY_WORKERS, NODE_TABLES};
use crate::error::{Error, Result};
use crate::settings;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// In the data directory.
const NOTES: &str = "zodan";

/// The place in a note that an apply worker has made.
const UNKNOWN: &str = "an unknown place";

/// The name of this machine.
pub fn host() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is as long as it is said to be, and the last byte stays 0.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    match CStr::from_bytes_until_nul(&name) {
        Ok(name) if !failed => name.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}

/// The place of this server.
fn current() -> String {
    // SAFETY: settings of the server, which are there from its start on.
    let (directory, port) = unsafe { (CStr::from_ptr(pg_sys::DataDir), pg_sys::PostPortNumber) };
    let directory = directory.to_string_lossy();
    let directory = std::fs::canonicalize(&*directory).unwrap_or_else(|_| (&*directory).into());
    format!("{} port {port}, {}", host(), directory.display())
}

fn note(database: pg_sys::Oid) -> PathBuf {
    // The working directory is that of the data.
    PathBuf::from(NOTES).join(database.to_u32().to_string())
}

/// Whether there is a note of the database.
pub fn is_noted(database: pg_sys::Oid) -> bool {
    note(database).is_file()
}

/// The place that is noted, if it is another one than this server's.
pub fn noted_elsewhere(database: pg_sys::Oid) -> Option<String> {
    let noted = std::fs::read_to_string(note(database)).ok()?;
    (noted != current()).then_some(noted)
}

/// Notes that the database is a node in this place.
pub fn keep(database: pg_sys::Oid) -> Result<()> {
    if is_noted(database) && noted_elsewhere(database).is_none() {
        return Ok(());
    }
    replace(&note(database), &current()).map_err(|e| failed(&e))
}

/// Notes that it is not known whether this is the place: the launcher starts a node worker where there is a note.
fn ask(database: pg_sys::Oid) -> Result<()> {
    create(&note(database), UNKNOWN).map_err(|e| failed(&e))
}

/// Makes a note, or puts it in the place of one that is there.
fn replace(note: &Path, place: &str) -> io::Result<()> {
    std::fs::rename(stage(note, place)?, note)
}

/// Makes a note where there is none. The node worker may find out at this moment, and nobody would ask it again.
fn create(note: &Path, place: &str) -> io::Result<()> {
    let staged = stage(note, place)?;
    // Unlike a rename, this leaves what is there.
    let made = std::fs::hard_link(&staged, note);
    std::fs::remove_file(staged)?;
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Writes a file beside the note, one for each process: workers do so at the same time.
fn stage(note: &Path, place: &str) -> io::Result<PathBuf> {
    if let Some(directory) = note.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let staged = note.with_extension(std::process::id().to_string());
    let mut file = std::fs::File::create(&staged)?;
    file.write_all(place.as_bytes())?;
    file.sync_all()?;
    Ok(staged)
}

/// The database is not a cluster node any more.
pub fn forget(database: pg_sys::Oid) -> Result<()> {
    match std::fs::remove_file(note(database)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error)),
        _ => Ok(()),
    }
}

fn failed(error: &io::Error) -> Error {
    Error::internal(format!("the note of where the node is: {error}"))
}

/// Has apply workers ask, where the library is being preloaded.
pub fn watch_apply_workers() {
    // SAFETY: reads a flag of the server's start; the callback stays as long as the library, which is not unloaded.
    unsafe {
        if pg_sys::process_shared_preload_libraries_in_progress {
            pg_sys::RegisterXactCallback(Some(before_commit), std::ptr::null_mut());
        }
    }
}

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// The first transaction of an apply worker reads its subscription, before it connects.
#[pg_guard]
unsafe extern "C-unwind" fn before_commit(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    if event != pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT || ASKED.replace(true) {
        return;
    }
    // SAFETY: null but in background workers, where it is the worker's own entry.
    let Some(worker) = (unsafe { pg_sys::MyBgworkerEntry.as_ref() }) else {
        return;
    };
    // SAFETY: the server ends it with a 0.
    let function = unsafe { CStr::from_ptr(worker.bgw_function_name.as_ptr()) };
    let applies = APPLY_WORKERS
        .into_iter()
        .flatten()
        .any(|name| function.to_bytes() == name.as_bytes());
    if !applies || !settings::recovery_slots() {
        return;
    }
    // SAFETY: backend state.
    let database = unsafe { pg_sys::MyDatabaseId };
    // SAFETY: the transaction is still in progress.
    if !is_noted(database) && unsafe { is_node() } {
        ask(database).unwrap_or_else(|error| pgrx::error!("{error}"));
    }
    if let Some(noted) = noted_elsewhere(database) {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            match noted == UNKNOWN {
                true =>
                    "it is not known whether this server is the node or a copy of it".to_owned(),
                false => format!(
                    "the database was a node on {noted}, and is on {} now",
                    current()
                ),
            },
            "Apply waits until the node worker of the node knows whether it was moved or copied; see the log."
        );
    }
}

/// Whether the database is a node, by the tables of the engines. An apply worker may run as a role that must not read them.
///
/// # Safety
/// In a transaction.
unsafe fn is_node() -> bool {
    NODE_TABLES.iter().any(|(schema, table)| unsafe {
        // SAFETY: looks up names in the catalogs, and scans a table whose lock it holds.
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        let table = pg_sys::get_relname_relid(table.as_ptr(), schema);
        if table == pg_sys::InvalidOid {
            return false;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(table, lock);
        let scan = pg_sys::table_beginscan_catalog(table, 0, std::ptr::null_mut());
        let row = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
        let found = !row.is_null();
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(table, lock);
        found
    })
}

#[cfg(test)]
mod tests {
    use super::{UNKNOWN, create, replace};
    use std::fs;

    #[test]
    fn question_does_not_replace_an_answer() {
        let directory = std::env::temp_dir().join(format!("zodan-place-{}", std::process::id()));
        let note = directory.join("5");
        create(&note, UNKNOWN).unwrap();
        assert_eq!(fs::read_to_string(&note).unwrap(), UNKNOWN);
        replace(&note, "here").unwrap();
        create(&note, UNKNOWN).unwrap();
        assert_eq!(fs::read_to_string(&note).unwrap(), "here");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(directory).unwrap();
    }
}
