//! One `initdb` per installation and set of options, copied for every server.

use crate::{dirs, pg};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Puts a fresh data directory at `data`.
pub(crate) fn copy_to(data: &Path, initdb_args: &[String]) {
    let template = made(initdb_args);
    // The WAL segment is mostly zeros.
    let out = Command::new("cp")
        .args(["-a", "--reflink=auto", "--sparse=always"])
        .arg(&template)
        .arg(data)
        .output()
        .unwrap_or_else(|e| panic!("cannot run cp: {e}"));
    assert!(
        out.status.success(),
        "cannot copy {}: {}",
        template.display(),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The template's path; makes it if nobody has yet. Several processes may get here at once: each makes its
/// own and renames it into place, and those that come second use the first one's.
fn made(initdb_args: &[String]) -> PathBuf {
    let template = dirs::base().join(format!(
        "template-{}-{:016x}",
        pg::major(),
        key(initdb_args)
    ));
    if template.join("PG_VERSION").exists() {
        return template;
    }
    let workshop = dirs::scratch("initdb-");
    let data = workshop.path().join("data");
    let out = pg::command("initdb")
        .args([
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
        ])
        .args(["--encoding=UTF8", "--locale=C"])
        .args(initdb_args)
        .arg("-D")
        .arg(&data)
        .output()
        .unwrap_or_else(|e| panic!("cannot run initdb: {e}"));
    assert!(
        out.status.success(),
        "initdb failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    match std::fs::rename(&data, &template) {
        Ok(()) => {}
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) => {}
        Err(e) => panic!("cannot put {} in place: {e}", template.display()),
    }
    template
}

/// Changes whenever the binaries or the options do: a rebuilt server may have another catalog version.
fn key(initdb_args: &[String]) -> u64 {
    let binary = pg::bindir().join("postgres");
    let meta = std::fs::metadata(&binary)
        .unwrap_or_else(|e| panic!("no server at {}: {e}", binary.display()));
    let mut hasher = DefaultHasher::new();
    (
        binary,
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        pg::account(),
        initdb_args,
    )
        .hash(&mut hasher);
    hasher.finish()
}
