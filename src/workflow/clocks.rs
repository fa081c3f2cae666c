//! Whether the clocks of the nodes are together. Of two writes the later one counts as the right one where a last
//! update wins, and where a recovery meets rows that somebody has changed since.

use super::findings::{Check, Severity};
use crate::error::{Error, Finding, Result};
use crate::node::{Node, Query, ask_timed};
use std::time::{Duration, UNIX_EPOCH};

pub const WANTED: &str = "within 0.5 s of the others";

/// Clocks further apart than that are told, in microseconds.
const LIMIT: i64 = 500_000;

/// Each is read so often at most. The shortest way there and back is the one to go by.
const LOOKS: usize = 3;

/// What is known as exactly as that needs no other look, in microseconds.
const EXACT: i64 = 50_000;

/// The clock of a node, in microseconds ahead of the one here; the truth is no further off than `error`.
#[derive(Clone, Debug)]
pub struct Clock {
    node: String,
    ahead: i64,
    error: i64,
}

/// Reads the clock of each.
pub fn read<'a>(nodes: impl IntoIterator<Item = &'a mut Node>) -> Result<Vec<Clock>> {
    let now: Query<i64> = Query::new(
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        &[],
        |row| row.only(),
    );
    let mut nodes: Vec<&mut Node> = nodes.into_iter().collect();
    let mut best: Vec<Clock> = vec![];
    for _ in 0..LOOKS {
        let answers = ask_timed(nodes.iter_mut().map(|node| &mut **node), |_| &now)?;
        for (i, (node, timed)) in nodes.iter().zip(answers).enumerate() {
            let no_time = || Error::internal("a clock was not read");
            let time = timed.answer.first().ok_or_else(no_time)?;
            let asked = timed.asked.duration_since(UNIX_EPOCH).unwrap_or_default();
            let half = micros(timed.took / 2);
            let clock = Clock {
                node: node.name.clone(),
                ahead: time - micros(asked) - half,
                error: half,
            };
            match best.get_mut(i) {
                Some(known) if known.error <= half => {}
                Some(known) => *known = clock,
                None => best.push(clock),
            }
        }
        if best.iter().all(|clock| clock.error < EXACT) {
            break;
        }
    }
    Ok(best)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

/// How far two of them can be apart, in microseconds.
pub fn spread(clocks: &[Clock]) -> i64 {
    let latest = clocks.iter().map(|clock| clock.ahead + clock.error).max();
    let earliest = clocks.iter().map(|clock| clock.ahead - clock.error).min();
    latest
        .zip(earliest)
        .map_or(0, |(latest, earliest)| latest - earliest)
}

/// Compares each with the first.
pub fn check(clocks: &[Clock], check: &mut Check) {
    let Some(first) = clocks.first() else {
        return;
    };
    check.pass(&first.node, "");
    for clock in &clocks[1..] {
        let apart = clock.ahead - first.ahead;
        let message = format!(
            "{:.3} s {} that of node \"{}\"",
            apart.unsigned_abs() as f64 / 1e6,
            if apart < 0 { "behind" } else { "ahead of" },
            first.node
        );
        // What the way there and back may have added is no difference of clocks.
        match apart.abs() - clock.error - first.error > LIMIT {
            false => check.pass(&clock.node, message),
            true => check.warn(Finding::warning(
                &clock.node,
                format!("its clock is {message}"),
                "Keep the clocks together with NTP: where a last update wins, and in a recovery, an earlier write of the node that is ahead counts as the later one.",
            )),
        }
    }
}

/// The check of them.
pub fn begin_check() -> Check {
    Check::new("clock", WANTED, Severity::Warning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::findings::Status;

    #[test]
    fn what_the_network_can_explain_is_no_difference() {
        let clock = |node: &str, ahead, error| Clock {
            node: node.into(),
            ahead,
            error,
        };
        let clocks = [
            clock("n1", -100_000, 1_000),
            clock("n2", 402_000, 1_000),
            clock("n3", 402_001, 1_000),
            clock("n4", -2_100_000, 1_000),
            clock("n5", 3_000_000, 3_000_000),
        ];
        assert_eq!(spread(&clocks[..3]), 504_001);
        assert_eq!(spread(&[]), 0);
        let mut made = begin_check();
        check(&clocks, &mut made);
        let outcomes = made.outcomes();
        let rows: Vec<(&str, Status, &str)> = outcomes
            .iter()
            .map(|o| (o.node.as_str(), o.status, o.found.as_str()))
            .collect();
        assert_eq!(
            rows,
            [
                ("n1", Status::Ok, ""),
                ("n2", Status::Ok, "0.502 s ahead of that of node \"n1\""),
                (
                    "n3",
                    Status::Warning,
                    "its clock is 0.502 s ahead of that of node \"n1\""
                ),
                (
                    "n4",
                    Status::Warning,
                    "its clock is 2.000 s behind that of node \"n1\""
                ),
                ("n5", Status::Ok, "3.100 s ahead of that of node \"n1\""),
            ]
        );
    }
}
