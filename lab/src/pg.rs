//! The PostgreSQL installation under test, and the account it runs as.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The `pg_config` that decides which installation is used.
pub fn pg_config() -> String {
    ["ZODAN_PG_CONFIG", "PG_CONFIG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "pg_config".into())
}

/// The directory of the server and client binaries.
pub fn bindir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| PathBuf::from(ask("--bindir")))
}

/// What `pg_config` answers.
pub(crate) fn ask(what: &str) -> String {
    let tool = pg_config();
    let out = Command::new(&tool)
        .arg(what)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {tool} {what}: {e}; set ZODAN_PG_CONFIG"));
    assert!(
        out.status.success(),
        "{tool} {what} failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).trim().to_string()
}

/// What `postgres --version` says, for instance `postgres (PostgreSQL) 17.6`.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let out = command("postgres")
            .arg("--version")
            .output()
            .expect("run postgres --version");
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    })
}

/// The major version of the installation, for instance 17.
pub fn major() -> u32 {
    major_of(version())
        .unwrap_or_else(|| panic!("cannot read a major version from {:?}", version()))
}

fn major_of(version: &str) -> Option<u32> {
    let number = version
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whether the server knows a setting of this name.
pub fn has_setting(name: &str) -> bool {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let out = command("postgres")
            .arg("--describe-config")
            .output()
            .expect("run postgres --describe-config");
        String::from_utf8_lossy(&out.stdout).into_owned()
    });
    known
        .lines()
        .any(|line| line.split('\t').next() == Some(name))
}

/// PostgreSQL refuses to run as root. Where the lab is run by root (a container), its servers run as this account.
pub(crate) fn account() -> Option<(u32, u32)> {
    static ACCOUNT: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        if effective_uid() != 0 {
            return None;
        }
        let name = std::env::var("ZODAN_PG_USER").unwrap_or_else(|_| "postgres".into());
        let c_name = CString::new(name.as_str()).expect("an account name without NUL");
        // SAFETY: getpwnam's answer is read before anybody could call it again; OnceLock runs this once.
        let ids = unsafe {
            let entry = libc::getpwnam(c_name.as_ptr());
            (!entry.is_null()).then(|| ((*entry).pw_uid, (*entry).pw_gid))
        };
        assert!(
            ids.is_some(),
            "root cannot run PostgreSQL and there is no account {name:?}: set ZODAN_PG_USER to an unprivileged one"
        );
        ids
    })
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}

/// One of the installation's programs, with a clean environment and as the servers' account.
///
/// The environment is cleared because a server hands it to its backends: `RUST_BACKTRACE` alone changes what
/// an error of a Rust extension looks like, and `PG*` variables would change where libpq connects to.
pub(crate) fn command(program: &str) -> Command {
    command_in(bindir(), program)
}

/// As [`command`], with a program of another installation.
pub(crate) fn command_in(bindir: &Path, program: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(bindir.join(program));
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/");
    if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.stdin(Stdio::null());
    if let Some((uid, gid)) = account() {
        command.gid(gid).uid(uid);
    }
    command
}

/// Hands a file or directory to the servers' account, where that is not ours.
pub(crate) fn give_to_account(path: &Path) {
    if let Some((uid, gid)) = account() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("cannot give {} to uid {uid}: {e}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::major_of;

    #[test]
    fn major_versions() {
        assert_eq!(major_of("postgres (PostgreSQL) 17.11"), Some(17));
        assert_eq!(
            major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            Some(15)
        );
        assert_eq!(major_of("postgres (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_of("postgres"), None);
    }
}
