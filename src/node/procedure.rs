//! Transaction control for procedures: a token without which nothing local can run or commit.

use crate::encoding;
use crate::environment::{self, Between};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Rows;
use crate::sqlstate;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};

thread_local! {
    // What pg_stat_activity and the server log show instead of the CALL, whose text may hold
    // passwords. The server keeps a pointer to it for as long as the statement runs.
    static SHOWN: std::cell::RefCell<CString> = std::cell::RefCell::default();
}

/// The right to run statements on this server and to commit them. It can only be had from a CALL
/// outside a transaction block, and owns that call's non-atomic SPI level.
pub struct Procedure {
    /// Put back after the last statement.
    _between: Between,
    _single_thread: PhantomData<*mut ()>,
}

impl Procedure {
    /// # Safety
    /// `fcinfo` must be the call info of the procedure that is running.
    pub unsafe fn enter(fcinfo: pg_sys::FunctionCallInfo, name: &str) -> Result<Self> {
        hide_statement(&format!("CALL {name}(...)"));
        // SAFETY: says the caller.
        if unsafe { is_atomic(fcinfo) } {
            return Err(Error::Refused {
                state: SqlState::ACTIVE_SQL_TRANSACTION,
                message: format!("CALL {name} cannot run inside a transaction block"),
                detail: Some("The procedure commits after each of its steps.".into()),
                hint: "Run the CALL on its own: outside BEGIN and COMMIT, outside functions, and with autocommit on.".into(),
            });
        }
        // SAFETY: paired with SPI_finish in drop.
        let status = unsafe { pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32) };
        if status != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(Error::internal(format!(
                "SPI_connect_ext returned {status}"
            )));
        }
        end_default_limit();
        let between = Between::begin();
        // SAFETY: as in `execute`.
        unsafe { pg_sys::SPI_commit() };
        Ok(Self {
            _between: between,
            _single_thread: PhantomData,
        })
    }

    /// Runs one statement in a transaction of its own. On an error nothing of it remains.
    pub fn execute(&mut self, sql: &str, params: &[&str]) -> Result<Rows> {
        let answer = sqlstate::watch(|| in_subtransaction(|| execute(sql, params)));
        // SAFETY: on the non-atomic level that `enter` opened; the next transaction starts at once,
        // so no transaction id is held while remote calls are made.
        unsafe { pg_sys::SPI_commit() };
        answer
    }

    /// Runs `body` in a transaction of its own with the rights of `owner` and no others, and with `search_path`: it
    /// calls what users have written, which writes no rows. On an error nothing of it remains.
    pub fn act_as<T>(
        &mut self,
        owner: pg_sys::Oid,
        search_path: &str,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let answer = sqlstate::watch(|| {
            in_subtransaction(|| {
                // SAFETY: inside a transaction.
                unsafe { environment::set_locally() };
                let set = "SELECT pg_catalog.set_config('search_path', $1, true),
                                  pg_catalog.set_config('transaction_read_only', 'on', true)";
                run(set, &[search_path], false)?;
                let (mut user, mut context) = (pg_sys::InvalidOid, 0);
                // SAFETY: after an error the end of the subtransaction gives the user back.
                unsafe {
                    pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
                    pg_sys::SetUserIdAndSecContext(
                        owner,
                        context
                            | (pg_sys::SECURITY_LOCAL_USERID_CHANGE
                                | pg_sys::SECURITY_RESTRICTED_OPERATION)
                                as c_int,
                    );
                    let answer = body()?;
                    pg_sys::SetUserIdAndSecContext(user, context);
                    Ok(answer)
                }
            })
        });
        // SAFETY: as in `execute`.
        unsafe { pg_sys::SPI_commit() };
        answer
    }
}

impl Drop for Procedure {
    fn drop(&mut self) {
        // SAFETY: closes the level that `enter` opened.
        unsafe { pg_sys::SPI_finish() };
    }
}

unsafe fn is_atomic(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: a live call info; the node tag says what the context is.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_CallContext {
            return true; // SELECT, trigger, fast path
        }
        (*context.cast::<pg_sys::CallContext>()).atomic
    }
}

/// What PL/pgSQL and SPI add to messages as CONTEXT, put aside: called from a DO block it is the
/// text of the CALL, which may hold passwords. An error is to be raised without it, so only success
/// puts it back; where an error is caught, the server does.
pub struct HiddenContext(*mut pg_sys::ErrorContextCallback);

impl HiddenContext {
    pub fn hide() -> Self {
        // SAFETY: a stack of frames that outlive the procedure.
        unsafe { Self((&raw mut pg_sys::error_context_stack).replace(null_mut())) }
    }

    pub fn show(self) {
        // SAFETY: as above; the frames are still there.
        unsafe { pg_sys::error_context_stack = self.0 };
    }
}

/// Shows `by` instead of the statement that the client sent, whose text may hold passwords.
pub fn hide_statement(by: &str) {
    blot_out(by);
    show_activity(by);
}

/// Overwrites the text of the statement that the client sent, which may hold passwords. The server
/// still has uses for it: log_min_duration_statement and pg_stat_statements read it at the end.
fn blot_out(by: &str) {
    // SAFETY: in a client's backend the text lies in the message that was received or in a plan
    // cache entry, both writable memory of this process; what was parsed from it are copies. It
    // keeps its length, since others remember that.
    unsafe {
        let text = pg_sys::debug_query_string.cast_mut();
        if pg_sys::MyBackendType != pg_sys::BackendType::B_BACKEND || text.is_null() {
            return;
        }
        let len = CStr::from_ptr(text).count_bytes();
        let text = std::slice::from_raw_parts_mut(text.cast::<u8>(), len);
        text.fill(b' ');
        let kept = by.len().min(len);
        text[..kept].copy_from_slice(&by.as_bytes()[..kept]);
    }
}

/// What `pg_stat_activity.query` shows of this session from now on.
pub fn show_activity(text: &str) {
    let text = encoding::shown(text).replace('\0', "");
    let text = CString::new(text).unwrap_or_default();
    SHOWN.with_borrow_mut(|shown| {
        *shown = text;
        // SAFETY: the string lives until it is replaced here, and the server resets its pointer
        // when the statement ends.
        unsafe {
            pg_sys::debug_query_string = shown.as_ptr();
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, shown.as_ptr());
        }
    });
}

/// An ERROR in `body` becomes a value, and the transaction goes on as if it had not been tried.
fn in_subtransaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: the pattern of PL/pgSQL's exception blocks: memory context and resource owner are put
    // back on both paths.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(null());
        pg_sys::MemoryContextSwitchTo(context);
        let restore = |committed: bool| {
            if committed {
                pg_sys::ReleaseCurrentSubTransaction();
            } else {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
            }
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
        };
        let body = std::panic::AssertUnwindSafe(body);
        let restore = std::panic::AssertUnwindSafe(restore);
        let restore = &restore;
        PgTryBuilder::new(std::panic::AssertUnwindSafe(move || {
            let body = body;
            let answer = (body.0)();
            (restore.0)(answer.is_ok());
            answer
        }))
        .catch_others(move |cause| {
            pg_sys::MemoryContextSwitchTo(context);
            (restore.0)(false);
            Err(sqlstate::caught(cause))
        })
        .execute()
    }
}

fn execute(sql: &str, params: &[&str]) -> Result<Rows> {
    // SAFETY: inside a transaction.
    unsafe { environment::set_locally() };
    run(sql, params, false)
}

/// A statement_timeout that the user has set for this session ends the CALL. One that is set for the role, the database
/// or the server is meant for statements of another kind, and would end it in the middle of a copy.
fn end_default_limit() {
    unsafe extern "C-unwind" {
        fn disable_timeout(id: c_int, keep_indicator: bool);
    }
    /// Of the server's `TimeoutId`.
    const STATEMENT_TIMEOUT: c_int = 3;
    // SAFETY: reads a setting, and stops a clock of this process.
    unsafe {
        if pg_sys::StatementTimeout > 0 && !is_of_session(c"statement_timeout") {
            disable_timeout(STATEMENT_TIMEOUT, false);
        }
    }
}

/// Whether a setting is other than a new session of the user would have it.
unsafe fn is_of_session(name: &CStr) -> bool {
    // SAFETY: a setting that there is; texts that the server owns.
    unsafe {
        let now = pg_sys::GetConfigOption(name.as_ptr(), false, false);
        let reset = pg_sys::GetConfigOptionResetString(name.as_ptr());
        // The first lies in a buffer that is used again.
        let now = CStr::from_ptr(now).to_owned();
        now.as_c_str() != CStr::from_ptr(reset)
    }
}

/// Runs one statement on the innermost SPI level.
pub(super) fn run(sql: &str, params: &[&str], read_only: bool) -> Result<Rows> {
    let text = encoding::to_server(sql)?;
    let mut types = vec![pg_sys::TEXTOID; params.len()];
    let mut values: Vec<pg_sys::Datum> = params
        .iter()
        .map(|p| {
            encoding::to_server(p)?
                .as_bytes() // a text as a bytea has it
                .into_datum()
                .ok_or_else(|| Error::internal("a parameter is null"))
        })
        .collect::<Result<_>>()?;
    // SAFETY: arrays of the same length; rows are copied out before the table is freed.
    unsafe {
        let status = pg_sys::SPI_execute_with_args(
            text.as_ptr(),
            params.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            null(),
            read_only,
            0,
        );
        if status < 0 {
            let why = CStr::from_ptr(pg_sys::SPI_result_code_string(status)).to_string_lossy();
            return Err(Error::internal(format!("{why}: {sql}")));
        }
        // A CALL may run for days and ask every second.
        for value in values {
            pg_sys::pfree(value.cast_mut_ptr());
        }
        let affected = pg_sys::SPI_processed;
        let table = pg_sys::SPI_tuptable;
        let (mut names, mut rows) = (vec![], vec![]);
        if !table.is_null() {
            let columns = (*(*table).tupdesc).natts;
            names = (1..=columns)
                .map(|c| copied(pg_sys::SPI_fname((*table).tupdesc, c)))
                .collect::<Result<Vec<_>>>()?;
            for i in 0..(*table).numvals {
                let tuple = *(*table).vals.add(i as usize);
                rows.push(
                    (1..=columns)
                        .map(|c| value(tuple, (*table).tupdesc, c))
                        .collect::<Result<Vec<_>>>()?,
                );
            }
            pg_sys::SPI_freetuptable(table);
        }
        Ok(Rows::new(names, rows, affected))
    }
}

unsafe fn value(
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
    column: i32,
) -> Result<Option<String>> {
    // SAFETY: a live tuple and its descriptor; the text is copied and freed.
    unsafe {
        let text: *mut c_char = pg_sys::SPI_getvalue(tuple, desc, column);
        if text.is_null() {
            return Ok(None);
        }
        copied(text).map(Some)
    }
}

/// # Safety
/// `text` is one that the server has made for the caller.
unsafe fn copied(text: *mut c_char) -> Result<String> {
    // SAFETY: says the caller; it is freed once.
    unsafe {
        let owned = encoding::from_server(CStr::from_ptr(text))?;
        pg_sys::pfree(text.cast());
        Ok(owned)
    }
}
