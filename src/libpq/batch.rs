//! Statements on several sessions at the same time, and several on each where that saves a round trip.

use super::conn::{Conn, idle_limit, one_line};
use super::wait::{self, Interest};
use super::{Rows, cancel};
use crate::error::{Error, Result, SqlState};
use pq_sys as pq;
use std::time::{Duration, Instant, SystemTime};

/// A statement and its parameters.
pub type Command<'a> = (&'a str, Vec<&'a str>);

/// How long the statements of a session may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// As long as the server is seen to work on them.
    #[default]
    None,
    /// What has not been answered then is cancelled, and its answer is [`Error::Deadline`].
    Cancelled(Duration),
    /// The session is given up then.
    GivenUp(Duration),
}

impl Limit {
    fn duration(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Cancelled(limit) | Self::GivenUp(limit) => Some(limit),
        }
    }
}

/// Statements for one session. Several are sent together; each of them has to be a single command then, and is a
/// transaction of its own: one that fails keeps none behind it from being run.
pub struct Job<'a> {
    conn: &'a mut Conn,
    commands: Vec<Command<'a>>,
    limit: Limit,
}

impl<'a> Job<'a> {
    pub fn new(conn: &'a mut Conn, commands: Vec<Command<'a>>) -> Self {
        Self {
            conn,
            commands,
            limit: Limit::None,
        }
    }

    pub fn until(self, limit: Limit) -> Self {
        Self { limit, ..self }
    }
}

impl Conn {
    /// Sends several statements, each of them a single command and a transaction of its own.
    fn send_all(&mut self, commands: &[Command<'_>]) -> Result<()> {
        self.enter_pipeline()?;
        let sent = commands.iter().try_for_each(|(sql, params)| {
            self.send_with_params(sql, params)?;
            self.synchronize()
        });
        if sent.is_err() {
            self.cancel_and_drain();
        }
        sent
    }

    /// Runs one statement and returns the rows of its last result. Without parameters the simple
    /// protocol is used, so `sql` may hold several statements, which are then one transaction.
    pub fn query(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query_within(sql, params, None)
    }

    /// As [`Conn::query`]; after `limit` the statement is cancelled and [`Error::Deadline`] returned.
    pub fn query_within(
        &mut self,
        sql: &str,
        params: &[&str],
        limit: Option<Duration>,
    ) -> Result<Rows> {
        let limit = limit.map_or(Limit::None, Limit::Cancelled);
        let job = Job::new(self, vec![(sql, params.to_vec())]).until(limit);
        let mut answers = run_batch(vec![job]).into_iter().flat_map(|a| a.answers);
        answers
            .next()
            .unwrap_or_else(|| Err(Error::internal("no answer")))
    }
}

/// What a session has answered to the statements of a job, in their order.
#[derive(Clone, Debug)]
pub struct Answered {
    pub answers: Vec<Result<Rows>>,
    pub asked: SystemTime,
    pub took: Duration,
}

impl Answered {
    /// When the session is one of this server.
    pub fn at_once(answer: impl FnOnce() -> Vec<Result<Rows>>) -> Self {
        let (asked, began) = (SystemTime::now(), Instant::now());
        Self {
            answers: answer(),
            asked,
            took: began.elapsed(),
        }
    }

    /// Takes the first `count` answers away.
    pub fn split_off_first(&mut self, count: usize) -> Self {
        let rest = self.answers.split_off(count.min(self.answers.len()));
        Self {
            answers: std::mem::replace(&mut self.answers, rest),
            asked: self.asked,
            took: self.took,
        }
    }
}

/// Runs the jobs at the same time; the answers are in their order. An interrupt ends all of them and is the answer of
/// every unfinished one.
pub fn run_batch(jobs: Vec<Job<'_>>) -> Vec<Answered> {
    let mut all: Vec<Running> = jobs.into_iter().map(Running::start).collect();
    loop {
        let waiting: Vec<(usize, Interest)> = all
            .iter_mut()
            .enumerate()
            .filter_map(|(i, job)| job.advance().map(|interest| (i, interest)))
            .collect();
        if waiting.is_empty() {
            break;
        }
        if let Some(i) = waiting.iter().map(|(i, _)| *i).find(|i| all[*i].is_late()) {
            all[i].end_late();
            continue;
        }
        if let Some(i) = waiting
            .iter()
            .map(|(i, _)| *i)
            .find(|i| all[*i].is_silent())
        {
            if let Err(error) = all[i].look_whether_it_works() {
                interrupt(&mut all, &waiting, &error);
            }
            continue;
        }
        let fds: Vec<_> = waiting
            .iter()
            .map(|(i, interest)| (all[*i].conn.socket(), *interest))
            .collect();
        let rest = waiting.iter().filter_map(|(i, _)| all[*i].rest()).min();
        match wait::on_fds(&fds, rest) {
            Ok(ready) => {
                for ((i, _), ready) in waiting.into_iter().zip(ready) {
                    if ready {
                        all[i].heard = Instant::now();
                        all[i].conn.consume();
                    }
                }
            }
            Err(error) => interrupt(&mut all, &waiting, &error),
        }
    }
    all.into_iter().map(Running::end).collect()
}

fn interrupt(all: &mut [Running], waiting: &[(usize, Interest)], error: &Error) {
    // All requests first, so that the sessions end at the same time.
    for (i, _) in waiting {
        all[*i].conn.cancel_and_drain();
        all[*i].finish_with(error);
    }
}

struct Running<'a> {
    conn: &'a mut Conn,
    commands: Vec<Command<'a>>,
    limit: Limit,
    asked: SystemTime,
    began: Instant,
    /// When the server was told to stop, since the limit had passed.
    cancelled: Option<Instant>,
    /// When something came last.
    heard: Instant,
    /// Of the statement that is being answered.
    rows: Rows,
    error: Option<Error>,
    /// Of those before it.
    answers: Vec<Result<Rows>>,
}

impl<'a> Running<'a> {
    fn start(job: Job<'a>) -> Self {
        let (asked, now) = (SystemTime::now(), Instant::now());
        let sent = match job.commands.as_slice() {
            [(sql, params)] => job.conn.send(sql, params),
            [] => Ok(()),
            several => job.conn.send_all(several),
        };
        let mut running = Self {
            conn: job.conn,
            commands: job.commands,
            limit: job.limit,
            asked,
            began: now,
            cancelled: None,
            heard: now,
            rows: Rows::default(),
            error: None,
            answers: vec![],
        };
        if let Err(error) = sent {
            running.finish_with(&error);
        }
        running
    }

    fn end(self) -> Answered {
        Answered {
            answers: self.answers,
            asked: self.asked,
            took: self.heard.duration_since(self.began),
        }
    }

    fn is_finished(&self) -> bool {
        self.answers.len() == self.commands.len()
    }

    fn is_pipeline(&self) -> bool {
        self.commands.len() > 1
    }

    fn sql(&self) -> &'a str {
        self.commands.get(self.answers.len()).map_or("", |c| c.0)
    }

    /// Reads what is there; what to wait for, or `None` when all is answered.
    fn advance(&mut self) -> Option<Interest> {
        while !self.is_finished() {
            match self.conn.flush() {
                Ok(None) => {}
                Ok(interest) => return interest,
                Err(error) => {
                    self.conn.busy = false;
                    self.finish_with(&error);
                    return None;
                }
            }
            use pq::ExecStatusType as Status;
            let Some(result) = self.conn.result() else {
                match self.is_pipeline() {
                    false => {
                        self.conn.busy = false;
                        self.answered();
                    }
                    true if !self.conn.is_usable() => {
                        self.conn.busy = false;
                        self.finish_with(&self.conn.lost());
                    }
                    true => {}
                }
                continue;
            };
            match result.status() {
                Status::PGRES_PIPELINE_SYNC => {
                    self.answered();
                    if self.conn.synchronized()
                        && let Err(error) = self.conn.leave_pipeline()
                    {
                        self.finish_with(&error);
                    }
                }
                Status::PGRES_COMMAND_OK | Status::PGRES_TUPLES_OK | Status::PGRES_EMPTY_QUERY => {
                    self.rows = result.rows();
                }
                Status::PGRES_COPY_IN | Status::PGRES_COPY_OUT | Status::PGRES_COPY_BOTH => {
                    self.conn.cancel_and_drain();
                    self.finish_with(&Error::internal("COPY where a query was expected"));
                }
                _ => {
                    let error = self.conn.remote_error(&result, self.sql());
                    self.error.get_or_insert(error);
                }
            }
        }
        None
    }

    /// The answer to one statement is complete.
    fn answered(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let answer = match (self.error.take(), self.limit.duration()) {
            (Some(error), Some(limit))
                if self.cancelled.is_some() && error.sqlstate() == SqlState::QUERY_CANCELED =>
            {
                Err(self.deadline(&one_line(self.sql()), limit))
            }
            (Some(error), _) => Err(error),
            (None, _) => Ok(rows),
        };
        self.answers.push(answer);
    }

    /// There will be no more answers.
    fn finish_with(&mut self, error: &Error) {
        let first = self.error.take().unwrap_or_else(|| error.clone());
        if !self.is_finished() {
            self.answers.push(Err(first));
        }
        let left = self.commands.len() - self.answers.len();
        self.answers.extend((0..left).map(|_| Err(error.clone())));
    }

    fn deadline(&self, what: &str, limit: Duration) -> Error {
        Error::Deadline {
            node: self.conn.node.clone(),
            what: what.to_owned(),
            limit_ms: limit.as_millis(),
        }
    }

    /// How long it may be waited for.
    fn rest(&self) -> Option<Duration> {
        let since = |moment: Instant, limit: Duration| limit.saturating_sub(moment.elapsed());
        match (self.limit.duration(), self.cancelled) {
            (_, Some(cancelled)) => Some(since(cancelled, Duration::from_secs(10))),
            (Some(limit), None) => Some(since(self.began, limit)),
            // What has a limit of its own needs no other.
            (None, None) => idle_limit().map(|limit| since(self.heard, limit)),
        }
    }

    fn is_over(&self) -> bool {
        self.rest().is_some_and(|rest| rest.is_zero())
    }

    fn is_late(&self) -> bool {
        self.limit != Limit::None && self.is_over()
    }

    fn is_silent(&self) -> bool {
        self.limit == Limit::None && self.is_over()
    }

    fn end_late(&mut self) {
        match self.limit {
            Limit::GivenUp(limit) => {
                // The node may be one that does not answer at all, so the cancel request is hardly waited for.
                cancel::request(self.conn.raw(), Duration::from_millis(50));
                self.conn.mark_broken();
                self.finish_with(&self.deadline("the answer", limit));
            }
            _ if self.cancelled.is_some() => {
                // It was told to stop and does not answer: give the session up.
                self.conn.broken = true;
                self.finish_with(&Error::Lost {
                    node: self.conn.node.clone(),
                    reason: "no answer to a cancel request".into(),
                });
            }
            _ => {
                cancel::request(self.conn.raw(), Duration::from_secs(2));
                self.cancelled = Some(Instant::now());
            }
        }
    }

    /// Nothing has come from it for long. An error if this session was interrupted meanwhile.
    fn look_whether_it_works(&mut self) -> Result<()> {
        let limit = idle_limit().unwrap_or_default();
        match self.conn.check_stalled(limit, self.sql()) {
            Ok(()) => self.heard = Instant::now(),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => {
                // What waited for a lock has been cancelled, and its session is as before. A node that does not answer
                // is told nothing any more.
                if !matches!(error, Error::Stalled { .. }) {
                    self.conn.mark_broken();
                }
                self.finish_with(&error);
            }
        }
        Ok(())
    }
}
