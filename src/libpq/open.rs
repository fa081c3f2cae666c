//! Opening sessions: to connect, to set a session up and to ask the first questions is one conversation.

use super::batch::{Command, Job, Limit, run_batch};
use super::conn::{Conn, How};
use super::{Dsn, Rows};
use crate::environment;
use crate::error::{Error, Result};
use std::time::Duration;

impl Conn {
    /// Connects to `node` and sets the session up.
    pub fn open(node: &str, dsn: &Dsn) -> Result<Self> {
        Self::open_all(&[(node, dsn)])
            .pop()
            .unwrap_or_else(|| Err(Error::internal("no answer")))
    }

    /// Connects to several nodes at the same time; the answers are in the order of the question.
    pub fn open_all(nodes: &[(&str, &Dsn)]) -> Vec<Result<Self>> {
        let opened = Self::open_all_asking(nodes, &[]).into_iter();
        opened.map(|conn| conn.map(|(conn, _)| conn)).collect()
    }

    /// As [`Conn::open_all`]; each is asked `first` in the same conversation in which the session is set up.
    pub fn open_all_asking(
        nodes: &[(&str, &Dsn)],
        first: &[Command<'_>],
    ) -> Vec<Result<(Self, Vec<Result<Rows>>)>> {
        Self::open_asking(nodes, first, &How::default(), Limit::None)
    }

    fn open_asking(
        nodes: &[(&str, &Dsn)],
        first: &[Command<'_>],
        how: &How,
        limit: Limit,
    ) -> Vec<Result<(Self, Vec<Result<Rows>>)>> {
        let wanted = nodes.iter().map(|(node, dsn)| (*node, *dsn, how.clone()));
        let mut conns = Self::connect_all(wanted.collect());
        let setup = environment::setup();
        let commands = || {
            let setup = setup.iter().map(|sql| (sql.as_str(), vec![]));
            setup.chain(first.iter().cloned()).collect()
        };
        let jobs = conns
            .iter_mut()
            .filter_map(|c| c.as_mut().ok())
            .map(|conn| Job::new(conn, commands()).until(limit))
            .collect();
        let mut answered = run_batch(jobs).into_iter();
        conns
            .into_iter()
            .map(|conn| {
                let mut conn = conn?;
                let mut answers = answered.next().map_or(vec![], |a| a.answers);
                if answers.len() < setup.len() {
                    return Err(Error::internal("no answer"));
                }
                let rest = answers.split_off(setup.len());
                for answer in answers {
                    // The last one.
                    if let Some(row) = answer?.first() {
                        conn.server = row.only()?;
                    }
                }
                Ok((conn, rest))
            })
            .collect()
    }

    /// Asks each of `nodes` the same in a session made for that, all at the same time, and waits for
    /// connections and then for answers no longer than the two limits, whatever the connection strings
    /// say. Who is late is given up.
    pub fn query_with_deadline(
        nodes: &[(&str, &Dsn)],
        commands: &[Command<'_>],
        connect: Duration,
        answer: Duration,
    ) -> Vec<Result<Vec<Rows>>> {
        let how = How::within(connect);
        let opened = Self::open_asking(nodes, commands, &how, Limit::GivenUp(answer)).into_iter();
        opened
            .map(|opened| opened.and_then(|(_, answers)| answers.into_iter().collect()))
            .collect()
    }

    /// A session that also understands the commands of the replication protocol.
    pub fn open_replication(node: &str, dsn: &Dsn) -> Result<Self> {
        let [conn] = Self::open_as(node, dsn, [How::replication()])?;
        Ok(conn)
    }

    /// The same, and a session that does not, both at the same time.
    pub fn open_replication_and_another(node: &str, dsn: &Dsn) -> Result<(Self, Self)> {
        let [conn, other] = Self::open_as(node, dsn, [How::replication(), How::default()])?;
        Ok((conn, other))
    }

    fn open_as<const N: usize>(node: &str, dsn: &Dsn, how: [How; N]) -> Result<[Self; N]> {
        let wanted = how.into_iter().map(|how| (node, dsn, how)).collect();
        let conns = Self::connect_all(wanted).into_iter();
        let mut conns = conns.collect::<Result<Vec<Self>>>()?;
        // The replication protocol has no pipelines.
        let setup = environment::setup().join(";\n");
        let jobs = conns.iter_mut();
        let jobs = jobs
            .map(|conn| Job::new(conn, vec![(&setup, vec![])]))
            .collect();
        let answers = run_batch(jobs).into_iter().flat_map(|a| a.answers);
        let answers = answers.collect::<Result<Vec<Rows>>>()?;
        for (conn, answer) in conns.iter_mut().zip(answers) {
            conn.server = answer.one()?.only()?;
        }
        let opened = <[Self; N]>::try_from(conns);
        opened.map_err(|_| Error::internal("no answer"))
    }
}
