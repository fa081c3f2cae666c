//! A session on a node: over libpq, or SPI where the node is this server.

use super::query::Question;
use super::queryable::Queryable;
use super::statement::{Ask, Statement};
use super::{Local, Member, Node, Reader};
use crate::error::{Error, Result};
use crate::libpq::{self, Conn, Job, Rows};
use std::time::Duration;

pub enum Session {
    Remote(Conn),
    Local(Local),
    /// As [`Session::Local`], inside a function: reads only.
    Reader(Reader),
}

impl Session {
    /// Runs one statement in a transaction of its own.
    pub fn query(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        match self {
            Self::Remote(conn) => conn.query(sql, params),
            Self::Local(local) => local.query(sql, params),
            Self::Reader(reader) => reader.query(sql, params),
        }
    }

    pub fn is_usable(&self) -> bool {
        match self {
            Self::Remote(conn) => conn.is_usable(),
            Self::Local(_) | Self::Reader(_) => true,
        }
    }
}

impl Queryable for Session {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query(sql, params)
    }
}

/// Whether the sessions on `nodes` are still open: for the time in which none of them is asked anything.
pub fn check_open(nodes: &mut [&mut Node]) -> Result<()> {
    nodes
        .iter_mut()
        .try_for_each(|node| match &mut node.session {
            Session::Remote(conn) => conn.check_open(),
            Session::Local(_) | Session::Reader(_) => Ok(()),
        })
}

/// Asks several nodes at the same time, each its own question.
pub fn ask(questions: Vec<Ask<'_>>) -> Vec<Result<Rows>> {
    ask_within(questions, None)
}

/// As [`ask`]; a remote statement that takes longer than `limit` is cancelled.
pub fn ask_within(questions: Vec<Ask<'_>>, limit: Option<Duration>) -> Vec<Result<Rows>> {
    let prepared: Vec<(&mut Session, String, Vec<String>)> = questions
        .into_iter()
        .map(|q| (&mut q.node.session, q.sql, q.params))
        .collect();
    let texts: Vec<(String, Vec<String>)> = prepared
        .iter()
        .map(|(_, sql, params)| (sql.clone(), params.clone()))
        .collect();
    let params: Vec<Vec<&str>> = texts
        .iter()
        .map(|(_, p)| p.iter().map(String::as_str).collect())
        .collect();

    let mut answers: Vec<Option<Result<Rows>>> = vec![];
    let mut jobs = vec![];
    let mut remote = vec![];
    for (i, (session, ..)) in prepared.into_iter().enumerate() {
        answers.push(None);
        match session {
            Session::Remote(conn) => {
                jobs.push(Job {
                    conn,
                    sql: &texts[i].0,
                    params: &params[i],
                });
                remote.push(i);
            }
            local => answers[i] = Some(local.query(&texts[i].0, &params[i])),
        }
    }
    for (i, answer) in remote.into_iter().zip(libpq::run_batch_within(jobs, limit)) {
        answers[i] = Some(answer);
    }
    answers
        .into_iter()
        .map(|a| a.unwrap_or_else(|| Err(Error::internal("a node was not asked"))))
        .collect()
}

/// Runs on each of `nodes` its own statements, one after the other, on all at the same time. The last answers.
pub fn ask_in_turn(nodes: &mut [&mut Node], statements: &[Vec<Statement>]) -> Result<Vec<Rows>> {
    let mut answers = vec![];
    for round in 0..statements.iter().map(Vec::len).max().unwrap_or(0) {
        let questions = nodes.iter_mut().zip(statements).filter_map(|(node, all)| {
            let statement = all.get(round)?.clone();
            Some(statement.on(node))
        });
        answers = ask(questions.collect())
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
    }
    Ok(answers)
}

/// Asks all of `nodes` the same; the first error is the answer of all.
pub fn ask_all<'a, Q: Question>(
    nodes: impl IntoIterator<Item = &'a mut Node>,
    question: &Q,
) -> Result<Vec<Q::Answer>> {
    let nodes = nodes.into_iter();
    let asked = nodes.map(|node| question.statement().clone().on(node));
    let answers = ask(asked.collect()).into_iter();
    answers.map(|rows| question.answer(rows?)).collect()
}

/// Asks all of `members` the same within `limit`, each in a session made for that; for those who only
/// look. A statement without parameters.
pub fn query_with_deadline<Q: Question>(
    members: &[&Member],
    question: &Q,
    limit: Duration,
) -> Vec<Result<Q::Answer>> {
    let nodes: Vec<(&str, &libpq::Dsn)> =
        members.iter().map(|m| (m.name.as_str(), &m.dsn)).collect();
    // A node that is there answers at once when it is connected; to connect takes longer.
    let answer = limit * 2 / 5;
    let sql = &question.statement().sql;
    Conn::query_with_deadline(&nodes, sql, limit - answer, answer)
        .into_iter()
        .map(|rows| question.answer(rows?))
        .collect()
}
