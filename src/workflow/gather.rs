//! The nodes of a join: found, connected, and told apart.

use super::removed::refuse_succeeded;
use super::{members, membership, readers};
use crate::engine::{self, Engine};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Node};

/// What is known of them beforehand.
pub struct Wanted {
    pub source: Member,
    /// The new node, worked on from within.
    pub new: Node,
    /// Of nodes that only read, and are to read from the new node too.
    pub readers: Vec<Dsn>,
    /// Whether the membership is going to be changed, and so is locked; else it is only looked at.
    pub change: bool,
}

pub struct Party {
    pub engine: Box<dyn Engine>,
    pub source: Node,
    pub peers: Vec<Node>,
    pub new: Node,
    pub readers: Vec<Node>,
    pub loopback: Node,
    pub is_member: bool,
    pub registered_as: Vec<String>,
}

/// Opens a session on every node, and refuses what is wrong with them or with the arguments.
pub fn gather(wanted: Wanted) -> Result<Party> {
    let Wanted {
        source,
        mut new,
        readers,
        change,
    } = wanted;
    let given = [source, new.member()];
    let opened = members::connect_each(&given).into_iter();
    let opened = opened.zip(["src_dsn", "new_node_dsn"]).map(|(answer, by)| {
        answer.map_err(|error| {
            members::with_address(error, || format!("Its address is that of argument {by}."))
        })
    });
    let mut opened = members::all(given.iter().cloned().zip(opened).collect())?.into_iter();
    let (Some(mut source), Some(mut loopback)) = (opened.next(), opened.next()) else {
        return Err(Error::internal("a node was not connected"));
    };
    members::require_superuser([&mut new, &mut source, &mut loopback])?;
    check_arguments(&mut source, &mut loopback, &mut new)?;
    let purpose = change.then(|| format!("add_node {}", new.name));
    let hold = |nodes: Vec<&mut Node>| match &purpose {
        Some(purpose) => members::lock(nodes, purpose),
        None => members::require_unlocked(nodes),
    };
    hold(vec![&mut loopback])?;

    let mut engine = engine::detect(&mut source)?;
    let mut reached = membership::reach(&*engine, &mut source, None)?;
    reached.require_member(&source.name)?;
    reached.require_half()?;
    let mut peers = vec![];
    let mut registered_as = vec![];
    for mut outsider in reached.set_apart(&*engine, &mut source, false)? {
        if members::identity(&mut outsider.node)? == members::identity(&mut new)? {
            registered_as.push(outsider.node.name);
        }
    }
    for mut member in members::all(reached.answers)? {
        let identity = members::identity(&mut member)?;
        if member.name == source.name {
            // What the cluster's own subscriptions use, not what this CALL was given.
            if identity != members::identity(&mut source)? {
                return Err(other_source(&source.name));
            }
            source.dsn = member.dsn;
        } else if identity == members::identity(&mut new)? {
            // An earlier CALL for this node was killed late; if not, the checks will say so.
            registered_as.push(member.name);
        } else {
            peers.push(member);
        }
    }
    members::require_superuser(&mut peers)?;
    hold(std::iter::once(&mut source).chain(&mut peers).collect())?;
    // Who they are was asked before nobody else could change it.
    if !engine.survey(&mut source)?.is_as(&reached.own) {
        return Err(members::changed_meanwhile(&source.name));
    }
    let mut all: Vec<&mut Node> = std::iter::once(&mut source).chain(&mut peers).collect();
    if change {
        membership::sync_lagging_members(&mut *engine, &mut all, reached.registry.as_ref())?;
    }
    engine.load_paths_with(&mut all, &mut new)?;
    refuse_succeeded(&*engine, &mut all)?;
    let readers = readers::connect(&mut *engine, &readers, &mut all, &mut new)?;
    Ok(Party {
        engine,
        source,
        peers,
        new,
        readers,
        loopback,
        is_member: reached.survey.is_member,
        registered_as,
    })
}

/// `new_node_dsn` leads to the database that the CALL runs in, and `src_dsn` to another one.
fn check_arguments(source: &mut Node, loopback: &mut Node, new: &mut Node) -> Result<()> {
    let own = members::identity(new)?;
    let answered = members::identity(loopback)?;
    if answered != own {
        let server = if answered.0 == own.0 {
            "this server"
        } else {
            "another server"
        };
        return Err(Error::Argument {
            argument: "new_node_dsn",
            problem: format!(
                "leads to database \"{}\" of {server}, not to the database \"{}\" that the CALL runs in",
                answered.1, own.1
            ),
            hint: "Run the CALL in the database of the new node, and give a connection string that leads to it.".into(),
            state: SqlState::INVALID_PARAMETER_VALUE,
        });
    }
    if members::identity(source)? == own {
        return Err(Error::Argument {
            argument: "src_dsn",
            problem: "leads to the database that the CALL runs in".into(),
            hint: "Run the CALL in the database of the new node, and give the connection string of a node of the cluster.".into(),
            state: SqlState::INVALID_PARAMETER_VALUE,
        });
    }
    Ok(())
}

fn other_source(name: &str) -> Error {
    Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!(
            "the connection string that the cluster has for node \"{name}\" leads to another database than src_dsn"
        ),
        format!(
            "Correct the connection string of \"{name}\" in the registry of every member, or src_dsn."
        ),
    )
}
