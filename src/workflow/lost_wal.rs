//! A provider whose WAL ends before what a subscriber has of it: a standby that lacked the rest was promoted, or a
//! backup was restored. PostgreSQL passes over whatever such a provider writes up to that position, and a marker
//! that is known by its position seems to have arrived before it was sent.

use crate::engine::{Path, SubscriptionState};
use crate::error::{Error, Finding, Result, SqlState};
use crate::lsn::Lsn;
use crate::node::{Node, ask_all, server};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub struct LostWal<'a> {
    path: &'a Path,
    applied: Lsn,
    end: Lsn,
}

impl<'a> LostWal<'a> {
    /// Where the subscriber of `path` is ahead of `end`, the end of its provider's WAL.
    pub fn find(
        path: &'a Path,
        state: Option<&SubscriptionState>,
        end: Option<Lsn>,
    ) -> Option<Self> {
        let (applied, end) = (state?.applied?, end?);
        (applied > end).then_some(Self { path, applied, end })
    }

    pub fn finding(&self) -> Finding {
        let Self { path, applied, end } = self;
        let provider = &path.provider;
        Finding::new(
            &path.subscriber,
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "subscription {} has applied node \"{provider}\" up to {applied}, but the WAL of \"{provider}\" ends at {end}",
                path.subscription
            ),
            format!(
                "{RESTORED} What \"{provider}\" writes up to {applied} never arrives on \"{}\", and it lacks what it had sent. {}",
                path.subscriber,
                way_out(provider)
            ),
        )
    }
}

const RESTORED: &str = "A standby that lacked the rest was promoted, or a backup restored.";

/// What makes the cluster whole again.
pub fn way_out(provider: &str) -> String {
    format!(
        "Stop its server with pg_ctl stop -m immediate, and replace it like one that has died: CALL spock.recover_run({0}), CALL spock.remove_node({0}), then CALL spock.add_node on an empty database. See docs/operations.md, A node was restored.",
        crate::quote::literal(provider)
    )
}

/// What status says of a path in one line.
pub fn message(provider: &str, applied: Lsn, end: Lsn) -> String {
    format!(
        "it has applied \"{provider}\" up to {applied}, but the WAL of \"{provider}\" ends at {end}: a backup was restored or a standby promoted, and what \"{provider}\" writes up to there never arrives"
    )
}

/// How often it is looked at during a wait.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends a wait for what cannot come.
#[derive(Default)]
pub struct Watch {
    looked: Option<Instant>,
}

impl Watch {
    /// An error if one of `nodes` lacks what a subscriber has of it: `found` are subscriptions, and the states that they
    /// have been found in before.
    pub fn look(
        &mut self,
        nodes: &mut [&mut Node],
        found: &[(&[Path], &[SubscriptionState])],
    ) -> Result<()> {
        if self.looked.is_some_and(|at| at.elapsed() < PAUSE) {
            return Ok(());
        }
        if found.is_empty() {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let paths = || found.iter().flat_map(|(paths, _)| *paths);
        let mut providers: Vec<&mut Node> = nodes
            .iter_mut()
            .map(|node| &mut **node)
            .filter(|node| paths().any(|path| path.provider == node.name))
            .collect();
        let asked = providers.iter_mut().map(|node| &mut **node);
        let ends = ask_all(asked, &server::wal_flushed())?;
        let ends = ends.into_iter().map(|end| end.into_iter().flatten().next());
        let ends: BTreeMap<&str, Option<Lsn>> = providers
            .iter()
            .map(|n| n.name.as_str())
            .zip(ends)
            .collect();
        for (paths, states) in found {
            for path in *paths {
                let state = states.iter().find(|s| s.name == path.subscription);
                let end = ends.get(path.provider.as_str()).copied().flatten();
                if let Some(lost) = LostWal::find(path, state, end) {
                    return Err(Error::Checks(vec![lost.finding()]));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::LostWal;
    use crate::engine::{Path, SubscriptionState};
    use crate::lsn::Lsn;

    #[test]
    fn only_who_is_ahead_is_told() {
        let path = Path::by_rule("n1", "n2");
        let state = |applied| SubscriptionState {
            name: path.subscription.clone(),
            enabled: true,
            working: true,
            errors: 0,
            applied,
            perhaps_applied: None,
            skipped_change: None,
        };
        let found = |applied: Option<u64>, end: Option<u64>| {
            let state = state(applied.map(Lsn));
            LostWal::find(&path, Some(&state), end.map(Lsn)).is_some()
        };
        assert!(found(Some(11), Some(10)));
        assert!(!found(Some(10), Some(10)));
        assert!(!found(None, Some(10)));
        assert!(!found(Some(11), None));
        assert!(LostWal::find(&path, None, Some(Lsn(10))).is_none());
    }
}
