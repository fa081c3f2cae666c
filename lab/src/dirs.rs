//! Where the lab keeps its files.
//!
//! Everything is below one directory of the user's in /tmp (or another short temporary directory: a Unix
//! socket's path has little room). A process that ends in an orderly way removes what is its own; what a
//! killed one has left, the next one removes.

use crate::pg;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The lab's directory.
pub fn base() -> &'static Path {
    const LONGEST: usize = 40;
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() > LONGEST {
            parent = PathBuf::from("/tmp");
        }
        let dir = parent.join(format!("zodan-lab-{}", pg::effective_uid()));
        make(&dir);
        // In a world-writable parent somebody else could have put a directory or a link there first.
        let meta = fs::symlink_metadata(&dir).expect("look at the lab's directory");
        assert!(
            meta.is_dir() && meta.uid() == pg::effective_uid(),
            "{} is not a directory of ours",
            dir.display()
        );
        dir
    })
}

/// A fresh directory that the servers' account owns; gone with the value.
pub fn scratch(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(of_this_process())
        .unwrap_or_else(|e| panic!("cannot make a scratch directory: {e}"));
    pg::give_to_account(dir.path());
    dir
}

/// The directory of all scratch directories of this process, marked as alive by a lock.
fn of_this_process() -> &'static Path {
    static RUN: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (dir, _) = RUN.get_or_init(|| {
        let runs = base().join("run");
        make(&runs);
        // One at a time: a directory that is not locked yet would look like a dead process's.
        let turn = open_lock(&base().join("run.lock"));
        turn.lock().expect("wait for the lock on run.lock");
        sweep(&runs);
        let dir = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(4)
            .tempdir_in(&runs);
        let dir = dir
            .unwrap_or_else(|e| panic!("cannot make a directory in {}: {e}", runs.display()))
            .keep();
        open_to_all(&dir);
        let alive = open_lock(&dir.join("alive"));
        alive.lock().expect("lock a file of our own");
        (dir, alive)
    });
    dir
}

/// Removes the directories of processes that are no more.
fn sweep(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for dir in entries.flatten().map(|entry| entry.path()) {
        let dead = match File::open(dir.join("alive")) {
            Ok(alive) => alive.try_lock().is_ok(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if dead {
            // Its servers may be ending this moment, and then the next sweep gets the rest.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Opens a file to be locked; it is made if it is not there.
pub fn open_lock(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}

/// Makes a directory, if it is not there, that the servers' account can pass through.
pub(crate) fn make(dir: &Path) {
    match fs::create_dir(dir) {
        Ok(()) => open_to_all(dir),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => panic!("cannot make {}: {e}", dir.display()),
    }
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .unwrap_or_else(|e| panic!("cannot change the mode of {}: {e}", dir.display()));
}
