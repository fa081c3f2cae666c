//! Tasks that ask nodes one question after the other, made side by side: what all of them ask at a time is sent
//! together, so that they take as many round trips as the longest of them alone.
//!
//! A task is run until it asks something that has not been answered yet. It is given [`Error::Unanswered`] then, and
//! when the answers to the questions of all tasks are there, it is run again from its beginning and told what it was
//! told before. So a task changes nothing, asks the same after the same answers, and what it gathers counts when it
//! has come to its end only. Each task has answers of its own: a question of it is sent after the answers to those
//! before it, as if the task were alone. (The way is that of Marlow, Brandy, Coens and Purdy, "There is no Fork: an
//! Abstraction for Efficient, Concurrent, and Concise Data Access", 2014.)

use super::session::{Message, exchange};
use super::{Node, Session};
use crate::error::{Error, Result};
use crate::libpq::Answered;
use std::cell::RefCell;
use std::collections::HashSet;

thread_local! {
    /// Of the task that is being run.
    static CURRENT: RefCell<Option<Transcript>> = const { RefCell::new(None) };
}

/// What a task has asked.
#[derive(Default)]
struct Transcript {
    /// The sessions whose questions are held back; those that a task opens itself are asked at once.
    sessions: HashSet<Option<usize>>,
    /// Messages that were sent at the same time, each with the session that it was for, and what came back.
    answered: Vec<(Vec<Addressed>, Vec<Answered>)>,
    /// How many of these the task has been told again.
    told: usize,
    /// What it waits for.
    open: Vec<Addressed>,
    /// It cannot be run again from its beginning.
    alone: bool,
}

/// A message and [`Session::id`] of its session.
type Addressed = (Option<usize>, Message);

/// Runs `tasks` of them, each with its number; their answers in that order. Questions to `nodes` are sent together.
pub fn side_by_side<C: ?Sized, T>(
    context: &mut C,
    nodes: impl Fn(&mut C) -> Vec<&mut Node>,
    tasks: usize,
    mut task: impl FnMut(usize, &mut C) -> Result<T>,
) -> Vec<Result<T>> {
    let sessions = nodes(context).into_iter().map(|node| node.session.id());
    let sessions: HashSet<Option<usize>> = sessions.collect();
    let mut transcripts: Vec<Transcript> = (0..tasks)
        .map(|_| Transcript {
            sessions: sessions.clone(),
            ..Transcript::default()
        })
        .collect();
    let mut ended: Vec<Option<Result<T>>> = (0..tasks).map(|_| None).collect();
    loop {
        for (number, end) in ended.iter_mut().enumerate().filter(|(_, e)| e.is_none()) {
            let held = Held::begin(std::mem::take(&mut transcripts[number]));
            let answer = task(number, context);
            transcripts[number] = held.end();
            let transcript = &transcripts[number];
            *end = match transcript.alone {
                true => Some(task(number, context)),
                false => transcript.open.is_empty().then_some(answer),
            };
        }
        if ended.iter().all(Option::is_some) {
            return ended.into_iter().flatten().collect();
        }
        send(nodes(context), &mut transcripts);
    }
}

/// Tasks that each answer something else.
pub trait Tasks<C: ?Sized> {
    type Answers;

    /// Makes them side by side; the first error is the answer of all. Questions to `nodes` are sent together.
    fn make(
        self,
        context: &mut C,
        nodes: impl Fn(&mut C) -> Vec<&mut Node>,
    ) -> Result<Self::Answers>;
}

macro_rules! tasks {
    ($count:literal: $($number:tt $task:ident $answer:ident),+) => {
        impl<C: ?Sized, $($task, $answer),+> Tasks<C> for ($($task,)+)
        where
            $($task: FnMut(&mut C) -> Result<$answer>),+
        {
            type Answers = ($($answer,)+);

            fn make(
                mut self,
                context: &mut C,
                nodes: impl Fn(&mut C) -> Vec<&mut Node>,
            ) -> Result<Self::Answers> {
                let mut answers = ($(None::<$answer>,)+);
                let ended = side_by_side(context, nodes, $count, |number, context| {
                    match number {
                        $($number => answers.$number = Some((self.$number)(context)?),)+
                        _ => {}
                    }
                    Ok(())
                });
                ended.into_iter().collect::<Result<()>>()?;
                let missing = || Error::internal("a task has not ended");
                Ok(($(answers.$number.ok_or_else(missing)?,)+))
            }
        }
    };
}

tasks!(2: 0 A X, 1 B Y);
tasks!(3: 0 A X, 1 B Y, 2 D Z);
tasks!(7: 0 A T, 1 B U, 2 D V, 3 E W, 4 F X, 5 G Y, 6 H Z);

/// Gets the answers to all that is open.
fn send(nodes: Vec<&mut Node>, transcripts: &mut [Transcript]) {
    let open = || transcripts.iter().flat_map(|task| &task.open);
    let (mut sessions, mut messages) = (vec![], vec![]);
    for node in nodes {
        let id = node.session.id();
        let of_node = open().filter(|(session, _)| *session == id);
        let all: Vec<&Message> = of_node.map(|(_, message)| message).collect();
        if !all.is_empty() {
            messages.push((id, Message::joined(&all)));
            sessions.push(&mut node.session);
        }
    }
    let (ids, messages): (Vec<Option<usize>>, Vec<Message>) = messages.into_iter().unzip();
    let mut answered: Vec<Answered> = exchange(&mut sessions, &messages);
    for task in transcripts.iter_mut().filter(|task| !task.open.is_empty()) {
        let open = std::mem::take(&mut task.open);
        let own = open.iter().map(|(session, message)| {
            let from = ids.iter().position(|id| id == session);
            from.map_or_else(
                || Answered::at_once(Vec::new),
                |from| answered[from].split_off_first(message.statements.len()),
            )
        });
        let own = own.collect();
        task.answered.push((open, own));
    }
}

/// The transcript of the task that is being run, until that has ended, however it does.
struct Held;

impl Held {
    fn begin(transcript: Transcript) -> Self {
        CURRENT.set(Some(Transcript {
            told: 0,
            ..transcript
        }));
        Self
    }

    fn end(self) -> Transcript {
        CURRENT.take().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// For a task that is about to wait, or to open sessions: an error if it is run beside others. It is run again by
/// itself then, from its beginning.
pub fn alone() -> Result<()> {
    CURRENT.with_borrow_mut(|current| match current {
        Some(transcript) => {
            transcript.alone = true;
            Err(Error::Unanswered)
        }
        None => Ok(()),
    })
}

/// Sends the messages, or lets a task that is run beside others know what came back.
pub(super) fn converse(sessions: &mut [&mut Session], messages: &[Message]) -> Vec<Answered> {
    if CURRENT.with_borrow(Option::is_none) {
        return exchange(sessions, messages);
    }
    let ids = sessions.iter().map(|session| session.id());
    let asked: Vec<Addressed> = ids.zip(messages.iter().cloned()).collect();
    if let Some(answers) = CURRENT.with_borrow_mut(|current| current.as_mut()?.course(&asked)) {
        return answers;
    }
    let answers = exchange(sessions, messages);
    CURRENT.with_borrow_mut(|current| {
        if let Some(transcript) = current {
            transcript.note(asked, &answers);
        }
    });
    answers
}

impl Transcript {
    /// What the task is told, or `None` if it is to ask at once.
    fn course(&mut self, asked: &[Addressed]) -> Option<Vec<Answered>> {
        let not_yet = || {
            let unanswered = |(_, message): &Addressed| {
                let all = message.statements.iter();
                Answered::at_once(|| all.map(|_| Err(Error::Unanswered)).collect())
            };
            Some(asked.iter().map(unanswered).collect())
        };
        if self.alone || !self.open.is_empty() {
            return not_yet();
        }
        if !asked
            .iter()
            .all(|(session, _)| self.sessions.contains(session))
        {
            return None;
        }
        match self.answered.get(self.told) {
            Some((messages, answers)) if messages == asked => {
                self.told += 1;
                return Some(answers.clone());
            }
            // It asks something else this time: what follows belongs to another course.
            _ => self.answered.truncate(self.told),
        }
        // This server answers at once.
        if asked.iter().all(|(session, _)| session.is_none()) {
            return None;
        }
        self.open = asked.to_vec();
        not_yet()
    }

    /// The task has asked at once.
    fn note(&mut self, asked: Vec<Addressed>, answers: &[Answered]) {
        if asked
            .iter()
            .all(|(session, _)| self.sessions.contains(session))
        {
            self.answered.push((asked, answers.to_vec()));
            self.told += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libpq::{Limit, Rows};
    use crate::node::Statement;

    fn asked(session: Option<usize>, sql: &str) -> Vec<Addressed> {
        let statement = Statement::new(sql, &[]);
        vec![(session, Message::new(vec![statement], Limit::None))]
    }

    fn answer(text: &str) -> Vec<Answered> {
        let rows = Rows::new(vec!["a".into()], vec![vec![Some(text.into())]], 1);
        vec![Answered::at_once(|| vec![Ok(rows)])]
    }

    fn text(answers: Option<Vec<Answered>>) -> Option<String> {
        let rows = answers?.pop()?.answers.pop()?.ok()?;
        rows.one().ok()?.only().ok()
    }

    fn is_unanswered(answers: Option<Vec<Answered>>) -> bool {
        let answers = answers.into_iter().flatten().flat_map(|a| a.answers);
        let answers: Vec<_> = answers.collect();
        !answers.is_empty() && answers.iter().all(|a| matches!(a, Err(Error::Unanswered)))
    }

    /// Of a task that asks this server and the one with session 1.
    fn transcript() -> Transcript {
        Transcript {
            sessions: HashSet::from([None, Some(1)]),
            ..Transcript::default()
        }
    }

    #[test]
    fn question_is_held_back_and_answered_when_the_task_is_run_again() {
        let mut task = transcript();
        assert!(is_unanswered(task.course(&asked(Some(1), "a"))));
        // Nothing comes before that answer.
        assert!(is_unanswered(task.course(&asked(Some(1), "b"))));
        assert_eq!(task.open, asked(Some(1), "a"));
        let open = std::mem::take(&mut task.open);
        task.answered.push((open, answer("first")));
        task.told = 0;
        assert_eq!(
            text(task.course(&asked(Some(1), "a"))).as_deref(),
            Some("first")
        );
        assert!(is_unanswered(task.course(&asked(Some(1), "a"))));
        assert_eq!(task.open, asked(Some(1), "a"));
    }

    #[test]
    fn this_server_is_asked_once_and_a_session_of_the_task_each_time() {
        let mut task = transcript();
        assert!(task.course(&asked(None, "a")).is_none());
        task.note(asked(None, "a"), &answer("here"));
        assert!(task.course(&asked(Some(7), "b")).is_none());
        task.note(asked(Some(7), "b"), &answer("its own"));
        task.told = 0;
        assert_eq!(
            text(task.course(&asked(None, "a"))).as_deref(),
            Some("here")
        );
        assert!(task.course(&asked(Some(7), "b")).is_none());
    }

    #[test]
    fn task_that_takes_another_course_is_told_nothing_of_the_old_one() {
        let mut task = transcript();
        task.answered = vec![
            (asked(Some(1), "a"), answer("1")),
            (asked(Some(1), "b"), answer("2")),
        ];
        assert!(task.course(&asked(Some(1), "a")).is_some());
        assert!(is_unanswered(task.course(&asked(Some(1), "c"))));
        assert_eq!(task.answered.len(), 1);
    }
}
