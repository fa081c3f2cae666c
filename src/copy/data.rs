//! The data: the leader's side. It plans, starts workers, watches them and ends them.

use super::copied_bytes::{Complete, CopyProgress, Counter};
use super::guard::guarded;
use super::on_exit::OnExit;
use super::origin::{self, Origin};
use super::plan::plan;
use super::shared::{Count, Job, Owned, Shared, Slot, State};
use super::tables::Table;
use super::{Source, pulse, worker};
use crate::error::{Error, Result, SqlState};
use crate::libpq::wait;
use crate::node::Local;
use crate::quote::qualified;
use crate::settings;
use pgrx::pg_sys;
use std::collections::BTreeSet;
use std::ffi::{c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often the caller hears of progress.
const PULSE: Duration = Duration::from_millis(500);
/// How long workers get to end after they were told to.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How the rows are stored.
pub struct Options<'a> {
    /// The replication origin under which the rows are committed; created if it does not exist.
    pub origin: &'a str,
    /// The search_path that sessions of the source database have by default: constraints and
    /// generated columns may call functions that rely on it.
    pub search_path: &'a str,
    pub jobs: usize,
}

/// What has been copied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copied {
    pub tables: usize,
    pub rows: u64,
    /// Rows that were stored and thrown away before their table was copied again.
    pub discarded: u64,
    /// Tables that were copied again as a whole, because they got another file between two pieces.
    pub again: Vec<String>,
    /// Tables of the new node whose CHECK constraints nobody looked at, because a row broke one.
    pub unchecked: Vec<String>,
    /// Tables of which the snapshot saw no row in the file that they have got meanwhile. If that was by
    /// TRUNCATE, what is in them will come; nothing but their contents tells.
    pub unproved: Vec<String>,
    /// How many of them are in tables of extensions.
    pub extension_rows: u64,
    pub bytes: u64,
    pub workers: usize,
}

/// Copies the rows of `tables` as the snapshot shows them into the tables of the same names here.
/// Tables must be empty, and without the triggers that would fire. `report` is called twice a second
/// and at the end, with where the copy is and the tables that have become complete; its error ends the
/// copy.
pub fn copy(
    source: &Source<'_>,
    local: &Local,
    tables: Vec<Table>,
    options: &Options<'_>,
    mut report: impl FnMut(&CopyProgress, &[Complete]) -> Result<()>,
) -> Result<Copied> {
    let count = tables
        .iter()
        .map(|t| t.oid)
        .collect::<BTreeSet<u32>>()
        .len();
    let tables: Vec<Table> = tables.into_iter().filter(|t| !t.is_empty()).collect();
    let wanted = if origin::SHARED {
        options.jobs.max(1)
    } else {
        1
    };
    let tasks = plan(&tables.iter().map(Table::size).collect::<Vec<_>>(), wanted);
    if tasks.is_empty() {
        return Ok(Copied {
            tables: count,
            ..Copied::default()
        });
    }
    let wanted = wanted.min(tasks.len());
    // Given back after the workers have ended: declared first, dropped last.
    let origin = Origin::hold(local, options.origin)?;
    let job = Job {
        node: source.node.to_owned(),
        dsn: source.dsn.reveal(),
        snapshot: source.snapshot.to_owned(),
        tables,
        tasks,
        origin: origin.id(),
        origin_holder: origin.holder(),
        search_path: options.search_path.to_owned(),
        connect_timeout: settings::connect_timeout().as_millis() as u64,
    };
    let workers = Workers::start(&job, wanted)?;
    let arrived = workers.watch(source, &job, &mut report)?;
    let slots = workers.shared.slots();
    let counts = workers.shared.counts();
    let which = |of: fn(&Count) -> bool| {
        let of = job.tables.iter().zip(counts).filter(|(_, count)| of(count));
        let labels: BTreeSet<String> = of.map(|(table, _)| table.label()).collect();
        labels.into_iter().collect()
    };
    Ok(Copied {
        tables: count,
        rows: arrived.rows,
        discarded: counts.iter().map(Count::discarded).sum(),
        again: which(Count::is_again),
        unchecked: unchecked(&job, counts),
        unproved: which(Count::is_unproved),
        extension_rows: slots.iter().map(Slot::extension_rows).sum(),
        bytes: arrived.bytes,
        workers: workers.handles.len(),
    })
}

fn unchecked(job: &Job, counts: &[Count]) -> Vec<String> {
    let tables = job.tables.iter().zip(counts);
    let mut names: Vec<String> = tables
        .filter(|(_, count)| count.is_unchecked())
        .map(|(table, _)| table.target())
        .map(|(schema, name)| qualified(schema, name))
        .collect();
    names.dedup(); // partitions whose rows go into the same root
    names
}

/// The running workers. They end with this value, and with the backend.
struct Workers {
    shared: Owned,
    handles: Rc<Vec<Handle>>,
    _on_exit: OnExit,
}

impl Workers {
    /// Starts up to `wanted` workers; fewer if the server has no room for more.
    fn start(job: &Job, wanted: usize) -> Result<Self> {
        let shared = Owned::create(job, wanted)?;
        let mut handles = vec![];
        while handles.len() < wanted {
            match Handle::register(&shared, handles.len())? {
                Some(handle) => handles.push(handle),
                None => break,
            }
        }
        if handles.is_empty() {
            return Err(Error::refused(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "no background worker is free to copy data",
                "Raise max_worker_processes on the new node and restart it.",
            ));
        }
        let handles = Rc::new(handles);
        let doomed = Rc::clone(&handles);
        let on_exit = OnExit::run(move || doomed.iter().for_each(Handle::terminate));
        Ok(Self {
            shared,
            handles,
            _on_exit: on_exit,
        })
    }

    /// Waits for the workers. The first failure ends the copy.
    fn watch(
        &self,
        source: &Source<'_>,
        job: &Job,
        report: &mut impl FnMut(&CopyProgress, &[Complete]) -> Result<()>,
    ) -> Result<CopyProgress> {
        let mut tally = Counter::new(job);
        let counts = self.shared.counts();
        let mut last = CopyProgress::default();
        let mut moved = Instant::now();
        let mut reported: Option<Instant> = None;
        loop {
            // First who has ended, then what they left behind: in this order nothing is missed.
            let ended: Vec<bool> = self.handles.iter().map(Handle::has_ended).collect();
            for (slot, ended) in self.shared.slots().iter().zip(&ended) {
                match slot.state() {
                    State::Failed => return Err(slot.failure().into_error()),
                    State::Running if *ended => return Err(died(job, slot)),
                    _ => {}
                }
            }
            let arrived = tally.look(counts, self.at_work());
            if ended.iter().all(|e| *e) {
                self.conclude(job)?;
                report(&arrived, &tally.complete(counts))?;
                return Ok(arrived);
            }
            if arrived != last {
                moved = Instant::now();
            } else if let Some(limit) = settings::no_progress_timeout()
                && moved.elapsed() > limit
            {
                match pulse::source_is_at_work(source, self.shared.slots(), limit) {
                    Ok(true) => moved = Instant::now(),
                    Err(error @ Error::Interrupted { .. }) => return Err(error),
                    Ok(false) | Err(_) => return Err(stalled(job, &arrived, limit)),
                }
            }
            if reported.is_none_or(|t| t.elapsed() >= PULSE) {
                report(&arrived, &tally.complete(counts))?;
                reported = Some(Instant::now());
            }
            last = arrived;
            wait::on_latch(PULSE)?;
        }
    }

    /// All have ended. A worker that never came up does no harm if others did its work.
    fn conclude(&self, job: &Job) -> Result<()> {
        let done: u64 = self.shared.counts().iter().map(Count::tasks).sum();
        if done == job.tasks.len() as u64 {
            return Ok(());
        }
        Err(Error::refused(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "no copy worker could start",
            "The log of the new node's server says why.",
        ))
    }

    /// The tasks that workers have in hand.
    fn at_work(&self) -> impl Iterator<Item = usize> {
        self.shared.slots().iter().filter_map(Slot::task)
    }
}

impl Drop for Workers {
    /// Ends those that still run and waits until they have let go of tables and origin.
    fn drop(&mut self) {
        self.handles.iter().for_each(Handle::terminate);
        let deadline = Instant::now() + TIMEOUT;
        while !self.handles.iter().all(Handle::has_ended) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // SAFETY: our own latch. Interrupts stay pending for whoever looks at them next: this
            // runs while an error is on its way, and must not raise another one.
            unsafe {
                let events =
                    pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
                pg_sys::WaitLatch(
                    pg_sys::MyLatch,
                    events as c_int,
                    left.as_millis().max(1) as _,
                    pg_sys::WaitEventIPC::WAIT_EVENT_BGWORKER_SHUTDOWN,
                );
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
        }
    }
}

/// A registered background worker.
struct Handle(NonNull<pg_sys::BackgroundWorkerHandle>);

impl Handle {
    /// `None` if the server has no room for another worker.
    fn register(shared: &Shared, number: usize) -> Result<Option<Self>> {
        let mut worker = pg_sys::BackgroundWorker {
            bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS
                | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int,
            bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
            bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
            bgw_main_arg: pg_sys::Datum::from(worker::argument(shared.handle(), number)),
            // SAFETY: set when the backend starts.
            bgw_notify_pid: unsafe { pg_sys::MyProcPid },
            ..Default::default()
        };
        write(&mut worker.bgw_name, "zodan copy");
        write(&mut worker.bgw_type, "zodan copy");
        write(&mut worker.bgw_library_name, env!("CARGO_CRATE_NAME"));
        write(&mut worker.bgw_function_name, "zodan_copy_worker");
        let mut handle = null_mut();
        guarded(|| {
            // SAFETY: the handle must survive the commits of the leader, so it is made in the context
            // that lives as long as the session.
            let registered = unsafe {
                let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
                pg_sys::MemoryContextSwitchTo(context);
                registered
            };
            Ok(NonNull::new(handle).filter(|_| registered).map(Self))
        })
    }

    fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: a live handle, here and below.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0.as_ptr(), &mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }

    fn terminate(&self) {
        // SAFETY: as above; harmless if it has ended.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0.as_ptr()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker, freed once.
        unsafe { pg_sys::pfree(self.0.as_ptr().cast()) }
    }
}

/// Fills a C string field; the rest stays zero.
fn write(field: &mut [c_char], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}

fn died(job: &Job, slot: &Slot) -> Error {
    let message = match slot.task() {
        Some(number) => format!(
            "the worker that copied table {} of node \"{}\" was ended",
            job.tables[job.tasks[number].table].label(),
            job.node
        ),
        None => "a copy worker was ended".into(),
    };
    Error::Local {
        state: SqlState::parse("57P01"),
        message,
        detail: None,
        hint: Some("The log of the new node's server may say by whom.".into()),
    }
}

fn stalled(job: &Job, arrived: &CopyProgress, limit: Duration) -> Error {
    Error::Stalled {
        node: job.node.clone(),
        what: "the copy of its data".into(),
        seconds: limit.as_secs(),
        detail: format!("Being copied: {}.", arrived.tables.join(", ")),
        hint: "Look for locks on these tables on both nodes, and at the network between them."
            .into(),
    }
}
