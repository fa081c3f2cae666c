//! Whatever goes wrong, at whatever point of a recovery: the survivors go on taking writes, no transaction is torn,
//! lost or doubled, what the call says is true, and the next call finishes, on either survivor.
//!
//! One cluster goes through many rounds: n1 writes what n3 gets and n2 does not, dies, and comes back when the
//! survivors are equal.

mod common;
mod fault_matrix;

use common::engines::On;
use common::recovery::{CONTENT, assert_nothing_held, assert_whole, call, keep, options, recover};
use common::{Fingerprint, Running, wait_no_sessions};
use fault_matrix::{
    Injection, PANICS, Writers, failpoints_in, inject, print_line, require_points, select,
    structure, with_watchdog, work_through,
};
use lab::{CallFailed, Called, Cluster, Server, assert_same_content, load, wait_quiet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Clusters that work through the cases side by side.
const CLUSTERS: usize = 2;

/// One of so many cases is tried where none are asked for.
const SAMPLE: usize = 8;

/// The last point from which a run is taken back.
const LAST_UNDONE: &str = "within the last change is applied";

/// Where the CALL runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// n2, which lacks something.
    Target,
    /// n3, which has it.
    Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Error,
    Cancelled,
    /// SIGKILL for the backend of the CALL: its server restarts.
    Killed,
    /// The server of the CALL finds something that it cannot go on with, which ends as the former does.
    Panicked,
    TargetCrashed,
    SourceCrashed,
    /// All connections to the other survivor are reset.
    PeerSevered,
    /// SIGKILL for the backend of the CALL, at a point of its undo.
    KilledUndoing,
}

const FAULTS: [Fault; 6] = [
    Fault::Error,
    Fault::Cancelled,
    Fault::Killed,
    Fault::TargetCrashed,
    Fault::SourceCrashed,
    Fault::PeerSevered,
];

#[derive(Clone, Debug)]
struct Case {
    here: Here,
    point: String,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Recovery {:?}, {:?}: {}",
            self.here, self.fault, self.point
        )
    }
}

struct FaultCluster {
    cluster: Arc<Cluster>,
    /// The three as they are when all live.
    three: Fingerprint,
    rounds: usize,
}

impl FaultCluster {
    fn new() -> FaultCluster {
        let cluster = Cluster::start_each(3, |name| match name {
            "n1" => options(),
            _ => options().proxy(),
        });
        cluster.form_mesh(3, &format!("{CONTENT}{}", load::SCHEMA));
        require_points(cluster.n(2));
        keep(&cluster.all());
        wait_quiet(&cluster.all());
        let three = structure(&cluster.all());
        FaultCluster {
            cluster: Arc::new(cluster),
            three,
            rounds: 0,
        }
    }

    fn n(&self, number: usize) -> &Server {
        self.cluster.n(number)
    }

    fn survivors(&self) -> [&Server; 2] {
        [self.n(2), self.n(3)]
    }

    fn here(&self, here: Here) -> &Server {
        match here {
            Here::Target => self.n(2),
            Here::Source => self.n(3),
        }
    }

    fn other(&self, here: Here) -> &Server {
        match here {
            Here::Target => self.n(3),
            Here::Source => self.n(2),
        }
    }

    /// The points that a clean run passes, and those of the longest undo.
    fn points(&mut self, here: Here) -> (Vec<String>, Vec<String>) {
        self.die();
        let list = |arm: &str| {
            Running::start_after(
                self.here(here),
                &format!("SET zodan.failpoint = '{arm}'"),
                &call("n1", None, None, ""),
            )
        };
        let failed = list(&format!("list; error {LAST_UNDONE}")).fails();
        let mut undo = failpoints_in(&failed.notices);
        undo.retain(|point| point.starts_with("within the undo, "));
        let points = failpoints_in(&list("list").succeeds().notices);
        self.revive();
        (points, undo)
    }

    /// n1 dies when n3 has of it what n2 has not, and both have gone on since.
    fn die(&mut self) {
        self.rounds += 1;
        let first = self.rounds * 100;
        let [n1, n2, n3] = [1, 2, 3].map(|i| self.n(i));
        n1.sql(&format!(
            "INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series({first}, {first} + 9) i"
        ));
        wait_quiet(&self.cluster.all());
        On::Native.suspend(n2, n1);
        n1.sql(&format!(
            "INSERT INTO crash_test SELECT i, 'new', repeat('x', 5000) FROM generate_series({first} + 10, {first} + 29) i"
        ));
        n1.sql(&format!(
            "UPDATE crash_test SET data = 'of n1' WHERE id IN ({first}, {first} + 1)"
        ));
        n1.sql(&format!(
            "DELETE FROM crash_test WHERE id = {first} + 2; INSERT INTO scratch VALUES (1)"
        ));
        n1.sql("TRUNCATE scratch");
        n1.sql(&format!(
            "DO $$ BEGIN FOR i IN {first} + 1..{first} + 50 LOOP
                  INSERT INTO debit VALUES (i, i); INSERT INTO credit (amount) VALUES (i); COMMIT;
                END LOOP; END $$"
        ));
        n3.wait_for(
            &format!("SELECT count(*) FROM debit WHERE id = {first} + 50"),
            "1",
        );
        n1.crash();
        n3.sql(&format!(
            "UPDATE crash_test SET data = 'of n3' WHERE id IN ({first}, {first} + 10)"
        ));
        n3.sql(&format!("DELETE FROM crash_test WHERE id = {first} + 11"));
        n2.sql(&format!(
            "UPDATE crash_test SET data = 'of n2' WHERE id = {first} + 1"
        ));
        wait_quiet(&self.survivors());
    }

    /// n1 comes back, and all are as they were.
    fn revive(&self) {
        let (n1, n2) = (self.n(1), self.n(2));
        n1.boot();
        On::Native.resume(n2, n1);
        common::wait_mesh(&self.cluster.all());
        keep(&self.cluster.all());
        wait_quiet(&self.cluster.all());
        // A marker, and its removal by another node than its own, may come in either order to one that was down.
        n1.sql("DELETE FROM zodan.marker");
        wait_quiet(&self.cluster.all());
        assert_same_content(&self.cluster.all());
        self.three.assert_same(&structure(&self.cluster.all()));
    }

    /// Runs the CALL into the fault.
    fn inject(&self, case: &Case) -> Result<Called, CallFailed> {
        let before = match case.fault {
            Fault::KilledUndoing => format!("error {LAST_UNDONE}; "),
            _ => String::new(),
        };
        let injection = match case.fault {
            Fault::Error => Injection::Error,
            Fault::Cancelled => Injection::Cancel,
            Fault::Killed | Fault::KilledUndoing => Injection::Kill,
            Fault::Panicked => Injection::Panic,
            Fault::TargetCrashed => Injection::Elsewhere(Box::new(|| self.n(2).crash())),
            Fault::SourceCrashed => Injection::Elsewhere(Box::new(|| self.n(3).crash())),
            Fault::PeerSevered => Injection::Elsewhere(Box::new(|| self.other(case.here).sever())),
        };
        let call = call("n1", None, None, "");
        inject(self.here(case.here), &call, &before, &case.point, injection)
    }

    /// The survivor whose server went down. A backend that is killed takes all others with it.
    fn crashed(&self, case: &Case) -> Option<&str> {
        match case.fault {
            Fault::Killed | Fault::Panicked | Fault::KilledUndoing => {
                Some(self.here(case.here).name())
            }
            Fault::TargetCrashed => Some("n2"),
            Fault::SourceCrashed => Some("n3"),
            Fault::Error | Fault::Cancelled | Fault::PeerSevered => None,
        }
    }

    /// Whether the CALL's own server lives on, so that the error is the product's word on how the run ended.
    fn reports_the_end(&self, case: &Case) -> bool {
        self.crashed(case) != Some(self.here(case.here).name())
    }

    /// What a recovery holds, among others. The note that it is not finished stays.
    fn held(&self) -> Fingerprint {
        structure(&self.survivors()).without("origins")
    }

    /// Panics unless what can be reached is as it was, save what the error says is left.
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
        let told = failed.hint().contains("Could not be undone: ");
        assert!(
            !told || crashed.is_some(),
            "both could be reached, and something was left: {failed}"
        );
        let reachable: Vec<&Server> = self
            .survivors()
            .into_iter()
            .filter(|s| Some(s.name()) != crashed)
            .collect();
        let now = structure(&reachable).without("origins");
        before.of(&reachable).assert_same(&now);
    }

    /// Starts what is down.
    fn bring_back(&self) {
        for server in self.survivors() {
            if !server.is_running() {
                server.boot();
            }
            server.wait_for("SELECT 1", "1");
        }
        wait_no_sessions(&self.survivors());
        for server in self.survivors() {
            server.sql("SELECT zodan.start_node_worker()");
        }
    }
}

impl fault_matrix::FaultRounds for FaultCluster {
    type Round = Case;

    fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    fn run_round(&mut self, case: &Case) {
        self.die();
        let before = self.reports_the_end(case).then(|| self.held());
        let writers = Writers::start(&self.survivors());
        writers.wait_commits(2, |_| true);
        let outcome = self.inject(case);
        let crashed = self.crashed(case);
        writers.wait_commits(2, |node| Some(node) != crashed);
        if let (Err(failed), Some(before)) = (&outcome, &before) {
            self.assert_error_is_accurate(case, failed, before, crashed);
        }
        self.bring_back();
        assert_whole(self.n(2));
        // The next call is made by the one that did not make this one, every second time.
        let again = match self.rounds % 2 {
            0 => self.here(case.here),
            _ => self.other(case.here),
        };
        recover(again, "n1");
        writers.wait_commits(2, |node| Some(node) != crashed);
        let touched: Vec<&str> = crashed.into_iter().collect();
        writers.assert_kept(&touched, &self.survivors());
        self.survivors().into_iter().for_each(assert_whole);
        assert_nothing_held(&self.survivors());
        self.revive();
    }
}

#[test]
fn recoveries_survive_every_fault_at_every_point() {
    let began = Instant::now();
    let points = with_watchdog(FaultCluster::new, |world| {
        [Here::Target, Here::Source].map(|here| (here, world.points(here)))
    });
    let mut cases = vec![];
    let mut counts = vec![];
    for (here, (points, undo)) in &points {
        let case = |point: &String, fault| Case {
            here: *here,
            point: point.clone(),
            fault,
        };
        let panics = points.iter().step_by(PANICS);
        let all = points
            .iter()
            .flat_map(|point| FAULTS.map(|fault| case(point, fault)))
            .chain(panics.map(|point| case(point, Fault::Panicked)))
            .chain(undo.iter().map(|point| case(point, Fault::KilledUndoing)));
        let all = select(all, SAMPLE);
        counts.push(format!(
            "Recovery, called on the {here:?}: {} points with {} faults each, {} more in the undo: {} cases",
            points.len(),
            FAULTS.len(),
            undo.len(),
            all.len()
        ));
        cases.extend(all);
    }
    work_through(cases, CLUSTERS, FaultCluster::new);
    for line in counts {
        print_line(&line);
    }
    print_line(&format!("all of it took {:.0?}", began.elapsed()));
}
