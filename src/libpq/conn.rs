//! One session on a node, and statements on many sessions at once.

use super::wait::{self, Interest};
use super::{Dsn, Rows, cancel, dsn};
use crate::encoding;
use crate::environment;
use crate::error::{Error, Remote, Result, SqlState};
use crate::settings;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pq_sys as pq;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{NonNull, null};
use std::time::{Duration, Instant};

/// What libpq says when it gives a connection up for want of memory. There is no code for that.
const NO_BUFFER: &str = "cannot allocate memory";

thread_local! {
    /// The connection strings, without their secrets, that lead to a server before PostgreSQL 17, or to a role that
    /// is no superuser: what they refuse is not asked of them again.
    static REFUSED: RefCell<HashSet<String>> = RefCell::default();
}

type Notices = RefCell<Vec<Notice>>;

struct Notice {
    level: PgLogLevel,
    state: SqlState,
    text: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// An open session. Dropping it closes it, and cancels what still runs.
pub struct Conn {
    raw: NonNull<pq::PGconn>,
    pub(super) node: String,
    dsn: Dsn,
    /// Which running server answered.
    pub(super) server: String,
    pub(super) busy: bool,
    pub(super) broken: bool,
    /// The ends of transactions in a pipeline that have been sent and not been answered.
    unsynchronized: usize,
    /// Since when its statement has been seen to wait for a lock.
    blocked: Option<Instant>,
    notices: Box<Notices>,
}

/// How a connection is made.
#[derive(Clone, Default)]
pub(super) struct How {
    /// For the commands of the replication protocol too.
    replication: bool,
    limit: Option<Duration>,
    /// `host, hostaddr, port` of the server that is meant, where the connection string may lead to several.
    place: Option<[String; 3]>,
}

impl How {
    pub(super) fn within(limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    pub(super) fn replication() -> Self {
        Self {
            replication: true,
            ..Self::default()
        }
    }
}

/// What is left of a copy whose rows nobody wants any more.
pub(super) enum Drained {
    End,
    More,
    Failed,
}

impl Conn {
    /// What tells it from the other open sessions.
    pub fn id(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    /// The process of the server that serves this session.
    pub fn server_pid(&self) -> u32 {
        // SAFETY: an open connection.
        unsafe { pq::PQbackendPID(self.raw()) as u32 }
    }

    /// False once the server or the network has ended the session.
    pub fn is_usable(&self) -> bool {
        // SAFETY: an open connection.
        let status = unsafe { pq::PQstatus(self.raw()) };
        !self.broken && status != pq::ConnStatusType::CONNECTION_BAD
    }

    /// Whether the server has ended the session while nothing was asked on it. Does not wait.
    pub fn check_open(&mut self) -> Result<()> {
        // SAFETY: an open connection; libpq's sockets do not block.
        if !self.is_usable() || unsafe { pq::PQconsumeInput(self.raw()) } == 0 {
            return Err(self.lost());
        }
        Ok(())
    }

    pub(super) fn enter_pipeline(&mut self) -> Result<()> {
        self.require_ready("a pipeline")?;
        // SAFETY: an open connection that is idle.
        match unsafe { pq::PQenterPipelineMode(self.raw()) } {
            0 => Err(self.lost()),
            _ => {
                self.busy = true;
                Ok(())
            }
        }
    }

    /// When everything has been answered.
    pub(super) fn leave_pipeline(&mut self) -> Result<()> {
        // SAFETY: an open connection in pipeline mode.
        match unsafe { pq::PQexitPipelineMode(self.raw()) } {
            0 => Err(self.lost()),
            _ => {
                self.busy = false;
                Ok(())
            }
        }
    }

    pub(super) fn raw(&self) -> *mut pq::PGconn {
        self.raw.as_ptr()
    }

    pub(super) fn socket(&self) -> c_int {
        // SAFETY: an open connection. Asked for anew each time: libpq may reconnect to another host.
        unsafe { pq::PQsocket(self.raw()) }
    }

    pub(super) fn connect_all(wanted: Vec<(&str, &Dsn, How)>) -> Vec<Result<Self>> {
        let mut all: Vec<Connecting> = wanted
            .iter()
            .map(|(node, dsn, how)| Connecting::start(node, dsn, how))
            .collect();
        loop {
            let waiting: Vec<usize> = (0..all.len())
                .filter(|i| matches!(all[*i], Connecting::Under { .. }))
                .collect();
            if waiting.is_empty() {
                break;
            }
            let fds: Vec<_> = waiting.iter().map(|i| all[*i].interest()).collect();
            let rest = waiting.iter().filter_map(|i| all[*i].rest()).min();
            match wait::on_fds(&fds, rest) {
                Ok(ready) => {
                    for (i, ready) in waiting.into_iter().zip(ready) {
                        all[i].advance(ready, &wanted[i].2);
                    }
                }
                Err(error) => return wanted.iter().map(|_| Err(error.clone())).collect(),
            }
        }
        all.into_iter()
            .map(|c| match c {
                Connecting::Done(answer) => answer,
                Connecting::Under { .. } => Err(Error::internal("still connecting")),
            })
            .collect()
    }

    /// Whether a server has said anything before the connection failed for that reason. That a port takes connections
    /// says nothing: a server that does not get on, and whoever forwards to it, take them too.
    fn has_answered(&self, reason: &str) -> bool {
        // SAFETY: a connection that is not closed yet, here and below.
        let (asked, encrypted) = unsafe {
            let asked = pq::PQconnectionNeedsPassword(self.raw()) != 0;
            (asked, pq::PQsslInUse(self.raw()) != 0)
        };
        // An error of a server begins with its severity in whichever language, a colon and two blanks.
        asked || encrypted || reason.contains(":  ") || reason.contains("does not support SSL")
    }

    /// Nothing runs here, and something may.
    pub(super) fn require_ready(&self, sql: &str) -> Result<()> {
        // SAFETY: reads backend state.
        if unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId {
            // A slot creation over there would wait for our own transaction, for ever.
            return Err(Error::internal(format!(
                "a remote statement was about to run while this session holds a transaction id: {sql}"
            )));
        }
        if !self.is_usable() {
            return Err(self.lost());
        }
        if self.busy {
            return Err(Error::internal(format!(
                "session on {} is busy: {sql}",
                self.node
            )));
        }
        Ok(())
    }

    pub(super) fn send(&mut self, sql: &str, params: &[&str]) -> Result<()> {
        self.require_ready(sql)?;
        match params.is_empty() {
            true => {
                let text = statement(sql)?;
                // SAFETY: libpq copies what it is given before it returns.
                let sent = unsafe { pq::PQsendQuery(self.raw(), text.as_ptr()) };
                self.require_sent(sent)?;
            }
            false => self.send_with_params(sql, params)?,
        }
        self.busy = true;
        Ok(())
    }

    pub(super) fn send_with_params(&mut self, sql: &str, params: &[&str]) -> Result<()> {
        let text = statement(sql)?;
        let values: Vec<CString> = params
            .iter()
            .map(|p| CString::new(*p).map_err(|_| Error::internal("parameter holds a zero byte")))
            .collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = values.iter().map(|v| v.as_ptr()).collect();
        // SAFETY: libpq copies what it is given before it returns.
        let sent = unsafe {
            pq::PQsendQueryParams(
                self.raw(),
                text.as_ptr(),
                pointers.len() as c_int,
                null(),
                pointers.as_ptr(),
                null(),
                null(),
                0,
            )
        };
        self.require_sent(sent)
    }

    /// Sends the end of a transaction in a pipeline.
    pub(super) fn synchronize(&mut self) -> Result<()> {
        // SAFETY: an open connection in pipeline mode.
        let sent = unsafe { pq::PQpipelineSync(self.raw()) };
        self.require_sent(sent)?;
        self.unsynchronized += 1;
        Ok(())
    }

    /// One of them has been answered; whether it was the last.
    pub(super) fn synchronized(&mut self) -> bool {
        self.unsynchronized -= 1;
        self.unsynchronized == 0
    }

    pub(super) fn require_sent(&self, sent: c_int) -> Result<()> {
        match sent {
            0 => Err(self.lost()),
            _ => Ok(()),
        }
    }

    /// Pushes out what is unsent and says whether a result can be had without waiting.
    pub(super) fn flush(&mut self) -> Result<Option<Interest>> {
        // SAFETY: an open connection.
        let unsent = unsafe { pq::PQflush(self.raw()) };
        if unsent < 0 {
            return Err(self.lost());
        }
        // SAFETY: as above.
        if unsafe { pq::PQisBusy(self.raw()) } == 0 {
            return Ok(None);
        }
        Ok(Some(Interest {
            read: true,
            write: unsent > 0,
        }))
    }

    pub(super) fn consume(&mut self) {
        // SAFETY: an open connection. A failure shows in the next PQgetResult.
        unsafe { pq::PQconsumeInput(self.raw()) };
        self.blocked = None;
        self.relay_notices();
    }

    pub(super) fn wait(&mut self, interest: Interest) -> Result<()> {
        self.wait_within(interest, None).map(|_| ())
    }

    /// Whether something came.
    pub(super) fn wait_within(
        &mut self,
        interest: Interest,
        limit: Option<Duration>,
    ) -> Result<bool> {
        if self.socket() < 0 {
            // In the middle of a COPY libpq asks for more rows even after the connection is gone.
            self.busy = false;
            return Err(self.lost());
        }
        match wait::on_fds(&[(self.socket(), interest)], limit) {
            Ok(ready) => {
                if ready[0] {
                    self.consume();
                }
                Ok(ready[0])
            }
            Err(error) => {
                self.cancel_and_drain();
                Err(error)
            }
        }
    }

    pub(super) fn result(&mut self) -> Option<PgResult> {
        // SAFETY: an open connection; not busy, so it does not block.
        let result = NonNull::new(unsafe { pq::PQgetResult(self.raw()) }).map(PgResult);
        self.relay_notices();
        result
    }

    /// As [`Conn::result`], of the only statement that runs.
    pub(super) fn next_result(&mut self) -> Option<PgResult> {
        let result = self.result();
        if result.is_none() {
            self.busy = false;
        }
        result
    }

    /// Nothing has come on this session for `limit`. That is no harm while the server works on `sql`, which a session beside
    /// this one finds out. If it is seen to wait for a lock twice in a row, it is cancelled. Where another server answers
    /// there, as behind a proxy, nothing is known.
    pub(super) fn check_stalled(&mut self, limit: Duration, sql: &str) -> Result<()> {
        let Some(holders) = self.lock_holders(limit / 2)? else {
            self.blocked = None;
            return Ok(());
        };
        if self.blocked.get_or_insert_with(Instant::now).elapsed() < limit {
            return Ok(());
        }
        self.cancel_and_drain();
        Err(self.blocked_by(holders, sql))
    }

    /// Who holds the lock that the statement of this session waits for; an error if nothing will come any more.
    fn lock_holders(&mut self, within: Duration) -> Result<Option<String>> {
        let Some(mut beside) = probe(&self.node, &self.dsn, Some(self.place()), within)? else {
            return Ok(None);
        };
        let pid = self.server_pid().to_string();
        let found = beside.query_within(
            &format!(
                "SELECT ({}) AS server, a.state,
                        (SELECT pg_catalog.string_agg(CASE WHEN b.pid IS NULL THEN 'a prepared transaction'
                                    ELSE pg_catalog.format('pid %s (user %s, application %s)',
                                    b.pid, b.usename, b.application_name) END, ', ')
                           FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) AS blocking (pid)
                           LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid OPERATOR(pg_catalog.=) blocking.pid) AS holders
                   FROM (VALUES (0)) AS one (row)
                   LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) $1::pg_catalog.int4",
                environment::SERVER
            ),
            &[&pid],
            Some(within),
        )?;
        let found = found.one()?;
        if found.get::<&str>("server")? != self.server {
            return Ok(None);
        }
        let reason = match found.get("state")? {
            None => "the server has ended the session",
            Some("idle") => "the statement finished on the server, but no result was received",
            Some(_) => return found.get("holders"),
        };
        // It may have been on its way meanwhile.
        let ready = wait::on_fds(&[(self.socket(), Interest::READ)], Some(within / 4))?;
        match ready[0] {
            true => Ok(None),
            false => Err(Error::Lost {
                node: self.node.clone(),
                reason: reason.into(),
            }),
        }
    }

    /// Where the server of this session is.
    fn place(&self) -> [String; 3] {
        // SAFETY: an open connection; the texts are copied.
        unsafe {
            [
                text(pq::PQhost(self.raw())),
                text(pq::PQhostaddr(self.raw())),
                text(pq::PQport(self.raw())),
            ]
        }
    }

    /// Ends what runs and reads it to its end, so that the session can be used for the undo. Runs
    /// after an interrupt, so it neither raises nor waits long; a session that does not come to rest
    /// is given up.
    pub(super) fn cancel_and_drain(&mut self) {
        if !self.busy {
            return;
        }
        if !cancel::request(self.raw(), Duration::from_secs(2)) {
            // A node that takes no new connection does not answer on the old one either.
            return self.mark_broken();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        // SAFETY: an open connection.
        let pipeline =
            unsafe { pq::PQpipelineStatus(self.raw()) } != pq::PGpipelineStatus::PQ_PIPELINE_OFF;
        // Up to there the server does nothing any more.
        if pipeline && self.unsynchronized == 0 && self.synchronize().is_err() {
            return self.mark_broken();
        }
        loop {
            // SAFETY: an open connection; PQgetResult is called only when it does not block.
            unsafe {
                let unsent = pq::PQflush(self.raw()) > 0;
                while pq::PQisBusy(self.raw()) == 0 {
                    let result = NonNull::new(pq::PQgetResult(self.raw())).map(PgResult);
                    let status = result.as_ref().map(PgResult::status);
                    let end = match status {
                        Some(pq::ExecStatusType::PGRES_PIPELINE_SYNC) => {
                            let last = self.synchronized();
                            // The next one has begun.
                            if !last && !cancel::request(self.raw(), Duration::from_secs(2)) {
                                return self.mark_broken();
                            }
                            last
                        }
                        status => !pipeline && status.is_none(),
                    };
                    if end {
                        self.busy = pipeline && pq::PQexitPipelineMode(self.raw()) == 0;
                        self.broken |= self.busy;
                        self.notices.borrow_mut().clear();
                        return;
                    }
                    if status.is_none() && !self.is_usable() {
                        return self.mark_broken();
                    }
                    if status == Some(pq::ExecStatusType::PGRES_COPY_OUT) {
                        match self.drain_copy() {
                            Drained::End => {}
                            // Still copying: "not busy" then means only that rows may be taken.
                            Drained::More => break,
                            Drained::Failed => {
                                return self.mark_broken();
                            }
                        }
                    }
                }
                let left = deadline.saturating_duration_since(Instant::now());
                let events = match unsent {
                    true => libc::POLLIN | libc::POLLOUT,
                    false => libc::POLLIN,
                };
                wait::undisturbed(self.socket(), events, left);
                if left.is_zero() || pq::PQconsumeInput(self.raw()) == 0 {
                    return self.mark_broken();
                }
            }
        }
    }

    /// Nobody waits for its answers any more, and nothing is asked of it.
    pub(super) fn mark_broken(&mut self) {
        self.broken = true;
        self.busy = false;
    }

    /// Throws away the rows that have arrived.
    pub(super) fn drain_copy(&mut self) -> Drained {
        loop {
            let mut buffer: *mut c_char = std::ptr::null_mut();
            // SAFETY: asynchronous mode does not block; each buffer is freed.
            match unsafe { pq::PQgetCopyData(self.raw(), &mut buffer, 1) } {
                // SAFETY: as above.
                1.. => unsafe { pq::PQfreemem(buffer.cast()) },
                0 => return Drained::More,
                -1 => return Drained::End,
                // No memory for the row, for instance: libpq would offer it again for ever.
                _ => return Drained::Failed,
            }
        }
    }

    fn relay_notices(&self) {
        let said = |text: &str| encoding::shown(&dsn::scrub(text)).into_owned();
        for notice in self.notices.take() {
            let mut report = ErrorReport::new(
                PgSqlErrorCode::from(notice.state.pack()),
                said(&format!("node \"{}\": {}", self.node, notice.text)),
                "relay_notices",
            );
            if let Some(detail) = notice.detail {
                report = report.set_detail(said(&detail));
            }
            if let Some(hint) = notice.hint {
                report = report.set_hint(said(&hint));
            }
            wait::uncancelled(|| report.report(notice.level));
        }
    }

    pub(super) fn message(&self) -> String {
        // SAFETY: an open connection; the text is copied.
        dsn::scrub(unsafe { text(pq::PQerrorMessage(self.raw())) }.trim_end())
    }

    pub(super) fn lost(&self) -> Error {
        let reason = self.message();
        let reason = if reason.is_empty() {
            "the session is closed".into()
        } else if reason.contains(NO_BUFFER) {
            return Self::no_memory("out of memory".into());
        } else {
            reason
        };
        Error::Lost {
            node: self.node.clone(),
            reason,
        }
    }

    /// For what a node has sent.
    /// Others have held a lock that `sql` needs for as long as the no-progress timeout.
    fn blocked_by(&self, holders: String, sql: &str) -> Error {
        Error::Stalled {
            node: self.node.clone(),
            what: "waiting for a lock".into(),
            seconds: settings::no_progress_timeout().map_or(0, |limit| limit.as_secs()),
            detail: format!("It is held by {holders}. Statement: {}", one_line(sql)),
            hint: "End that transaction, then run the CALL again.".into(),
        }
    }

    pub(super) fn no_memory(message: String) -> Error {
        Error::Local {
            state: SqlState::OUT_OF_MEMORY,
            message,
            detail: None,
            hint: Some("A row takes about three times its size in memory on the new node.".into()),
        }
    }

    pub(super) fn remote_error(&self, result: &PgResult, sql: &str) -> Error {
        let Some(state) = result.field(pq::PG_DIAG_SQLSTATE) else {
            return self.lost(); // made by libpq itself: the connection is gone
        };
        let message = result
            .field(pq::PG_DIAG_MESSAGE_PRIMARY)
            .unwrap_or_else(|| self.message());
        Error::Remote(Box::new(Remote {
            node: self.node.clone(),
            state: SqlState::parse(&state),
            message: dsn::scrub(&message),
            detail: result
                .field(pq::PG_DIAG_MESSAGE_DETAIL)
                .map(|t| dsn::scrub(&t)),
            hint: result
                .field(pq::PG_DIAG_MESSAGE_HINT)
                .map(|t| dsn::scrub(&t)),
            statement: dsn::scrub(&one_line(sql)),
        }))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        cancel::forget(self.raw());
        if self.busy {
            cancel::request(self.raw(), Duration::from_secs(2));
        }
        // SAFETY: closed once; the file descriptor was reserved in `Connecting::start`.
        unsafe {
            pq::PQfinish(self.raw());
            pg_sys::ReleaseExternalFD();
        }
    }
}

/// A new session on the node, if one can be had; the error says that the node does not answer at all.
/// One that answers with a refusal, since it is full or starting, is there.
fn probe(
    node: &str,
    dsn: &Dsn,
    place: Option<[String; 3]>,
    within: Duration,
) -> Result<Option<Conn>> {
    let how = How {
        limit: Some(within),
        place,
        ..How::default()
    };
    match Conn::connect_all(vec![(node, dsn, how)]).pop() {
        Some(Ok(conn)) => Ok(Some(conn)),
        Some(Err(Error::Connect { reason, .. })) if reason == TIMEOUT => Err(Error::Lost {
            node: node.to_owned(),
            reason: format!(
                "nothing has come from it for long, and a new connection had no answer within {} s",
                within.as_secs_f32()
            ),
        }),
        Some(Err(error @ Error::Interrupted { .. })) => Err(error),
        _ => Ok(None),
    }
}

/// An error if the node does not answer any more; for those who wait for something that does not
/// come over a session of ours.
pub fn require_alive(node: &str, dsn: &Dsn, within: Duration) -> Result<()> {
    probe(node, dsn, None, within).map(|_| ())
}

/// How long a session may be silent before its node is looked at, and how long that may take, so that
/// a lost network is noticed within the no-progress timeout.
pub fn idle_limit() -> Option<Duration> {
    settings::no_progress_timeout().map(|limit| limit / 2)
}

const TIMEOUT: &str = "timeout expired";

enum Connecting {
    Under {
        conn: Conn,
        interest: Interest,
        deadline: Option<Instant>,
        /// It began with what a server may refuse; see [`environment::is_too_old`].
        refusable: bool,
    },
    Done(Result<Conn>),
}

impl Connecting {
    fn start(node: &str, dsn: &Dsn, how: &How) -> Self {
        match Self::try_start(node, dsn, how) {
            Ok(under) => under,
            Err(error) => Self::Done(Err(error)),
        }
    }

    fn try_start(node: &str, dsn: &Dsn, how: &How) -> Result<Self> {
        let inherited = std::env::var("PGOPTIONS").unwrap_or_default();
        let all = REFUSED.with_borrow(|refused| !refused.contains(&dsn.without_secrets()));
        let startup = environment::startup(dsn.get("options").unwrap_or(&inherited), all);
        // Ours first: a later entry of the same keyword wins, and that is the user's.
        let mut options: Vec<(&str, &str)> = vec![
            ("fallback_application_name", "zodan"),
            ("keepalives", "1"),
            ("keepalives_idle", "10"),
            ("keepalives_interval", "5"),
            ("keepalives_count", "4"),
            // Keepalives are not sent while a statement waits to be acknowledged; without a limit of
            // its own, a lost network would show after a quarter of an hour only.
            ("tcp_user_timeout", "30000"),
        ];
        options.extend(dsn.options().map(|(keyword, value, _)| (keyword, value)));
        options.push(("application_name", "zodan"));
        options.push(("client_encoding", "UTF8"));
        options.push(("options", &startup));
        if how.replication {
            options.push(("replication", "database"));
        }
        if let Some([host, hostaddr, port]) = &how.place {
            options.extend([
                ("host", host.as_str()),
                ("hostaddr", hostaddr),
                ("port", port),
                ("target_session_attrs", "any"),
            ]);
        }
        let owned: Vec<(CString, CString)> = options
            .into_iter()
            .map(|(k, v)| Ok((c_string(k)?, c_string(v)?)))
            .collect::<Result<_>>()?;
        let mut keywords: Vec<*const c_char> = owned.iter().map(|(k, _)| k.as_ptr()).collect();
        let mut values: Vec<*const c_char> = owned.iter().map(|(_, v)| v.as_ptr()).collect();
        keywords.push(null());
        values.push(null());

        // SAFETY: reserved before libpq opens the socket, released with the connection.
        if !unsafe { pg_sys::AcquireExternalFD() } {
            return Err(Error::refused(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                format!(
                    "could not connect to node \"{node}\": this server has too many open files"
                ),
                "Raise max_files_per_process or the limit of the operating system.",
            ));
        }
        // SAFETY: arrays ended by null; libpq copies them. Name resolution is the one call in here
        // that blocks; hostaddr in the connection string avoids it.
        let raw = unsafe { pq::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0) };
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: reserved above.
            unsafe { pg_sys::ReleaseExternalFD() };
            return Err(Error::internal("libpq is out of memory"));
        };
        cancel::remember(raw.as_ptr());
        let conn = Conn {
            raw,
            node: node.to_owned(),
            dsn: dsn.clone(),
            server: String::new(),
            busy: false,
            broken: false,
            unsynchronized: 0,
            blocked: None,
            notices: Box::default(),
        };
        // SAFETY: the box outlives the connection: both are fields of `Conn`, which closes first.
        unsafe {
            let sink: *const Notices = &*conn.notices;
            pq::PQsetNoticeReceiver(conn.raw(), Some(on_notice), sink.cast_mut().cast());
        }
        // PQconnectPoll ignores connect_timeout, so the deadline is ours; it is per host.
        let hosts = dsn
            .get("host")
            .or(dsn.get("hostaddr"))
            .map_or(1, |h| h.split(',').count());
        let timeout = match dsn.get("connect_timeout").and_then(|t| t.parse().ok()) {
            Some(seconds @ 1..) => Duration::from_secs(seconds),
            _ => settings::connect_timeout(),
        };
        let mut under = Self::Under {
            conn,
            interest: Interest::WRITE,
            deadline: match how.limit {
                Some(limit) => Some(Instant::now() + limit),
                None => (!timeout.is_zero()).then(|| Instant::now() + timeout * hosts as u32),
            },
            refusable: all,
        };
        under.check_failed();
        Ok(under)
    }

    fn interest(&self) -> (c_int, Interest) {
        match self {
            Self::Under { conn, interest, .. } => (conn.socket(), *interest),
            Self::Done(_) => (-1, Interest::READ),
        }
    }

    fn rest(&self) -> Option<Duration> {
        match self {
            Self::Under { deadline, .. } => {
                deadline.map(|d| d.saturating_duration_since(Instant::now()))
            }
            Self::Done(_) => None,
        }
    }

    fn check_failed(&mut self) {
        if let Self::Under { conn, .. } = self
            // SAFETY: an open connection.
            && unsafe { pq::PQstatus(conn.raw()) } == pq::ConnStatusType::CONNECTION_BAD
        {
            let reason = conn.message();
            self.fail(reason);
        }
    }

    fn fail(&mut self, reason: String) {
        if let Self::Under { conn, .. } = self {
            let answered = conn.has_answered(&reason);
            let error = Error::connect(&conn.node, one_sentence(&reason), answered);
            *self = Self::Done(Err(error));
        }
    }

    fn advance(&mut self, ready: bool, how: &How) {
        let expired = self.rest().is_some_and(|r| r.is_zero());
        let Self::Under {
            conn,
            interest,
            refusable,
            ..
        } = self
        else {
            return;
        };
        if !ready {
            if expired {
                self.fail(TIMEOUT.into());
            }
            return;
        }
        use pq::PostgresPollingStatusType as Polling;
        // SAFETY: a connection under way.
        match unsafe { pq::PQconnectPoll(conn.raw()) } {
            Polling::PGRES_POLLING_READING => *interest = Interest::READ,
            Polling::PGRES_POLLING_WRITING => *interest = Interest::WRITE,
            Polling::PGRES_POLLING_OK => {
                conn.relay_notices();
                // SAFETY: an open connection.
                if unsafe { pq::PQsetnonblocking(conn.raw(), 1) } != 0 {
                    let reason = conn.message();
                    return self.fail(reason);
                }
                let done = std::mem::replace(self, Self::Done(Err(Error::internal("moved"))));
                if let Self::Under { conn, .. } = done {
                    *self = Self::Done(Ok(conn));
                }
            }
            _ => {
                let reason = conn.message();
                let (node, dsn) = (conn.node.clone(), conn.dsn.clone());
                let address = dsn.without_secrets();
                let anew = *refusable && environment::is_too_old(&reason);
                if anew {
                    REFUSED.with_borrow_mut(|refused| refused.insert(address));
                }
                match anew {
                    true => *self = Self::start(&node, &dsn, how),
                    false => self.fail(reason),
                }
            }
        }
    }
}

/// A result of libpq, freed when dropped.
pub(super) struct PgResult(NonNull<pq::PGresult>);

impl PgResult {
    pub(super) fn status(&self) -> pq::ExecStatusType {
        // SAFETY: a live result, here and below.
        unsafe { pq::PQresultStatus(self.0.as_ptr()) }
    }

    pub(super) fn affected(&self) -> u64 {
        // SAFETY: as above; the text is copied.
        unsafe { text(pq::PQcmdTuples(self.0.as_ptr())) }
            .parse()
            .unwrap_or(0)
    }

    pub(super) fn rows(&self) -> Rows {
        let result = self.0.as_ptr();
        // SAFETY: indexes are within the counts that libpq gives; texts are copied.
        let (names, rows) = unsafe {
            let columns = pq::PQnfields(result);
            let names = (0..columns).map(|column| text(pq::PQfname(result, column)));
            let rows = (0..pq::PQntuples(result))
                .map(|row| {
                    (0..columns)
                        .map(|column| {
                            (pq::PQgetisnull(result, row, column) == 0)
                                .then(|| text(pq::PQgetvalue(result, row, column)))
                        })
                        .collect()
                })
                .collect();
            (names.collect(), rows)
        };
        Rows::new(names, rows, self.affected())
    }

    fn field(&self, code: u8) -> Option<String> {
        // SAFETY: a live result; the text is copied.
        unsafe { field(self.0.as_ptr(), code) }
    }
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { pq::PQclear(self.0.as_ptr()) }
    }
}

/// Called from inside libpq, so it only queues: no ereport, and nothing that can panic.
unsafe extern "C" fn on_notice(sink: *mut c_void, result: *const pq::PGresult) {
    // SAFETY: the sink is the box of the connection that calls; the result lives during the call.
    unsafe {
        let Ok(mut notices) = (*sink.cast::<Notices>()).try_borrow_mut() else {
            return;
        };
        let severity = field(result, pq::PG_DIAG_SEVERITY_NONLOCALIZED).unwrap_or_default();
        notices.push(Notice {
            level: match severity.as_str() {
                "WARNING" => PgLogLevel::WARNING,
                "INFO" | "NOTICE" => PgLogLevel::NOTICE,
                "LOG" => PgLogLevel::LOG,
                _ => PgLogLevel::DEBUG1,
            },
            state: SqlState::parse(&field(result, pq::PG_DIAG_SQLSTATE).unwrap_or("00000".into())),
            text: field(result, pq::PG_DIAG_MESSAGE_PRIMARY).unwrap_or_default(),
            detail: field(result, pq::PG_DIAG_MESSAGE_DETAIL),
            hint: field(result, pq::PG_DIAG_MESSAGE_HINT),
        });
    }
}

unsafe fn field(result: *const pq::PGresult, code: u8) -> Option<String> {
    // SAFETY: a live result, says the caller; the text is copied.
    unsafe {
        let value = pq::PQresultErrorField(result, c_int::from(code));
        (!value.is_null()).then(|| text(value))
    }
}

unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: a C string, says the caller.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

pub(super) fn statement(sql: &str) -> Result<CString> {
    CString::new(sql).map_err(|_| Error::internal("statement holds a zero byte"))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::internal("a connection option holds a zero byte"))
}

/// What libpq says of one host after the other, each with an explanation on a line of its own.
fn one_sentence(reason: &str) -> String {
    reason.replace("\n\t", " ").replace('\n', "; ")
}

/// A statement as one line of a message.
pub(super) fn one_line(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
