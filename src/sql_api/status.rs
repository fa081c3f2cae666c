//! `spock.cluster_status()` and its sisters: what the cluster is like.

use super::arguments;
use super::entry::{self, raised};
use crate::ereport;
use crate::error::{Error, SqlState};
use crate::workflow::status::{self, Format, Link, MemberStatus, Mesh, Registered};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

fn look(function: &str) -> raised::Result<Mesh> {
    entry::public_function(function, status::look)
}

fn dsn(registered: &Registered) -> Option<String> {
    registered.dsn.as_ref().ok().map(|dsn| dsn.redacted())
}

fn problem(seen: &MemberStatus) -> Option<String> {
    seen.report.as_ref().err().cloned()
}

fn version(seen: &MemberStatus) -> Option<String> {
    seen.report.as_ref().ok().map(|s| s.version.clone())
}

fn role(seen: &MemberStatus) -> Option<&'static str> {
    seen.report.as_ref().ok().map(|s| s.role())
}

#[pg_extern(sql = "")]
fn get_nodes() -> raised::Result<
    TableIterator<
        'static,
        (
            name!(node_name, String),
            name!(location, String),
            name!(country, String),
            name!(dsn, Option<String>),
            name!(info, Option<pgrx::JsonB>),
            name!(joined, Option<TimestampWithTimeZone>),
            name!(engine, &'static str),
            name!(is_local, bool),
        ),
    >,
> {
    let (engine, nodes) = entry::public_function("spock.get_nodes()", status::nodes)?;
    let row = move |n: Registered| {
        let dsn = dsn(&n);
        let info = n.info.and_then(|i| serde_json::from_str(&i).ok());
        (
            n.name,
            n.location,
            n.country,
            dsn,
            info.map(pgrx::JsonB),
            n.joined_at.and_then(|at| at.parse().ok()),
            engine,
            n.is_local,
        )
    };
    Ok(TableIterator::new(nodes.into_iter().map(row)))
}

#[pg_extern(sql = "")]
fn cluster_status() -> raised::Result<
    TableIterator<
        'static,
        (
            name!(provider, String),
            name!(subscriber, String),
            name!(state, String),
            name!(lag_bytes, Option<i64>),
            name!(lag_time, Option<Interval>),
            name!(retained_bytes, Option<i64>),
            name!(last_error, Option<String>),
            name!(provider_up, bool),
            name!(provider_problem, Option<String>),
            name!(provider_version, Option<String>),
            name!(provider_role, Option<&'static str>),
            name!(subscriber_up, bool),
            name!(subscriber_problem, Option<String>),
            name!(subscriber_version, Option<String>),
            name!(subscriber_role, Option<&'static str>),
            name!(engine, &'static str),
            name!(subscription, Option<String>),
            name!(slot_name, Option<String>),
            name!(slot_active, Option<bool>),
            name!(wal_status, Option<String>),
        ),
    >,
> {
    let mesh = look("spock.cluster_status()")?;
    let row = |c: &Link| {
        let (from, to) = (&mesh.members[c.provider], &mesh.members[c.subscriber]);
        let slot = c.slot.as_ref();
        (
            from.registered.name.clone(),
            to.registered.name.clone(),
            c.state.to_string(),
            slot.and_then(|s| s.lag_bytes),
            slot.and_then(|s| s.lag_us).map(Interval::from_micros),
            slot.and_then(|s| s.retained_bytes),
            c.last_error.clone(),
            from.report.is_ok(),
            problem(from),
            version(from),
            role(from),
            to.report.is_ok(),
            problem(to),
            version(to),
            role(to),
            mesh.engine,
            c.subscription.clone(),
            c.slot_name.clone(),
            slot.map(|s| s.active),
            slot.and_then(|s| s.wal_status.clone()),
        )
    };
    let rows: Vec<_> = mesh.links.iter().map(row).collect();
    Ok(TableIterator::new(rows))
}

#[pg_extern(sql = "")]
fn show_all_nodes() -> raised::Result<
    TableIterator<
        'static,
        (
            name!(node_id, Option<i32>),
            name!(node_name, String),
            name!(location, String),
            name!(country, String),
            name!(if_dsn, Option<String>),
            name!(status, &'static str),
            name!(version, Option<String>),
            name!(problem, Option<String>),
        ),
    >,
> {
    let mesh = look("spock.show_all_nodes()")?;
    let row = |m: &MemberStatus| {
        (
            m.registered.id,
            m.registered.name.clone(),
            m.registered.location.clone(),
            m.registered.country.clone(),
            dsn(&m.registered),
            if m.report.is_ok() { "up" } else { "down" },
            version(m),
            problem(m),
        )
    };
    let rows: Vec<_> = mesh.members.iter().map(row).collect();
    Ok(TableIterator::new(rows))
}

#[pg_extern(sql = "")]
fn show_all_subscription_status() -> raised::Result<
    TableIterator<
        'static,
        (
            name!(node_name, String),
            name!(subscription_name, Option<String>),
            name!(status, String),
            name!(provider_node, String),
            name!(slot_name, Option<String>),
            name!(replication_sets, Option<Vec<String>>),
            name!(problem, Option<String>),
        ),
    >,
> {
    let mesh = look("spock.show_all_subscription_status()")?;
    let row = |c: &Link| {
        let (from, to) = (&mesh.members[c.provider], &mesh.members[c.subscriber]);
        (
            to.registered.name.clone(),
            c.subscription.clone(),
            c.state.to_string(),
            from.registered.name.clone(),
            c.slot_name.clone(),
            c.replication_sets.clone(),
            c.last_error
                .clone()
                .or(problem(to).map(|why| format!("the subscriber is down: {why}")))
                .or(problem(from).map(|why| format!("the provider is down: {why}"))),
        )
    };
    let rows: Vec<_> = mesh.links.iter().map(row).collect();
    Ok(TableIterator::new(rows))
}

/// Tells one line after the other.
fn print(
    name: &str,
    cluster_dsn: Option<&str>,
    verb: Option<bool>,
    lines: impl FnOnce(&Mesh) -> Vec<String>,
) -> raised::Result<()> {
    entry::function(name, |_| {
        let mesh = status::look_by(&arguments::dsn("cluster_dsn", cluster_dsn)?)?;
        if verb.unwrap_or(true) {
            lines(&mesh).iter().for_each(|line| ereport::notice(line));
        }
        Ok(())
    })
}

#[pg_extern(sql = "")]
fn print_nodes(cluster_dsn: Option<&str>, verb: Option<bool>) -> raised::Result<()> {
    let name = "CALL spock.show_all_nodes";
    print(name, cluster_dsn, verb, status::format_nodes)
}

#[pg_extern(sql = "")]
fn print_subscriptions(cluster_dsn: Option<&str>, verb: Option<bool>) -> raised::Result<()> {
    let name = "CALL spock.show_all_subscription_status";
    print(name, cluster_dsn, verb, status::format_subscriptions)
}

#[pg_extern(sql = "")]
fn topology(format: Option<&str>) -> raised::Result<SetOfIterator<'static, String>> {
    let format = format.unwrap_or("text");
    let format = entry::raise(|| {
        format.parse::<Format>().map_err(|()| Error::Argument {
            argument: "format",
            problem: format!("is \"{format}\", which is not a format of a drawing"),
            hint: "Give text, dot or mermaid.".into(),
            state: SqlState::INVALID_PARAMETER_VALUE,
        })
    })?;
    let lines = status::draw(&look("spock.topology()")?, format);
    Ok(SetOfIterator::new(lines))
}

#[cfg(test)]
mod tests {
    /// The words behind `begins`, in the order of the text.
    fn words<'t>(text: &'t str, begins: &str) -> Vec<&'t str> {
        let ends = |c: char| !(c.is_alphanumeric() || c == '_');
        let parts = text.split(begins).skip(1);
        parts
            .map(|rest| &rest[..rest.find(ends).unwrap_or(rest.len())])
            .collect()
    }

    /// PostgreSQL reads the values of a row by their place.
    #[test]
    fn columns_are_those_of_the_sql_in_the_same_order() {
        let (sql, rust) = (
            include_str!("../../sql/status.sql"),
            include_str!("status.rs"),
        );
        let rust = rust.split("#[cfg(test)]").next().unwrap();
        let mut compared = 0;
        for made in sql.split("CREATE FUNCTION ").skip(1) {
            let (name, rest) = made.split_once('(').unwrap();
            let name = name.rsplit('.').next().unwrap();
            let columns = words(rest.split("RETURNS").next().unwrap(), "OUT ");
            let Some((_, function)) = rust.split_once(&format!("\nfn {name}(")) else {
                panic!("{name} is not in Rust");
            };
            let values = words(function.split("\n}").next().unwrap(), "name!(");
            assert_eq!(columns, values, "{name}");
            compared += columns.len();
        }
        assert!(compared > 30, "{compared}");
    }
}
