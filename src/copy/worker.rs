//! A copy worker: a background worker with a session of its own on the source, in the same snapshot as
//! all the others. It takes tasks until there are none left.

use super::check_constraints;
use super::guard::guarded;
use super::origin;
use super::pin::{File, pin};
use super::plan::{Range, Task};
use super::several;
use super::shared::{Count, Job, Shared, Slot};
use super::stream::Stream;
use super::tables::Table;
use crate::encoding;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Dsn, Rows, wait};
use crate::quote::literal;
use crate::worker;
use pgrx::prelude::*;
use std::ffi::{CString, c_int};
use std::ptr::null_mut;

/// Settings of the remote session beyond those of all our sessions: rows in the order in which they
/// lie, and no more processes over there than workers here.
const REMOTE: &str = "
SELECT set_config('synchronize_seqscans', 'off', false),
       set_config('max_parallel_workers_per_gather', '0', false)";

/// Settings of the local session beyond those.
const LOCAL: [(&str, &str); 2] = [
    // Tables of extensions have their triggers and foreign keys already, and are copied in any order.
    ("session_replication_role", "replica"),
    // Made durable by the next commit of the run itself; what a crash loses, it also undoes.
    ("synchronous_commit", "off"),
];

/// Functions that are called by generated columns and constraints, without their schema.
const UNFOUND: &str = "A function that a generated column, a constraint or an index calls finds another one by the search_path of a role only. \
     Write the schema into the function, or give it one: ALTER FUNCTION ... SET search_path = ...";

/// The argument of worker `number` of the segment `handle`.
pub fn argument(handle: u32, number: usize) -> u64 {
    (number as u64) << 32 | u64::from(handle)
}

/// The entry point that the leader registers.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zodan_copy_worker(argument: pg_sys::Datum) {
    worker::begin();
    let Some(shared) = Shared::attach(argument.value() as u32) else {
        return;
    };
    // SAFETY: once per process. The leader is connected to this database as this user, so what could
    // refuse the connection has let the leader pass.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let flags = pg_sys::BGWORKER_BYPASS_ALLOWCONN;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let flags = pg_sys::BGWORKER_BYPASS_ALLOWCONN | pg_sys::BGWORKER_BYPASS_ROLELOGINCHECK;
        pg_sys::BackgroundWorkerInitializeConnectionByOid(shared.database(), shared.user(), flags);
    }
    let Some(slot) = shared.claim((argument.value() as u64 >> 32) as usize) else {
        return;
    };
    match guarded(|| work(&shared, slot)) {
        Ok(()) => slot.finish(),
        Err(error) => {
            // SAFETY: after an error, whatever was open.
            unsafe { pg_sys::AbortOutOfAnyTransaction() };
            slot.fail(&error);
        }
    }
}

fn work(shared: &Shared, slot: &Slot) -> Result<()> {
    let job = shared.job()?;
    let dsn = Dsn::parse(&job.dsn).map_err(|e| Error::internal(e.problem()))?;
    set_up(&job)?;
    origin::attach(job.origin, job.origin_holder);
    show(&format!("COPY: connecting to node \"{}\"", job.node));
    let mut source = Reading::open(&job, &dsn)?;
    slot.served_by(source.conn.server_pid());
    loop {
        let numbers = shared.take(&job.tasks);
        if numbers.is_empty() {
            return Ok(());
        }
        let mut piece = Piece {
            job: &job,
            shared,
            slot,
            number: numbers.start,
        };
        let mut failed = source.copy(&mut piece, numbers.end).map_err(|error| {
            let task = &job.tasks[piece.number.min(numbers.end - 1)];
            in_table(error, &job.tables[task.table], &job.node)
        })?;
        // What something was in the way of, and what comes after it: each by itself.
        for number in piece.number..numbers.end {
            wait::check_interrupts()?;
            let task = &job.tasks[number];
            let table = &job.tables[task.table];
            slot.begin(number);
            show_copy(&job, table, "");
            if failed.is_none() {
                source.end_transaction()?;
            }
            source.in_transaction = false;
            let count = &shared.counts()[task.table];
            let rows = copy(
                &job,
                &dsn,
                &mut source.conn,
                count,
                table,
                task,
                failed.take(),
            )
            .map_err(|error| in_table(error, table, &job.node))?;
            ended(table, count, slot, rows);
        }
    }
}

/// A piece is stored.
fn ended(table: &Table, count: &Count, slot: &Slot, rows: u64) {
    if table.extension {
        slot.count_extension(rows);
    }
    count.end_task();
    slot.end();
}

/// The session on the source.
struct Reading {
    conn: Conn,
    /// It holds the tables of what was copied last.
    in_transaction: bool,
}

/// The pieces up to this one are copied.
struct Piece<'a> {
    job: &'a Job,
    shared: &'a Shared,
    slot: &'a Slot,
    number: usize,
}

impl Reading {
    fn open(job: &Job, dsn: &Dsn) -> Result<Self> {
        let opened = Conn::open_all_asking(&[(&job.node, dsn)], &[(REMOTE, vec![])]).pop();
        let (conn, set) = opened.unwrap_or_else(|| Err(Error::internal("no answer")))?;
        set.into_iter().collect::<Result<Vec<Rows>>>()?;
        Ok(Self {
            conn,
            in_transaction: false,
        })
    }

    fn end_transaction(&mut self) -> Result<()> {
        if std::mem::take(&mut self.in_transaction) {
            self.conn.query("ROLLBACK", &[])?;
        }
        Ok(())
    }

    /// Copies the pieces from `piece` up to `end` with one message, as far as nothing is in the way; what a piece has failed
    /// with. The source lets go of the tables with the next message only, when all that was stored is committed.
    fn copy(&mut self, piece: &mut Piece, end: usize) -> Result<Option<Error>> {
        let Piece {
            job, shared, slot, ..
        } = *piece;
        slot.begin(piece.number);
        show_copy(job, &job.tables[job.tasks[piece.number].table], "");
        let tasks = &job.tasks[piece.number..end];
        let message = several::message(job, tasks, self.in_transaction);
        self.in_transaction = true;
        let mut copies = self.conn.copies(&message)?;
        let planned = copies.rows().and_then(|rows| {
            let planned = rows.iter().map(|row| row.get("as_planned"));
            planned.collect::<Result<Vec<bool>>>()
        });
        match planned {
            Ok(planned) if planned.iter().all(|as_planned| *as_planned) => {}
            Err(error @ (Error::Interrupted { .. } | Error::Lost { .. })) => return Err(error),
            // Somebody holds one of the tables, or it is not what it was.
            _ => return Ok(None),
        }
        while piece.number < end {
            wait::check_interrupts()?;
            let task = &job.tasks[piece.number];
            let (table, count) = (&job.tables[task.table], &shared.counts()[task.table]);
            if count.is_again() {
                return Ok(None);
            }
            slot.begin(piece.number);
            show_copy(job, table, "");
            let stored = copies.next().and_then(|copy| {
                let mut stream = Stream::new(copy, count, table);
                let stored = store(&mut stream, table, false);
                if stored.is_err() {
                    stream.take_back();
                }
                stored
            });
            match stored {
                Ok(rows) => ended(table, count, slot, rows),
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(error) if is_in_the_way(&error) => {
                    drop(copies);
                    check_constraints::count_taken_back(table, count)?;
                    return Ok(None);
                }
                Err(error) => return Ok(Some(error)),
            }
            piece.number += 1;
        }
        copies.end().map(|()| None)
    }
}

/// Somebody on the source holds what the copy of a table needs beside the table.
fn is_in_the_way(error: &Error) -> bool {
    let states = [SqlState::LOCK_NOT_AVAILABLE, SqlState::parse("40P01")];
    matches!(error, Error::Remote(remote) if states.contains(&remote.state))
}

/// Copies a piece of a table. Where what may be a CHECK constraint stands in the way, once more without those. It may have
/// `failed` already.
fn copy(
    job: &Job,
    dsn: &Dsn,
    conn: &mut Conn,
    count: &Count,
    table: &Table,
    task: &Task,
    failed: Option<Error>,
) -> Result<u64> {
    if count.is_again() && failed.is_none() {
        return Ok(0);
    }
    let mut claimed = false;
    let outcome = match failed {
        Some(error) => Err(error),
        None => copy_once(job, dsn, conn, count, table, task, &mut claimed),
    };
    let error = match outcome {
        Err(error) if check_constraints::may_be_one(&error) => error,
        answer => return answer,
    };
    // SAFETY: after an error, whatever was open.
    unsafe { pg_sys::AbortOutOfAnyTransaction() };
    if !conn.is_usable() || !check_constraints::suspend(table, count)? {
        return Err(error);
    }
    conn.query("ROLLBACK", &[])?;
    show_copy(job, table, " without its CHECK constraints");
    copy_once(job, dsn, conn, count, table, task, &mut claimed)
}

/// Copies a piece of a table, or all of it again where its file has changed between two pieces: what
/// had been stored of it is thrown away. Pieces of the old file are committed here before the source lets
/// go of the table, so that nobody stores one of them any more. `claimed` says that it is this worker which
/// copies all of it again.
fn copy_once(
    job: &Job,
    dsn: &Dsn,
    conn: &mut Conn,
    count: &Count,
    table: &Table,
    task: &Task,
    claimed: &mut bool,
) -> Result<u64> {
    let file = pin(job, dsn, conn, table)?;
    let again = file != File::Planned && task.range != Range::Whole;
    if again && !*claimed {
        *claimed = count.claim_again();
        if !*claimed {
            conn.query("ROLLBACK", &[])?;
            return Ok(0);
        }
    }
    // A file that was filled elsewhere may have row versions that the snapshot sees, too.
    if matches!(file, File::Moved | File::Newer) {
        count.leave_unproved();
    }
    if again {
        show_copy(job, table, " again, its file has changed");
        count.discard();
    }
    let range = if again { Range::Whole } else { task.range };
    // The rows come in the encoding of both databases, the statement is UTF-8 still.
    let copy_out = format!(
        "SET LOCAL client_encoding = {}; {}",
        literal(&encoding::of_database()),
        table.copy_out(range)
    );
    let mut stream = Stream::new(conn.copy_out(&copy_out)?, count, table);
    let stored = store(&mut stream, table, again);
    if stored.is_err() {
        stream.take_back();
    }
    drop(stream);
    let rows = stored?;
    conn.query("COMMIT", &[])?;
    Ok(rows)
}

/// Stores what the stream brings in a transaction of its own, and returns how many rows that are.
/// `instead` of all that is there already.
fn store(stream: &mut Stream<'_>, table: &Table, instead: bool) -> Result<u64> {
    // SAFETY: the frame of a transaction as background workers make it. On an error the caller aborts
    // the transaction, which closes the relation and gives the user back.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let lock = if instead {
            pg_sys::AccessExclusiveLock
        } else {
            pg_sys::RowExclusiveLock
        };
        let relation = table.open(lock)?;
        if instead {
            empty(relation);
        }
        let mut user = pg_sys::InvalidOid;
        let mut context = 0;
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        // Constraints and generated columns call functions that any owner may have written. They
        // run as the owner, as they do in logical replication, not as the superuser that we are.
        pg_sys::SetUserIdAndSecContext(
            (*(*relation).rd_rel).relowner,
            context
                | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION)
                    as c_int,
        );
        let rows = stream.copy_into(relation, table)?;
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        pg_sys::PopActiveSnapshot();
        origin::set_commit_timestamp();
        pg_sys::CommitTransactionCommand();
        // Autovacuum learns of the table while the copy goes on, and analyzes it.
        pg_sys::pgstat_report_stat(true);
        Ok(rows)
    }
}

/// TRUNCATE ONLY without a trace in what is decoded, of a table that nothing refers to yet.
///
/// # Safety
/// In a transaction; the relation is a table, open and locked exclusively.
unsafe fn empty(relation: pg_sys::Relation) {
    // SAFETY: lists of one, which live as long as the transaction.
    unsafe {
        let relations = pg_sys::lappend(null_mut(), relation.cast());
        let oids = pg_sys::lappend_oid(null_mut(), (*relation).rd_id);
        pg_sys::ExecuteTruncateGuts(
            relations,
            oids,
            null_mut(),
            pg_sys::DropBehavior::DROP_RESTRICT,
            false,
            #[cfg(not(feature = "pg15"))]
            false,
        );
        pg_sys::CommandCounterIncrement();
    }
}

fn set_up(job: &Job) -> Result<()> {
    // SAFETY: the settings need no transaction, but the catalog lookups of some do.
    unsafe {
        pg_sys::StartTransactionCommand();
        set("client_encoding", &encoding::of_database())?;
        for (name, value) in LOCAL {
            set(name, value)?;
        }
        set("zodan.connect_timeout", &job.connect_timeout.to_string())?;
        set("search_path", &job.search_path)?;
        pg_sys::CommitTransactionCommand();
    }
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    let (name, value) = (c_string(name)?, encoding::to_server(value)?);
    // SAFETY: C strings, copied by the callee.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
    Ok(())
}

/// That the table is being copied, and `how` beside the usual.
fn show_copy(job: &Job, table: &Table, how: &str) {
    show(&format!(
        "COPY {} FROM node \"{}\"{how}",
        table.label(),
        job.node
    ));
}

/// What `pg_stat_activity.query` shows.
fn show(text: &str) {
    if let Ok(text) = c_string(&encoding::shown(text)) {
        // SAFETY: a C string, copied by the callee.
        unsafe {
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr())
        };
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::internal("a name holds a zero byte"))
}

fn in_table(error: Error, table: &Table, node: &str) -> Error {
    let hint = match error.sqlstate() {
        SqlState::UNDEFINED_FUNCTION => Some(UNFOUND.to_owned()),
        _ => error.hint(),
    };
    Error::Local {
        state: error.sqlstate(),
        message: format!(
            "could not copy table {} of node \"{node}\": {error}",
            table.label()
        ),
        detail: error.detail(),
        hint,
    }
}
