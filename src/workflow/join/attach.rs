//! The new node subscribes to every member, from where the copy ends.

use super::forwarding::Forwarding;
use super::starts::{Positions, Starts};
use crate::engine::{Engine, Path};
use crate::error::{Error, Result};
use crate::node::{Member, Node, ask_all, server};
use crate::run::action::{self, CatchUp, PauseApplyToHandOver, Subscribe};
use crate::run::{Journal, Step};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::markers::{self, Marker};
use crate::workflow::members::planned_path;
use crate::workflow::report::Report;

/// What has become of it.
pub struct Attached {
    /// One of each node, behind every slot and every position that the join has made: it arrives on every other node,
    /// or the join has failed.
    pub markers: Vec<Marker>,
    /// When they were committed: what was there before is then on all.
    pub at: String,
}

pub struct Attaching<'a> {
    pub nodes: JoinNodes<'a>,
    /// The subscriptions by which the source applies its peers.
    pub inbound: &'a [Path],
    pub journal: &'a mut Journal,
    pub report: &'a Report,
}

impl Attaching<'_> {
    /// The subscriptions of the new node, from `positions` on.
    pub fn run(mut self, starts: &Starts, positions: &Positions) -> Result<Attached> {
        let engine = self.nodes.engine;
        let new = self.nodes.new.name.clone();
        let members = std::iter::once(&*self.nodes.source).chain(&*self.nodes.peers);
        let members: Vec<Member> = members.map(Node::member).collect();
        let paths = members.iter().flat_map(|m| engine.paths(&m.name, &new));
        let paths: Vec<Path> = paths.collect();
        let phase = self.report.current();
        let mut announced = vec![];
        for step in self.journal.take_all::<Subscribe>(phase) {
            let subscription = &step.action().subscription;
            let path = planned_path(&paths, |path| path.subscription == *subscription)?;
            announced.push((self.journal.announce(step)?, path));
        }
        let mut steps = vec![];
        let published = ask_all(self.nodes.members(), &engine.subscribed_tables())?;
        for (step, path) in announced {
            let mut asked = members.iter().zip(&published);
            let member = asked.find(|(m, _)| m.name == path.provider);
            let no_member = || Error::internal("a node was not connected");
            let (member, published) = member.ok_or_else(no_member)?;
            let subscribe = engine.subscribe(path, member, published)?;
            // Not through SPI: the context of whatever is said meanwhile would be the statement, and
            // the connection string is in it.
            let loopback = &mut *self.nodes.loopback;
            steps.push(self.journal.make(step, || subscribe.run(loopback))?);
            self.journal
                .passed(&format!("{} exists", path.subscription))?;
        }
        if paths
            .iter()
            .any(|p| !positions.contains_key(&p.subscription))
        {
            return Err(Error::internal(
                "a subscription has no position to start from",
            ));
        }
        let catch_up = self.journal.take_if::<CatchUp>(phase);
        let source = &self.nodes.source.name;
        // Those of the peers come when the new node has caught up.
        let first = paths
            .iter()
            .filter(|p| catch_up.is_none() || p.provider == *source);
        start_at(engine, self.nodes.new, first, positions, self.report)?;
        self.journal.passed("the first positions are set")?;
        let attached = match catch_up {
            Some(step) => self.after_catching_up(step, &paths, starts)?,
            None => {
                if !self.nodes.peers.is_empty() {
                    self.report.step("each member sends its own changes of the time of the copy: those of the others do not wait for them");
                }
                let markers = self.journal.begin_all::<action::Marker>(phase)?;
                let attached = mark(engine, self.nodes.source, self.nodes.peers, self.nodes.new)?;
                self.journal.all_done(markers)?;
                let mut providers = all_members(self.nodes.source, self.nodes.peers);
                enable(engine, self.nodes.new, &mut providers, &paths)?;
                attached
            }
        };
        self.journal.all_done(steps)?;
        Ok(attached)
    }

    /// The new node catches up with the source first, and its peers take over from there.
    fn after_catching_up(
        &mut self,
        catch_up: Step<CatchUp>,
        paths: &[Path],
        starts: &Starts,
    ) -> Result<Attached> {
        let engine = self.nodes.engine;
        let (source, new) = (self.nodes.source.name.clone(), self.nodes.new.name.clone());
        let phase = self.report.current();
        let caught_up = self.journal.begin(catch_up)?;
        let pause = self.journal.take::<PauseApplyToHandOver>(phase, &source)?;
        let pause = self.journal.begin(pause)?;
        let markers = self.journal.begin_all::<action::Marker>(phase)?;
        let of_source = engine.path(&source, &new);
        let mut attached = None;
        let (journal, report) = (&*self.journal, self.report);
        Forwarding {
            nodes: self.nodes.reborrow(),
            inbound: self.inbound,
            path: &of_source,
            starts,
            journal,
            report,
        }
        .run(|source, peers, new, positions| {
            let of_peers = paths.iter().filter(|p| p.provider != source.name);
            start_at(engine, new, of_peers, positions, report)?;
            journal.passed("each peer has the position of the source")?;
            let marked = mark(engine, source, peers, new)?;
            let mut providers = all_members(source, peers);
            enable(engine, new, &mut providers, paths)?;
            journal.passed("every subscription is enabled")?;
            // A worker that is there may have far to go.
            let name = new.name.clone();
            markers::wait(engine, new, &mut providers, &marked.markers, paths, &name)?;
            attached = Some(marked);
            Ok(())
        })?;
        self.journal.ended(pause)?;
        self.journal.done(caught_up)?;
        self.journal.all_done(markers)?;
        attached.ok_or_else(|| Error::internal("nothing has been handed over"))
    }
}

fn start_at<'p>(
    engine: &dyn Engine,
    new: &mut Node,
    paths: impl Iterator<Item = &'p Path>,
    positions: &Positions,
    report: &Report,
) -> Result<()> {
    for path in paths {
        if let Some(position) = positions.get(&path.subscription) {
            engine.start_at(path, position)?.run(new)?;
            let name = &path.subscription;
            report.step(&format!("{name} applies from {position}"));
        }
    }
    Ok(())
}

/// Enables the subscriptions of the new node. The last one stays idle until the others work, if the engine has a use
/// for that.
fn enable(
    engine: &dyn Engine,
    new: &mut Node,
    providers: &mut [&mut Node],
    paths: &[Path],
) -> Result<()> {
    let Some((last, others)) = paths.split_last() else {
        return Ok(());
    };
    for statement in engine.enable_all(others) {
        statement.run(new)?;
    }
    let wake_launcher = engine.wake_launcher(last);
    if !wake_launcher.is_empty() {
        let name = new.name.clone();
        markers::wait_for_workers(engine, new, providers, others, &name, &wake_launcher)?;
    }
    engine.enable(last).run(new).map(|_| ())
}

fn mark(
    engine: &dyn Engine,
    source: &mut Node,
    peers: &mut [Node],
    new: &mut Node,
) -> Result<Attached> {
    let at = server::now().one(new)?;
    let mut all = all_members(source, peers);
    all.push(new);
    let markers = markers::emit(engine, all)?;
    Ok(Attached { markers, at })
}

fn all_members<'a>(source: &'a mut Node, peers: &'a mut [Node]) -> Vec<&'a mut Node> {
    std::iter::once(source).chain(peers).collect()
}
