//! Extensions that a test makes up.

use crate::server::ServerOptions;
use crate::{dirs, pg};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The installation under test with one more extension, for as long as this value lives. The installation
/// itself is not written to: it may belong to somebody else.
pub struct Extension {
    tree: TempDir,
}

impl Extension {
    /// Adds version 1.0 of an extension that consists of this script.
    pub fn new(name: &str, script: &str) -> Extension {
        let tree = dirs::scratch("tree-");
        let at = |original: &Path| inside(tree.path(), original);
        // A server finds its files from where its program is, links resolved.
        let programs = at(pg::bindir());
        make(&programs);
        for program in ["postgres", "pg_dump", "pg_restore"] {
            copy(&pg::bindir().join(program), &programs.join(program));
        }
        let libraries = PathBuf::from(pg::ask("--pkglibdir"));
        link(&libraries, &at(&libraries));
        let shared = PathBuf::from(pg::ask("--sharedir"));
        link_entries(&shared, &at(&shared), Some("extension"));
        let extensions = at(&shared).join("extension");
        link_entries(&shared.join("extension"), &extensions, None);
        for (suffix, text) in [
            (".control", "default_version = '1.0'\nrelocatable = false\n"),
            ("--1.0.sql", script),
        ] {
            let file = extensions.join(format!("{name}{suffix}"));
            fs::write(&file, text)
                .unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
        }
        Extension { tree }
    }

    /// What servers that are to have it are started with.
    pub fn options(&self) -> ServerOptions {
        ServerOptions {
            bindir: Some(inside(self.tree.path(), pg::bindir())),
            ..ServerOptions::default()
        }
    }
}

/// The same absolute path below `tree`, so that directories lie to each other as they did.
fn inside(tree: &Path, original: &Path) -> PathBuf {
    tree.join(original.strip_prefix("/").unwrap_or(original))
}

fn make(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("cannot copy {}: {e}", from.display()));
}

fn link(from: &Path, to: &Path) {
    make(to.parent().expect("a path with a directory"));
    symlink(from, to).unwrap_or_else(|e| panic!("cannot link {}: {e}", to.display()));
}

/// Links all that is in `from` from `to`, except one.
fn link_entries(from: &Path, to: &Path, except: Option<&str>) {
    make(to);
    let entries =
        fs::read_dir(from).unwrap_or_else(|e| panic!("cannot read {}: {e}", from.display()));
    for entry in entries.flatten() {
        if except.is_none_or(|name| entry.file_name() != name) {
            link(&entry.path(), &to.join(entry.file_name()));
        }
    }
}
