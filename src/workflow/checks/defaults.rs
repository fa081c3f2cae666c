//! What servers, databases and roles have by default, and what no session of ours can do without.

use super::Known;
use crate::error::{Finding, Result, SqlState};
use crate::node::ask_each;
use crate::node::server::{self, Default, Setting};
use crate::quote::ident;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;
use std::collections::BTreeSet;

const MONETARY: &str = "lc_monetary";
const MONEY: &str = "money";

/// What they note of a join would be a row of each node's own, and what they forbid would end it.
pub fn event_triggers(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let names = nodes.names();
    let answers = ask_each(nodes.everyone(), |_| server::unavoidable_event_triggers())?;
    for (name, triggers) in names.iter().zip(&answers) {
        if triggers.is_empty() {
            check.pass(name, "none");
            continue;
        }
        let disable: Vec<String> = triggers
            .iter()
            .map(|t| format!("ALTER EVENT TRIGGER {} DISABLE", ident(t)))
            .collect();
        let disable = disable.join("; ");
        check.warn(
                Finding::warning(
                    name,
                    format!(
                        "event triggers fire for what the run does there: {}",
                        triggers.join(", ")
                    ),
                    format!("PostgreSQL before 17 cannot keep them from single sessions. For the time of the CALL: {disable}"),
                )
                .fixed_by(disable),
            );
    }
    Ok(())
}

/// What applications write on the new node before its slots are there is known by the server's counters.
pub fn counters(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let uncounted = server::uncounted_defaults().on(nodes.new)?;
    for Default { whose, reset } in &uncounted {
        check.fail(
                Finding::new(
                    &nodes.new.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "track_counts is off for {whose}, so it would not be noticed if applications wrote here meanwhile"
                    ),
                    format!("{reset}, at least for the time of the CALL."),
                )
                .fixed_by(reset.as_str()),
            );
    }
    if uncounted.is_empty() {
        check.pass(&nodes.new.name, "on for all sessions");
    }
    Ok(())
}

/// Those that fire for the connections of subscriptions, which are none of ours.
pub fn login_triggers(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let names = nodes.names();
    let answers = ask_each(nodes.everyone(), |_| server::login_triggers())?;
    for (name, triggers) in names.iter().zip(&answers) {
        match triggers.is_empty() {
                true => check.pass(name, "none"),
                false => check.warn(Finding::warning(
                    name,
                    format!(
                        "login triggers fire whenever a subscription connects: {}",
                        triggers.join(", ")
                    ),
                    "What they write is replicated: on different nodes it must not have the same keys. They can tell such a connection by backend_type in pg_stat_activity, which is walsender.",
                )),
            }
    }
    Ok(())
}

/// Apply workers have the defaults of their role and database, and read what is sent as text by them.
pub fn apply_settings(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let names = nodes.names();
    let answers = ask_each(nodes.everyone(), |_| server::misreading_settings())?;
    let found = || answers.iter().flatten();
    let monetary = found().filter(|setting| setting.name == MONETARY);
    let monetary: BTreeSet<&str> = monetary.map(|setting| setting.value.as_str()).collect();
    let money_differs = monetary.len() > 1 && found().any(|setting| setting.name == MONEY);
    for (name, settings) in names.iter().zip(&answers) {
        let mut harmless = true;
        for Setting {
            name: setting,
            value,
        } in settings
        {
            let harm = match setting.as_str() {
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
            check.warn(Finding::warning(
                    name,
                    format!("{setting} is {value} by default: {harm}"),
                    format!("Reset {setting} for the database, the role and the server, and set it where it is needed."),
                ));
        }
        if harmless {
            check.pass(name, "as values are sent");
        }
    }
    Ok(())
}
