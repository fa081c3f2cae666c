//! Fault points of the product: a CALL that stands still at one.

use super::{POLL, Running};
use lab::postgres::Client;
use lab::server::PATIENCE;
use lab::{Server, quote_literal};
use std::thread;
use std::time::Instant;

/// Keeps a CALL at a fault point where `zodan.failpoint` makes it hang.
pub struct Hang<'a> {
    server: &'a Server,
    holder: Client,
}

impl<'a> Hang<'a> {
    /// Sessions of such a name are not ended when a node leaves.
    const SPARED: &'static str = "zodan test";

    pub fn hold(server: &'a Server) -> Hang<'a> {
        let mut holder = server.client_named(Hang::SPARED);
        holder
            .batch_execute("SELECT pg_advisory_lock(2054120550, 1)")
            .expect("hold what a CALL hangs on");
        Hang { server, holder }
    }

    /// Starts `call`, after `settings`, and waits until it hangs at `point`.
    pub fn start(
        server: &'a Server,
        settings: &str,
        point: &str,
        call: &str,
    ) -> (Hang<'a>, Running) {
        let hang = Hang::hold(server);
        let arm = format!(
            "SET zodan.failpoint = {}",
            quote_literal(&format!("hang {point}"))
        );
        let running = Running::start_after(server, &format!("{arm}; {settings}"), call);
        hang.wait(&running);
        (hang, running)
    }

    /// Waits until `call` hangs.
    pub fn wait(&self, call: &Running) {
        let deadline = Instant::now() + PATIENCE;
        let hanging = "SELECT count(*) FROM pg_locks WHERE classid = 2054120550 AND NOT granted";
        let mut client = self.server.client_named(Hang::SPARED);
        loop {
            let count: i64 = client
                .query_one(hanging, &[])
                .expect("look at the locks")
                .get(0);
            if count == 1 {
                return;
            }
            assert!(!call.is_finished(), "the point was not reached");
            assert!(Instant::now() < deadline, "the point is not reached");
            thread::sleep(POLL);
        }
    }

    /// Its server may be down by now.
    pub fn release(mut self) {
        let _ = self.holder.batch_execute("SELECT pg_advisory_unlock_all()");
    }
}
