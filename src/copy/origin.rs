//! The replication origin under which rows are copied, so that logical replication does not send them
//! back to where they come from.

use crate::error::Result;
use crate::node::{Local, Query};
use pgrx::pg_sys;

/// In microseconds since 2000: older than any change of an application, whatever the clocks say. So a recovery knows that
/// all members have had copied rows, and every change of one is the later one. Where a row may be newer than a change
/// that is still on its way, it gets its own time later, by
/// [`CopyRules::origins_of_copied_rows`](crate::engine::CopyRules::origins_of_copied_rows).
const UNIX_EPOCH: i64 = -946_684_800_000_000;

/// From PostgreSQL 16 on the processes of one leader can share an origin.
pub const SHARED: bool = cfg!(not(feature = "pg15"));

/// An origin that exists and, where it can be shared, is held by this session for its workers.
pub struct Origin {
    id: pg_sys::RepOriginId,
}

impl Origin {
    /// Finds or creates the origin. Dropping it is up to the caller: others may build on it.
    pub fn hold(mut local: &Local, name: &str) -> Result<Self> {
        let find = "SELECT roident::bigint FROM pg_catalog.pg_replication_origin WHERE roname = $1";
        let create = "SELECT pg_catalog.pg_replication_origin_create($1)";
        let id = |sql: &str| Query::new(sql, &[name], |row| row.only());
        let id = match id(find).first(&mut local)? {
            Some(id) => id,
            None => id(create).one(&mut local)?,
        };
        if SHARED {
            local.query(
                "SELECT pg_catalog.pg_replication_origin_session_setup($1)",
                &[name],
            )?;
            // SAFETY: the session variable that commit records take their origin from. The origin is
            // held for the workers; what this session commits meanwhile is not a copy of anything.
            unsafe { pg_sys::replorigin_session_origin = pg_sys::InvalidRepOriginId as _ };
        }
        Ok(Self { id })
    }

    pub fn id(&self) -> pg_sys::RepOriginId {
        self.id
    }

    /// The process that workers have to name to share the origin.
    pub fn holder(&self) -> Option<i32> {
        // SAFETY: set when the backend starts.
        SHARED.then_some(unsafe { pg_sys::MyProcPid })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if SHARED {
            // SAFETY: set up in `hold` and not reset since. The workers have ended by now.
            unsafe { pg_sys::replorigin_session_reset() };
        }
    }
}

/// Marks everything that this process commits from now on. For a worker, which keeps it until it ends.
pub fn attach(id: pg_sys::RepOriginId, holder: Option<i32>) {
    // SAFETY: the worker is connected to a database. An origin that is held by somebody else raises.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            let _ = holder;
            pg_sys::replorigin_session_setup(id);
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::replorigin_session_setup(id, holder.unwrap_or(0));
        pg_sys::replorigin_session_origin = id;
    }
}

/// Dates the transaction under way, of copied rows, back to [`UNIX_EPOCH`].
pub fn set_commit_timestamp() {
    // SAFETY: session variables that the commit record is made from. Without a time there the commit would have one
    // until a crash only: redo takes it from the record.
    unsafe {
        pg_sys::replorigin_session_origin_lsn = 0;
        pg_sys::replorigin_session_origin_timestamp = UNIX_EPOCH;
    }
}
