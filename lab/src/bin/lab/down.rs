//! The end of a demo that still runs: its servers are found by the directory they live in.

use crate::Options;
use lab::dirs;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Where the demo's servers live, one directory each: the same for every checkout, so that a demo is found
/// again from anywhere.
pub fn home() -> PathBuf {
    // SAFETY: cannot fail and touches no memory.
    let uid = unsafe { libc::geteuid() };
    PathBuf::from(format!("/tmp/zodan-demo-{uid}"))
}

/// Only one command at a time may build or remove a demo: this one's turn lasts as long as the value.
pub fn turn() -> Option<File> {
    let lock = dirs::open_lock(&dirs::base().join("demo.lock"));
    if lock.try_lock().is_err() {
        eprintln!("Another demo or demo-down is at work right now; try again when it is through.");
        return None;
    }
    Some(lock)
}

/// `lab demo-down`.
pub fn run(_: &Options) -> bool {
    let Some(_turn) = turn() else { return false };
    match take_down() {
        Some(stopped) => println!(
            "The demo is gone: {stopped} servers stopped, {} removed.",
            home().display()
        ),
        None => println!("There is no demo to remove."),
    }
    true
}

/// Stops the servers of an earlier demo and removes what it left. Tells how many ran, or nothing if there is
/// no earlier demo.
pub fn take_down() -> Option<usize> {
    let home = home();
    let meta = fs::symlink_metadata(&home).ok()?;
    // SAFETY: cannot fail and touches no memory.
    let uid = unsafe { libc::geteuid() };
    assert!(
        meta.is_dir() && meta.uid() == uid,
        "{} is not a directory of ours",
        home.display()
    );
    let servers =
        fs::read_dir(&home).unwrap_or_else(|e| panic!("cannot read {}: {e}", home.display()));
    let running: Vec<i32> = servers
        .flatten()
        .filter_map(|server| postmaster(&server.path().join("data")))
        .collect();
    for pid in &running {
        signal(*pid, libc::SIGINT);
    }
    let patience = Instant::now() + Duration::from_secs(10);
    for pid in &running {
        // One that nobody reaps still has its number, but no directory.
        while signal(*pid, 0) && fs::read_link(format!("/proc/{pid}/cwd")).is_ok() {
            if Instant::now() > patience {
                signal(*pid, libc::SIGQUIT);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    fs::remove_dir_all(&home).unwrap_or_else(|e| panic!("cannot remove {}: {e}", home.display()));
    Some(running.len())
}

/// The process that runs on this data directory. A pid file may be older than the process that has its number
/// now, so the process must also be *in* the directory, as a postmaster is.
fn postmaster(data: &Path) -> Option<i32> {
    let pid = fs::read_to_string(data.join("postmaster.pid"))
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()?;
    let at = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (at == fs::canonicalize(data).ok()?).then_some(pid)
}

/// Whether the process is there to be signalled.
fn signal(pid: i32, signal: i32) -> bool {
    // SAFETY: kill touches no memory.
    unsafe { libc::kill(pid, signal) == 0 }
}
