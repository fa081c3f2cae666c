//! What the caller sees while it runs and at the end.

use super::findings::{Outcome, Status};
use crate::ereport;
use crate::node::show_activity;
use crate::progress;
use std::time::{Duration, Instant};

/// What a call is, for those who look at it from elsewhere.
pub struct ReportHeader<'a> {
    pub command: &'a str,
    /// The node that it is about.
    pub node: &'a str,
    pub phases: usize,
    /// The phase that takes its time.
    pub long_phase: usize,
}

/// Speaks to the caller: one NOTICE per phase, with `verbose` one per step too, each with the time since the
/// CALL began. The phase also shows in `pg_stat_activity.query` of the calling session, and in `zodan.progress`.
pub struct Report {
    began: Instant,
    command: String,
    phases: usize,
    verbose: bool,
    phase: usize,
    _told: Option<progress::Call>,
}

impl Report {
    pub fn new(header: &ReportHeader<'_>, verbose: bool) -> Self {
        Self {
            began: Instant::now(),
            command: header.command.to_owned(),
            phases: header.phases,
            verbose,
            phase: 0,
            _told: Some(progress::Call::begin(
                header.command,
                header.node,
                header.phases,
                header.long_phase,
            )),
        }
    }

    /// For those who only look, who get warnings and nothing else.
    pub fn silent() -> Self {
        Self {
            began: Instant::now(),
            command: String::new(),
            phases: 0,
            verbose: false,
            phase: 0,
            _told: None,
        }
    }

    pub fn phase(&mut self, what: &str) {
        self.phase += 1;
        let text = format!("phase {} of {}: {what}", self.phase, self.phases);
        progress::phase(self.phase, what);
        show_activity(&format!("CALL {} {text}", self.command));
        ereport::notice(&format!("{} {text}", clock(self.began.elapsed())));
    }

    /// The number of the phase that is under way.
    pub fn current(&self) -> usize {
        self.phase
    }

    /// All that was to be done is done.
    pub fn finished(&self) {
        progress::finished();
    }

    pub fn step(&self, what: &str) {
        if self.verbose {
            ereport::notice(&format!("{}     {what}", clock(self.began.elapsed())));
        }
    }

    /// What is done within a step, in `zodan.progress`.
    pub fn progress(&self, what: &str) {
        progress::activity(Some(what.to_owned()));
    }

    /// What moves within a phase: shown in `pg_stat_activity` only.
    pub fn activity(&self, what: &str) {
        show_activity(&format!(
            "CALL {} phase {} of {}: {what}",
            self.command, self.phase, self.phases
        ));
    }

    pub fn notice(&self, what: &str) {
        ereport::notice(what);
    }

    pub fn warn(&self, what: &str, hint: &str) {
        ereport::warning(what, hint);
    }

    /// What a check has found, if that is no failure and worth a warning.
    pub fn warn_of(&self, outcome: &Outcome) {
        if outcome.status == Status::Warning {
            let what = format!("node \"{}\": {}", outcome.node, outcome.found);
            self.warn(&what, &outcome.remedy);
        }
    }
}

/// Hours, minutes, seconds and tenths, of one width.
fn clock(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    let (seconds, tenths) = (tenths / 10, tenths % 10);
    format!(
        "{:02}:{:02}:{:02}.{tenths}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Rows under a heading, in columns as psql prints them.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width: Vec<usize> = (0..heading.len())
        .map(|c| {
            rows.iter()
                .map(|r| r[c].chars().count())
                .chain([heading[c].chars().count()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        cells
            .iter()
            .zip(&width)
            .map(|(cell, w)| format!(" {cell:<w$} "))
            .collect::<Vec<_>>()
            .join("|")
            .trim_end()
            .to_owned()
    };
    let mut out = vec![
        line(heading.to_vec()),
        width
            .iter()
            .map(|w| "-".repeat(w + 2))
            .collect::<Vec<_>>()
            .join("+"),
    ];
    out.extend(
        rows.iter()
            .map(|r| line(r.iter().map(String::as_str).collect())),
    );
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn a_time_is_read_as_on_a_clock() {
        let clock = |millis| super::clock(std::time::Duration::from_millis(millis));
        assert_eq!(clock(0), "00:00:00.0");
        assert_eq!(clock(59_999), "00:00:59.9");
        assert_eq!(clock(2 * 3_600_000 + 61_200), "02:01:01.2");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["n1".into(), "replicating".into()],
            vec!["node 10".into(), "x".into()],
        ];
        assert_eq!(
            super::table(&["node", "status"], &rows),
            [
                " node    | status",
                "---------+-------------",
                " n1      | replicating",
                " node 10 | x"
            ]
        );
    }

    proptest! {
        /// Names of nodes hold no control characters, but anything else.
        #[test]
        fn every_column_begins_at_the_same_place(
            rows in proptest::collection::vec(proptest::collection::vec("[^\\pC|]{0,12}", 3), 0..6)
        ) {
            let lines = super::table(&["a", "bb", "ccc"], &rows);
            prop_assert_eq!(lines.len(), rows.len() + 2);
            let bars = |line: &String, bar: char| -> Vec<usize> {
                line.chars().enumerate().filter(|(_, c)| *c == bar).map(|(i, _)| i).collect()
            };
            let at = bars(&lines[1], '+');
            prop_assert_eq!(at.len(), 2);
            for line in lines.iter().take(1).chain(&lines[2..]) {
                prop_assert_eq!(&bars(line, '|'), &at, "{}", line);
            }
        }
    }
}
