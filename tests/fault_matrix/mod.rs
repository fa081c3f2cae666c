//! What the matrices of faults have in common: rounds, worked off by several clusters side by side, each round
//! watched; writers whose every commit has to be kept; points, as the product tells them in builds with the
//! feature `faults`, which `make test` makes.
//!
//! One case in some is tried, or those that `ZODAN_FAULTS` selects: parts of their names, with `|` between them,
//! or `all`. `ZODAN_FAULTS_PART` is a number: with another one other cases are tried, and so many parts as one
//! case stands for are all of them.

use crate::common::{Fingerprint, Hang, POLL, Running, fingerprint};
use lab::load::LoadOptions;
use lab::server::Notice;
use lab::{
    CallFailed, Called, Cluster, Load, Server, assert_same_content, quote_literal, wait_quiet,
};
use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// At one of so many points the server panics too.
pub const PANICS: usize = 10;

/// A cluster is replaced after so many rounds: what the writers leave makes every round longer.
pub const ROUNDS_PER_CLUSTER: usize = 40;

/// A round takes a few seconds. Each of its waits has an end, but a CALL may wait without one if it is at fault.
const ROUND_LIMIT: Duration = Duration::from_secs(300);

/// No write on a node that was not touched itself took longer, on a machine with other things to do.
const SLOWEST_WRITE: Duration = Duration::from_secs(10);

/// A cluster that goes through rounds.
pub trait FaultRounds {
    type Round: fmt::Display + Send;

    fn cluster(&self) -> &Arc<Cluster>;

    /// For how many rounds a cluster is used.
    fn rounds(&self) -> usize {
        ROUNDS_PER_CLUSTER
    }

    /// Panics where the product fails. What a round leaves behind is found there too.
    fn run_round(&mut self, round: &Self::Round);
}

/// Those of `cases` that are to be tried: every `sample`th, or what `ZODAN_FAULTS` selects.
pub fn select<C: fmt::Display>(cases: impl Iterator<Item = C>, sample: usize) -> Vec<C> {
    let set = |name| std::env::var(name).ok();
    let part = set("ZODAN_FAULTS_PART").map_or(0, |part| part.parse().expect("a number"));
    let wanted = set("ZODAN_FAULTS");
    let (wanted, skip, step) = match wanted.as_deref() {
        None => ("", part % sample, sample),
        Some("all") => ("", 0, 1),
        Some(parts) => (parts, 0, 1),
    };
    cases
        .filter(|case| {
            let name = case.to_string();
            wanted.split('|').any(|part| name.contains(part))
        })
        .skip(skip)
        .step_by(step)
        .collect()
}

/// Panics unless the extension that is installed has fault points.
pub fn require_points(server: &Server) {
    let refused = server.client().batch_execute("SET zodan.failpoint = ''");
    assert!(
        refused.is_ok(),
        "the extension that is installed has no fault points: run make test"
    );
}

/// What happens to a CALL at a point.
pub enum Injection<'a> {
    Error,
    Kill,
    Panic,
    Cancel,
    /// To somebody else, while it hangs there.
    Elsewhere(Box<dyn FnOnce() + 'a>),
}

/// Runs `call` on `here`, and injects a fault at `point`; `before` is what `zodan.failpoint` has to do earlier, if
/// anything.
pub fn inject(
    here: &Server,
    call: &str,
    before: &str,
    point: &str,
    injection: Injection,
) -> Result<Called, CallFailed> {
    let action = match injection {
        Injection::Error => "error",
        Injection::Kill => "kill",
        Injection::Panic => "panic",
        Injection::Cancel | Injection::Elsewhere(_) => "hang",
    };
    let arm = format!(
        "SET zodan.failpoint = {}",
        quote_literal(&format!("{before}{action} {point}"))
    );
    let hang = || {
        let held = Hang::hold(here);
        let call = Running::start_after(here, &arm, call);
        held.wait(&call);
        (held, call)
    };
    match injection {
        Injection::Cancel => {
            // Released meanwhile, it might go on for a while before it sees the cancel request.
            let (_held, call) = hang();
            call.cancel();
            call.join()
        }
        Injection::Elsewhere(happen) => {
            let (held, call) = hang();
            happen();
            held.release();
            call.join()
        }
        Injection::Error | Injection::Kill | Injection::Panic => {
            let outcome = Running::start_after(here, &arm, call).join();
            match &outcome {
                Ok(_) => panic!("the point was not reached"),
                Err(failed) if matches!(injection, Injection::Error) => {
                    assert_eq!(failed.message(), format!("fault: {point}"), "{failed}");
                }
                Err(failed) => assert!(["", "XX000"].contains(&failed.code()), "{failed}"),
            }
            outcome
        }
    }
}

/// Runs `body` with a new cluster, watched.
pub fn with_watchdog<W: FaultRounds, T>(new: impl Fn() -> W, body: impl FnOnce(&mut W) -> T) -> T {
    let watch = Watch::new();
    watch.begin("the runs without a fault".into());
    let mut world = new();
    watch.in_cluster(world.cluster());
    let answer = body(&mut world);
    watch.end();
    answer
}

/// Works through the rounds with so many clusters side by side. Panics with those that failed.
pub fn work_through<W: FaultRounds>(
    rounds: Vec<W::Round>,
    clusters: usize,
    new: impl Fn() -> W + Sync,
) {
    let open = Mutex::new(VecDeque::from(rounds));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..clusters {
            scope.spawn(|| work(&open, &new, &failed));
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} rounds failed\n\n{}",
        failed.len(),
        failed.join("\n\n")
    );
}

fn work<W: FaultRounds>(
    open: &Mutex<VecDeque<W::Round>>,
    new: &impl Fn() -> W,
    failed: &Mutex<Vec<String>>,
) {
    let watch = Watch::new();
    let mut world: Option<(W, usize)> = None;
    loop {
        let Some(round) = open.lock().unwrap().pop_front() else {
            return;
        };
        if world
            .as_ref()
            .is_some_and(|(world, rounds)| *rounds >= world.rounds())
        {
            world = None;
        }
        let began = Instant::now();
        watch.begin(round.to_string());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (world, rounds) = world.get_or_insert_with(|| (new(), 0));
            *rounds += 1;
            watch.in_cluster(world.cluster());
            world.run_round(&round);
        }));
        watch.end();
        match outcome {
            Ok(()) if std::env::var_os("ZODAN_FAULTS").is_some() => {
                print_line(&format!("{:5.1?} {round}", began.elapsed()));
            }
            Ok(()) => {}
            Err(panic) => {
                world = None;
                let why = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default();
                print_line(&format!("FAILED {round}\n{why}"));
                failed.lock().unwrap().push(format!("{round}\n{why}"));
            }
        }
    }
}

/// The round that a thread is in, so that one without an end is reported.
struct Watch(Arc<Mutex<Option<Round>>>);

struct Round {
    began: Instant,
    names: String,
    cluster: Option<Arc<Cluster>>,
}

impl Watch {
    fn new() -> Watch {
        let watch = Watch(Arc::default());
        let seen = Arc::downgrade(&watch.0);
        thread::spawn(move || {
            while let Some(round) = seen.upgrade() {
                abort_if_stuck(&round.lock().unwrap());
                drop(round);
                thread::sleep(POLL);
            }
        });
        watch
    }

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
}

/// Ends the program, and thereby its servers, if the round does not end.
fn abort_if_stuck(round: &Option<Round>) {
    if let Some(round) = round
        && round.began.elapsed() > ROUND_LIMIT
    {
        print_line(&format!("DOES NOT END {}", round.names));
        for server in round.cluster.iter().flat_map(|cluster| cluster.all()) {
            print_line(&server.activity());
        }
        std::process::exit(101);
    }
}

/// The points that a run has failpoints_in, each once.
pub fn failpoints_in(notices: &[Notice]) -> Vec<String> {
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
pub fn structure(servers: &[&Server]) -> Fingerprint {
    fingerprint(servers).without("content")
}

/// A writer on each of some nodes.
pub struct Writers(Vec<(String, Load)>);

impl Writers {
    pub fn start(servers: &[&Server]) -> Writers {
        let options = LoadOptions {
            writers: 1,
            rate: Some(25),
        };
        let start =
            |server: &&Server| (server.name().into(), Load::start_with(&[server], &options));
        Writers(servers.iter().map(start).collect())
    }

    pub fn wait_commits(&self, n: u64, which: impl Fn(&str) -> bool) {
        for (_, load) in self.0.iter().filter(|(node, _)| which(node)) {
            load.wait_commits(n);
        }
    }

    /// Stops them. Panics if a write failed on a node that was not touched, or if not every member has all that
    /// was acknowledged. The slowest write.
    pub fn assert_kept(self, touched: &[&str], members: &[&Server]) -> Duration {
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
            if !touched.contains(&&*node) {
                assert!(report.failures.is_empty(), "{node}: {report}");
                assert!(report.max_latency() < SLOWEST_WRITE, "{node}: {report}");
                slowest = slowest.max(report.max_latency());
            }
        }
        slowest
    }
}

/// Past the capture of the test harness: the line is wanted when all is well.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
