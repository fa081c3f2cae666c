//! CALLs: `spock.add_node` with any argument replaced, one that runs beside the test, and the errors of both.

use super::POLL;
use lab::postgres::{CancelToken, Client, NoTls};
use lab::server::{Notices, PATIENCE};
use lab::{CallFailed, Called, Server, explain, quote_literal};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// The arguments of `spock.add_node`; `None` is NULL.
#[derive(Clone)]
pub struct Call {
    pub src_node_name: Option<String>,
    pub src_dsn: Option<String>,
    pub new_node_name: Option<String>,
    pub new_node_dsn: Option<String>,
}

impl Call {
    /// The call that adds `new` to the cluster of `source`, under the servers' own names.
    pub fn of(new: &Server, source: &Server) -> Call {
        Call {
            src_node_name: Some(source.name().into()),
            src_dsn: Some(source.dsn()),
            new_node_name: Some(new.name().into()),
            new_node_dsn: Some(new.dsn()),
        }
    }

    pub fn sql(&self) -> String {
        let argument = |name: &str, value: &Option<String>| {
            let value = value
                .as_ref()
                .map_or("NULL".into(), |text| quote_literal(text));
            format!("{name} := {value}")
        };
        format!(
            "CALL spock.add_node({}, {}, {}, {})",
            argument("src_node_name", &self.src_node_name),
            argument("src_dsn", &self.src_dsn),
            argument("new_node_name", &self.new_node_name),
            argument("new_node_dsn", &self.new_node_dsn)
        )
    }

    /// Runs it on `new` and returns the error; panics if there is none.
    pub fn fails_on(&self, new: &Server) -> CallFailed {
        new.sql_error(&self.sql())
    }
}

/// Panics unless the error is the one that is meant: SQLSTATE, message and hint.
pub fn assert_failed(failed: &CallFailed, code: &str, message: &str, hint: &str) {
    assert_eq!(failed.code(), code, "{failed}");
    assert!(
        failed.message().contains(message),
        "the message should say: {message}\n{failed}"
    );
    assert!(!hint.is_empty(), "no hint is no help");
    assert!(
        failed.hint().contains(hint),
        "the hint should say: {hint}\n{failed}"
    );
}

/// Panics unless the error reports exactly these findings together, each with its hint.
pub fn assert_findings(failed: &CallFailed, findings: &[(&str, &str, &str)]) {
    assert_eq!(failed.code(), findings[0].0, "{failed}");
    assert_eq!(
        failed.message(),
        format!("{} checks failed before the first change", findings.len()),
        "{failed}"
    );
    for (code, message, hint) in findings {
        // A message of libpq may have several lines.
        let said = failed
            .detail()
            .split_once(message)
            .is_some_and(|(_, rest)| rest.contains(&format!("({code})")));
        assert!(said, "the detail should say: {message} ({code})\n{failed}");
        assert!(
            failed.hint().contains(hint),
            "the hint should say: {hint}\n{failed}"
        );
    }
}

/// A statement that runs while the test goes on.
pub struct Running {
    thread: JoinHandle<Result<Called, CallFailed>>,
    notices: Notices,
    cancel: CancelToken,
    /// The process id of its backend.
    pub pid: u32,
}

impl Running {
    /// Starts `sql` in a session of its own.
    pub fn start(server: &Server, sql: &str) -> Running {
        Running::start_after(server, "", sql)
    }

    /// Starts `sql` after `first` in the same session.
    pub fn start_after(server: &Server, first: &str, sql: &str) -> Running {
        let (mut client, notices) = server.client_with_notices();
        client
            .batch_execute(first)
            .unwrap_or_else(|e| panic!("{}: {}\n{first}", server.name(), explain(&e)));
        let pid: i32 = client
            .query_one("SELECT pg_backend_pid()", &[])
            .expect("ask for the process id")
            .get(0);
        let cancel = client.cancel_token();
        let (said, sql) = (notices.clone(), sql.to_string());
        let thread = thread::spawn(move || run(&mut client, &said, &sql));
        Running {
            thread,
            notices,
            cancel,
            pid: pid.cast_unsigned(),
        }
    }

    /// Waits until the statement has said something that contains `text`.
    pub fn wait_notice(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said: Vec<String> = {
                let notices = self.notices.lock().unwrap();
                notices.iter().map(ToString::to_string).collect()
            };
            if said.iter().any(|notice| notice.contains(text)) {
                return;
            }
            assert!(
                !self.thread.is_finished(),
                "the statement ended without a notice of {text:?}:\n{}",
                said.join("\n")
            );
            assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for a notice of {text:?}:\n{}",
                said.join("\n")
            );
            thread::sleep(POLL);
        }
    }

    /// Whether the statement has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ctrl-C.
    pub fn cancel(&self) {
        self.cancel
            .cancel_query(NoTls)
            .expect("send the cancel request");
    }

    /// Waits for the end.
    pub fn join(self) -> Result<Called, CallFailed> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Waits for the end, which must be an error.
    pub fn fails(self) -> CallFailed {
        match self.join() {
            Err(failed) => failed,
            Ok(called) => panic!("this was expected to fail: {called:?}"),
        }
    }

    /// Waits for the end, which must be that its backend was terminated. The word of it may be lost with the
    /// connection.
    pub fn ends_terminated(self) {
        let failed = self.fails();
        assert!(["57P01", ""].contains(&failed.code()), "{failed}");
    }

    /// Waits for the end, which must be a success.
    pub fn succeeds(self) -> Called {
        self.join().unwrap_or_else(|failed| panic!("{failed}"))
    }
}

fn run(client: &mut Client, notices: &Notices, sql: &str) -> Result<Called, CallFailed> {
    let started = Instant::now();
    let result = client.simple_query(sql);
    let elapsed = started.elapsed();
    let notices = notices.lock().unwrap().clone();
    match result {
        Ok(_) => Ok(Called {
            notices,
            rows: vec![],
            elapsed,
        }),
        Err(error) => Err(CallFailed {
            error,
            notices,
            elapsed,
        }),
    }
}
