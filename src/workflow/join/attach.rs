//! The new node subscribes to every member, from where the copy ends.

use super::forwarding::Forwarding;
use super::plan::{self, subscribe};
use super::starts::{Positions, Starts};
use crate::engine::{Engine, Path};
use crate::error::{Error, Result};
use crate::node::{Member, Node, server};
use crate::run::{Action, Step};
use crate::run::{Effect, Journal};
use crate::workflow::cluster::JoinNodes;
use crate::workflow::markers::{self, Marker};
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
        let mut paths = vec![];
        let mut steps = vec![];
        for member in &members {
            for path in engine.paths(&member.name, &new) {
                steps.push(self.announce(&new, subscribe(engine, &path))?);
                paths.push((path, member));
            }
        }
        for ((path, member), step) in paths.iter().zip(&steps) {
            // Not through SPI: the context of whatever is said meanwhile would be the statement, and
            // the connection string is in it.
            let subscription = path.subscription.clone();
            let loopback = &mut *self.nodes.loopback;
            let effect = Effect::Subscription { subscription };
            self.journal.make(*step, &effect, || {
                engine.subscribe(path, member).run(loopback)
            })?;
            self.journal
                .passed(&format!("{} exists", path.subscription))?;
        }
        let paths: Vec<Path> = paths.into_iter().map(|(path, _)| path).collect();
        if paths
            .iter()
            .any(|p| !positions.contains_key(&p.subscription))
        {
            return Err(Error::internal(
                "a subscription has no position to start from",
            ));
        }
        let catches_up = plan::catches_up_from_source(engine, self.nodes.peers);
        let source = &self.nodes.source.name;
        // Those of the peers come when the new node has caught up.
        let first = paths
            .iter()
            .filter(|p| !catches_up || p.provider == *source);
        start_at(engine, self.nodes.new, first, positions, self.report)?;
        self.journal.passed("the first positions are set")?;
        let attached = match catches_up {
            true => self.after_catching_up(&paths, starts)?,
            false => {
                if !self.nodes.peers.is_empty() {
                    self.report.step("each member sends its own changes of the time of the copy: those of the others do not wait for them");
                }
                let steps = self.intend_markers()?;
                let attached = mark(engine, self.nodes.source, self.nodes.peers, self.nodes.new)?;
                self.done(&steps)?;
                let mut providers = all_members(self.nodes.source, self.nodes.peers);
                enable(engine, self.nodes.new, &mut providers, &paths)?;
                attached
            }
        };
        self.done(&steps)?;
        Ok(attached)
    }

    /// The new node catches up with the source first, and its peers take over from there.
    fn after_catching_up(&mut self, paths: &[Path], starts: &Starts) -> Result<Attached> {
        let engine = self.nodes.engine;
        let (source, new) = (self.nodes.source.name.clone(), self.nodes.new.name.clone());
        let action = Action::CatchUp {
            source: source.clone(),
        };
        let caught_up = self.announce(&new, action)?;
        let pause = Step::new(self.report.current(), &source, Action::PauseApplyToHandOver);
        let pause = self.journal.intend(&pause, &Effect::Pause)?;
        let steps = self.intend_markers()?;
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
        self.journal.undone(pause)?;
        self.journal.done(caught_up)?;
        self.done(&steps)?;
        attached.ok_or_else(|| Error::internal("nothing has been handed over"))
    }

    fn announce(&mut self, node: &str, action: Action) -> Result<i32> {
        let step = Step::new(self.report.current(), node, action);
        self.journal.announce(&step)
    }

    fn intend_markers(&mut self) -> Result<Vec<i32>> {
        let mut steps = vec![];
        for name in [&self.nodes.source.name, &self.nodes.new.name] {
            let step = Step::new(self.report.current(), name, Action::Marker);
            steps.push(self.journal.intend(&step, &Effect::Marker)?);
        }
        Ok(steps)
    }

    fn done(&self, steps: &[i32]) -> Result<()> {
        steps.iter().try_for_each(|step| self.journal.done(*step))
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
