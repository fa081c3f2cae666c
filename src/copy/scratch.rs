//! A private directory for files that must not outlive their use.

use super::on_exit::OnExit;
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
}

/// A directory that only the server's account can enter. It goes with this value, with the backend,
/// and, since PostgreSQL empties `base/pgsql_tmp` when it starts, with a crash.
pub struct Scratch {
    path: PathBuf,
    _on_exit: OnExit,
}

impl Scratch {
    pub fn create() -> Result<Self> {
        // SAFETY: set by the postmaster before any backend is started.
        let data = unsafe { CStr::from_ptr(pg_sys::DataDir) };
        let parent = Path::new(&*data.to_string_lossy()).join("base/pgsql_tmp");
        let number = MADE.replace(MADE.get() + 1);
        let path = parent.join(format!("pgsql_tmp.zodan.{}.{number}", std::process::id()));
        make(&parent, &path).map_err(|e| failure("create", &path, &e))?;
        let doomed = path.clone();
        Ok(Self {
            path,
            _on_exit: OnExit::run(move || remove(&doomed)),
        })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file that only the server's account can read.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.file(name);
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(|e| failure("write", &path, &e))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn make(parent: &Path, path: &Path) -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.mode(0o700);
    match private.create(parent) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    // Left by a process of the same id that was killed while the server went on.
    remove(path);
    private.create(path)
}

/// What cannot be removed now is removed when the server starts, so a failure is not reported.
fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

fn failure(verb: &str, path: &Path, error: &io::Error) -> Error {
    let state = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SqlState::DISK_FULL,
        _ => SqlState::parse("58030"),
    };
    Error::Local {
        state,
        message: format!("could not {verb} \"{}\": {error}", path.display()),
        detail: None,
        hint: None,
    }
}
