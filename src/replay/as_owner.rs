//! Code that belongs to the owner of a table runs as that owner, as in PostgreSQL's own apply worker, in a session
//! that writes what another node has written: constraints, generated columns, expressions of indexes. Triggers do
//! not fire at all: what they did where the change was applied first is among the changes.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

thread_local! {
    /// Whether the hooks are there.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    /// The one trigger that fires: it keeps an older update from replacing a later one.
    static SPARED: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    /// The statement under way that runs as an owner, and who runs the session.
    static ACTING: Cell<*mut pg_sys::QueryDesc> = const { Cell::new(null_mut()) };
    static BEFORE: Cell<(pg_sys::Oid, c_int)> = const { Cell::new((pg_sys::InvalidOid, 0)) };
    static PLANNER: Cell<pg_sys::planner_hook_type> = const { Cell::new(None) };
    static START: Cell<pg_sys::ExecutorStart_hook_type> = const { Cell::new(None) };
    static END: Cell<pg_sys::ExecutorEnd_hook_type> = const { Cell::new(None) };
}

/// From now on this session writes as the owners of the tables. `spared` is the function of the trigger that fires.
pub fn arm(spared: pg_sys::Oid) {
    SPARED.set(spared);
    if ARMED.replace(true) {
        return;
    }
    // SAFETY: this process has one thread; what was hooked in before is called.
    unsafe {
        PLANNER.set(pg_sys::planner_hook);
        pg_sys::planner_hook = Some(plan);
        START.set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(start);
        END.set(pg_sys::ExecutorEnd_hook);
        pg_sys::ExecutorEnd_hook = Some(end);
    }
}

fn user() -> (pg_sys::Oid, c_int) {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: fills the two.
    unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut context) };
    (user, context)
}

/// Whether a statement of an owner's code asks, not one of ours. An error takes the user back, so this is true after
/// one, too.
fn is_nested() -> bool {
    user().1 & pg_sys::SECURITY_RESTRICTED_OPERATION as c_int != 0
}

/// Becomes the owner of a table; who it was before.
///
/// # Safety
/// The table is locked, and its id is that of the range table entry at `index` of `tables`.
unsafe fn become_owner(tables: *mut pg_sys::List, index: c_int) -> Option<(pg_sys::Oid, c_int)> {
    // SAFETY: as the caller says; list and entry belong to a statement that is being planned or run.
    unsafe {
        let entry: *mut pg_sys::RangeTblEntry = pg_sys::list_nth(tables, index - 1).cast();
        let relation = pg_sys::RelationIdGetRelation((*entry).relid);
        if relation.is_null() {
            return None;
        }
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::RelationClose(relation);
        let before = user();
        pg_sys::SetUserIdAndSecContext(
            owner,
            before.1
                | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION)
                    as c_int,
        );
        Some(before)
    }
}

/// Planning evaluates functions, too, where their arguments are constants.
#[pg_guard]
unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: called by the planner with a query that was parsed, whose tables are locked.
    unsafe {
        let ours = (*query).resultRelation != 0 && !is_nested();
        let before = match ours {
            true => become_owner((*query).rtable, (*query).resultRelation),
            false => None,
        };
        let planned = match PLANNER.get() {
            Some(next) => next(query, text, options, params),
            None => pg_sys::standard_planner(query, text, options, params),
        };
        if let Some((user, context)) = before {
            pg_sys::SetUserIdAndSecContext(user, context);
        }
        planned
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn start(desc: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: called by the executor with a statement that was planned, whose tables are locked.
    unsafe {
        let planned = (*desc).plannedstmt;
        let targets = (*planned).resultRelations;
        let ours = !targets.is_null() && !is_nested();
        if ours
            && let Some(before) = become_owner((*planned).rtable, pg_sys::list_nth_int(targets, 0))
        {
            BEFORE.set(before);
            ACTING.set(desc);
        }
        match START.get() {
            Some(next) => next(desc, flags),
            None => pg_sys::standard_ExecutorStart(desc, flags),
        }
        if ours {
            silence((*(*desc).estate).es_opened_result_relations);
        }
    }
}

/// Disables the triggers of the statement's own copies of its tables' descriptions.
///
/// # Safety
/// `tables` is that list of a statement that has been started.
unsafe fn silence(tables: *mut pg_sys::List) {
    // SAFETY: as the caller says; each entry has a copy of its own.
    unsafe {
        let count = if tables.is_null() {
            0
        } else {
            (*tables).length
        };
        for i in 0..count {
            let table: *mut pg_sys::ResultRelInfo = pg_sys::list_nth(tables, i).cast();
            let triggers = (*table).ri_TrigDesc;
            if triggers.is_null() {
                continue;
            }
            for n in 0..(*triggers).numtriggers {
                let trigger = (*triggers).triggers.add(n as usize);
                if (*trigger).tgfoid != SPARED.get() {
                    (*trigger).tgenabled = pg_sys::TRIGGER_DISABLED as c_char;
                }
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn end(desc: *mut pg_sys::QueryDesc) {
    // SAFETY: called by the executor with a statement that was started.
    unsafe {
        match END.get() {
            Some(next) => next(desc),
            None => pg_sys::standard_ExecutorEnd(desc),
        }
        if ACTING.get() == desc {
            ACTING.set(null_mut());
            let (user, context) = BEFORE.get();
            pg_sys::SetUserIdAndSecContext(user, context);
        }
    }
}
