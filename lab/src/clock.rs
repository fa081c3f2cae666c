//! Servers with clocks of their own, by libfaketime.

use crate::dirs;
use crate::server::ServerOptions;
use std::io::Write;
use tempfile::TempDir;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Whether servers can be given clocks here.
pub fn available() -> bool {
    std::path::Path::new(FAKETIME).exists()
}

/// The same; says on standard error that the test is skipped, where they cannot.
pub fn announced() -> bool {
    let available = available();
    if !available {
        // Not by eprintln, which the test runner keeps to itself. Nothing depends on the line.
        let _ = std::io::stderr().write_all(b"skipped: libfaketime is not installed\n");
    }
    available
}

/// Has the server be ahead of the machine, or behind it, by `seconds` with a sign.
pub fn set_off(options: ServerOptions, seconds: &str) -> ServerOptions {
    faked(options).env("FAKETIME", seconds)
}

fn faked(options: ServerOptions) -> ServerOptions {
    options
        .env("LD_PRELOAD", FAKETIME)
        // What waits is not to wait for longer.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// A clock that can be set while servers go by it.
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    pub fn new(seconds: &str) -> Clock {
        let dir = dirs::scratch("clock-");
        let clock = Clock { dir };
        clock.set(seconds);
        clock
    }

    /// Sets it ahead, or back, by `seconds` with a sign.
    pub fn set(&self, seconds: &str) {
        let path = self.dir.path().join("offset");
        std::fs::write(&path, seconds)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Has the server go by it.
    pub fn of(&self, options: ServerOptions) -> ServerOptions {
        let path = self.dir.path().join("offset");
        faked(options)
            .env("FAKETIME_TIMESTAMP_FILE", &path.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
    }
}
