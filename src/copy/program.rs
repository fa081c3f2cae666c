//! Runs one of the server's own programs from a backend, so that it ends when the backend does and
//! says what went wrong.

use super::guard::guarded;
use super::on_exit::OnExit;
use crate::encoding;
use crate::error::{Error, Result};
use crate::libpq::{Dsn, idle_limit, require_alive, scrub, wait};
use pgrx::pg_sys;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of the end of the error output is kept for the message.
const TAIL: usize = 8 * 1024;
/// How long a program may take to end after it was told to. It only has to cancel its queries.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the caller may do something else while it runs.
const PULSE: Duration = Duration::from_secs(1);
/// Variables besides those of libpq (`PG*`) and Kerberos that a client program may need.
const INHERITED: [&str; 9] = [
    "HOME",
    "LD_LIBRARY_PATH",
    "OPENSSL_CONF",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
];

/// Those of libpq that set settings of its sessions: we do that.
const SETTINGS: [&str; 5] = [
    "PGCLIENTENCODING",
    "PGDATESTYLE",
    "PGGEQO",
    "PGOPTIONS",
    "PGTZ",
];

/// A program to run for the sake of `node`.
pub struct Program<'a> {
    pub name: &'a str,
    pub node: &'a str,
    /// How it reaches the node, if that is another server: it ends when that does not answer.
    pub remote: Option<&'a Dsn>,
    /// Visible to every user of the machine: no secrets here.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Program<'_> {
    /// Runs it to its end and returns what it printed.
    pub fn run(&self) -> Result<Vec<u8>> {
        self.run_beside(|| Ok(()))
    }

    /// As [`Self::run`]; `beside` is called about once a second meanwhile, and its error ends it.
    pub fn run_beside(&self, beside: impl FnMut() -> Result<()>) -> Result<Vec<u8>> {
        let mut running = self.start()?;
        let output = running.collect(|| self.look_after_node(), beside)?;
        let status = running
            .reap()
            .map_err(|e| self.failure(format!("could not wait for it: {e}")))?;
        if status.success() {
            Ok(output)
        } else {
            Err(self.failed(running.complaint(self.name, status)))
        }
    }

    /// With `complaint`. That it could not connect is told as it is of our own sessions.
    fn failed(&self, complaint: String) -> Error {
        // In the language C, which it runs in.
        let refused = complaint.find("connection to server ");
        match (self.remote, refused) {
            (Some(_), Some(at)) if complaint.contains(" failed: ") => {
                let reason = scrub(&complaint[at..]);
                let answered = reason.contains("FATAL:  ");
                Error::connect(self.node, reason, answered)
            }
            _ => self.failure(complaint),
        }
    }

    fn look_after_node(&self) -> Result<()> {
        match (self.remote, idle_limit()) {
            (Some(dsn), Some(idle_limit)) => require_alive(self.node, dsn, idle_limit / 2),
            _ => Ok(()),
        }
    }

    fn start(&self) -> Result<Running> {
        let path = path(self.name);
        let mut command = Command::new(&path);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited)))
            .env("LC_ALL", "C")
            .env("LC_MESSAGES", "C")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let parent = std::process::id();
        // SAFETY: async-signal-safe calls only, between fork and exec.
        unsafe { command.pre_exec(move || become_a_program(parent)) };
        let child = command
            .spawn()
            .map_err(|e| self.failure(format!("could not start \"{}\": {e}", path.display())))?;
        Running::adopt(child).map_err(|e| self.failure(format!("could not read from it: {e}")))
    }

    fn failure(&self, message: String) -> Error {
        Error::Program {
            program: self.name.to_owned(),
            node: self.node.to_owned(),
            message: scrub(&message),
        }
    }
}

/// A started program and everything that it started. It is ended with this value.
struct Running {
    child: Child,
    complaints: Vec<u8>,
    reaped: bool,
    _on_exit: OnExit,
}

impl Running {
    fn adopt(child: Child) -> io::Result<Self> {
        let group = child.id() as libc::pid_t;
        let running = Self {
            child,
            complaints: vec![],
            reaped: false,
            _on_exit: OnExit::run(move || signal(group, libc::SIGTERM)),
        };
        for fd in running.pipes() {
            // SAFETY: descriptors that this value owns.
            unsafe {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(running)
    }

    fn pipes(&self) -> impl Iterator<Item = RawFd> {
        let out = self.child.stdout.as_ref().map(AsRawFd::as_raw_fd);
        let err = self.child.stderr.as_ref().map(AsRawFd::as_raw_fd);
        out.into_iter().chain(err)
    }

    /// Reads both outputs to their end. The end of the error output is the end of the program and
    /// of all its children, since none of them closes it before. While it says nothing, `look` is
    /// called now and then; `beside` is called in any case.
    fn collect(
        &mut self,
        look: impl Fn() -> Result<()>,
        mut beside: impl FnMut() -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut output = vec![];
        let mut heard = Instant::now();
        let mut called = Instant::now();
        loop {
            let fds: Vec<_> = self.pipes().map(|fd| (fd, wait::Interest::READ)).collect();
            if fds.is_empty() {
                return Ok(output);
            }
            let pulse = PULSE.saturating_sub(called.elapsed());
            let limit = idle_limit().map_or(pulse, |idle_limit| idle_limit.min(pulse));
            if wait::on_fds(&fds, Some(limit))?.contains(&true) {
                heard = Instant::now();
            } else if idle_limit().is_some_and(|limit| heard.elapsed() >= limit) {
                look()?;
                heard = Instant::now();
            }
            if called.elapsed() >= PULSE {
                beside()?;
                called = Instant::now();
            }
            if self
                .child
                .stdout
                .as_mut()
                .is_some_and(|pipe| drain(pipe, &mut output))
            {
                self.child.stdout = None;
            }
            if self
                .child
                .stderr
                .as_mut()
                .is_some_and(|pipe| drain(pipe, &mut self.complaints))
            {
                self.child.stderr = None;
            }
            let excess = self.complaints.len().saturating_sub(TAIL);
            self.complaints.drain(..excess);
        }
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }

    fn complaint(&self, name: &str, status: ExitStatus) -> String {
        let said = hide_options(&readable(&self.complaints));
        let prefix = format!("{name}: ");
        let lines: Vec<&str> = said
            .lines()
            .map(|line| line.strip_prefix(&prefix).unwrap_or(line).trim_end())
            .filter(|line| !line.is_empty())
            .collect();
        match (lines.is_empty(), status.signal()) {
            (false, None) => lines.join("\n"),
            (_, Some(signal)) => format!("it was ended by signal {signal}\n{}", lines.join("\n"))
                .trim_end()
                .to_owned(),
            (true, None) => format!("it ended with {status} and said nothing"),
        }
    }
}

impl Drop for Running {
    /// Tells the whole group to end: `pg_dump` and `pg_restore` cancel what they run on the server.
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let group = self.child.id() as libc::pid_t;
        signal(group, libc::SIGTERM);
        let deadline = Instant::now() + TIMEOUT;
        let mut unread = vec![];
        while self.pipes().next().is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds: Vec<libc::pollfd> = self
                .pipes()
                .map(|fd| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            // SAFETY: an array of descriptors that this value owns.
            let ready = unsafe {
                libc::poll(
                    fds.as_mut_ptr(),
                    fds.len() as libc::nfds_t,
                    left.as_millis() as i32,
                )
            };
            if left.is_zero() || ready == 0 {
                break;
            }
            if self
                .child
                .stdout
                .as_mut()
                .is_some_and(|pipe| drain(pipe, &mut unread))
            {
                self.child.stdout = None;
            }
            if self
                .child
                .stderr
                .as_mut()
                .is_some_and(|pipe| drain(pipe, &mut unread))
            {
                self.child.stderr = None;
            }
            unread.clear();
        }
        // The leader is not reaped yet, so its group is still ours.
        signal(group, libc::SIGKILL);
        let _ = self.child.wait();
    }
}

/// `pg_restore` quotes the statement that failed, and the options of a user mapping hold passwords.
fn hide_options(text: &str) -> String {
    const BEGIN: &str = "OPTIONS (";
    let mut parts = text.split(BEGIN);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(BEGIN);
        shown.push_str("...");
        shown.push_str(part.find(");").map_or("", |end| &part[end..]));
    }
    shown
}

/// What a program says in the encoding of the database, as far as it can be read.
fn readable(said: &[u8]) -> String {
    let lossy = || String::from_utf8_lossy(said).into_owned();
    match CString::new(said) {
        Ok(text) if !text.as_bytes().is_ascii() => {
            guarded(|| encoding::from_server(&text)).unwrap_or_else(|_| lossy())
        }
        _ => lossy(),
    }
}

/// Reads what is there; true at the end of the stream.
fn drain(pipe: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => into.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

fn signal(group: libc::pid_t, number: i32) {
    // SAFETY: a process group that we made; it may be gone already.
    unsafe { libc::killpg(group, number) };
}

/// Runs in the child. A backend ignores and handles signals that a program must see, has files open
/// that it must not inherit, and may be killed without being able to tell its children.
fn become_a_program(parent: u32) -> io::Result<()> {
    // SAFETY: async-signal-safe calls on our own process.
    unsafe {
        for number in 1..libc::SIGRTMIN() {
            libc::signal(number, libc::SIG_DFL); // fails for KILL and STOP, which is fine
        }
        // Not closed but marked: the standard library still needs its pipe until exec succeeds.
        let all = libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if all != 0 {
            for fd in 3..libc::sysconf(libc::_SC_OPEN_MAX).min(65_536) as RawFd {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid() as u32 != parent {
            return Err(io::ErrorKind::Interrupted.into()); // it died before that took effect
        }
    }
    Ok(())
}

fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name)
        || name.starts_with("KRB5")
        || (name.starts_with("PG")
            && !name.starts_with("PG_")
            && name != "PGDATA"
            && !SETTINGS.contains(&name))
}

/// Where a program of this very server is.
pub fn path(name: &str) -> PathBuf {
    let executable = (&raw const pg_sys::my_exec_path).cast();
    // SAFETY: set by the postmaster when it starts, and a C string since then.
    let executable = unsafe { CStr::from_ptr(executable) };
    PathBuf::from(executable.to_string_lossy().into_owned()).with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::{hide_options, is_inherited};

    #[test]
    fn passwords_of_user_mappings_are_not_quoted() {
        let text = "error: no role\nCommand was: CREATE USER MAPPING FOR x SERVER y OPTIONS (\n    password 's3cret'\n);\nmore";
        assert_eq!(
            hide_options(text),
            "error: no role\nCommand was: CREATE USER MAPPING FOR x SERVER y OPTIONS (...);\nmore"
        );
        assert_eq!(hide_options("a OPTIONS (b 'c'"), "a OPTIONS (...");
        assert_eq!(hide_options("plain"), "plain");
    }

    #[test]
    fn children_see_what_libpq_sees_and_little_else() {
        for name in ["PGSSLROOTCERT", "PGPASSFILE", "HOME", "KRB5_CONFIG", "PATH"] {
            assert!(is_inherited(name), "{name}");
        }
        for name in [
            "PGDATA",
            "PGTZ",
            "PG_GRANDPARENT_PID",
            "LC_ALL",
            "LANG",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert!(!is_inherited(name), "{name}");
        }
    }
}
