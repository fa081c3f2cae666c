//! `START_REPLICATION`, only to learn what the server has against it.

use super::Conn;
use super::conn::Drained;
use super::wait::Interest;
use crate::error::{Error, Result};
use pq_sys::ExecStatusType::PGRES_COPY_BOTH;
use std::time::{Duration, Instant};

impl Conn {
    /// Makes a session of [`Conn::open_replication`] stream, throws away what comes, and closes it after `listen`. Nothing
    /// is confirmed, so the slot stays where it is. An error if the server refuses, also after `listen` has begun, or does
    /// not answer within `limit`.
    pub fn try_streaming(mut self, command: &str, listen: Duration, limit: Duration) -> Result<()> {
        let outcome = self.stream_for(command, listen, limit);
        // What comes after that nobody waits for, and to close the session ends it.
        self.mark_broken();
        outcome
    }

    fn stream_for(&mut self, command: &str, listen: Duration, limit: Duration) -> Result<()> {
        self.send(command, &[])?;
        let begun = Instant::now();
        while let Some(interest) = self.flush()? {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(Error::Deadline {
                    node: self.node.clone(),
                    what: "START_REPLICATION".into(),
                    limit_ms: limit.as_millis(),
                });
            }
            self.wait_within(interest, Some(left))?;
        }
        match self.next_result() {
            Some(result) if result.status() == PGRES_COPY_BOTH => {}
            Some(result) => return Err(self.remote_error(&result, command)),
            None => return Err(self.lost()),
        }
        let begun = Instant::now();
        loop {
            let left = listen.saturating_sub(begun.elapsed());
            match self.drain_copy() {
                Drained::More if left.is_zero() => return Ok(()),
                Drained::More => self.wait_within(Interest::READ, Some(left))?,
                Drained::Failed => return Err(self.lost()),
                Drained::End => break,
            };
        }
        while let Some(interest) = self.flush()? {
            self.wait(interest)?;
        }
        match self.next_result() {
            Some(result) => Err(self.remote_error(&result, command)),
            None => Err(self.lost()),
        }
    }
}
