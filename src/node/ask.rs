//! Questions to nodes: to one or several, one or several at a time.

use super::query::Question;
use super::queryable::Queryable;
use super::session::{Message, Session};
use super::side_by_side::converse;
use super::statement::{Ask, Statement};
use super::{Member, Node};
use crate::error::{Error, Result};
use crate::libpq::{self, Command, Conn, Limit, Rows};
use std::time::{Duration, SystemTime};

impl Session {
    /// Runs one statement in a transaction of its own.
    pub fn query(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        let message = Message::new(vec![Statement::new(sql, params)], Limit::None);
        let mut answers = converse(&mut [self], &[message])
            .into_iter()
            .flat_map(|answered| answered.answers);
        answers
            .next()
            .unwrap_or_else(|| Err(Error::internal("a node was not asked")))
    }
}

impl Queryable for Session {
    fn run(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        self.query(sql, params)
    }
}

/// Asks several nodes at the same time, each its own question.
pub fn ask(questions: Vec<Ask<'_>>) -> Vec<Result<Rows>> {
    ask_until(questions, Limit::None)
}

/// As [`ask`]; a remote statement that takes longer than `limit` is cancelled.
pub fn ask_within(questions: Vec<Ask<'_>>, limit: Duration) -> Vec<Result<Rows>> {
    ask_until(questions, Limit::Cancelled(limit))
}

fn ask_until(questions: Vec<Ask<'_>>, limit: Limit) -> Vec<Result<Rows>> {
    let questions = questions
        .into_iter()
        .map(|Ask { node, statement }| (&mut node.session, Message::new(vec![statement], limit)));
    let (mut sessions, messages): (Vec<&mut Session>, Vec<Message>) = questions.unzip();
    let answered = converse(&mut sessions, &messages).into_iter();
    answered.flat_map(|answered| answered.answers).collect()
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
    ask_each(nodes, |_| question)
}

/// Asks each of `nodes` its own question, all at the same time; the first error is the answer of all.
pub fn ask_each<'a, Q: Question>(
    nodes: impl IntoIterator<Item = &'a mut Node>,
    question: impl Fn(&Node) -> Q,
) -> Result<Vec<Q::Answer>> {
    let timed = ask_timed(nodes, question)?.into_iter();
    Ok(timed.map(|timed| timed.answer).collect())
}

/// An answer, when it was asked for and how long it took.
pub struct Timed<A> {
    pub answer: A,
    pub asked: SystemTime,
    pub took: Duration,
}

/// As [`ask_each`].
pub fn ask_timed<'a, Q: Question>(
    nodes: impl IntoIterator<Item = &'a mut Node>,
    question: impl Fn(&Node) -> Q,
) -> Result<Vec<Timed<Q::Answer>>> {
    let (mut questions, mut sessions, mut messages) = (vec![], vec![], vec![]);
    for node in nodes {
        let question = question(node);
        let statements = question.statements().into_iter().cloned().collect();
        messages.push(Message::new(statements, Limit::None));
        sessions.push(&mut node.session);
        questions.push(question);
    }
    let answered = converse(&mut sessions, &messages);
    questions
        .iter()
        .zip(answered)
        .map(|(question, answered)| {
            let rows = answered
                .answers
                .into_iter()
                .collect::<Result<Vec<Rows>>>()?;
            Ok(Timed {
                answer: question.answer(&mut rows.into_iter())?,
                asked: answered.asked,
                took: answered.took,
            })
        })
        .collect()
}

/// Asks `node` several things at once.
pub fn ask_one<Q: Question>(node: &mut Node, question: &Q) -> Result<Q::Answer> {
    let mut answers = ask_all([node], question)?;
    answers
        .pop()
        .ok_or_else(|| Error::internal("a node was not asked"))
}

/// Asks all of `members` the same within `limit`, each in a session made for that; for those who only
/// look.
pub fn query_with_deadline<Q: Question>(
    members: &[&Member],
    question: &Q,
    limit: Duration,
) -> Vec<Result<Q::Answer>> {
    let nodes: Vec<(&str, &libpq::Dsn)> =
        members.iter().map(|m| (m.name.as_str(), &m.dsn)).collect();
    // A node that is there answers at once when it is connected; to connect takes longer.
    let answer = limit * 2 / 5;
    let statements = question.statements();
    let commands: Vec<Command> = statements.into_iter().map(Statement::command).collect();
    Conn::query_with_deadline(&nodes, &commands, limit - answer, answer)
        .into_iter()
        .map(|rows| question.answer(&mut rows?.into_iter()))
        .collect()
}
