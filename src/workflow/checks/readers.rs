//! Nodes that only read: what the subscription to the new node needs there.

use super::{Checks, Known, SLOTS, set};
use crate::engine::{Path, subscription_states};
use crate::error::{Error, Finding, Result, SqlState};
use crate::node::server::{self, Facts};
use crate::workflow::findings::Check;
use crate::workflow::taken;

impl Checks<'_> {
    pub(super) fn check_readers(&mut self, known: &Known) -> Result<Check> {
        let (engine, new) = (self.engine, self.new.name.clone());
        let members = self.member_names();
        let mut findings = vec![];
        let names: Vec<String> = self.readers.iter().map(|r| r.name.clone()).collect();
        for reader in self.readers.iter_mut() {
            let name = reader.name.clone();
            let paths = engine.paths(&new, &name);
            let states = subscription_states(&engine.subscriptions().run(reader)?)?;
            for path in members.iter().flat_map(|m| engine.paths(m, &name)) {
                if let Some(state) = states.iter().find(|s| s.name == path.subscription)
                    && !state.working
                {
                    findings.push(Finding::new(
                        &name,
                        SqlState::NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "subscription {} from node \"{}\" does not replicate",
                            path.subscription, path.provider
                        ),
                        "Make it replicate first; the log of that server says why it does not.",
                    ));
                }
            }
            let there = |path: &&Path| states.iter().find(|s| s.name == path.subscription);
            let taken_names = paths.iter().filter_map(|p| there(&p));
            findings.extend(taken_names.map(|s| taken::subscription(&name, &s.name, s.working)));
            let slots: Vec<String> = paths.iter().map(|p| p.slot.clone()).collect();
            for row in &server::origins_there(&slots).run(reader)? {
                let path = paths.iter().find(|p| p.slot == row.text(0));
                if let Some(path) = path.filter(|p| there(p).is_none()) {
                    findings.push(taken::origin(&name, &path.subscription, row));
                }
            }
            for row in &server::slots_named(&slots).run(self.new)? {
                findings.push(taken::slot(&new, row));
            }
            let facts = Facts::parse(server::facts().run(reader)?.one()?)?;
            let count = paths.len() as i64;
            for (setting, budget) in [
                (facts.origins_setting.as_str(), &facts.origins),
                ("max_worker_processes", &facts.worker_processes),
            ] {
                if budget.free() < count {
                    let wanted = (budget.used + count).to_string();
                    findings.push(
                        Finding::new(
                            &name,
                            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                            format!(
                                "{count} more needed of {setting}, {} of {} are in use",
                                budget.used, budget.limit
                            ),
                            format!("Set {setting} to at least {wanted} there and restart it."),
                        )
                        .mended_by(set(setting, &wanted)),
                    );
                }
            }
            for statement in engine.probe(&self.new.dsn.expose()) {
                match statement.run(reader) {
                    Ok(_) => {}
                    Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => {
                        return Err(error);
                    }
                    Err(error) => {
                        let problem = match error {
                            Error::Remote(remote) => remote.message,
                            error => error.to_string(),
                        };
                        findings.push(Finding::new(
                            &name,
                            SqlState::UNABLE_TO_CONNECT,
                            format!("the new node cannot be reached from here: {problem}"),
                            "Give a new_node_dsn by which every node reaches the new one, and allow it in its pg_hba.conf.",
                        ));
                        break;
                    }
                }
            }
        }
        let more: i64 = names
            .iter()
            .map(|n| engine.paths(&new, n).len() as i64)
            .sum();
        let members = members.len() as i64;
        for (setting, budget) in [
            (SLOTS, &known.new.replication_slots),
            ("max_wal_senders", &known.new.wal_senders),
        ] {
            // Without them it is told with what the members need.
            if more > 0 && budget.free() >= members && budget.free() < members + more {
                let wanted = (budget.used + members + more).to_string();
                findings.push(
                    Finding::new(
                        &new,
                        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                        format!(
                            "{} more needed of {setting}, {} of {} are in use",
                            members + more,
                            budget.used,
                            budget.limit
                        ),
                        format!("Set {setting} to at least {wanted} there and restart it."),
                    )
                    .mended_by(set(setting, &wanted)),
                );
            }
        }
        let check = Check::new("readers", "can subscribe to the new node");
        Ok(check.all(
            names.iter().map(String::as_str).chain([new.as_str()]),
            findings,
        ))
    }
}
