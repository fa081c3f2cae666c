//! The members a run works with: sessions, the membership lock, answers from all of them at once.

use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Dsn};
use crate::node::{Local, Member, Node, Session, Statement, ask, server};

/// Opens a session on each of `members`, all at the same time.
pub fn connect(members: &[Member]) -> Result<Vec<Node>> {
    let wanted: Vec<(&str, &Dsn)> = members.iter().map(|m| (m.name.as_str(), &m.dsn)).collect();
    members
        .iter()
        .zip(Conn::open_all(&wanted))
        .map(|(member, conn)| {
            Ok(Node {
                name: member.name.clone(),
                dsn: member.dsn.clone(),
                session: Session::Remote(conn?),
            })
        })
        .collect()
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
