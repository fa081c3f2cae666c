//! Joins and removals: three nodes to four and back, one case on either way. What a case leaves behind is found
//! when the three are compared with what they were before.

use crate::common::{Fingerprint, Running, wait_no_sessions};
use crate::fault_matrix::{
    Injection, PANICS, ROUNDS_PER_CLUSTER, Writers, failpoints_in, inject, print_line,
    require_points, select, structure, with_watchdog, work_through,
};
use lab::{CallFailed, Called, Cluster, Server, load, quote_literal, wait_quiet};
use std::fmt;
use std::iter;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One of so many cases is tried where none are asked for.
const SAMPLE: usize = 12;

/// What the two engines do differently.
pub trait Engine: Sync {
    /// How many clusters work through the cases side by side.
    fn clusters(&self) -> usize;

    /// Four servers with the extension: the first three make a mesh with `content`, n4 is empty. n2 has a
    /// network that can be cut. The reader, where there is one, is the fifth and subscribes to the mesh.
    fn start(&self, content: &str) -> Cluster;

    /// The name of the node that only reads from the others, n4 among them, where there is one.
    fn reader(&self) -> Option<&'static str> {
        None
    }

    /// Has the reader take no more of n4, which cannot leave beside it.
    fn part_reader(&self, _reader: &Server) {}

    /// Waits until the subscriptions between `members` replicate, if they are not paused by a run that was
    /// killed.
    fn wait_replicating(&self, members: &[&Server]);

    /// What is counted on a member that has a path from and to each of `peers` others, and the counts.
    fn paths(&self, peers: usize) -> (&'static str, String);

    /// What every member has to know the same: a query.
    fn membership(&self) -> &'static str;

    /// What of a node is left in a database that is none any more: a query for a text that should be empty.
    fn left(&self) -> &'static str;

    /// Makes the database empty again, with the extension.
    fn renew(&self, server: &Server);

    /// Whether a join changes the members for good, so that every round needs new ones.
    fn changes_members(&self) -> bool {
        false
    }

    /// Panics unless the four are what a join makes of them, besides a mesh.
    fn assert_joined(&self, _members: &[&Server]) {}
}

/// Content with what a copy has to do something for.
const CONTENT: &str = "
CREATE SEQUENCE number;
CREATE TABLE parent (id integer PRIMARY KEY, body text NOT NULL DEFAULT 'x');
CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent);
INSERT INTO parent SELECT generate_series(1, 500);
INSERT INTO child SELECT i, i FROM generate_series(1, 500) i;
CREATE INDEX ON child (parent);
CREATE MATERIALIZED VIEW bodies AS SELECT count(*) FROM parent;
SELECT setval('number', 17);
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `CALL spock.add_node` on n4, from n1.
    Join,
    /// `CALL spock.remove_node('n4')` on n1.
    Removal,
    /// The same on n4 itself.
    OwnRemoval,
}

impl Way {
    /// The last point from which a run is taken back.
    fn last_undone(self) -> &'static str {
        match self {
            Way::Join => "within all is done",
            Way::Removal | Way::OwnRemoval => "3 after commit a marker on n4",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Error,
    Cancelled,
    /// SIGKILL for the backend of the CALL: its server restarts.
    Killed,
    /// The server of the CALL finds something that it cannot go on with, which ends as the former does.
    Panicked,
    /// n4, which joins or leaves.
    SubjectCrashed,
    /// n1: the source of the join, the first survivor of the removal.
    FirstCrashed,
    PeerCrashed,
    /// The node that only reads.
    ReaderCrashed,
    /// All connections to a peer are reset.
    PeerSevered,
    /// SIGKILL for the backend of the CALL, at a point of its undo.
    KilledUndoing,
}

const FAULTS: [Fault; 7] = [
    Fault::Error,
    Fault::Cancelled,
    Fault::Killed,
    Fault::SubjectCrashed,
    Fault::FirstCrashed,
    Fault::PeerCrashed,
    Fault::PeerSevered,
];

#[derive(Clone, Debug)]
struct Case {
    way: Way,
    point: String,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}: {}", self.way, self.fault, self.point)
    }
}

/// Three nodes, and n4.
struct FaultCluster {
    engine: &'static dyn Engine,
    cluster: Arc<Cluster>,
    /// The three as they are without n4.
    three: Fingerprint,
    slowest: Arc<Mutex<Duration>>,
}

impl FaultCluster {
    fn new(engine: &'static dyn Engine, slowest: &Arc<Mutex<Duration>>) -> FaultCluster {
        let cluster = engine.start(&format!("{}{CONTENT}", load::SCHEMA));
        require_points(cluster.n(4));
        wait_quiet(&cluster.first(3));
        let world = FaultCluster {
            engine,
            cluster: Arc::new(cluster),
            three: Fingerprint::default(),
            slowest: slowest.clone(),
        };
        let three = world.with_reader(world.cluster.first(3));
        engine.wait_replicating(&three);
        let three = structure(&three);
        FaultCluster { three, ..world }
    }

    fn n(&self, number: usize) -> &Server {
        self.cluster.n(number)
    }

    /// The node that the CALL runs on.
    fn here(&self, way: Way) -> &Server {
        match way {
            Way::Join | Way::OwnRemoval => self.n(4),
            Way::Removal => self.n(1),
        }
    }

    fn call(&self, way: Way) -> String {
        match way {
            Way::Join => {
                let call = lab::cluster::add_node_call(self.n(4), "n4", self.n(1), "n1");
                let Some(reader) = self.reader() else {
                    return call;
                };
                let call = call.strip_suffix(')').unwrap_or_else(|| panic!("{call}"));
                let dsn = quote_literal(&reader.dsn());
                format!("{call}, readers := ARRAY[{dsn}])")
            }
            Way::Removal | Way::OwnRemoval => "CALL spock.remove_node('n4')".into(),
        }
    }

    /// What has to be so for the CALL to be possible.
    fn before(&self, way: Way) {
        if let (Way::Removal | Way::OwnRemoval, Some(reader)) = (way, self.reader()) {
            self.engine.part_reader(reader);
        }
    }

    fn run(&self, way: Way) -> Called {
        self.before(way);
        self.here(way)
            .call(&self.call(way))
            .unwrap_or_else(|failed| panic!("the CALL without a fault: {failed}"))
    }

    /// The points that a clean run passes. Where a run may pass one several times, the first time counts.
    fn points(&self, way: Way) -> Vec<String> {
        self.before(way);
        let arm = "SET zodan.failpoint = 'list'";
        let call = Running::start_after(self.here(way), arm, &self.call(way));
        failpoints_in(&call.succeeds().notices)
    }

    fn reader(&self) -> Option<&Server> {
        self.engine.reader().map(|_| self.n(5))
    }

    /// The four, or the three, and the node that only reads.
    fn with_reader<'a>(&'a self, mut nodes: Vec<&'a Server>) -> Vec<&'a Server> {
        nodes.extend(self.reader());
        nodes
    }

    /// The points of the longest undo.
    fn undo_points(&self, way: Way) -> Vec<String> {
        let arm = format!("SET zodan.failpoint = 'list; error {}'", way.last_undone());
        let call = Running::start_after(self.here(way), &arm, &self.call(way));
        let mut points = failpoints_in(&call.fails().notices);
        points.retain(|point| point.starts_with("within the undo, "));
        points
    }

    /// Panics if the database of n4 is a node in any respect.
    fn assert_n4_is_no_node(&self) {
        wait_no_sessions(&[self.n(4)]);
        assert_eq!(self.n(4).value(self.engine.left()), "");
    }

    /// Panics unless every path between `members` replicates, and there is no other.
    fn assert_mesh(&self, members: &[&Server]) {
        let (counted, wanted) = self.engine.paths(members.len() - 1);
        for server in members {
            server.wait_for(counted, &wanted);
        }
        let known = members[0].value(self.engine.membership());
        assert!(!known.is_empty());
        for server in members {
            let here = server.value(self.engine.membership());
            assert_eq!(here, known, "{}", server.name());
        }
    }

    fn try_case(&self, case: &Case) {
        self.before(case.way);
        let members = self.cluster.first(4);
        let writing = match case.way {
            Way::Join => &members[..3],
            Way::Removal | Way::OwnRemoval => &members[..],
        };
        let all = self.with_reader(members.clone());
        let before = self.reports_the_end(case).then(|| structure(&all));
        let load = Writers::start(writing);
        load.wait_commits(2, |_| true);
        let outcome = self.inject(case);
        let crashed = self.crashed(case);
        // The others go on, whatever state the run is in.
        load.wait_commits(2, |node| Some(node) != crashed && node != "n4");
        if let (Err(failed), Some(before)) = (&outcome, &before) {
            self.assert_error_is_accurate(case, failed, before, crashed);
        }
        self.bring_back(case.fault);
        if outcome.is_err() {
            let again = self.here(case.way).call(&self.call(case.way));
            again.unwrap_or_else(|failed| panic!("the same CALL again: {failed}"));
        }
        load.wait_commits(2, |node| Some(node) != crashed && node != "n4");
        // On n4 nobody can write while it leaves, and writers are told so.
        let touched: Vec<&str> = crashed.into_iter().chain(["n4"]).collect();
        let slowest = load.assert_kept(&touched, &self.members_after(case.way));
        let mut all = self.slowest.lock().unwrap();
        *all = all.max(slowest);
        drop(all);
        let members = self.members_after(case.way);
        self.assert_mesh(&members);
        if case.way == Way::Join {
            self.engine.assert_joined(&self.with_reader(members));
        }
    }

    fn members_after(&self, way: Way) -> Vec<&Server> {
        match way {
            Way::Join => self.cluster.first(4),
            Way::Removal | Way::OwnRemoval => self.cluster.first(3),
        }
    }

    /// Runs the CALL into the fault.
    fn inject(&self, case: &Case) -> Result<Called, CallFailed> {
        let before = match case.fault {
            Fault::KilledUndoing => format!("error {}; ", case.way.last_undone()),
            _ => String::new(),
        };
        let injection = match case.fault {
            Fault::Error => Injection::Error,
            Fault::Cancelled => Injection::Cancel,
            Fault::Killed | Fault::KilledUndoing => Injection::Kill,
            Fault::Panicked => Injection::Panic,
            Fault::SubjectCrashed => Injection::Elsewhere(Box::new(|| self.n(4).crash())),
            Fault::FirstCrashed => Injection::Elsewhere(Box::new(|| self.n(1).crash())),
            Fault::PeerCrashed => Injection::Elsewhere(Box::new(|| self.n(2).crash())),
            Fault::ReaderCrashed => Injection::Elsewhere(Box::new(|| self.n(5).crash())),
            Fault::PeerSevered => Injection::Elsewhere(Box::new(|| self.n(2).sever())),
        };
        let (here, call) = (self.here(case.way), self.call(case.way));
        inject(here, &call, &before, &case.point, injection)
    }

    /// The node whose server went down. A backend that is killed takes all others with it.
    fn crashed(&self, case: &Case) -> Option<&str> {
        match case.fault {
            Fault::Killed | Fault::Panicked | Fault::KilledUndoing => {
                Some(self.here(case.way).name())
            }
            Fault::SubjectCrashed => Some("n4"),
            Fault::FirstCrashed => Some("n1"),
            Fault::PeerCrashed => Some("n2"),
            Fault::ReaderCrashed => self.engine.reader(),
            Fault::Error | Fault::Cancelled | Fault::PeerSevered => None,
        }
    }

    /// Starts what is down, and waits until those that were members before are at work again.
    fn bring_back(&self, fault: Fault) {
        for server in self.cluster.all() {
            if !server.is_running() {
                server.boot();
            }
            server.wait_for("SELECT 1", "1");
        }
        if !matches!(fault, Fault::Error | Fault::Cancelled) {
            wait_no_sessions(&self.cluster.all());
        }
        let rest = self.with_reader(self.cluster.first(3));
        self.engine.wait_replicating(&rest);
    }

    /// Whether the CALL's own server lives on, so that the error is the product's word on how the run ended.
    fn reports_the_end(&self, case: &Case) -> bool {
        self.crashed(case) != Some(self.here(case.way).name())
    }

    /// Panics unless the nodes that can be reached are as they were, save what the error says is left.
    fn assert_error_is_accurate(
        &self,
        case: &Case,
        failed: &CallFailed,
        before: &Fingerprint,
        crashed: Option<&str>,
    ) {
        match case.fault {
            Fault::Error => {}
            Fault::Cancelled => assert_eq!(failed.code(), "57014", "{failed}"),
            _ => assert!(
                failed.code().starts_with("08") || failed.code() == "57P01",
                "{failed}"
            ),
        }
        if failed.hint().contains("it goes on where this one ended") {
            assert_ne!(case.way, Way::Join, "{failed}");
            return;
        }
        let told = failed.hint().contains("Could not be undone: ");
        assert!(
            !told || crashed.is_some(),
            "all nodes could be reached, and something was left: {failed}"
        );
        let reachable: Vec<&Server> = self
            .with_reader(self.cluster.first(4))
            .into_iter()
            .filter(|s| Some(s.name()) != crashed)
            .collect();
        let before = before.of(&reachable);
        before.assert_same(&structure(&reachable));
    }
}

/// n4 joins and leaves, with a fault on either way or on none.
struct Round {
    join: Option<Case>,
    removal: Option<Case>,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cases = [&self.join, &self.removal].map(|c| c.as_ref().map(Case::to_string));
        f.write_str(&cases.map(Option::unwrap_or_default).join(" | "))
    }
}

impl crate::fault_matrix::FaultRounds for FaultCluster {
    type Round = Round;

    fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    fn rounds(&self) -> usize {
        if self.engine.changes_members() {
            1
        } else {
            ROUNDS_PER_CLUSTER
        }
    }

    fn run_round(&mut self, round: &Round) {
        for (case, way) in [(&round.join, Way::Join), (&round.removal, Way::Removal)] {
            match case {
                Some(case) => self.try_case(case),
                None => drop(self.run(way)),
            }
        }
        self.assert_n4_is_no_node();
        if !self.engine.changes_members() {
            let rest = self.with_reader(self.cluster.first(3));
            self.three.assert_same(&structure(&rest));
            self.engine.renew(self.n(4));
        }
    }
}

/// Tries the cases, and tells how many there were: all, or those of joins at the points that have one of `parts` in
/// their names. Panics with those that failed.
pub fn try_all(engine: &'static dyn Engine, parts: Option<&[&str]>) {
    let ways: &[Way] = match parts {
        None => &[Way::Join, Way::Removal, Way::OwnRemoval],
        Some(_) => &[Way::Join],
    };
    let wanted = |point: &str| parts.is_none_or(|parts| parts.iter().any(|p| point.contains(p)));
    let mut faults = FAULTS.to_vec();
    faults.extend(engine.reader().map(|_| Fault::ReaderCrashed));
    let began = Instant::now();
    let slowest: Arc<Mutex<Duration>> = Arc::default();
    let new = || FaultCluster::new(engine, &slowest);
    let points = with_watchdog(new, |world| {
        let points = |way: &Way| {
            if *way == Way::OwnRemoval {
                engine.renew(world.n(4));
                world.run(Way::Join);
            }
            let (mut undo, mut points) = (world.undo_points(*way), world.points(*way));
            for points in [&mut undo, &mut points] {
                points.retain(|point| wanted(point));
                assert!(!points.is_empty());
            }
            (*way, points, undo)
        };
        ways.iter().map(points).collect::<Vec<_>>()
    });
    let cases = points.iter().map(|(way, points, undo)| {
        let case = |point: &String, fault| Case {
            way: *way,
            point: point.clone(),
            fault,
        };
        let panics = points.iter().step_by(PANICS);
        let all = points
            .iter()
            .flat_map(|point| faults.iter().map(|fault| case(point, *fault)))
            .chain(panics.map(|point| case(point, Fault::Panicked)))
            .chain(undo.iter().map(|point| case(point, Fault::KilledUndoing)));
        select(all, SAMPLE)
    });
    let cases: Vec<Vec<Case>> = cases.collect();
    let counts: Vec<usize> = cases.iter().map(Vec::len).collect();
    let (joins, removals): (Vec<Case>, Vec<Case>) = cases
        .into_iter()
        .flatten()
        .partition(|case| case.way == Way::Join);
    let count = joins.len().max(removals.len());
    let fill = |cases: Vec<Case>| cases.into_iter().map(Some).chain(iter::repeat(None));
    let rounds = fill(joins)
        .zip(fill(removals))
        .take(count)
        .map(|(join, removal)| Round { join, removal });
    work_through(rounds.collect(), engine.clusters(), new);
    for ((way, points, undo), cases) in points.iter().zip(counts) {
        print_line(&format!(
            "{way:?}: {} points with {} faults each, {} more in the undo: {cases} cases, 0 lost rows, 0 left-overs",
            points.len(),
            faults.len(),
            undo.len(),
        ));
    }
    print_line(&format!(
        "slowest write on a node that was not touched: {:.1?}; all of it took {:.0?}",
        slowest.lock().unwrap(),
        began.elapsed()
    ));
}
