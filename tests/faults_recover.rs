//! Whatever goes wrong, at whatever point of a recovery: the survivors go on taking writes, no transaction is torn,
//! lost or doubled, what the call says is true, and the next call finishes, on either survivor.
//!
//! The points are those that a clean run passes, as the product tells them; every point meets every fault. One
//! cluster goes through many rounds: n1 writes what n3 gets and n2 does not, dies, and comes back when the survivors
//! are equal. One case in some is tried, or those that `ZODAN_FAULTS` selects: parts of their names, with `|` between
//! them, or `all`.

mod common;

use common::recovery::{
    CONTENT, On, assert_nothing_held, assert_whole, call, keep, options, recover,
};
use common::{Fingerprint, Hang, Running, fingerprint, wait_no_sessions};
use lab::load::LoadOptions;
use lab::server::Notice;
use lab::{
    CallFailed, Called, Cluster, Load, Server, assert_same_content, load, quote_literal, wait_quiet,
};
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

/// Clusters that work through the cases side by side.
const CLUSTERS: usize = 2;

/// One of so many cases is tried where none are asked for.
const SAMPLE: usize = 8;

/// At one of so many points the server panics too.
const PANICS: usize = 10;

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

struct World {
    cluster: Cluster,
    /// The three as they are when all live.
    three: Fingerprint,
    rounds: usize,
}

impl World {
    fn new() -> World {
        let cluster = Cluster::start_each(3, |name| match name {
            "n1" => options(),
            _ => options().proxy(),
        });
        cluster.form_mesh(3, &format!("{CONTENT}{}", load::SCHEMA));
        let refused = cluster.n(2).client().batch_execute("SET zodan.fault = ''");
        assert!(
            refused.is_ok(),
            "the extension that is installed has no fault points: run make test"
        );
        keep(&cluster.all());
        wait_quiet(&cluster.all());
        let three = structure(&cluster.all());
        World {
            cluster,
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
                &format!("SET zodan.fault = '{arm}'"),
                &call("n1", None, None, ""),
            )
        };
        let failed = list(&format!("list; error {LAST_UNDONE}")).fails();
        let mut undo = told(&failed.notices);
        undo.retain(|point| point.starts_with("within the undo, "));
        let points = told(&list("list").succeeds().notices);
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

    fn round(&mut self, case: &Case) {
        self.die();
        let before = self.tells_the_end(case).then(|| self.held());
        let writers = Writers::start(&self.survivors());
        writers.wait_commits(2, None);
        let outcome = self.strike(case);
        let crashed = self.crashed(case);
        writers.wait_commits(2, crashed);
        if let (Err(failed), Some(before)) = (&outcome, &before) {
            self.assert_true(case, failed, before, crashed);
        }
        self.bring_back();
        assert_whole(self.n(2));
        // The next call is made by the one that did not make this one, every second time.
        let again = match self.rounds % 2 {
            0 => self.here(case.here),
            _ => self.other(case.here),
        };
        recover(again, "n1");
        writers.wait_commits(2, crashed);
        writers.assert_kept(crashed, &self.survivors());
        assert_nothing_held(&self.survivors());
        self.revive();
    }

    /// Runs the CALL into the fault.
    fn strike(&self, case: &Case) -> Result<Called, CallFailed> {
        let here = self.here(case.here);
        let sql = call("n1", None, None, "");
        let action = match case.fault {
            Fault::Error => "error",
            Fault::Killed | Fault::KilledUndoing => "kill",
            Fault::Panicked => "panic",
            _ => "hang",
        };
        let before = match case.fault {
            Fault::KilledUndoing => format!("error {LAST_UNDONE}; "),
            _ => String::new(),
        };
        let arm = format!(
            "SET zodan.fault = {}",
            quote_literal(&format!("{before}{action} {}", case.point))
        );
        if action != "hang" {
            let outcome = Running::start_after(here, &arm, &sql).join();
            match &outcome {
                Ok(_) => panic!("the point was not reached"),
                Err(failed) if case.fault == Fault::Error => assert_eq!(
                    failed.message(),
                    format!("fault: {}", case.point),
                    "{failed}"
                ),
                Err(failed) => assert!(["", "XX000"].contains(&failed.code()), "{failed}"),
            }
            return outcome;
        }
        let held = Hang::hold(here);
        let running = Running::start_after(here, &arm, &sql);
        held.wait(&running);
        match case.fault {
            Fault::Cancelled => {
                // Released meanwhile, it might go on for a while before it sees the cancel request.
                running.cancel();
                return running.join();
            }
            Fault::TargetCrashed => self.n(2).crash(),
            Fault::SourceCrashed => self.n(3).crash(),
            Fault::PeerSevered => self.other(case.here).sever(),
            Fault::Error | Fault::Killed | Fault::Panicked | Fault::KilledUndoing => {
                unreachable!("they do not hang")
            }
        }
        held.release();
        running.join()
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
    fn tells_the_end(&self, case: &Case) -> bool {
        self.crashed(case) != Some(self.here(case.here).name())
    }

    /// What a recovery holds, among others. The note that it is not finished stays.
    fn held(&self) -> Fingerprint {
        structure(&self.survivors()).without("origins")
    }

    /// Panics unless what can be reached is as it was, save what the error says is left.
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
            server.sql("SELECT zodan.keep_recovery_slot()");
        }
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

    /// Those on nodes that did not go down go on.
    fn wait_commits(&self, n: u64, crashed: Option<&str>) {
        for (_, load) in self.0.iter().filter(|(node, _)| Some(&**node) != crashed) {
            load.wait_commits(n);
        }
    }

    /// Stops them. Panics if a write failed where nothing was broken, or if not every survivor has all that was
    /// acknowledged.
    fn assert_kept(self, crashed: Option<&str>, survivors: &[&Server]) {
        let reports: Vec<_> = self
            .0
            .into_iter()
            .map(|(node, load)| (node, load.stop()))
            .collect();
        wait_quiet(survivors);
        assert_same_content(survivors);
        for (node, report) in reports {
            for survivor in survivors {
                report.assert_present_on(survivor);
                assert_whole(survivor);
            }
            if Some(&*node) != crashed {
                assert!(report.failures.is_empty(), "{node}: {report}");
            }
        }
    }
}

/// Past the capture of the test harness: the line is wanted when all is well.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Works through `open`; what failed.
fn work(open: &Mutex<Vec<Case>>, failed: &Mutex<Vec<String>>) {
    let mut world: Option<World> = None;
    loop {
        let Some(case) = open.lock().unwrap().pop() else {
            return;
        };
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            world.get_or_insert_with(World::new).round(&case);
        }));
        match outcome {
            Ok(()) if std::env::var_os("ZODAN_FAULTS").is_some() => {
                tell(&format!("{:5.1?} {case}", began.elapsed()));
            }
            Ok(()) => {}
            Err(panic) => {
                world = None;
                let why = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default();
                tell(&format!("FAILED {case}\n{why}"));
                failed.lock().unwrap().push(format!("{case}\n{why}"));
            }
        }
    }
}

#[test]
fn every_fault_at_every_point_of_a_recovery_is_survived() {
    let wanted = std::env::var("ZODAN_FAULTS").ok();
    let (wanted, step) = match wanted.as_deref() {
        None => ("", SAMPLE),
        Some("all") => ("", 1),
        Some(parts) => (parts, 1),
    };
    let began = Instant::now();
    let mut world = World::new();
    let mut cases = vec![];
    let mut counts = vec![];
    for here in [Here::Target, Here::Source] {
        let (points, undo) = world.points(here);
        let case = |point: &String, fault| Case {
            here,
            point: point.clone(),
            fault,
        };
        let panics = points.iter().step_by(PANICS);
        let all: Vec<Case> = points
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
            .collect();
        counts.push(format!(
            "Recovery, called on the {here:?}: {} points with {} faults each, {} more in the undo: {} cases",
            points.len(),
            FAULTS.len(),
            undo.len(),
            all.len()
        ));
        cases.extend(all);
    }
    drop(world);
    let (open, failed) = (Mutex::new(cases), Mutex::default());
    std::thread::scope(|scope| {
        for _ in 0..CLUSTERS {
            scope.spawn(|| work(&open, &failed));
        }
    });
    let failed = failed.into_inner().unwrap();
    if failed.is_empty() {
        for line in counts {
            tell(&line);
        }
        tell(&format!("all of it took {:.0?}", began.elapsed()));
    }
    assert!(
        failed.is_empty(),
        "{} cases failed\n\n{}",
        failed.len(),
        failed.join("\n\n")
    );
}
