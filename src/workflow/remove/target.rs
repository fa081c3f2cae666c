//! Who is who: the member that the CALL runs on, the others, and the one that is to leave. Nodes are
//! told by server and database, never by name alone.

use super::former_member::{FormerMember, FormerNode, Why};
use super::half_added::{HalfAddedLocally, interrupted};
use super::obstacles::no_member;
use super::{Removal, Request, interrupted_removals};
use crate::engine::{self, Engine, RegisteredNode};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::server::DatabaseId;
use crate::node::{Member, Mode, Node, ask_each};
use crate::run::Command;
use crate::workflow::cluster::{Cluster, Locking};
use crate::workflow::members::{self, require_same};
use crate::workflow::membership::{ReachableMembers, reach};
use crate::workflow::removed::ended_on;
use crate::workflow::report::Report;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// What the target is to the cluster, with what has been found out for that.
pub enum Target {
    Member(Box<Removal>),
    /// A join of it was interrupted, and there are traces of it.
    HalfAdded(Box<Removal>),
    /// The same, and this is the node that was to join.
    HalfAddedLocally(HalfAddedLocally),
    /// This node takes itself for a member, and the cluster goes on without it.
    FormerMember(FormerMember),
    /// It has left, and cleanup is pending on members that could not be reached then.
    PendingCleanup(Box<Removal>),
    /// It is gone, by a removal on this node that was interrupted at its very end.
    Gone(Box<Removal>),
    /// The same, and this is the node that has left.
    GoneHere(FormerNode),
}

impl Target {
    pub fn classify(mode: Mode, request: &Request, report: Report) -> Result<Self> {
        let run = interrupted(&mut mode.session(), Command::AddNode, &request.target)?;
        if let Some(run) = run {
            return Ok(Self::HalfAddedLocally(HalfAddedLocally {
                mode,
                run,
                report,
            }));
        }
        let mut me = members::local(&request.target, &Dsn::nowhere(), &mode);
        let mut engine = engine::detect(&mut me)?;
        let mut reached = None;
        match engine.local_name(&mut me)? {
            Some(name) if name == me.name => {
                if let Some(why) = Why::find(&mut *engine, &mut me, request, &mut reached)? {
                    return Ok(Self::FormerMember(FormerMember {
                        engine,
                        mode,
                        me,
                        why,
                        report,
                    }));
                }
            }
            Some(_) => {}
            None => {
                let removal = interrupted(&mut me.session, Command::RemoveNode, &me.name)?;
                if removal.is_some() {
                    return Ok(Self::GoneHere(FormerNode {
                        engine,
                        mode,
                        me,
                        report,
                    }));
                }
            }
        }
        Removal::connect(mode, request, report, reached)?.classify()
    }
}

impl Removal {
    fn connect(
        session: Mode,
        request: &Request,
        report: Report,
        reached: Option<ReachableMembers>,
    ) -> Result<Self> {
        let (engine, mut me) = members::own_node(
            &session,
            "Run it in the database of any node of the cluster.",
        )?;
        let local_name = me.name.clone();
        let own = members::identity(&mut me)?;
        let mut reached = match reached {
            Some(reached) => reached,
            None => reach(&*engine, &mut me, None)?,
        };
        if local_name != request.target {
            reached.require_own(&*engine, &mut me, session.changes())?;
        }
        let resumed = !interrupted_removals(&session, &request.target)?.is_empty();
        // What is half detached takes nothing any more.
        let apart = match resumed {
            true => vec![],
            false => reached.set_apart(&*engine, &mut me, local_name == request.target)?,
        };
        if let Some(outsider) = apart.iter().find(|o| o.node.name == request.target) {
            return Err(no_member(&*engine, &local_name, outsider));
        }
        // One that was removed while it was away leaves by its own registry.
        let is_target = |m: &&Member| m.name == request.target;
        let registered = reached.survey.members.iter().find(is_target);
        let registered = registered.or_else(|| reached.own.members.iter().find(is_target));
        let (mut survivors, mut unreachable, mut by_registry) = (vec![], vec![], None);
        reached.confirmed.remove(&request.target);
        for (member, answer) in reached.answers {
            match answer {
                answer if member.name == request.target => by_registry = Some(answer),
                Ok(mut node) if node.name == local_name => {
                    require_same(&own, &mut node, "the registry")?;
                    survivors.insert(0, node);
                }
                Ok(node) => survivors.push(node),
                Err(error) if member.name == local_name => return Err(error),
                Err(error) => unreachable.push((member, error)),
            }
        }
        let finding = Finding {
            engine: &*engine,
            request,
            registered,
            by_registry: RefCell::new(by_registry),
            local_name: &local_name,
            own: &own,
            resumed,
        };
        let subject = match finding.leaving(&mut me)? {
            Found::Reachable(node) => Ok(*node),
            Found::Unreachable(error) => Err(error),
        };
        let absent = Member {
            name: request.target.clone(),
            dsn: match (registered, &request.target_dsn) {
                (Some(known), _) => known.dsn.clone(),
                (None, Some(given)) => given.clone(),
                (None, None) => Dsn::nowhere(),
            },
        };
        let absent = subject.is_err().then_some(absent);
        let mut cluster = Cluster {
            engine,
            members: survivors,
            unreachable,
            registry: reached.registry,
            confirmed: reached.confirmed,
            subject,
        };
        let locking = Locking::of(&session, format!("remove_node {}", request.target));
        let caught_up = cluster.lock(Some(&mut me), &reached.own, &locking, absent.as_slice())?;
        let mut forgotten_late = false;
        for done in &caught_up {
            for gone in &done.forgotten {
                report.notice(&format!(
                    "cleaned up \"{gone}\" on node \"{}\"",
                    done.member
                ));
            }
            for gone in &done.ended {
                report.notice(&ended_on(gone));
            }
            forgotten_late |= done.forgotten.contains(&request.target);
        }
        Ok(Self {
            cluster,
            session,
            report,
            target: request.target.clone(),
            force: request.force,
            local_name,
            known_to: vec![],
            forgotten_late,
            went_back: false,
            deaf: BTreeSet::new(),
        })
    }

    fn classify(mut self) -> Result<Target> {
        let engine = &*self.cluster.engine;
        let registries = ask_each(&mut self.cluster.members, |_| engine.members())?;
        for (survivor, members) in self.cluster.members.iter().zip(&registries) {
            if members.iter().any(|member| member.name == self.target) {
                self.known_to.push(survivor.name.clone());
            }
        }
        let leaving_is_node = match &mut self.cluster.subject {
            Ok(node) => engine.local_name(node)?.is_some(),
            Err(_) => false,
        };
        if leaving_is_node || self.known_to.contains(&self.local_name) {
            return Ok(Target::Member(Box::new(self)));
        }
        if self.forgotten_late || !self.pending_cleanups()?.is_empty() {
            return Ok(Target::PendingCleanup(Box::new(self)));
        }
        if self.is_half_added()? {
            return Ok(Target::HalfAdded(Box::new(self)));
        }
        if !interrupted_removals(&self.session, &self.target)?.is_empty() {
            return Ok(Target::Gone(Box::new(self)));
        }
        let mut members = self.cluster.names();
        members.extend(self.cluster.unreachable_names());
        members.sort_unstable();
        Err(Error::Argument {
            argument: "target_node_name",
            problem: format!(
                "is \"{}\", which is not a node of this cluster and has left nothing in it",
                self.target
            ),
            hint: format!("The nodes are: {}.", members.join(", ")),
            state: SqlState::UNDEFINED_OBJECT,
        })
    }
}

enum Found {
    Reachable(Box<Node>),
    Unreachable(Error),
}

struct Finding<'a> {
    engine: &'a dyn Engine,
    request: &'a Request,
    registered: Option<&'a Member>,
    /// A session by the registry's connection string, or why there is none; used once.
    by_registry: RefCell<Option<Result<Node>>>,
    local_name: &'a str,
    own: &'a DatabaseId,
    /// A removal that was begun here may have made the target a database like any other.
    resumed: bool,
}

impl Finding<'_> {
    fn leaving(&self, me: &mut Node) -> Result<Found> {
        let given = self.request.target_dsn.as_ref();
        let Some(dsn) = given.or(self.registered.map(|m| &m.dsn)) else {
            return Ok(Found::Unreachable(Error::refused(
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "the registry does not have node \"{}\", and target_node_dsn is null",
                    self.request.target
                ),
                "Give a target_node_dsn.",
            )));
        };
        let mut node = match self.open(dsn) {
            Ok(node) => node,
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) if self.local_name == self.request.target => return Err(error),
            Err(error) => {
                // It is dead for us only if the registry's way does not lead to it either.
                return match self.by_registry(given)? {
                    Some(_) => Err(Error::Argument {
                        argument: "target_node_dsn",
                        problem: format!(
                            "does not lead to node \"{}\", which answers by the connection string of the registry: {error}",
                            self.request.target
                        ),
                        hint: "Leave target_node_dsn null, or correct it.".into(),
                        state: error.sqlstate(),
                    }),
                    None => Ok(Found::Unreachable(error)),
                };
            }
        };
        let identity = members::identity(&mut node)?;
        if self.local_name == self.request.target {
            require_same(self.own, &mut node, "target_node_dsn")?;
        } else if identity == *self.own {
            return Err(self.wrong(format!(
                "leads to this node, which is \"{}\", not \"{}\"",
                self.local_name, self.request.target
            )));
        }
        match (self.engine.local_name(&mut node)?, self.registered) {
            (Some(name), _) if name != self.request.target => Err(self.wrong(format!(
                "leads to node \"{name}\", not to \"{}\"",
                self.request.target
            ))),
            (Some(_), _) => {
                if self.local_name != self.request.target {
                    self.of_this_cluster(me, &mut node, &identity)?;
                }
                Ok(Found::Reachable(Box::new(node)))
            }
            (None, Some(_)) if given.is_some() && !self.resumed => {
                Err(self.wrong("leads to a database that is not a cluster node".into()))
            }
            // The database was made anew: the node is as dead as can be.
            (None, Some(_)) => Ok(Found::Unreachable(Error::refused(
                SqlState::UNDEFINED_OBJECT,
                "its database is not a cluster node any more",
                "",
            ))),
            (None, None) => Ok(Found::Reachable(Box::new(node))),
        }
    }

    fn open(&self, dsn: &Dsn) -> Result<Node> {
        if self.registered.is_some_and(|known| known.dsn == *dsn)
            && let Some(answer) = self.by_registry.take()
        {
            return answer;
        }
        members::connect_each(&[Member {
            name: self.request.target.clone(),
            dsn: dsn.clone(),
        }])
        .pop()
        .unwrap_or_else(|| Err(Error::internal("a node was not connected")))
    }

    /// A session by the registry's connection string, where that is another one and answers.
    fn by_registry(&self, given: Option<&Dsn>) -> Result<Option<Node>> {
        match self.registered {
            Some(known) if given.is_some_and(|g| *g != known.dsn) => match self.open(&known.dsn) {
                Ok(node) => Ok(Some(node)),
                Err(error @ Error::Interrupted { .. }) => Err(error),
                Err(_) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// A node of that name may be one of another cluster, of a copy of this one for tests above all.
    fn of_this_cluster(&self, me: &mut Node, node: &mut Node, identity: &DatabaseId) -> Result<()> {
        let other = || {
            self.wrong(format!(
                "leads to another node \"{}\" than this cluster's",
                self.request.target
            ))
        };
        if let Some(mut known) = self.by_registry(self.request.target_dsn.as_ref())? {
            return match members::identity(&mut known)? == *identity {
                true => Ok(()),
                false => Err(other()),
            };
        }
        let members = self.engine.members().on(me)?;
        let entry = members.iter().find(|m| m.name == self.request.target);
        if let Some(entry) = entry.filter(|entry| !entry.system_identifier.is_empty()) {
            let system = identity.system_identifier();
            if (system, &identity.database) != (entry.system_identifier.as_str(), &entry.database) {
                return Err(other());
            }
        }
        // Its own registry leads back to us.
        let members = self.engine.members().on(node)?;
        if self.resumed && members.iter().all(|m| m.name == self.request.target) {
            return Ok(()); // an earlier run has made it forget all others
        }
        let back = members.iter().find(|member| member.name == self.local_name);
        let leads_back = match back {
            Some(back) => self.identity_of(back)?.as_ref() == Some(self.own),
            None if self.resumed => self.shares_a_member(me, &members)?,
            None => false,
        };
        if leads_back { Ok(()) } else { Err(other()) }
    }

    /// An earlier run has made the node forget us. Some member that it still knows is one of ours.
    fn shares_a_member(&self, me: &mut Node, members: &[RegisteredNode]) -> Result<bool> {
        for ours in self.engine.members().on(me)? {
            if ours.name == self.request.target || ours.name == self.local_name {
                continue;
            }
            if let Some(theirs) = members.iter().find(|member| member.name == ours.name) {
                if ours.dsn == theirs.dsn {
                    return Ok(true);
                }
                let identity = self.identity_of(&ours)?;
                return Ok(identity.is_some() && identity == self.identity_of(theirs)?);
            }
        }
        Ok(false)
    }

    /// The server and database that the entry of a registry leads to.
    fn identity_of(&self, entry: &RegisteredNode) -> Result<Option<DatabaseId>> {
        let Ok(dsn) = Dsn::parse(&entry.dsn) else {
            return Ok(None);
        };
        let name = entry.name.clone();
        let mut nodes = members::connect(&[Member { name, dsn }])?;
        nodes.first_mut().map(members::identity).transpose()
    }

    fn wrong(&self, problem: String) -> Error {
        match self.request.target_dsn {
            Some(_) => Error::Argument {
                argument: "target_node_dsn",
                problem,
                hint: format!("Give the connection string of \"{}\".", self.request.target),
                state: SqlState::INVALID_PARAMETER_VALUE,
            },
            None => Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("the connection string of the registry {problem}"),
                "Give a target_node_dsn.",
            ),
        }
    }
}
