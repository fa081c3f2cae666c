//! The tables at the end of a run: nodes, subscriptions and lag, as the members see them.

use super::report::{Report, table};
use crate::engine::{Engine, Lag, RegisteredNode, SubscriptionState};
use crate::error::Result;
use crate::libpq::Dsn;
use crate::node::{Node, Tasks, ask_all};
use zodan_core::subscription::{Answer, AtSubscriber, SubscriptionStatus, assess};

/// Tells what `members` are now, and how they get on with those who are `away`. The first of them is asked for the
/// list of nodes.
pub fn show(
    engine: &dyn Engine,
    members: &mut [&mut Node],
    away: &[String],
    report: &Report,
) -> Result<()> {
    let asked = (engine.subscriptions(), engine.lag());
    let (nodes, answers) = (
        |members: &mut [&mut Node]| match members.first_mut() {
            Some(first) => engine.members().on(first),
            None => Ok(vec![]),
        },
        |members: &mut [&mut Node]| ask_all(members.iter_mut().map(|n| &mut **n), &asked),
    )
        .make(members, |members| {
            members.iter_mut().map(|n| &mut **n).collect()
        })?;
    show_nodes(nodes, report);
    let (states, lag): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    let names: Vec<String> = members.iter().map(|n| n.name.clone()).collect();
    show_subscriptions(engine, &names, &states, away, report);
    show_lag(lag.into_iter().flatten(), report);
    Ok(())
}

fn show_nodes(nodes: Vec<RegisteredNode>, report: &Report) {
    let mut rows = vec![];
    for member in nodes {
        let dsn = Dsn::parse(&member.dsn)
            .map(|d| d.redacted())
            .unwrap_or_default();
        rows.push(vec![member.name, member.location, member.country, dsn]);
    }
    say_table(&["node_name", "location", "country", "dsn"], rows, report);
}

fn show_subscriptions(
    engine: &dyn Engine,
    names: &[String],
    answers: &[Vec<SubscriptionState>],
    away: &[String],
    report: &Report,
) {
    let mut rows = vec![];
    for (subscriber, states) in names.iter().zip(answers) {
        let providers = names.iter().chain(away).filter(|p| *p != subscriber);
        let paths = providers.flat_map(|provider| engine.paths(provider, subscriber));
        for path in paths {
            let own = states.iter().find(|s| s.name == path.subscription);
            let own = own.map(|state| AtSubscriber {
                status: SubscriptionStatus::of(state.enabled, state.working),
                // The worker of one that is away is there for a moment with every new try.
                received: away.contains(&path.provider).then_some(false),
                other_tables: false,
                left_out: false,
            });
            let own = own.map_or(Answer::None, Answer::Some);
            let (status, _) = assess(own, Answer::Silent, false);
            rows.push(vec![
                subscriber.clone(),
                path.subscription,
                status.to_string(),
                path.provider,
            ]);
        }
    }
    let heading = ["node_name", "subscription_name", "status", "provider_node"];
    say_table(&heading, rows, report);
}

fn show_lag(lag: impl Iterator<Item = Lag>, report: &Report) {
    let row = |l: Lag| vec![l.origin, l.receiver, l.commit_timestamp, l.bytes, l.time];
    let rows = lag.map(row).collect();
    let heading = [
        "origin_name",
        "receiver_name",
        "commit_timestamp",
        "replication_lag_bytes",
        "replication_lag",
    ];
    say_table(&heading, rows, report);
}

fn say_table(heading: &[&str], mut rows: Vec<Vec<String>>, report: &Report) {
    if rows.is_empty() {
        return;
    }
    rows.sort();
    for line in table(heading, &rows) {
        report.notice(&line);
    }
}
