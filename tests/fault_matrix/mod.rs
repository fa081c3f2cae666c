//! The matrix: every point of a join and of a removal meets every fault.
//!
//! The points are those that a clean run passes, as the product tells them; it has them in builds with the
//! feature `faults`, which `make test` makes. One cluster goes through many
//! rounds, three nodes to four and back, one case on either way: what a case leaves behind is found when the
//! three are compared with what they were before. One case in five is tried, or those that `ZODAN_FAULTS`
//! selects: parts of their names, with `|` between them, or `all`.

use crate::common::{Fingerprint, Hang, POLL, Running, fingerprint, wait_no_sessions};
use lab::load::LoadOptions;
use lab::server::Notice;
use lab::{
    CallFailed, Called, Cluster, Load, Server, assert_same_content, load, quote_literal, wait_quiet,
};
use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What the two engines do differently.
pub trait Engine: Sync {
    /// How many clusters work through the cases side by side.
    fn clusters(&self) -> usize;

    /// Four servers with the extension: the first three make a mesh with `content`, n4 is empty. n2 has a
    /// network that can be cut.
    fn start(&self, content: &str) -> Cluster;

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
}

/// One of so many cases is tried where none are asked for.
const SAMPLE: usize = 5;

/// At one of so many points the server panics too.
const PANICS: usize = 10;

/// A cluster is replaced after so many rounds: what the writers leave makes every round longer.
const ROUNDS: usize = 40;

/// A round takes a few seconds. Each of its waits has an end, but a CALL may wait without one if it is at fault.
const ROUND: Duration = Duration::from_secs(300);

/// No write on a node that was not touched itself took longer, on a machine with other things to do.
const SLOWEST_WRITE: Duration = Duration::from_secs(10);

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
            Way::Removal | Way::OwnRemoval => "within every other node has all",
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
struct World {
    engine: &'static dyn Engine,
    cluster: Arc<Cluster>,
    /// The three as they are without n4.
    three: Fingerprint,
    slowest: Duration,
}

impl World {
    fn new(engine: &'static dyn Engine) -> World {
        let cluster = engine.start(&format!("{}{CONTENT}", load::SCHEMA));
        let refused = cluster.n(4).client().batch_execute("SET zodan.fault = ''");
        assert!(
            refused.is_ok(),
            "the extension that is installed has no fault points: run make test"
        );
        engine.wait_replicating(&cluster.first(3));
        wait_quiet(&cluster.first(3));
        let three = structure(&cluster.first(3));
        World {
            engine,
            cluster: Arc::new(cluster),
            three,
            slowest: Duration::ZERO,
        }
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
            Way::Join => lab::cluster::add_node_call(self.n(4), "n4", self.n(1), "n1"),
            Way::Removal | Way::OwnRemoval => "CALL spock.remove_node('n4')".into(),
        }
    }

    fn run(&self, way: Way) -> Called {
        self.here(way)
            .call(&self.call(way))
            .unwrap_or_else(|failed| panic!("the CALL without a fault: {failed}"))
    }

    /// The points that a clean run passes. Where a run may pass one several times, the first time counts.
    fn points(&self, way: Way) -> Vec<String> {
        let arm = "SET zodan.fault = 'list'";
        let call = Running::start_after(self.here(way), arm, &self.call(way));
        told(&call.succeeds().notices)
    }

    /// The points of the longest undo.
    fn undo_points(&self, way: Way) -> Vec<String> {
        let arm = format!("SET zodan.fault = 'list; error {}'", way.last_undone());
        let call = Running::start_after(self.here(way), &arm, &self.call(way));
        let mut points = told(&call.fails().notices);
        points.retain(|point| point.starts_with("within the undo, "));
        points
    }

    /// A round: n4 joins and leaves, with a fault on either way or on none.
    fn round(&mut self, join: Option<&Case>, removal: Option<&Case>) {
        match join {
            Some(case) => self.go(case),
            None => drop(self.run(Way::Join)),
        }
        match removal {
            Some(case) => self.go(case),
            None => drop(self.run(Way::Removal)),
        }
        let rest = self.cluster.first(3);
        self.three.assert_same(&structure(&rest));
        self.assert_left();
        self.engine.renew(self.n(4));
    }

    /// Panics if the database of n4 is a node in any respect.
    fn assert_left(&self) {
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

    fn go(&mut self, case: &Case) {
        let all = self.cluster.all();
        let writing = match case.way {
            Way::Join => &all[..3],
            Way::Removal | Way::OwnRemoval => &all[..],
        };
        let before = self.tells_the_end(case).then(|| structure(&all));
        let load = Writers::start(writing);
        load.wait_commits(2, |_| true);
        let outcome = self.strike(case);
        let crashed = self.crashed(case);
        // The others go on, whatever state the run is in.
        load.wait_commits(2, |node| Some(node) != crashed && node != "n4");
        if let (Err(failed), Some(before)) = (&outcome, &before) {
            self.assert_true(case, failed, before, crashed);
        }
        self.bring_back(case.fault);
        if outcome.is_err() {
            let again = self.here(case.way).call(&self.call(case.way));
            again.unwrap_or_else(|failed| panic!("the same CALL again: {failed}"));
        }
        load.wait_commits(2, |node| Some(node) != crashed && node != "n4");
        self.slowest = self
            .slowest
            .max(load.assert_kept(crashed, &self.members_after(case.way)));
        self.assert_mesh(&self.members_after(case.way));
    }

    fn members_after(&self, way: Way) -> Vec<&Server> {
        match way {
            Way::Join => self.cluster.all(),
            Way::Removal | Way::OwnRemoval => self.cluster.first(3),
        }
    }

    /// Runs the CALL into the fault.
    fn strike(&self, case: &Case) -> Result<Called, CallFailed> {
        let here = self.here(case.way);
        let action = match case.fault {
            Fault::Error => "error",
            Fault::Killed | Fault::KilledUndoing => "kill",
            Fault::Panicked => "panic",
            _ => "hang",
        };
        let before = match case.fault {
            Fault::KilledUndoing => format!("error {}; ", case.way.last_undone()),
            _ => String::new(),
        };
        let arm = format!(
            "SET zodan.fault = {}",
            quote_literal(&format!("{before}{action} {}", case.point))
        );
        if action != "hang" {
            let outcome = Running::start_after(here, &arm, &self.call(case.way)).join();
            match &outcome {
                Ok(_) => panic!("the point was not reached"),
                Err(failed) if case.fault == Fault::Error => {
                    assert_eq!(
                        failed.message(),
                        format!("fault: {}", case.point),
                        "{failed}"
                    );
                }
                Err(failed) => assert!(["", "XX000"].contains(&failed.code()), "{failed}"),
            }
            return outcome;
        }
        let held = Hang::hold(here);
        let call = Running::start_after(here, &arm, &self.call(case.way));
        held.wait(&call);
        match case.fault {
            Fault::Cancelled => {
                // Released meanwhile, it might go on for a while before it sees the cancel request.
                call.cancel();
                return call.join();
            }
            Fault::SubjectCrashed => self.n(4).crash(),
            Fault::FirstCrashed => self.n(1).crash(),
            Fault::PeerCrashed => self.n(2).crash(),
            Fault::PeerSevered => self.n(2).sever(),
            Fault::Error | Fault::Killed | Fault::Panicked | Fault::KilledUndoing => {
                unreachable!("they do not hang")
            }
        }
        held.release();
        call.join()
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
        self.engine.wait_replicating(&self.cluster.first(3));
    }

    /// Whether the CALL's own server lives on, so that the error is the product's word on how the run ended.
    fn tells_the_end(&self, case: &Case) -> bool {
        self.crashed(case) != Some(self.here(case.way).name())
    }

    /// Panics unless the nodes that can be reached are as they were, save what the error says is left.
    fn assert_true(
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
            .cluster
            .all()
            .into_iter()
            .filter(|s| Some(s.name()) != crashed)
            .collect();
        let before = before.of(&reachable);
        before.assert_same(&structure(&reachable));
    }
}

/// The points that a run has told, each once.
fn told(notices: &[Notice]) -> Vec<String> {
    let mut points: Vec<String> = vec![];
    for notice in notices {
        if let Some(point) = notice.message.strip_prefix("fault point: ")
            && !points.iter().any(|known| known == point)
        {
            points.push(point.into());
        }
    }
    points
}

/// What the fingerprint of `servers` has that does not depend on the writers.
fn structure(servers: &[&Server]) -> Fingerprint {
    fingerprint(servers).without("content")
}

/// A writer on each of some nodes.
struct Writers(Vec<(String, Load)>);

impl Writers {
    fn start(servers: &[&Server]) -> Writers {
        let options = LoadOptions {
            writers: 1,
            rate: Some(25),
        };
        let start =
            |server: &&Server| (server.name().into(), Load::start_with(&[server], &options));
        Writers(servers.iter().map(start).collect())
    }

    fn wait_commits(&self, n: u64, which: impl Fn(&str) -> bool) {
        for (_, load) in self.0.iter().filter(|(node, _)| which(node)) {
            load.wait_commits(n);
        }
    }

    /// Stops them. Panics if a write failed where nothing was broken, or if not every member has all that was
    /// acknowledged. The slowest write.
    fn assert_kept(self, crashed: Option<&str>, members: &[&Server]) -> Duration {
        let reports: Vec<_> = self
            .0
            .into_iter()
            .map(|(node, load)| (node, load.stop()))
            .collect();
        wait_quiet(members);
        assert_same_content(members);
        let mut slowest = Duration::ZERO;
        for (node, report) in reports {
            for member in members {
                report.assert_present_on(member);
            }
            // On n4 nobody can write while it leaves, and writers are told so.
            if Some(&*node) != crashed && node != "n4" {
                assert!(report.failures.is_empty(), "{node}: {report}");
                assert!(report.max_latency() < SLOWEST_WRITE, "{node}: {report}");
                slowest = slowest.max(report.max_latency());
            }
        }
        slowest
    }
}

/// Past the capture of the test harness: the line is wanted when all is well.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The round that a thread is in, so that one without an end is reported.
#[derive(Default)]
struct Watch(Mutex<Option<Round>>);

struct Round {
    began: Instant,
    names: String,
    cluster: Option<Arc<Cluster>>,
}

impl Watch {
    fn begin(&self, names: String) {
        *self.0.lock().unwrap() = Some(Round {
            began: Instant::now(),
            names,
            cluster: None,
        });
    }

    fn in_cluster(&self, cluster: &Arc<Cluster>) {
        if let Some(round) = self.0.lock().unwrap().as_mut() {
            round.cluster = Some(cluster.clone());
        }
    }

    fn end(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// Ends the program, and thereby its servers, if the round does not end.
    fn look(&self) {
        if let Some(round) = &*self.0.lock().unwrap()
            && round.began.elapsed() > ROUND
        {
            tell(&format!("DOES NOT END {}", round.names));
            for server in round.cluster.iter().flat_map(|cluster| cluster.all()) {
                tell(&server.activity());
            }
            std::process::exit(101);
        }
    }
}

/// The cases that are still to be tried, in two queues, and what came of the others.
struct Matrix {
    engine: &'static dyn Engine,
    open: Mutex<(VecDeque<Case>, VecDeque<Case>)>,
    failed: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Matrix {
    fn work(&self, watch: &Watch) {
        let mut world: Option<(World, usize)> = None;
        loop {
            let (join, removal) = {
                let mut open = self.open.lock().unwrap();
                (open.0.pop_front(), open.1.pop_front())
            };
            if join.is_none() && removal.is_none() {
                return;
            }
            if world.as_ref().is_some_and(|(_, rounds)| *rounds >= ROUNDS) {
                world = None;
            }
            let names = [&join, &removal]
                .map(|c| c.as_ref().map_or(String::new(), Case::to_string))
                .join(" | ");
            let began = Instant::now();
            watch.begin(names.clone());
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let (world, rounds) = world.get_or_insert_with(|| (World::new(self.engine), 0));
                *rounds += 1;
                watch.in_cluster(&world.cluster);
                world.round(join.as_ref(), removal.as_ref());
                world.slowest
            }));
            watch.end();
            let took = began.elapsed();
            match outcome {
                Ok(slowest) => {
                    let mut all = self.slowest.lock().unwrap();
                    *all = all.max(slowest);
                    if std::env::var_os("ZODAN_FAULTS").is_some() {
                        tell(&format!("{took:5.1?} {}", names));
                    }
                }
                Err(panic) => {
                    world = None;
                    let why = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                        .unwrap_or_default();
                    tell(&format!("FAILED {}\n{why}", names));
                    self.failed
                        .lock()
                        .unwrap()
                        .push(format!("{}\n{why}", names));
                }
            }
        }
    }
}

/// Tries the cases, and tells how many there were. Panics with those that failed.
pub fn try_all(engine: &'static dyn Engine) {
    let wanted = std::env::var("ZODAN_FAULTS").ok();
    let (wanted, step) = match wanted.as_deref() {
        None => ("", SAMPLE),
        Some("all") => ("", 1),
        Some(parts) => (parts, 1),
    };
    let began = Instant::now();
    let watches: &'static [Watch] =
        Vec::leak((0..engine.clusters()).map(|_| Watch::default()).collect());
    thread::spawn(|| {
        loop {
            watches.iter().for_each(Watch::look);
            thread::sleep(POLL);
        }
    });
    watches[0].begin("the runs without a fault".into());
    let world = World::new(engine);
    watches[0].in_cluster(&world.cluster);
    let points: Vec<(Way, Vec<String>, Vec<String>)> = [Way::Join, Way::Removal, Way::OwnRemoval]
        .into_iter()
        .map(|way| {
            if way == Way::OwnRemoval {
                engine.renew(world.n(4));
                world.run(Way::Join);
            }
            let undo = world.undo_points(way);
            (way, world.points(way), undo)
        })
        .collect();
    drop(world);
    watches[0].end();
    let cases = |(way, points, undo): &(Way, Vec<String>, Vec<String>)| -> VecDeque<Case> {
        let case = |point: &String, fault| Case {
            way: *way,
            point: point.clone(),
            fault,
        };
        let panics = points.iter().step_by(PANICS);
        points
            .iter()
            .flat_map(|point| FAULTS.map(|fault| case(point, fault)))
            .chain(panics.map(|point| case(point, Fault::Panicked)))
            .chain(undo.iter().map(|point| case(point, Fault::KilledUndoing)))
            .filter(|case| {
                wanted
                    .split('|')
                    .any(|part| case.to_string().contains(part))
            })
            .step_by(step)
            .collect()
    };
    let all: Vec<VecDeque<Case>> = points.iter().map(cases).collect();
    let counts: Vec<usize> = all.iter().map(VecDeque::len).collect();
    let (joins, removals): (Vec<Case>, Vec<Case>) = all
        .into_iter()
        .flatten()
        .partition(|case| case.way == Way::Join);
    let matrix = Matrix {
        engine,
        open: Mutex::new((joins.into(), removals.into())),
        failed: Mutex::default(),
        slowest: Mutex::default(),
    };
    thread::scope(|scope| {
        for watch in watches {
            scope.spawn(|| matrix.work(watch));
        }
    });
    let failed = matrix.failed.into_inner().unwrap();
    if failed.is_empty() {
        for ((way, points, undo), cases) in points.iter().zip(counts) {
            tell(&format!(
                "{way:?}: {} points with {} faults each, {} more in the undo: {cases} cases, 0 lost rows, 0 left-overs",
                points.len(),
                FAULTS.len(),
                undo.len(),
            ));
        }
        tell(&format!(
            "slowest write on a node that was not touched: {:.1?}; all of it took {:.0?}",
            matrix.slowest.into_inner().unwrap(),
            began.elapsed()
        ));
    }
    assert!(
        failed.is_empty(),
        "{} cases failed\n\n{}",
        failed.len(),
        failed.join("\n\n")
    );
}
