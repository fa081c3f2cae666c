//! The settings of zodan, all of them `zodan.*`.

use crate::failpoint;
use pgrx::PostgresGucEnum;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::time::Duration;
use zodan_core::registry;

static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static NO_PROGRESS_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(180_000);
static SLOT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static CATCH_UP_FROM_SOURCE: GucSetting<bool> = GucSetting::<bool>::new(true);
static RECOVERY_SLOTS: GucSetting<bool> = GucSetting::<bool>::new(true);
static RECOVERY_SLOT_MAX_WAL: GucSetting<i32> = GucSetting::<i32>::new(10_240);
static STATUS_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(2_500);
static HISTORY_DAYS: GucSetting<i32> = GucSetting::<i32>::new(365);
static SEQUENCE_POLICY: GucSetting<SequencePolicy> =
    GucSetting::<SequencePolicy>::new(SequencePolicy::Copy);
static SEQUENCE_PARTS: GucSetting<i32> = GucSetting::<i32>::new(32);
static REQUIRE_MAJORITY: GucSetting<bool> = GucSetting::<bool>::new(true);
static COPY_JOBS: GucSetting<i32> = GucSetting::<i32>::new(0);

/// As [`registry::SequencePolicy`].
#[derive(Clone, Copy, PostgresGucEnum)]
enum SequencePolicy {
    #[name = c"copy"]
    Copy,
    #[name = c"stride"]
    Stride,
    #[name = c"range"]
    Range,
}

/// Registers the settings; called once, when the library is loaded.
pub fn define() {
    GucRegistry::define_int_guc(
        c"zodan.connect_timeout",
        c"How long zodan waits for a connection to a node.",
        c"A connect_timeout in the connection string of the node wins. 0 waits for ever.",
        &CONNECT_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"zodan.no_progress_timeout",
        c"How long zodan waits for something in which nothing moves.",
        c"Not a limit of the whole: any progress starts it anew. 0 waits for ever.",
        &NO_PROGRESS_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"zodan.slot_timeout",
        c"How long one attempt at the snapshot waits, with apply paused, for the workers to stop and then for the slot.",
        c"An attempt that takes longer is cancelled, apply resumes, and the attempt is repeated.",
        &SLOT_TIMEOUT,
        100,
        60_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"zodan.catch_up_from_source",
        c"Whether a node that joins takes from the source what all members wrote during the copy.",
        c"The source has it in an order in which every change finds its row. Off, each member sends its own.",
        &CATCH_UP_FROM_SOURCE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"zodan.copy_jobs",
        c"Background workers that copy data at the same time.",
        c"0 takes half of the processors, at least two and at most eight.",
        &COPY_JOBS,
        0,
        64,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"zodan.recovery_slots",
        c"Whether a recovery slot is kept in every database that is a node.",
        c"Takes effect where zodan is in shared_preload_libraries. Elsewhere zodan.start_node_worker() starts it.",
        &RECOVERY_SLOTS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"zodan.recovery_slot_max_wal",
        c"How much WAL a recovery slot may hold.",
        c"Past it the slot is moved on, and what some member still lacks is given up. -1 is no limit.",
        &RECOVERY_SLOT_MAX_WAL,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"zodan.status_timeout",
        c"How long the status functions wait for the members of the cluster.",
        c"A member that has not answered by then is shown as down. It is for all members together, since they are asked at the same time.",
        &STATUS_TIMEOUT,
        100,
        600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"zodan.history_days",
        c"For how many days runs that have ended are kept in zodan.run and zodan.step.",
        c"The next CALL that changes something deletes older ones, save those that have left something to clean up. -1 keeps all.",
        &HISTORY_DAYS,
        -1,
        36_500,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"zodan.sequence_policy",
        c"How a join divides the values of sequences among the members of a cluster.",
        c"With copy a cluster that divides them already goes on to; one that does not gives the new node copies.",
        &SEQUENCE_POLICY,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"zodan.sequence_parts",
        c"Into how many parts the first join that divides sequences does so.",
        c"Every node that ever joins the cluster needs one. Strides become more when they run out, ranges do not.",
        &SEQUENCE_PARTS,
        2,
        1024,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"zodan.require_majority",
        c"Whether the membership changes only with a majority of the members reachable.",
        c"Off only when the others are lost for good: if they are alive, the cluster is then split.",
        &REQUIRE_MAJORITY,
        GucContext::Suset,
        GucFlags::default(),
    );
    failpoint::define();
    // SAFETY: a static C string; after this an unknown zodan.* setting is an error.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"zodan".as_ptr()) };
}

/// A number that another library's setting has in this session, in the unit that it is kept in; `None` where there
/// is no such setting.
pub fn integer(name: &CStr) -> Option<i64> {
    // SAFETY: returns null or a string that lives until the next call.
    let value = unsafe { pg_sys::GetConfigOption(name.as_ptr(), true, false) };
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, see above.
    unsafe { CStr::from_ptr(value) }.to_str().ok()?.parse().ok()
}

pub fn connect_timeout() -> Duration {
    Duration::from_millis(CONNECT_TIMEOUT.get() as u64)
}

/// `None` waits for ever.
pub fn no_progress_timeout() -> Option<Duration> {
    let limit = Duration::from_millis(NO_PROGRESS_TIMEOUT.get() as u64);
    (!limit.is_zero()).then_some(limit)
}

pub fn sequence_policy() -> registry::SequencePolicy {
    match SEQUENCE_POLICY.get() {
        SequencePolicy::Copy => registry::SequencePolicy::Copy,
        SequencePolicy::Stride => registry::SequencePolicy::Stride,
        SequencePolicy::Range => registry::SequencePolicy::Range,
    }
}

pub fn sequence_parts() -> i32 {
    SEQUENCE_PARTS.get()
}

pub fn require_majority() -> bool {
    REQUIRE_MAJORITY.get()
}

pub fn recovery_slots() -> bool {
    RECOVERY_SLOTS.get()
}

/// In bytes; `None` is no limit.
pub fn recovery_slot_max_wal() -> Option<u64> {
    u64::try_from(RECOVERY_SLOT_MAX_WAL.get())
        .ok()
        .map(|megabytes| megabytes << 20)
}

/// `None` is for ever.
pub fn history_days() -> Option<u32> {
    u32::try_from(HISTORY_DAYS.get()).ok()
}

pub fn status_timeout() -> Duration {
    Duration::from_millis(STATUS_TIMEOUT.get() as u64)
}

pub fn slot_timeout() -> Duration {
    Duration::from_millis(SLOT_TIMEOUT.get() as u64)
}

pub fn catch_up_from_source() -> bool {
    CATCH_UP_FROM_SOURCE.get()
}

pub fn copy_jobs() -> usize {
    match COPY_JOBS.get() {
        0 => std::thread::available_parallelism().map_or(2, |n| (n.get() / 2).clamp(2, 8)),
        jobs => jobs as usize,
    }
}
