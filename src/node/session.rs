//! A session on a node: over libpq, or SPI where the node is this server.

use super::statement::Statement;
use super::{Local, Node, Reader};
use crate::error::Result;
use crate::libpq::{self, Answered, Conn, Job, Limit};

pub enum Session {
    Remote(Conn),
    Local(Local),
    /// As [`Session::Local`], inside a function: reads only.
    Reader(Reader),
}

impl Session {
    /// What tells it from other open sessions; that of this server has nothing.
    pub(super) fn id(&self) -> Option<usize> {
        match self {
            Self::Remote(conn) => Some(conn.id()),
            Self::Local(_) | Self::Reader(_) => None,
        }
    }

    pub fn is_usable(&self) -> bool {
        match self {
            Self::Remote(conn) => conn.is_usable(),
            Self::Local(_) | Self::Reader(_) => true,
        }
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

/// What a session is sent at a time. Where it has several statements, each is a single command and a transaction of
/// its own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub statements: Vec<Statement>,
    limit: Limit,
}

impl Message {
    pub fn new(statements: Vec<Statement>, limit: Limit) -> Self {
        Self { statements, limit }
    }

    pub fn joined(messages: &[&Self]) -> Self {
        let statements = messages.iter().flat_map(|m| m.statements.clone());
        let limit = messages.iter().map(|m| m.limit).max();
        Self::new(statements.collect(), limit.unwrap_or_default())
    }
}

/// Sends each session its message, all at the same time.
pub(super) fn exchange(sessions: &mut [&mut Session], messages: &[Message]) -> Vec<Answered> {
    let mut answers: Vec<Option<Answered>> = vec![];
    let (mut jobs, mut remote) = (vec![], vec![]);
    for (i, (session, message)) in sessions.iter_mut().zip(messages).enumerate() {
        let statements = message.statements.iter();
        answers.push(match session {
            Session::Remote(conn) => {
                let commands = statements.map(Statement::command).collect();
                jobs.push(Job::new(conn, commands).until(message.limit));
                remote.push(i);
                None
            }
            Session::Local(local) => Some(Answered::at_once(|| {
                let commands = statements.map(Statement::command);
                commands
                    .map(|(sql, params)| local.query(sql, &params))
                    .collect()
            })),
            Session::Reader(reader) => Some(Answered::at_once(|| {
                let commands = statements.map(Statement::command);
                commands
                    .map(|(sql, params)| reader.query(sql, &params))
                    .collect()
            })),
        });
    }
    for (i, answered) in remote.into_iter().zip(libpq::run_batch(jobs)) {
        answers[i] = Some(answered);
    }
    answers.into_iter().flatten().collect()
}
