//! Extensions that a test makes up.

use crate::server::ServerOptions;
use crate::{dirs, pg};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An extension of SQL alone, there for as long as this value.
pub struct Extension {
    options: ServerOptions,
    /// Written into the installation itself.
    installed: Vec<PathBuf>,
    _own: Option<TempDir>,
}

impl Extension {
    /// Offers version 1.0 of an extension to the servers that start with the options of
    /// [`Extension::offered`]. Its files are put into a directory of their own if the server can be told to
    /// look there, else into the installation, which must be writable then.
    pub fn offer(name: &str, script: &str) -> Extension {
        let mut options = ServerOptions::default();
        let (dir, own) = if pg::has_setting("extension_control_path") {
            let own = dirs::scratch("share-");
            let path = format!("$system:{}", own.path().display());
            options = options.set("extension_control_path", &path);
            (own.path().join("extension"), Some(own))
        } else if pg::has_setting("extension_destdir") {
            // Debian's way, before there was PostgreSQL's.
            let own = dirs::scratch("share-");
            let prefix = own.path().display().to_string();
            options = options.set("extension_destdir", &prefix);
            let share = pg::sharedir();
            let share = share.strip_prefix("/").unwrap_or(share);
            (own.path().join(share).join("extension"), Some(own))
        } else {
            (pg::sharedir().join("extension"), None)
        };
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        let control = "default_version = '1.0'\nrelocatable = false\n";
        let files = [
            (dir.join(format!("{name}.control")), control),
            (dir.join(format!("{name}--1.0.sql")), script),
        ];
        let mut extension = Extension {
            options,
            installed: vec![],
            _own: own,
        };
        for (file, text) in files {
            if extension._own.is_none() {
                extension.installed.push(file.clone());
            }
            write(&file, text);
        }
        extension
    }

    /// The options of servers that are to find it.
    pub fn offered(&self) -> ServerOptions {
        self.options.clone()
    }
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
}

impl Drop for Extension {
    fn drop(&mut self) {
        for file in &self.installed {
            let _ = fs::remove_file(file);
        }
    }
}
