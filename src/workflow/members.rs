//! The members a run works with: sessions, the membership lock, answers from all of them at once.

use crate::engine::{self, Engine, Path, names};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::server::{self, DatabaseId, LockHolder};
use crate::node::{Member, Mode, Node, Statement, ask, ask_all};

/// Opens a session on each of `members`, all at the same time. Those that cannot be reached are
/// reported together.
pub fn connect(members: &[Member]) -> Result<Vec<Node>> {
    all(members.iter().cloned().zip(connect_each(members)).collect())
}

/// The sessions of all; those that cannot be reached are reported together.
pub fn all(answers: Vec<(Member, Result<Node>)>) -> Result<Vec<Node>> {
    let mut nodes = vec![];
    let mut failed = vec![];
    for (member, answer) in answers {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => failed.push((member, error)),
        }
    }
    if failed.len() > 1 {
        let finding = |(member, error): (Member, Error)| {
            let hint = error.hint().unwrap_or_default();
            Finding::new(&member.name, error.sqlstate(), error.to_string(), hint)
        };
        return Err(Error::Checks(failed.into_iter().map(finding).collect()));
    }
    failed.pop().map_or(Ok(nodes), |(_, error)| Err(error))
}

/// Opens a session on each of `members`, all at the same time; the answers are in their order.
pub fn connect_each(members: &[Member]) -> Vec<Result<Node>> {
    Node::connect(members)
}

/// Says where the address is from by which a node could not be reached.
pub fn with_address(error: Error, of: impl FnOnce() -> String) -> Error {
    error.hinted(|hint| format!("{} {hint}", of()))
}

/// A session of its own on one member.
pub fn own_session(member: &Member) -> Result<Node> {
    let mut opened = connect(std::slice::from_ref(member))?;
    opened
        .pop()
        .ok_or_else(|| Error::internal("a node was not connected"))
}

/// Most of what a run asks can only be asked by a superuser, so this comes before all of it.
pub fn require_superuser<'a>(nodes: impl IntoIterator<Item = &'a mut Node>) -> Result<()> {
    let mut findings = vec![];
    for node in nodes {
        if !node.is_superuser()? {
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
pub fn identity(node: &mut Node) -> Result<DatabaseId> {
    node.identity()
}

/// The recovery slot of the node, whether it is there or not. One that is there keeps its name when the database gets
/// another one.
pub fn recovery_slot(node: &mut Node) -> Result<String> {
    let by_rule = names::recovery_slot(&identity(node)?.database);
    let mut present = server::recovery_slots().on(node)?;
    Ok(match present.contains(&by_rule) || present.is_empty() {
        true => by_rule,
        false => present.swap_remove(0),
    })
}

/// Slots of the database of `node` that exist, of those named, and whether somebody reads them.
pub fn present_slots(node: &mut Node, slots: &[String]) -> Result<Vec<(String, bool)>> {
    let present = server::slots_named(slots).on(node)?.into_iter();
    let own = present.filter(|slot| slot.is_own);
    Ok(own.map(|slot| (slot.name, slot.pid.is_some())).collect())
}

/// The node that this server is, worked on through SPI.
pub fn local(name: &str, dsn: &Dsn, mode: &Mode) -> Node {
    Node::new(name, dsn.clone(), mode.session())
}

/// The node that the CALL runs on, by its name in the cluster, and the engine of that. `hint` says where to run it else.
pub fn own_node(mode: &Mode, hint: &'static str) -> Result<(Box<dyn Engine>, Node)> {
    let mut me = local("", &Dsn::nowhere(), mode);
    let engine = engine::detect(&mut me)?;
    match engine.local_name(&mut me)? {
        Some(name) => {
            me.name = name;
            Ok((engine, me))
        }
        None => Err(Error::refused(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "the database that the CALL runs in is not a cluster node",
            hint,
        )),
    }
}

/// Takes the membership lock on every node, or says who holds it. Two CALLs at once: the second
/// fails here, before it has changed anything. The first by name comes before all others, so that one of them
/// gets through.
pub fn lock<'a>(nodes: impl IntoIterator<Item = &'a mut Node>, purpose: &str) -> Result<()> {
    let mut nodes: Vec<&mut Node> = nodes.into_iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let lock = server::try_membership_lock(&format!("zodan {purpose}"));
    let first = nodes.len().min(1);
    let (first, others) = nodes.split_at_mut(first);
    for nodes in [first, others] {
        let taken = ask_all(nodes.iter_mut().map(|node| &mut **node), &lock)?;
        for (node, taken) in nodes.iter_mut().zip(taken) {
            if taken.first() != Some(&true) {
                let holder = server::membership_lock_holder().first(&mut **node)?;
                return Err(locked(&node.name, holder));
            }
        }
    }
    Ok(())
}

/// Takes the membership lock of the node for `purpose`, if nobody has it.
pub fn lock_if_free(node: &mut Node, purpose: &str) -> Result<bool> {
    server::try_membership_lock(purpose).one(node)
}

/// Someone else's CALL has ended between the look at the members and the lock on them.
pub fn changed_meanwhile(node: &str) -> Error {
    Error::refused(
        SqlState::LOCK_NOT_AVAILABLE,
        format!("cluster membership of node \"{node}\" changed concurrently"),
        "Run this CALL again.",
    )
}

/// As [`lock`], without taking it.
pub fn require_unlocked<'a>(nodes: impl IntoIterator<Item = &'a mut Node>) -> Result<()> {
    let mut nodes: Vec<&mut Node> = nodes.into_iter().collect();
    let asked = nodes.iter_mut().map(|node| &mut **node);
    let holders = ask_all(asked, &server::membership_lock_holder())?;
    for (node, holders) in nodes.iter().zip(holders) {
        let holder = holders.into_iter().next();
        if holder.is_some() {
            return Err(locked(&node.name, holder));
        }
    }
    Ok(())
}

fn locked(node: &str, holder: Option<LockHolder>) -> Error {
    let detail = holder.map(|h| {
        format!(
            "It is held by pid {} on that node (\"{}\"), connected from {} since {}.",
            h.pid, h.application, h.from, h.since
        )
    });
    Error::Refused {
        state: SqlState::LOCK_NOT_AVAILABLE,
        message: format!("another membership change is in progress: node \"{node}\" is locked"),
        detail,
        hint: "Wait until the other CALL has ended, then run this one again.".into(),
    }
}

/// Runs on each node its own statements, one after the other, all nodes at the same time. What is gone
/// already is done. The first error is the answer, when every node has come to its end or its error.
pub fn each_in_turn<'a>(
    nodes: impl IntoIterator<Item = (&'a mut Node, Vec<Statement>)>,
) -> Result<()> {
    let mut lanes: Vec<_> = nodes
        .into_iter()
        .map(|(node, statements)| (node, statements.into_iter()))
        .collect();
    let mut first = Ok(());
    while !lanes.is_empty() {
        let mut questions = vec![];
        let mut going = vec![];
        for (i, (node, statements)) in lanes.iter_mut().enumerate() {
            if let Some(statement) = statements.next() {
                questions.push(statement.on(node));
                going.push(i);
            }
        }
        let answers = ask(questions);
        let mut done: Vec<usize> = (0..lanes.len()).filter(|i| !going.contains(i)).collect();
        for (i, answer) in going.into_iter().zip(answers) {
            if let Err(error) = answer
                && !error.is_undefined()
            {
                done.push(i);
                first = first.and(Err(error));
            }
        }
        let mut i = 0;
        lanes.retain(|_| {
            i += 1;
            !done.contains(&(i - 1))
        });
    }
    first
}

/// The one of `paths` that a planned step is about.
pub fn planned_path(paths: &[Path], is_it: impl Fn(&Path) -> bool) -> Result<&Path> {
    let path = paths.iter().find(|path| is_it(path));
    path.ok_or_else(|| Error::internal("a planned step is about no path of the run"))
}

/// Fails unless `node`, to which `what` leads, is the database that is `own`.
pub fn require_same(own: &DatabaseId, node: &mut Node, what: &str) -> Result<()> {
    if identity(node)? == *own {
        return Ok(());
    }
    Err(Error::refused(
        SqlState::INVALID_PARAMETER_VALUE,
        format!(
            "{what} has a connection string for node \"{}\" that leads to another database than the one that the CALL runs in",
            node.name
        ),
        "Correct it: the other nodes use it too.",
    ))
}
