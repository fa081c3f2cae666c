//! The members a run works with: sessions, the membership lock, answers from all of them at once.

use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::{Conn, Dsn};
use crate::node::{Local, Member, Node, Session, Statement, ask, server};

/// Opens a session on each of `members`, all at the same time. Those that cannot be reached are
/// reported together.
pub fn connect(members: &[Member]) -> Result<Vec<Node>> {
    let wanted: Vec<(&str, &Dsn)> = members.iter().map(|m| (m.name.as_str(), &m.dsn)).collect();
    let mut nodes = vec![];
    let mut failed = vec![];
    for (member, conn) in members.iter().zip(Conn::open_all(&wanted)) {
        match conn {
            Ok(conn) => nodes.push(Node {
                name: member.name.clone(),
                dsn: member.dsn.clone(),
                session: Session::Remote(conn),
            }),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => failed.push((member, error)),
        }
    }
    if failed.len() > 1 {
        let finding = |(member, error): (&Member, Error)| {
            let hint = error.hint().unwrap_or_default();
            Finding::new(&member.name, error.sqlstate(), error.to_string(), hint)
        };
        return Err(Error::Checks(failed.into_iter().map(finding).collect()));
    }
    failed.pop().map_or(Ok(nodes), |(_, error)| Err(error))
}

/// Most of what a run asks can only be asked by a superuser, so this comes before all of it.
pub fn require_superuser<'a>(nodes: impl IntoIterator<Item = &'a mut Node>) -> Result<()> {
    let mut findings = vec![];
    for node in nodes {
        if !server::is_superuser().run(node)?.one()?.bool(0) {
            findings.push(Finding::new(
                &node.name,
                SqlState::INSUFFICIENT_PRIVILEGE,
                "the role of the connection is not a superuser",
                "Connect to every node as a superuser.",
            ));
        }
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(Error::Checks(findings))
    }
}

/// Which running server and which database the node is.
pub fn identity(node: &mut Node) -> Result<(String, String)> {
    let rows = server::identity().run(node)?;
    let row = rows.one()?;
    Ok((row.text(0).to_owned(), row.text(1).to_owned()))
}

/// The node that this server is, worked on through SPI.
pub fn local(name: &str, dsn: &Dsn, local: &Local) -> Node {
    Node {
        name: name.to_owned(),
        dsn: dsn.clone(),
        session: Session::Local(local.clone()),
    }
}

/// Takes the membership lock on every node, or says who holds it. Two CALLs at once: the second
/// fails here, before it has changed anything.
pub fn lock<'a>(nodes: impl IntoIterator<Item = &'a mut Node>, purpose: &str) -> Result<()> {
    for node in nodes {
        let taken = server::try_membership_lock(&format!("zodan {purpose}")).run(node)?;
        if taken.one()?.bool(0) {
            continue;
        }
        let holder = server::membership_lock_holder().run(node)?;
        let detail = holder.first().map(|h| {
            format!(
                "It is held by pid {} on that node (\"{}\"), connected from {} since {}.",
                h.text(0),
                h.text(1),
                h.text(2),
                h.text(3)
            )
        });
        return Err(Error::Refused {
            state: SqlState::LOCK_NOT_AVAILABLE,
            message: format!(
                "the membership of the cluster is being changed by someone else: node \"{}\" is locked",
                node.name
            ),
            detail,
            hint: "Wait until the other CALL has ended, then run this one again.".into(),
        });
    }
    Ok(())
}

/// Asks each of `nodes` its own question, all at the same time. Errors are the first one's.
pub fn each<'a>(
    nodes: impl IntoIterator<Item = &'a mut Node>,
    question: impl Fn(&Node) -> Statement,
) -> Result<Vec<crate::libpq::Rows>> {
    ask(nodes
        .into_iter()
        .map(|node| {
            let statement = question(node);
            statement.on(node)
        })
        .collect())
    .into_iter()
    .collect()
}
