//! What the cluster is like now, as every member sees it. All are asked at the same time; who does not
//! answer is shown as down. Nothing is changed.

mod draw;

pub use draw::{Format, draw};

use crate::engine::names::Numbered;
use crate::engine::{self, Engine};
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Dsn, Rows, scrub};
use crate::lsn::Lsn;
use crate::node::{Member, Node, Reader, Session, query_with_deadline, server};
use crate::settings;
use crate::workflow::lost_wal;
use crate::workflow::members;
use crate::workflow::node_copy;
use crate::workflow::report::table;
use std::collections::BTreeSet;
use zodan_core::subscription::{Answer, AtProvider, AtSubscriber, SubscriptionStatus, assess};

/// A member as the registry of this node has it.
pub struct Registered {
    /// As the engine itself tells nodes apart.
    pub id: Option<i32>,
    pub name: String,
    pub location: String,
    pub country: String,
    pub dsn: std::result::Result<Dsn, String>,
    pub info: Option<String>,
    /// Where the engine notes it.
    pub joined_at: Option<String>,
    pub is_local: bool,
    /// Where the engine notes it.
    database: String,
    number: Option<i32>,
    cluster: Option<String>,
}

/// A member as it answers.
pub struct MemberStatus {
    pub registered: Registered,
    /// Or why it does not answer.
    pub report: std::result::Result<MemberReport, String>,
}

pub struct MemberReport {
    pub version: String,
    pub standby: bool,
    slots: Vec<Slot>,
    inbound: Vec<Inbound>,
    /// One value for the tables that it sends, where the engine has such.
    sent: Option<String>,
    /// Where its WAL ends.
    end: Option<Lsn>,
    /// Nodes that it has been given a part of by a comparison that was interrupted.
    compared: Vec<String>,
    /// Nodes of which a recovery for it has been begun and not finished.
    recovering: Vec<String>,
    /// Nodes with which its comparison left rows alone while a member was away.
    undecided: Vec<String>,
    /// Which running server it is.
    server: String,
    /// Where on its machine.
    place: String,
}

impl MemberReport {
    pub fn role(&self) -> &'static str {
        if self.standby { "standby" } else { "primary" }
    }
}

/// A slot as its provider sees it.
#[derive(Clone, serde::Deserialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    pub wal_status: Option<String>,
    pub retained_bytes: Option<i64>,
    pub lag_bytes: Option<i64>,
    pub lag_us: Option<i64>,
}

/// A subscription as its subscriber sees it.
#[derive(Clone, serde::Deserialize)]
struct Inbound {
    subscription: String,
    provider: Option<String>,
    slot: Option<String>,
    status: SubscriptionStatus,
    received: Option<bool>,
    replication_sets: Option<Vec<String>>,
    last_error: Option<String>,
    /// One value for the tables that it applies, to be compared with what its provider sends.
    tables: Option<String>,
    /// How many changes its worker has left out for good, and the last of them, where the engine keeps that.
    left_out: Option<String>,
    /// The last position of its provider that it has applied.
    applied: Option<String>,
}

/// One path of the mesh, as both its ends see it.
pub struct Link {
    /// Places in [`Mesh::members`].
    pub provider: usize,
    pub subscriber: usize,
    pub subscription: Option<String>,
    pub state: SubscriptionStatus,
    pub replication_sets: Option<Vec<String>>,
    pub slot_name: Option<String>,
    pub slot: Option<Slot>,
    pub last_error: Option<String>,
    /// Whether the subscriber lacks changes for good although the subscription replicates.
    pub left_out: bool,
    applied: Option<Lsn>,
}

pub struct Mesh {
    pub engine: &'static str,
    pub members: Vec<MemberStatus>,
    /// By subscriber, then provider.
    pub links: Vec<Link>,
}

/// The members that the registry of this node has, by name; none where it is no node.
pub fn nodes(reader: &Reader) -> Result<(&'static str, Vec<Registered>)> {
    let mut local = this_node(reader)?;
    let engine = engine::detect(&mut local)?;
    Ok((engine.label(), registered(&*engine, &mut local)?))
}

/// Asks every member that the registry of this node has.
pub fn look(reader: &Reader) -> Result<Mesh> {
    let mut local = this_node(reader)?;
    let engine = engine::detect(&mut local)?;
    look_from(&*engine, &mut local)
}

/// Asks every member that the registry of the node has that `dsn` leads to.
pub fn look_by(dsn: &Dsn) -> Result<Mesh> {
    let mut node = members::own_session(&Member {
        name: dsn.redacted(),
        dsn: dsn.clone(),
    })?;
    let engine = engine::detect(&mut node)?;
    look_from(&*engine, &mut node)
}

/// Asks every member that the registry of `node` has.
pub fn look_from(engine: &dyn Engine, node: &mut Node) -> Result<Mesh> {
    let registered = registered(engine, node)?;
    if registered.is_empty() {
        return Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database is not a cluster node",
            "Run it in the database of any node of the cluster.",
        ));
    }
    let mut members = seen(engine, registered)?;
    let server = members::identity(node)?.server;
    if let Some(own) = members.iter_mut().find(|m| m.registered.is_local) {
        report_copy(own, &server, &node_copy::place_of(node)?);
    }
    let mut links = links(engine, &members);
    mark_lost_wal(&members, &mut links)?;
    Ok(Mesh {
        engine: engine.label(),
        links,
        members,
    })
}

/// What answers as the node that was asked first may be another server, which this one is a copy of.
fn report_copy(own: &mut MemberStatus, server: &str, place: &str) {
    let (Ok(node), Ok(dsn)) = (&own.report, &own.registered.dsn) else {
        return;
    };
    if node_copy::is_copy(server, &node.server) {
        let node = format!("{}, {}", dsn.redacted(), node.place);
        own.report = Err(node_copy::message(&own.registered.name, place, &node));
    }
}

/// Providers that lack what a subscriber has of them. All have been asked at the same time, so they are asked once
/// more: what had been applied then has been flushed by now.
fn mark_lost_wal(members: &[MemberStatus], links: &mut [Link]) -> Result<()> {
    let end = |provider: usize| members[provider].report.as_ref().ok()?.end;
    let ahead = |link: &Link| {
        let (applied, end) = (link.applied?, end(link.provider)?);
        (applied > end).then_some(link.provider)
    };
    let suspects: BTreeSet<usize> = links.iter().filter_map(ahead).collect();
    let asked: Vec<(usize, Member)> = suspects
        .into_iter()
        .filter_map(|provider| Some((provider, members[provider].registered.member()?)))
        .collect();
    let nodes: Vec<&Member> = asked.iter().map(|(_, member)| member).collect();
    let answers = query_with_deadline(&nodes, &server::wal_flushed(), settings::status_timeout());
    for ((provider, member), answer) in asked.iter().zip(answers) {
        let end = match answer {
            Ok(ends) => ends.into_iter().flatten().next(),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // It has answered, and does not any more: the next look says more.
            Err(_) => continue,
        };
        let of_it = links.iter_mut().filter(|c| c.provider == *provider);
        for link in of_it {
            let (Some(applied), Some(end)) = (link.applied, end) else {
                continue;
            };
            if applied > end {
                link.state = SubscriptionStatus::Down;
                prepend(
                    &lost_wal::message(&member.name, applied, end),
                    &mut link.last_error,
                );
            }
        }
    }
    Ok(())
}

/// Puts `problem` before what is known already.
fn prepend(problem: &str, last_error: &mut Option<String>) {
    *last_error = Some(match last_error.take() {
        Some(known) => format!("{problem}; {known}"),
        None => problem.to_owned(),
    });
}

impl Registered {
    fn numbered(&self) -> Option<Numbered<'_>> {
        Some(Numbered {
            name: &self.name,
            number: self.number?,
        })
    }

    fn member(&self) -> Option<Member> {
        Some(Member {
            name: self.name.clone(),
            dsn: self.dsn.clone().ok()?,
        })
    }
}

fn this_node(reader: &Reader) -> Result<Node> {
    Ok(Node::new(
        "",
        Dsn::nowhere(),
        Session::Reader(reader.clone()),
    ))
}

fn registered(engine: &dyn Engine, local: &mut Node) -> Result<Vec<Registered>> {
    let Some(own) = engine.local_name(local)? else {
        return Ok(vec![]);
    };
    let known = |text: String| (!text.is_empty()).then_some(text);
    let mut all: Vec<Registered> = engine
        .members()
        .on(local)?
        .into_iter()
        .map(|node| Registered {
            id: node.id,
            is_local: node.name == own,
            name: node.name,
            location: node.location,
            country: node.country,
            dsn: Dsn::parse(&node.dsn)
                .map_err(|bad| format!("its connection string {}", bad.problem())),
            info: known(node.info),
            joined_at: known(node.joined_at),
            database: node.database,
            number: node.number,
            cluster: known(node.cluster),
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn seen(engine: &dyn Engine, registered: Vec<Registered>) -> Result<Vec<MemberStatus>> {
    let members: Vec<Member> = registered.iter().filter_map(Registered::member).collect();
    let question = server::member_report(&engine.subscription_details(), &engine.sent_tables());
    let asked: Vec<&Member> = members.iter().collect();
    let mut answers =
        query_with_deadline(&asked, &question, settings::status_timeout()).into_iter();
    let mut all = vec![];
    for registered in registered {
        let report = match &registered.dsn {
            Err(problem) => Err(problem.clone()),
            Ok(_) => match answers.next() {
                Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
                Some(answer) => answer.and_then(|rows| report(&rows)).map_err(why),
                None => Err("it was not asked".into()),
            },
        };
        all.push(MemberStatus { registered, report });
    }
    Ok(all)
}

fn report(rows: &Rows) -> Result<MemberReport> {
    let row = rows.one()?;
    Ok(MemberReport {
        version: row.get("version")?,
        standby: row.get("standby")?,
        slots: row.json("slots")?,
        inbound: row.json("inbound")?,
        sent: row.get("sent")?,
        compared: row.json("compared")?,
        server: row.get("server")?,
        place: row.get("place")?,
        recovering: row.json("recovering")?,
        undecided: row.json("undecided")?,
        end: row.get("flushed")?,
    })
}

/// Why a node does not answer, in one line.
fn why(error: Error) -> String {
    let text = match error {
        Error::Connect { reason, .. } => format!("no connection: {reason}"),
        Error::Deadline { limit_ms, .. } => format!("no answer within {limit_ms} ms"),
        Error::Remote(remote) => format!("it cannot say: {}", remote.message),
        Error::Lost { reason, .. } => format!("the connection was lost: {reason}"),
        other => other.to_string(),
    };
    scrub(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn links(engine: &dyn Engine, members: &[MemberStatus]) -> Vec<Link> {
    let mut all = vec![];
    for subscriber in 0..members.len() {
        for provider in (0..members.len()).filter(|p| *p != subscriber) {
            all.extend(links_between(engine, members, provider, subscriber));
        }
    }
    all
}

/// Whether the subscription leaves out tables of its provider, or has some that it never gets anything of.
fn other_tables(provider: &MemberStatus, inbound: &Inbound) -> bool {
    let sent = provider.report.as_ref().ok();
    let sent = sent.and_then(|s| s.sent.as_ref());
    sent.is_some() && inbound.tables.is_some() && sent != inbound.tables.as_ref()
}

/// Each subscription of one member to another one; where there is none, that.
fn links_between(
    engine: &dyn Engine,
    members: &[MemberStatus],
    provider: usize,
    subscriber: usize,
) -> Vec<Link> {
    let (from, to) = (&members[provider], &members[subscriber]);
    let Registered { name, database, .. } = &from.registered;
    let rule = engine.path(name, &to.registered.name);
    let cluster = from.registered.cluster.as_deref();
    let numbered = (from.registered.numbered(), to.registered.numbered());
    let slot = match (cluster, numbered) {
        (Some(cluster), (Some(from), Some(to))) => engine.slot_by_rule(cluster, from, to, database),
        _ => None,
    };
    let slot = slot.as_ref().unwrap_or(&rule.slot);
    let by_rule = |other: &String| other == slot;
    let leads_here = |i: &&Inbound| match &i.provider {
        Some(name) => *name == from.registered.name,
        // Somebody may have given it another name.
        None => i.subscription == rule.subscription || i.slot.as_ref().is_some_and(by_rule),
    };
    let all = to.report.iter().flat_map(|s| &s.inbound);
    let mut subscriptions: Vec<Option<&Inbound>> = all.filter(leads_here).map(Some).collect();
    if subscriptions.is_empty() {
        subscriptions.push(None);
    }
    let link = |inbound: Option<&Inbound>| {
        // Of a subscriber that cannot be asked the provider still has the slot, by whose name it is known if
        // that was given by rule.
        let is_slot = |s: &&Slot| match inbound {
            Some(inbound) => inbound.slot.as_ref() == Some(&s.name),
            None => by_rule(&s.name) || engine.may_be_slot_of(&rule, &s.name),
        };
        let slots = from.report.as_ref().ok().map(|s| &s.slots);
        let slot = slots.and_then(|all| all.iter().find(is_slot));
        let left_out = inbound.and_then(|i| i.left_out.clone());
        let mut last_error = left_out
            .clone()
            .or(inbound.and_then(|i| i.last_error.clone()));
        let compared = |s: &MemberReport| s.compared.contains(&from.registered.name);
        let half_compared = to.report.as_ref().is_ok_and(compared);
        let at_subscriber = |i: &Inbound| AtSubscriber {
            status: i.status,
            received: i.received,
            other_tables: other_tables(from, i),
            left_out: i.left_out.is_some(),
        };
        let at_provider = |s: &Slot| AtProvider {
            active: s.active,
            lost: s.wal_status.as_deref() == Some("lost"),
        };
        let subscriber_says = match &to.report {
            Err(_) => Answer::Silent,
            Ok(_) => inbound.map_or(Answer::None, |i| Answer::Some(at_subscriber(i))),
        };
        let provider_says = match slots {
            None => Answer::Silent,
            Some(_) => slot.map_or(Answer::None, |s| Answer::Some(at_provider(s))),
        };
        let (state, problem) = assess(subscriber_says, provider_says, half_compared);
        if let Some(problem) = problem {
            prepend(&problem.to_string(), &mut last_error);
        }
        let recovering = |s: &MemberReport| s.recovering.contains(&from.registered.name);
        if to.report.as_ref().is_ok_and(recovering) {
            let unfinished = format!(
                "a recovery of \"{0}\" for it is not finished, and recovery slots keep WAL until then: unless one runs, CALL spock.recover_run({1}, force := true)",
                from.registered.name,
                crate::quote::literal(&from.registered.name)
            );
            prepend(&unfinished, &mut last_error);
        }
        let undecided = |s: &MemberReport| s.undecided.contains(&from.registered.name);
        if to.report.as_ref().is_ok_and(undecided) {
            let again = format!(
                "a recovery by comparison left rows alone while a member was away: CALL spock.recover_run({}) when all members are there",
                crate::quote::literal(&from.registered.name)
            );
            prepend(&again, &mut last_error);
        }
        if half_compared {
            let again = format!(
                "a recovery by comparison was interrupted: stop \"{0}\" and CALL spock.recover_run({1}) before it sends again what was brought",
                from.registered.name,
                crate::quote::literal(&from.registered.name)
            );
            prepend(&again, &mut last_error);
        }
        // Some engines move them about.
        let mut replication_sets = inbound.and_then(|i| i.replication_sets.clone());
        replication_sets.iter_mut().for_each(|sets| sets.sort());
        Link {
            provider,
            subscriber,
            subscription: match (&to.report, inbound) {
                (_, Some(inbound)) => Some(inbound.subscription.clone()),
                (Err(_), None) => Some(rule.subscription.clone()),
                (Ok(_), None) => None,
            },
            state,
            replication_sets,
            slot_name: match inbound {
                Some(inbound) => inbound.slot.clone(),
                None => slot.map(|s| s.name.clone()),
            },
            slot: slot.cloned(),
            last_error: last_error.map(|t| scrub(&t)),
            left_out: left_out.is_some(),
            applied: inbound
                .and_then(|i| i.applied.as_ref())
                .and_then(|lsn| lsn.parse().ok()),
        }
    };
    subscriptions.into_iter().map(link).collect()
}

/// The members as a person reads them, and how many there are.
pub fn format_nodes(mesh: &Mesh) -> Vec<String> {
    let row = |m: &MemberStatus| {
        let (registered, report) = (&m.registered, m.report.as_ref());
        vec![
            registered.name.clone(),
            registered.location.clone(),
            registered.country.clone(),
            match &registered.dsn {
                Ok(dsn) => dsn.redacted(),
                Err(why) => why.clone(),
            },
            match report {
                Ok(report) => format!("up, PostgreSQL {}", report.version),
                Err(why) => one_line(&format!("down: {why}")),
            },
        ]
    };
    let rows: Vec<Vec<String>> = mesh.members.iter().map(row).collect();
    let mut lines = table(
        &["node_name", "location", "country", "if_dsn", "status"],
        &rows,
    );
    let up = mesh.members.iter().filter(|m| m.report.is_ok()).count();
    lines.push(format!("{} nodes, {up} up", rows.len()));
    lines
}

/// The subscriptions as a person reads them, and how many replicate.
pub fn format_subscriptions(mesh: &Mesh) -> Vec<String> {
    let name = |member: usize| mesh.members[member].registered.name.clone();
    let row = |c: &Link| {
        let last_error = c.last_error.as_ref().map(|t| format!(": {t}"));
        vec![
            name(c.subscriber),
            c.subscription.clone().unwrap_or_else(|| "none".into()),
            one_line(&format!("{}{}", c.state, last_error.unwrap_or_default())),
            name(c.provider),
        ]
    };
    let rows: Vec<Vec<String>> = mesh.links.iter().map(row).collect();
    let heading = ["node_name", "subscription_name", "status", "provider_node"];
    let mut lines = table(&heading, &rows);
    let working = |c: &&Link| c.state == SubscriptionStatus::Replicating;
    let working = mesh.links.iter().filter(working).count();
    lines.push(format!(
        "{} subscriptions, {working} replicating",
        rows.len()
    ));
    lines
}

/// A message of libpq may have several.
fn one_line(text: &str) -> String {
    scrub(text).split_whitespace().collect::<Vec<_>>().join(" ")
}
