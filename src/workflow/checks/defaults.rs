//! What servers, databases and roles have by default, and what no session of ours can do without.

use super::Checks;
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, server};
use crate::quote::ident;
use crate::workflow::findings::Check;
use crate::workflow::members::each;
use std::collections::BTreeSet;

const MONETARY: &str = "lc_monetary";
const MONEY: &str = "money";

impl Checks<'_> {
    fn everyone(&mut self) -> Vec<&mut Node> {
        let mut nodes: Vec<&mut Node> = vec![&mut *self.source];
        nodes.extend(self.peers.iter_mut());
        nodes.push(&mut *self.new);
        nodes
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.member_names();
        names.push(self.new.name.clone());
        names
    }

    /// What they note of a join would be a row of each node's own, and what they forbid would end it.
    pub(super) fn check_event_triggers(&mut self) -> Result<Check> {
        let names = self.names();
        let answers = each(self.everyone(), |_| server::unavoidable_event_triggers())?;
        let mut check = Check::new("event triggers", "none that fire for what zodan does");
        for (name, rows) in names.iter().zip(&answers) {
            let triggers: Vec<&str> = rows.iter().map(|row| row.text(0)).collect();
            if triggers.is_empty() {
                check.passed(name, "none");
                continue;
            }
            let disable: Vec<String> = triggers
                .iter()
                .map(|t| format!("ALTER EVENT TRIGGER {} DISABLE", ident(t)))
                .collect();
            let disable = disable.join("; ");
            check.warned_of(
                Finding::new(
                    name,
                    SqlState::OK,
                    format!(
                        "event triggers fire for what the run does there: {}",
                        triggers.join(", ")
                    ),
                    format!("PostgreSQL before 17 cannot keep them from single sessions. For the time of the CALL: {disable}"),
                )
                .fixed_by(disable),
            );
        }
        Ok(check)
    }

    /// What applications write on the new node before its slots are there is known by the server's counters.
    pub(super) fn check_counters(&mut self) -> Result<Check> {
        let rows = server::uncounted_defaults().run(self.new)?;
        let mut check = Check::new("row counters", "on for all sessions");
        for row in &rows {
            let (whose, reset) = (row.text(0), row.text(1));
            check.failed(
                Finding::new(
                    &self.new.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "track_counts is off for {whose}, so it would not be noticed if applications wrote here meanwhile"
                    ),
                    format!("{reset}, at least for the time of the CALL."),
                )
                .fixed_by(reset.to_owned()),
            );
        }
        if rows.is_empty() {
            check.passed(&self.new.name, "on for all sessions");
        }
        Ok(check)
    }

    /// Those that fire for the connections of subscriptions, which are none of ours.
    pub(super) fn check_login_triggers(&mut self) -> Result<Check> {
        let names = self.names();
        let answers = each(self.everyone(), |_| server::login_triggers())?;
        let mut check = Check::new("login triggers", "none");
        for (name, rows) in names.iter().zip(&answers) {
            let triggers: Vec<&str> = rows.iter().map(|row| row.text(0)).collect();
            match triggers.is_empty() {
                true => check.passed(name, "none"),
                false => check.warned(
                    name,
                    format!(
                        "login triggers fire whenever a subscription connects: {}",
                        triggers.join(", ")
                    ),
                    "What they write is replicated: on different nodes it must not have the same keys. They can tell such a connection by backend_type in pg_stat_activity, which is walsender.",
                ),
            }
        }
        Ok(check)
    }

    /// Apply workers have the defaults of their role and database, and read what is sent as text by them.
    pub(super) fn check_apply_settings(&mut self) -> Result<Check> {
        let names = self.names();
        let answers = each(self.everyone(), |_| server::misreading_settings())?;
        let mut check = Check::new("settings of apply workers", "as values are sent");
        let found = || answers.iter().flat_map(|rows| rows.iter());
        let monetary = found().filter(|row| row.text(0) == MONETARY);
        let monetary: BTreeSet<&str> = monetary.map(|row| row.text(1)).collect();
        let money_differs = monetary.len() > 1 && found().any(|row| row.text(0) == MONEY);
        for (name, rows) in names.iter().zip(&answers) {
            let mut harmless = true;
            for row in rows {
                let (setting, value) = (row.text(0), row.text(1));
                let harm = match setting {
                    MONEY => continue,
                    MONETARY if !money_differs => continue,
                    MONETARY => {
                        "amounts of money are sent as text, and read as other amounts where it differs"
                    }
                    "array_nulls" => {
                        "apply stores the text NULL where an array that is changed has a null"
                    }
                    "transaction_timeout" => {
                        "it ends what sends and what applies a transaction that takes longer, again and again"
                    }
                    "role" => "apply workers would run as this role, which is not a superuser",
                    _ => "apply stops at a value that is not a whole document",
                };
                harmless = false;
                check.warned(
                    name,
                    format!("{setting} is {value} by default: {harm}"),
                    format!("Reset {setting} for the database, the role and the server, and set it where it is needed."),
                );
            }
            if harmless {
                check.passed(name, "as values are sent");
            }
        }
        Ok(check)
    }
}
