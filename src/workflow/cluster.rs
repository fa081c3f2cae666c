//! The cluster as a run works with it: what replicates it, and a session on each of its nodes.

use super::members;
use super::membership::{self, CaughtUp, sync_lagging_members};
use super::readers;
use super::removed::refuse_succeeded;
use crate::engine::{self, Engine, Path, Registry, Survey};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Mode, Node};
use std::collections::BTreeSet;

/// `S` is what the run is about: the [`NewNode`] of a join, the [`Leaving`] node of a removal, the failed [`Member`] of a
/// recovery.
pub struct Cluster<S> {
    pub engine: Box<dyn Engine>,
    /// Members with a session. The first one is the source of a join; for any other command the node that the CALL runs
    /// on, if that is to stay.
    pub members: Vec<Node>,
    /// Members without a session, and why.
    pub unreachable: Vec<(Member, Error)>,
    /// The newest registry that a member has, if the engine keeps one.
    pub registry: Option<Registry>,
    /// The members that are members in their own view.
    pub confirmed: BTreeSet<String>,
    pub subject: S,
}

/// What a run does with the membership lock of the nodes.
pub enum Locking {
    /// A CALL takes it, for the purpose that others are told who want it.
    Take(String),
    /// Who only looks needs it to be free.
    BeFree,
}

impl Locking {
    pub fn of(mode: &Mode, purpose: String) -> Self {
        match mode.changes() {
            true => Self::Take(purpose),
            false => Self::BeFree,
        }
    }

    pub fn of_join(mode: &Mode, new: &str) -> Self {
        Self::of(mode, format!("add_node {new}"))
    }

    pub fn lock<'n>(&self, nodes: impl IntoIterator<Item = &'n mut Node>) -> Result<()> {
        match self {
            Self::Take(purpose) => members::lock(nodes, purpose),
            Self::BeFree => members::require_unlocked(nodes),
        }
    }
}

/// What a run is about, beside the members that are to stay.
pub trait Subject {
    /// Nodes that are locked with the members.
    fn nodes(&mut self) -> Vec<&mut Node> {
        vec![]
    }

    /// Learns the names of the paths between `members`, these nodes and `absent`, which cannot be asked.
    fn load_paths(
        &mut self,
        engine: &mut dyn Engine,
        members: &mut [Node],
        absent: &[Member],
    ) -> Result<()> {
        let mut asked: Vec<&mut Node> = members.iter_mut().chain(self.nodes()).collect();
        engine.load_paths(&mut asked, absent)
    }
}

/// Of a run about all members.
impl Subject for () {}

/// The failed node of a recovery.
impl Subject for Member {}

/// A session on the node that leaves, or why there is none.
pub type Leaving = Result<Node>;

impl Subject for Leaving {
    fn nodes(&mut self) -> Vec<&mut Node> {
        self.iter_mut().collect()
    }
}

impl<S: Subject> Cluster<S> {
    /// From here on nobody else changes the membership: the lock is taken, or is free for who only looks, and the node
    /// that was asked first, `start` or the first member, knows the members that it knew then, `seen`. Members that are
    /// behind catch up, which is returned, and the paths are known, also those to `absent`.
    pub fn lock(
        &mut self,
        start: Option<&mut Node>,
        seen: &Survey,
        locking: &Locking,
        absent: &[Member],
    ) -> Result<Vec<CaughtUp>> {
        let engine = &mut *self.engine;
        let nodes = self.members.iter_mut().chain(self.subject.nodes());
        members::require_superuser(nodes)?;
        locking.lock(self.members.iter_mut().chain(self.subject.nodes()))?;
        if let Some(start) = start.or(self.members.first_mut())
            && !engine.survey(start)?.is_as(seen)
        {
            return Err(members::changed_meanwhile(&start.name));
        }
        let mut members: Vec<&mut Node> = self.members.iter_mut().collect();
        let newest = self
            .registry
            .as_ref()
            .filter(|_| matches!(locking, Locking::Take(_)));
        let caught_up = sync_lagging_members(engine, &mut members, newest)?;
        let unreachable = self.unreachable.iter().map(|(member, _)| member);
        let absent: Vec<Member> = unreachable.chain(absent).cloned().collect();
        self.subject
            .load_paths(engine, &mut self.members, &absent)?;
        let nodes = self.members.iter_mut().chain(self.subject.nodes());
        refuse_succeeded(engine, &mut nodes.collect::<Vec<_>>())?;
        Ok(caught_up)
    }
}

impl<S> Cluster<S> {
    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|n| n.name.clone()).collect()
    }

    pub fn unreachable_names(&self) -> Vec<String> {
        let unreachable = self.unreachable.iter();
        unreachable.map(|(member, _)| member.name.clone()).collect()
    }
}

/// The node that joins.
pub struct NewNode {
    /// Worked on from within, through SPI.
    pub local: Node,
    /// A session on it by its connection string: proof that that leads here, and holder of the membership lock, which so
    /// vanishes with the run however it ends. Through it goes what has to be given up after a time, and what has a
    /// connection string in it, as what is said meanwhile through SPI shows the statement.
    pub loopback: Node,
    /// Nodes that only read, and are to read from it too.
    pub readers: Vec<Node>,
    /// Names under which the cluster has its database already.
    pub registered_as: Vec<String>,
    /// Whether the source is a node already; if not, it becomes the first one of a cluster.
    pub source_is_member: bool,
}

impl Subject for NewNode {
    fn load_paths(
        &mut self,
        engine: &mut dyn Engine,
        members: &mut [Node],
        _absent: &[Member],
    ) -> Result<()> {
        let mut members: Vec<&mut Node> = members.iter_mut().collect();
        engine.load_paths_with(&mut members, &mut self.local)
    }
}

/// What is known of a join beforehand.
pub struct JoinRequest {
    pub source: Member,
    /// The new node, as its own database sees it.
    pub new: Node,
    /// Of nodes that only read, and are to read from the new node too.
    pub readers: Vec<Dsn>,
}

/// The nodes of a join, apart, to be worked on beside each other.
pub struct JoinNodes<'a> {
    pub engine: &'a dyn Engine,
    pub source: &'a mut Node,
    pub peers: &'a mut [Node],
    pub new: &'a mut Node,
    /// As of [`NewNode::loopback`].
    pub loopback: &'a mut Node,
    pub readers: &'a mut [Node],
    pub source_is_member: bool,
    pub registered_as: &'a [String],
}

impl JoinNodes<'_> {
    /// The same, for a while.
    pub fn reborrow(&mut self) -> JoinNodes<'_> {
        JoinNodes {
            engine: self.engine,
            source: self.source,
            peers: self.peers,
            new: self.new,
            loopback: self.loopback,
            readers: self.readers,
            source_is_member: self.source_is_member,
            registered_as: self.registered_as,
        }
    }

    /// The members, the source first.
    pub fn members(&mut self) -> Vec<&mut Node> {
        self.members_and_new().0
    }

    pub fn members_and_new(&mut self) -> (Vec<&mut Node>, &mut Node) {
        let members = std::iter::once(&mut *self.source).chain(&mut *self.peers);
        (members.collect(), self.new)
    }

    /// Every node of the cluster to be, the new one last.
    pub fn everyone(&mut self) -> Vec<&mut Node> {
        let (mut nodes, new) = self.members_and_new();
        nodes.push(new);
        nodes
    }

    /// Every node that has a session, and those that only read.
    pub fn all_sessions(&mut self) -> Vec<&mut Node> {
        let members = std::iter::once(&mut *self.source).chain(&mut *self.peers);
        let own = [&mut *self.new, &mut *self.loopback];
        members.chain(own).chain(&mut *self.readers).collect()
    }

    /// The source first.
    pub fn member_names(&self) -> Vec<String> {
        let members = std::iter::once(&*self.source).chain(&*self.peers);
        members.map(|node| node.name.clone()).collect()
    }

    /// The new one last.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.member_names();
        names.push(self.new.name.clone());
        names
    }

    /// The subscriptions by which the source applies its peers.
    pub fn inbound_of_source(&self) -> Vec<Path> {
        let (engine, source) = (self.engine, &self.source.name);
        let paths = self
            .peers
            .iter()
            .map(|peer| engine.paths(&peer.name, source));
        paths.flatten().collect()
    }
}

impl Cluster<NewNode> {
    /// Opens a session on every node of a join, and refuses what is wrong with them or with the arguments.
    pub fn of_join(request: JoinRequest, locking: &Locking) -> Result<Self> {
        let JoinRequest {
            source,
            mut new,
            readers,
        } = request;
        let given = [source, new.member()];
        let opened = members::connect_each(&given).into_iter();
        let opened = opened.zip(["src_dsn", "new_node_dsn"]).map(|(answer, by)| {
            answer.map_err(|error| {
                members::with_address(error, || format!("Its address is that of argument {by}."))
            })
        });
        let opened = members::all(given.iter().cloned().zip(opened).collect())?;
        let Ok([mut source, mut loopback]) = <[Node; 2]>::try_from(opened) else {
            return Err(Error::internal("a node was not connected"));
        };
        members::require_superuser([&mut new, &mut source, &mut loopback])?;
        check_arguments(&mut source, &mut loopback, &mut new)?;
        locking.lock([&mut loopback])?;

        let engine = engine::detect(&mut source)?;
        let mut reached = membership::reach(&*engine, &mut source, None)?;
        reached.require_member(&source.name)?;
        reached.require_half()?;
        let own = members::identity(&mut new)?;
        let mut peers = vec![];
        let mut registered_as = vec![];
        for mut outsider in reached.set_apart(&*engine, &mut source, false)? {
            if members::identity(&mut outsider.node)? == own {
                registered_as.push(outsider.node.name);
            }
        }
        for mut member in members::all(std::mem::take(&mut reached.answers))? {
            let identity = members::identity(&mut member)?;
            if member.name == source.name {
                if identity != members::identity(&mut source)? {
                    return Err(other_source(&source.name));
                }
                // The session is by what the CALL was given; the members, and what runs beside the session, connect by
                // what the cluster has.
                source.dsn = member.dsn;
            } else if identity == own {
                // An earlier CALL for this node was killed late; if not, the checks will say so.
                registered_as.push(member.name);
            } else {
                peers.push(member);
            }
        }
        let mut members = vec![source];
        members.append(&mut peers);
        let mut cluster = Self {
            engine,
            members,
            unreachable: vec![],
            registry: reached.registry,
            confirmed: reached.confirmed,
            subject: NewNode {
                local: new,
                loopback,
                readers: vec![],
                registered_as,
                source_is_member: reached.survey.is_member,
            },
        };
        cluster.lock(None, &reached.own, locking, &[])?;
        let (members, new) = (&mut cluster.members, &mut cluster.subject.local);
        let mut members: Vec<&mut Node> = members.iter_mut().collect();
        let readers = readers::connect(&mut *cluster.engine, &readers, &mut members, new)?;
        cluster.subject.readers = readers;
        Ok(cluster)
    }

    pub fn source(&self) -> &Node {
        &self.members[0]
    }

    pub fn peers(&self) -> &[Node] {
        &self.members[1..]
    }

    pub fn new_name(&self) -> &str {
        &self.subject.local.name
    }

    pub fn nodes(&mut self) -> JoinNodes<'_> {
        let (source, peers) = self.members.split_at_mut(1);
        JoinNodes {
            engine: &*self.engine,
            source: &mut source[0],
            peers,
            new: &mut self.subject.local,
            loopback: &mut self.subject.loopback,
            readers: &mut self.subject.readers,
            source_is_member: self.subject.source_is_member,
            registered_as: &self.subject.registered_as,
        }
    }

    /// Every node of the cluster to be, the new one first, then the source; and the engine.
    pub fn all(&mut self) -> (&dyn Engine, Vec<&mut Node>) {
        let new = std::iter::once(&mut self.subject.local);
        (&*self.engine, new.chain(&mut self.members).collect())
    }

    /// The same, and those that only read.
    pub fn all_and_readers(&mut self) -> (&dyn Engine, Vec<&mut Node>) {
        let subject = &mut self.subject;
        let all = std::iter::once(&mut subject.local).chain(&mut self.members);
        (&*self.engine, all.chain(&mut subject.readers).collect())
    }

    /// What an undo has taken back, perhaps the first member of the cluster, is not there any more.
    pub fn forget_undone(&mut self) -> Result<()> {
        let survey = self.engine.survey(&mut self.members[0])?;
        let known = |name: &String| survey.members.iter().any(|m| m.name == *name);
        let source = self.members[0].name.clone();
        self.members.retain(|m| m.name == source || known(&m.name));
        self.subject.registered_as.retain(known);
        self.subject.source_is_member = survey.is_member;
        Ok(())
    }
}

/// `new_node_dsn` leads to the database that the CALL runs in, and `src_dsn` to another one.
fn check_arguments(source: &mut Node, loopback: &mut Node, new: &mut Node) -> Result<()> {
    let own = members::identity(new)?;
    let answered = members::identity(loopback)?;
    if answered != own {
        let server = if answered.server == own.server {
            "this server"
        } else {
            "another server"
        };
        return Err(Error::Argument {
            argument: "new_node_dsn",
            problem: format!(
                "leads to database \"{}\" of {server}, not to the database \"{}\" that the CALL runs in",
                answered.database, own.database
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
