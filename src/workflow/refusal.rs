//! Why the worker of a subscription does not stay. What its provider tells it stands in the log of the subscriber
//! only, so the provider is asked the same, and what it says ends the wait.

use crate::engine::{Engine, Path};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Conn;
use crate::node::{Member, Node, Session, server};
use std::time::{Duration, Instant};

/// How often in a row a provider refuses before it is believed: a limit of connections may be reached for a moment.
const BELIEVED: u32 = 3;
/// A worker that has just been enabled, or that comes back by itself, is left alone for so long.
const UNDISTURBED: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_millis(1500);
/// Where the provider has nothing against it, the worker must find the slot free.
const AFTER_CONSENT: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The first change that is sent may be what the provider cannot send.
const LISTEN: Duration = Duration::from_secs(1);

/// What the provider of one path has said so far.
#[derive(Clone, Default)]
pub struct Refusals {
    /// Since when the worker is away.
    away: Option<Instant>,
    ask_at: Option<Instant>,
    in_a_row: u32,
    /// The provider has let us read, and the worker is still away.
    consented: bool,
    /// The last refusal. It stays until the worker gets on: what comes and goes would pass for progress.
    said: Option<String>,
}

impl Refusals {
    /// The worker is there and gets on.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The last that it said, for whoever waits.
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// The worker is away, or it has been lost. Its provider is asked now and then, and an error if it goes on
    /// refusing.
    pub fn look(
        &mut self,
        engine: &dyn Engine,
        node: &mut Node,
        provider: &Member,
        path: &Path,
        lost: bool,
    ) -> Result<()> {
        let now = Instant::now();
        let away = *self.away.get_or_insert(now);
        let due = match self.ask_at {
            Some(at) => now >= at,
            None => lost || now - away >= UNDISTURBED,
        };
        if !due {
            return Ok(());
        }
        // One that has not been there yet may come any moment, and needs the slot.
        let listen = match lost || self.consented {
            true => LISTEN,
            false => Duration::ZERO,
        };
        let Some(error) = refused(engine, node, provider, path, listen)? else {
            if self.consented {
                require_room(node, path)?;
            }
            self.in_a_row = 0;
            self.consented = true;
            self.ask_at = Some(Instant::now() + AFTER_CONSENT);
            return Ok(());
        };
        self.ask_at = Some(Instant::now() + BETWEEN);
        self.in_a_row += 1;
        let said = text(&error);
        self.said = Some(said.clone());
        if self.in_a_row < BELIEVED {
            return Ok(());
        }
        let Path {
            subscription,
            subscriber,
            ..
        } = path;
        Err(Error::Refused {
            state: error.sqlstate(),
            message: format!(
                "node \"{}\" refuses subscription {subscription} of node \"{subscriber}\": {said}",
                provider.name
            ),
            detail: match &error {
                Error::Remote(remote) => remote.detail.clone(),
                _ => None,
            },
            hint: error.hint().unwrap_or_else(|| {
                format!(
                    "Mend that on node \"{}\", then run the CALL again.",
                    provider.name
                )
            }),
        })
    }
}

/// The server of the subscriber can start one more worker. That of a subscription takes no place that is free for a moment
/// only: it is tried again and again.
fn require_room(node: &mut Node, path: &Path) -> Result<()> {
    let Some(full) = server::full_workers().first(node)? else {
        return Ok(());
    };
    let server::FullWorkers {
        setting,
        limit,
        parallel,
    } = full;
    let beside = match parallel {
        0 => String::new(),
        some => format!(", {some} of them by workers that apply large transactions in parallel"),
    };
    Err(Error::refused(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        format!(
            "node \"{}\" cannot start the worker of subscription {}: all {limit} places of {setting} are taken{beside}",
            node.name, path.subscription
        ),
        format!(
            "Raise {setting} on node \"{}\" and restart it, then run the CALL again.",
            node.name
        ),
    ))
}

/// What the provider of `path` refuses its worker with, if it does now.
pub fn reason(
    engine: &dyn Engine,
    node: &mut Node,
    provider: &Member,
    path: &Path,
) -> Result<Option<String>> {
    Ok(refused(engine, node, provider, path, LISTEN)?
        .as_ref()
        .map(text))
}

fn refused(
    engine: &dyn Engine,
    node: &mut Node,
    provider: &Member,
    path: &Path,
    listen: Duration,
) -> Result<Option<Error>> {
    match ask(engine, node, provider, path, listen) {
        Ok(()) | Err(Error::Deadline { .. }) => Ok(None),
        Err(error @ (Error::Interrupted { .. } | Error::Internal(_))) => Err(error),
        // The worker itself may be the one that reads.
        Err(error) if error.sqlstate() == SqlState::OBJECT_IN_USE => Ok(None),
        Err(error) => Ok(Some(error)),
    }
}

/// Whether the provider lets the subscription read: from where its worker is, and with what the worker asks for.
/// Nothing is confirmed.
fn ask(
    engine: &dyn Engine,
    node: &mut Node,
    provider: &Member,
    path: &Path,
    listen: Duration,
) -> Result<()> {
    let Some(command) = engine.start_replication(path).first(node)? else {
        return Ok(());
    };
    if let Session::Remote(_) = node.session {
        for statement in engine.probe(&provider.dsn.reveal()) {
            statement.run(node)?;
        }
    }
    let session = Conn::open_replication(&provider.name, &provider.dsn)?;
    session.try_streaming(&command, listen, ANSWER_WITHIN)
}

/// In one line.
fn text(error: &Error) -> String {
    let text = match error {
        Error::Remote(remote) => remote.message.clone(),
        Error::Connect { reason, .. } | Error::Lost { reason, .. } => reason.clone(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
