//! One real PostgreSQL server.

use crate::ports::{self, Port};
use crate::proxy::Proxy;
use crate::{dirs, pg, spawn, template};
use postgres::error::{DbError, ErrorPosition};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the lab waits for a condition before it calls the test failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(10);

/// The settings every server gets; [`ServerOptions::settings`] override them.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    // The machine is not going to lose power. A killed server still keeps what it acknowledged, because the
    // kernel has it; that needs synchronous_commit.
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "64MB"),
    ("max_connections", "100"),
    ("wal_level", "logical"),
    ("track_commit_timestamp", "on"),
    ("max_wal_senders", "40"),
    ("max_replication_slots", "40"),
    ("max_logical_replication_workers", "40"),
    ("max_worker_processes", "80"),
    ("log_statement", "none"),
    ("log_checkpoints", "off"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// How the server lets TCP clients in. Over its Unix socket it trusts everybody.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// No password is asked for.
    #[default]
    Trust,
    /// SCRAM, with this password for the user `postgres`.
    Password(String),
}

/// What a server is to be like.
///
/// ```no_run
/// use lab::{Server, ServerOptions};
/// let server = Server::start_with("n1", &ServerOptions::default().password("hush").set("max_wal_senders", "0"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// How TCP clients are let in.
    pub auth: Auth,
    /// Settings by name; they override the lab's own.
    pub settings: Vec<(String, String)>,
    /// More arguments for initdb, for instance `--encoding=LATIN1`.
    pub initdb: Vec<String>,
    /// Where the server's programs are, if not where [`pg::bindir`] says: a copy of that installation.
    pub bindir: Option<PathBuf>,
    /// The server's environment beyond what every server has.
    pub environment: Vec<(String, String)>,
    /// The database that [`Server::dsn`] names and that all helpers use; `postgres` if not given. It is created.
    pub database: Option<String>,
    /// Puts a proxy in front of the server, for [`Server::cut`] and [`Server::sever`].
    pub proxy: bool,
    /// Runs the server in this directory, and lets it run on when the process ends.
    pub lasting: Option<PathBuf>,
}

impl ServerOptions {
    /// Adds a setting.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Asks TCP clients for a password.
    pub fn password(mut self, password: &str) -> Self {
        self.auth = Auth::Password(password.into());
        self
    }

    /// Adds an argument for initdb.
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.into());
        self
    }

    /// Adds a variable to the server's environment, which its backends have too.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Works in a database of this name.
    pub fn database(mut self, name: &str) -> Self {
        self.database = Some(name.into());
        self
    }

    /// Puts a proxy in front.
    pub fn proxy(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Lets the server run on after the process, in a directory of this path, which must not exist yet.
    pub fn lasting(mut self, dir: &Path) -> Self {
        self.lasting = Some(dir.into());
        self
    }
}

/// A message that a server sent beside the result: a NOTICE, INFO or WARNING.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE`, `WARNING`, ...
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The DETAIL line.
    pub detail: Option<String>,
    /// The HINT line.
    pub hint: Option<String>,
}

impl From<&DbError> for Notice {
    fn from(e: &DbError) -> Notice {
        Notice {
            severity: e.severity().into(),
            code: e.code().code().into(),
            message: e.message().into(),
            detail: e.detail().map(Into::into),
            hint: e.hint().map(Into::into),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nHINT: {hint}")?;
        }
        Ok(())
    }
}

/// The notices of one connection, in the order they came.
pub type Notices = Arc<Mutex<Vec<Notice>>>;

/// A statement that succeeded.
#[derive(Debug)]
pub struct Called {
    /// What the server said meanwhile.
    pub notices: Vec<Notice>,
    /// The rows it returned, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Called {
    /// The messages of its warnings, in the order they came.
    pub fn warnings(&self) -> Vec<&str> {
        let warnings = self.notices.iter().filter(|n| n.severity == "WARNING");
        warnings.map(|n| n.message.as_str()).collect()
    }
}

/// A statement that failed.
#[derive(Debug)]
pub struct CallFailed {
    /// The error.
    pub error: postgres::Error,
    /// What the server said before it.
    pub notices: Vec<Notice>,
    /// How long it took to fail.
    pub elapsed: Duration,
}

impl CallFailed {
    /// SQLSTATE, or an empty string where the connection itself failed.
    pub fn code(&self) -> &str {
        self.error.code().map_or("", |code| code.code())
    }

    /// The primary message.
    pub fn message(&self) -> String {
        self.error
            .as_db_error()
            .map_or_else(|| self.error.to_string(), |e| e.message().to_string())
    }

    /// The DETAIL line, or an empty string.
    pub fn detail(&self) -> &str {
        self.error
            .as_db_error()
            .and_then(DbError::detail)
            .unwrap_or_default()
    }

    /// The HINT line, or an empty string.
    pub fn hint(&self) -> &str {
        self.error
            .as_db_error()
            .and_then(DbError::hint)
            .unwrap_or_default()
    }
}

impl fmt::Display for CallFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for notice in &self.notices {
            writeln!(f, "{notice}")?;
        }
        write!(f, "{} (after {:.1?})", explain(&self.error), self.elapsed)
    }
}

/// What a run of psql gave.
#[derive(Debug)]
pub struct Psql {
    /// Standard output.
    pub stdout: String,
    /// Standard error: notices and errors.
    pub stderr: String,
    /// Exit status.
    pub status: ExitStatus,
}

/// A PostgreSQL server of its own: private data directory, socket and port.
pub struct Server {
    name: String,
    options: ServerOptions,
    port: Port,
    proxy: Option<(Port, Proxy)>,
    home: Home,
    child: Mutex<Option<Child>>,
}

/// Where the data directory, the socket and the log are.
enum Home {
    /// Removed with the server.
    Passing(tempfile::TempDir),
    /// Left where it is.
    Lasting(PathBuf),
}

impl Server {
    /// Starts a server with the lab's defaults.
    pub fn start(name: &str) -> Server {
        Server::start_with(name, &ServerOptions::default())
    }

    /// Starts a server.
    pub fn start_with(name: &str, options: &ServerOptions) -> Server {
        let home = match &options.lasting {
            None => Home::Passing(dirs::scratch(&format!("{}-", printable(name)))),
            Some(dir) => {
                assert!(
                    !options.proxy,
                    "a proxy does not outlive the process, so a lasting server cannot have one"
                );
                fs::create_dir_all(dir)
                    .unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
                pg::give_to_account(dir);
                Home::Lasting(dir.clone())
            }
        };
        let (port, listener) = ports::reserve();
        // The server is about to listen here itself.
        drop(listener);
        let proxy = options.proxy.then(|| {
            let (front, listener) = ports::reserve();
            (front, Proxy::start(listener, port.number))
        });
        let server = Server {
            name: name.into(),
            options: options.clone(),
            port,
            proxy,
            home,
            child: Mutex::new(None),
        };
        template::copy_to(&server.data_dir(), &options.initdb);
        server.write_configuration();
        server.boot();
        server.first_steps();
        server
    }

    /// What no two servers have in common.
    fn write_place(&self) {
        let socket_dir = self.home.path().display().to_string();
        // A node name in every line: the logs of a whole cluster are read side by side.
        let prefix = format!("%m {} [%p] %q%a ", self.name.replace('%', "%%"));
        self.configure("port", &self.port.number.to_string());
        self.configure("unix_socket_directories", &socket_dir);
        self.configure("log_line_prefix", &prefix);
    }

    fn write_configuration(&self) {
        self.write_place();
        let mut settings = SETTINGS.to_vec();
        if pg::major() >= 18 {
            settings.push(("max_active_replication_origins", "40"));
        }
        settings.extend(
            self.options
                .settings
                .iter()
                .map(|(name, value)| (&**name, &**value)),
        );
        for (name, value) in settings {
            self.configure(name, value);
        }
        let hba = self.data_dir().join("pg_hba.conf");
        let tcp = match self.options.auth {
            Auth::Trust => "trust",
            Auth::Password(_) => "scram-sha-256",
        };
        let rules: String = ["all", "replication"]
            .iter()
            .map(|database| {
                format!("local {database} all trust\nhost {database} all 127.0.0.1/32 {tcp}\n")
            })
            .collect();
        fs::write(&hba, rules).unwrap_or_else(|e| panic!("cannot write {}: {e}", hba.display()));
    }

    fn first_steps(&self) {
        let mut client = self.client_as("postgres", "postgres");
        if let Auth::Password(password) = &self.options.auth {
            client
                .batch_execute(&format!(
                    "ALTER ROLE postgres PASSWORD {}",
                    quote_literal(password)
                ))
                .expect("set the password");
        }
        if let Some(database) = &self.options.database
            && database != "postgres"
        {
            client
                .batch_execute(&format!("CREATE DATABASE {}", quote_ident(database)))
                .expect("create the database");
        }
    }

    /// Replaces the files of this server, which does not run, by a base backup of `other`.
    pub fn restore_backup_of(&self, other: &Server) {
        self.remove_files();
        let mut backup = pg::command_in(pg::bindir(), "pg_basebackup");
        let done = backup
            .envs(other.client_env())
            .args(["-c", "fast", "-D"])
            .arg(self.data_dir())
            .status();
        assert!(done.expect("run pg_basebackup").success());
        self.write_place();
    }

    /// Replaces the files of this server by those of `other`; neither runs.
    pub fn copy_files_of(&self, other: &Server) {
        self.remove_files();
        let (from, to) = (other.data_dir(), self.data_dir());
        let done = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(done.expect("run cp").success());
        self.write_place();
    }

    /// Makes this server, which does not run and has a base backup of `primary`, its standby.
    pub fn follow(&self, primary: &Server) {
        self.configure("primary_conninfo", &primary.dsn());
        let signal = self.data_dir().join("standby.signal");
        File::create(&signal).unwrap_or_else(|e| panic!("cannot write {}: {e}", signal.display()));
    }

    fn remove_files(&self) {
        let dir = self.data_dir();
        fs::remove_dir_all(&dir).unwrap_or_else(|e| panic!("cannot remove {}: {e}", dir.display()));
    }

    /// Changes a setting for the next start or [`Server::reload`].
    pub fn configure(&self, name: &str, value: &str) {
        let path = self.data_dir().join("postgresql.conf");
        let line = format!(
            "{name} = '{}'\n",
            value.replace('\\', "\\\\").replace('\'', "''")
        );
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.sql("SELECT pg_reload_conf()");
    }

    /// Starts the server after [`Server::stop`] or [`Server::crash`], and waits until it takes connections.
    pub fn boot(&self) {
        let mut child = self.child.lock().unwrap();
        assert!(child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the server's log");
        let bindir = self.options.bindir.as_deref().unwrap_or(pg::bindir());
        let mut command = pg::command_in(bindir, "postgres");
        command
            .envs(self.options.environment.iter().map(|(n, v)| (n, v)))
            .arg("-D")
            .arg(self.data_dir())
            .stdout(
                log.try_clone()
                    .expect("share the log between stdout and stderr"),
            )
            .stderr(log);
        let started = match self.home {
            Home::Passing(_) => spawn::with_this_process(command),
            Home::Lasting(_) => spawn::beyond_this_process(command),
        };
        let started =
            child.insert(started.unwrap_or_else(|e| panic!("cannot start {}: {e}", self.name)));
        let deadline = Instant::now() + PATIENCE;
        // Somebody may have dropped the one, and the other is not there at first.
        let connect = || {
            let first = self.config("postgres", "postgres").connect(NoTls);
            first.or_else(|_| self.config("postgres", self.database()).connect(NoTls))
        };
        while let Err(e) = connect() {
            if let Ok(Some(status)) = started.try_wait() {
                *child = None;
                panic!(
                    "{} did not start ({status})\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            assert!(
                Instant::now() < deadline,
                "{} did not start: {e}\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Stops the server in an orderly way: sessions are ended, a checkpoint is written.
    pub fn stop(&self) {
        self.end(libc::SIGINT);
    }

    /// Stops the server as a power failure would: no checkpoint, and no goodbye to the clients.
    pub fn crash(&self) {
        self.end(libc::SIGQUIT);
    }

    /// [`Server::stop`], then [`Server::boot`].
    pub fn restart(&self) {
        self.stop();
        self.boot();
    }

    /// Whether the server's main process runs.
    pub fn is_running(&self) -> bool {
        self.child
            .lock()
            .unwrap()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process id of the server's main process.
    pub fn pid(&self) -> u32 {
        self.child
            .lock()
            .unwrap()
            .as_ref()
            .unwrap_or_else(|| panic!("{} is down", self.name))
            .id()
    }

    fn end(&self, signal: i32) {
        let Some(mut child) = self.child.lock().unwrap().take() else {
            return;
        };
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        send(child.id(), signal);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                send(child.id(), libc::SIGQUIT);
                let _ = child.wait();
                panic!(
                    "{} did not stop within {PATIENCE:?}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops all of the server's processes where they are, as a machine does that hangs.
    pub fn freeze(&self) {
        // The main process first, which would start others anew.
        send(self.pid(), libc::SIGSTOP);
        self.children().for_each(|pid| send(pid, libc::SIGSTOP));
    }

    /// Ends [`Server::freeze`].
    pub fn thaw(&self) {
        self.children().for_each(|pid| send(pid, libc::SIGCONT));
        send(self.pid(), libc::SIGCONT);
    }

    /// The processes of the server beside its main one.
    fn children(&self) -> impl Iterator<Item = u32> {
        let parent = self.pid();
        let processes = fs::read_dir("/proc").expect("read /proc").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(move |pid| parent_of(*pid) == Some(parent))
    }

    /// Whether a process of this number is one of the server's.
    pub fn has_backend(&self, pid: u32) -> bool {
        parent_of(pid) == Some(self.pid())
    }

    /// Kills one of the server's backends with SIGKILL, as the kernel's out-of-memory killer would. The
    /// server then ends all sessions and recovers.
    pub fn kill_backend(&self, pid: u32) {
        assert!(
            self.has_backend(pid),
            "process {pid} is not a backend of {}",
            self.name
        );
        send(pid, libc::SIGKILL);
    }

    /// The name given at start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port that other nodes connect to: the proxy's, where there is one.
    pub fn port(&self) -> u16 {
        self.proxy
            .as_ref()
            .map_or(self.port.number, |(front, _)| front.number)
    }

    /// The database that the helpers work in.
    pub fn database(&self) -> &str {
        self.options.database.as_deref().unwrap_or("postgres")
    }

    /// The directory of the server's Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.home.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// How other nodes connect over TCP, in keyword form, with the password if there is one.
    pub fn dsn(&self) -> String {
        let mut dsn = format!(
            "host=127.0.0.1 port={} user=postgres dbname={}",
            self.port(),
            quote_dsn_value(self.database())
        );
        if let Auth::Password(password) = &self.options.auth {
            dsn += &format!(" password={}", quote_dsn_value(password));
        }
        dsn
    }

    /// The same as [`Server::dsn`] in URI form.
    pub fn dsn_uri(&self) -> String {
        let password = match &self.options.auth {
            Auth::Trust => String::new(),
            Auth::Password(password) => format!(":{}", percent_encode(password)),
        };
        format!(
            "postgresql://postgres{password}@127.0.0.1:{}/{}",
            self.port(),
            percent_encode(self.database())
        )
    }

    fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        // The socket, never the proxy: the lab must see a server whose network is cut.
        config
            .host_path(self.socket_dir())
            .port(self.port.number)
            .user(user)
            .dbname(database)
            .application_name("lab")
            .connect_timeout(Duration::from_secs(10));
        config
    }

    /// A session as superuser in the server's database, over the Unix socket.
    pub fn client(&self) -> Client {
        self.client_as("postgres", self.database())
    }

    /// A session as another user or in another database.
    pub fn client_as(&self, user: &str, database: &str) -> Client {
        self.config(user, database)
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {}", self.name, explain(&e)))
    }

    /// A session under an `application_name` of its own, so that it can be told apart.
    pub fn client_named(&self, application_name: &str) -> Client {
        self.try_client(application_name)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {}", self.name, explain(&e)))
    }

    /// [`Server::client_named`], where there may be none to be had.
    pub fn try_client(&self, application_name: &str) -> Result<Client, postgres::Error> {
        self.config_of(application_name, self.database())
            .connect(NoTls)
    }

    /// Lets processes that the server starts from now on write no file larger than `bytes`; `None` lets them again.
    pub fn limit_file_size(&self, bytes: Option<u64>) {
        self.limit_resource("--fsize", bytes);
    }

    /// Lets processes that the server starts from now on have no more than `bytes` of address space, which their
    /// code and the shared memory are part of; `None` lets them again.
    pub fn limit_memory(&self, bytes: Option<u64>) {
        self.limit_resource("--as", bytes);
    }

    fn limit_resource(&self, resource: &str, bytes: Option<u64>) {
        let soft = bytes.map_or("unlimited".into(), |b| b.to_string());
        let mut prlimit = Command::new("prlimit");
        prlimit.args([
            "--pid",
            &self.pid().to_string(),
            &format!("{resource}={soft}:"),
        ]);
        if let Some((uid, gid)) = pg::account() {
            use std::os::unix::process::CommandExt;
            prlimit.gid(gid).uid(uid);
        }
        let out = prlimit
            .output()
            .unwrap_or_else(|e| panic!("cannot run prlimit of util-linux: {e}"));
        assert!(
            out.status.success(),
            "cannot limit {}: {}",
            self.name,
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// How to connect to another database of the server, under an `application_name`, over the Unix socket.
    pub fn config_of(&self, application_name: &str, database: &str) -> Config {
        let mut config = self.config("postgres", database);
        config.application_name(application_name);
        config
    }

    /// A session whose notices are collected as they arrive.
    pub fn client_with_notices(&self) -> (Client, Notices) {
        let notices = Notices::default();
        let sink = notices.clone();
        let mut config = self.config("postgres", self.database());
        config.notice_callback(move |notice| sink.lock().unwrap().push(Notice::from(&notice)));
        let client = config
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {}", self.name, explain(&e)));
        (client, notices)
    }

    /// Runs one or more statements in a session of their own.
    pub fn sql(&self, text: &str) {
        if let Err(e) = self.client().batch_execute(text) {
            panic!("{}: {}\n{text}", self.name, explain(&e));
        }
    }

    /// Runs one statement that is expected to fail, and returns the error.
    pub fn sql_error(&self, text: &str) -> CallFailed {
        match self.call(text) {
            Ok(_) => panic!("{}: this was expected to fail\n{text}", self.name),
            Err(failed) => failed,
        }
    }

    /// Runs one statement, and returns what it said and how long it took. Notices are not lost on failure.
    pub fn call(&self, text: &str) -> Result<Called, CallFailed> {
        let (mut client, notices) = self.client_with_notices();
        let started = Instant::now();
        let result = client.simple_query(text);
        let elapsed = started.elapsed();
        let notices = std::mem::take(&mut *notices.lock().unwrap());
        match result {
            Ok(messages) => Ok(Called {
                notices,
                rows: text_rows(&messages),
                elapsed,
            }),
            Err(error) => Err(CallFailed {
                error,
                notices,
                elapsed,
            }),
        }
    }

    /// The first column of the first row as text; empty for NULL and for no row.
    pub fn value(&self, query: &str) -> String {
        self.rows(query)
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .unwrap_or_default()
    }

    /// All rows as text.
    pub fn rows(&self, query: &str) -> Vec<Vec<Option<String>>> {
        match self.client().simple_query(query) {
            Ok(messages) => text_rows(&messages),
            Err(e) => panic!("{}: {}\n{query}", self.name, explain(&e)),
        }
    }

    /// Waits until `query`'s first column is `want`. A failing query (the table is not there yet, the server
    /// restarts) counts as not yet, save a syntax error.
    pub fn wait_for(&self, query: &str, want: &str) {
        self.wait_for_within(query, want, PATIENCE);
    }

    /// [`Server::wait_for`] with a deadline of its own.
    pub fn wait_for_within(&self, query: &str, want: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut client = None;
        loop {
            let answer = match &mut client {
                None => self
                    .config("postgres", self.database())
                    .connect(NoTls)
                    .map(|c| {
                        client = Some(c);
                        None
                    }),
                Some(c) => c
                    .simple_query(query)
                    .map(|messages| Some(text_rows(&messages))),
            };
            let got = match answer {
                Ok(None) => continue,
                Ok(Some(rows)) => rows
                    .into_iter()
                    .next()
                    .and_then(|row| row.into_iter().next().flatten())
                    .unwrap_or_default(),
                Err(e) => {
                    assert!(
                        e.code() != Some(&postgres::error::SqlState::SYNTAX_ERROR),
                        "{}: {}\n{query}",
                        self.name,
                        explain(&e)
                    );
                    if client.as_ref().is_some_and(Client::is_closed) {
                        client = None;
                    }
                    explain(&e)
                }
            };
            if got == want {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{}: waited {patience:?} for {want:?}, the answer is still {got:?}\n{query}",
                self.name
            );
            std::thread::sleep(POLL);
        }
    }

    /// The connection options that make psql and its siblings work on this server's database.
    pub fn client_env(&self) -> [(&'static str, String); 4] {
        [
            ("PGHOST", self.socket_dir().display().to_string()),
            ("PGPORT", self.port.number.to_string()),
            ("PGUSER", "postgres".into()),
            ("PGDATABASE", self.database().into()),
        ]
    }

    /// One of the installation's client programs, set up for this server's database.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(pg::bindir().join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.envs(self.client_env());
        command
    }

    /// Feeds `sql` to psql, which stops at the first error.
    pub fn psql(&self, args: &[&str], sql: &str) -> Psql {
        let mut child = self
            .tool("psql")
            .args(["-X", "-v", "ON_ERROR_STOP=1"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run psql: {e}"));
        let mut stdin = child.stdin.take().expect("a pipe was asked for");
        let text = sql.to_string();
        // Written beside the reading, or a long answer and a long text could wait for each other. psql may
        // end before it has read all: that is no error here.
        let writer = std::thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
        let out = child.wait_with_output().expect("read psql's output");
        writer.join().expect("feed psql");
        Psql {
            stdout: String::from_utf8_lossy(&out.stdout).into(),
            stderr: String::from_utf8_lossy(&out.stderr).into(),
            status: out.status,
        }
    }

    /// Loses the network for TCP clients: see [`Proxy::cut`]. Needs [`ServerOptions::proxy`].
    pub fn cut(&self) {
        self.proxy().cut();
    }

    /// Ends [`Server::cut`].
    pub fn uncut(&self) {
        self.proxy().uncut();
    }

    /// A slow network for TCP clients: see [`Proxy::limit`].
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.proxy().limit(bytes_per_second);
    }

    /// Resets all TCP connections once.
    pub fn sever(&self) {
        self.proxy().sever();
    }

    fn proxy(&self) -> &Proxy {
        let (_, proxy) = self
            .proxy
            .as_ref()
            .unwrap_or_else(|| panic!("{} has no proxy", self.name));
        proxy
    }

    /// The file that the server logs to.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The server's whole log.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into())
            .unwrap_or_default()
    }

    /// What its sessions and processes do, and the end of its log: for a test that gives up.
    pub fn activity(&self) -> String {
        const WHAT: &str = "SELECT concat_ws(' | ', pid, backend_type, application_name, state, wait_event_type,
                wait_event, pg_blocking_pids(pid), now() - query_start, query) FROM pg_stat_activity ORDER BY pid";
        // From another database: this one may be about to be dropped.
        let lines = match self.config("postgres", "template1").connect(NoTls) {
            Ok(mut client) => client
                .simple_query(WHAT)
                .map(|messages| text_rows(&messages)),
            Err(error) => Err(error),
        };
        let what = match lines {
            Ok(rows) => rows
                .into_iter()
                .flatten()
                .flatten()
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => explain(&error),
        };
        format!(
            "---- processes of {} ----\n{what}\n{}",
            self.name,
            self.log_tail()
        )
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 100;
        let log = self.log();
        let skip = log.lines().count().saturating_sub(LINES);
        let tail: Vec<&str> = log.lines().skip(skip).collect();
        format!(
            "---- end of the log of {} ----\n{}",
            self.name,
            tail.join("\n")
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.home {
            Home::Passing(_) => {
                let child = self
                    .child
                    .get_mut()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(mut child) = child.take() {
                    send(child.id(), libc::SIGQUIT);
                    let _ = child.wait();
                }
                if std::thread::panicking() {
                    eprintln!("{}", self.log_tail());
                }
            }
            Home::Lasting(_) => {}
        }
    }
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Home::Passing(dir) => dir.path(),
            Home::Lasting(dir) => dir,
        }
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, but ends with the last parenthesis.
    let fields = stat.rsplit(')').next()?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

fn send(pid: u32, signal: i32) {
    // SAFETY: kill touches no memory; a process that has gone is an error we do not mind.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// The rows of a simple query, as text.
pub fn text_rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).map(Into::into)).collect())
            }
            _ => None,
        })
        .collect()
}

/// An error with everything the server said about it.
pub fn explain(error: &postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return error.to_string();
    };
    let mut text = format!("{} {}: {}", db.severity(), db.code().code(), db.message());
    if let Some(detail) = db.detail() {
        text += &format!("\nDETAIL: {detail}");
    }
    if let Some(hint) = db.hint() {
        text += &format!("\nHINT: {hint}");
    }
    if let Some(context) = db.where_() {
        text += &format!("\nCONTEXT: {context}");
    }
    match db.position() {
        Some(ErrorPosition::Original(at)) => text += &format!("\nat character {at}"),
        Some(ErrorPosition::Internal { position, query }) => {
            text += &format!("\nat character {position} of {query}")
        }
        None => {}
    }
    text
}

/// An SQL string literal, whatever `standard_conforming_strings` says.
pub fn quote_literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A quoted SQL identifier.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quote_dsn_value(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.into()
    } else {
        format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
    }
}

fn percent_encode(value: &str) -> String {
    value
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// A name as part of a short path.
fn printable(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(quote_literal("plain"), "'plain'");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_dsn_value("postgres"), "postgres");
        assert_eq!(quote_dsn_value(""), "''");
        assert_eq!(quote_dsn_value("p'a\\ss w"), "'p\\'a\\\\ss w'");
        assert_eq!(percent_encode("a b/ü@"), "a%20b%2F%C3%BC%40");
    }

    #[test]
    fn names_in_paths() {
        assert_eq!(printable("n 3/../'x"), "n3x");
    }
}
