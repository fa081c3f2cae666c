//! `CALL spock.recover_run(...)` and its parts.

use super::arguments;
use super::entry::{self, raised};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::replay::{as_owner, commit_position as position_of_commit};
use crate::workflow::recover::{self, Request};
use pgrx::prelude::*;
use pgrx::{AnyElement, pg_sys};

pub fn nodes(
    failed: Option<&str>,
    source: Option<&str>,
    source_dsn: Option<&str>,
    target: Option<&str>,
    target_dsn: Option<&str>,
) -> Result<Request> {
    use arguments::{dsn, node_name, optional};
    Ok(Request {
        failed: node_name("failed_node_name", failed)?,
        source: optional("source_node_name", source, node_name)?,
        source_dsn: optional("source_dsn", source_dsn, dsn)?,
        target: optional("target_node_name", target, node_name)?,
        target_dsn: optional("target_dsn", target_dsn, dsn)?,
        ..Request::default()
    })
}

/// As the type pg_lsn has it.
pub fn lsn(raw: Option<i64>) -> Option<Lsn> {
    raw.map(|raw| Lsn(raw.cast_unsigned()))
}

#[pg_extern(sql = "")]
fn recover_run(
    failed_node_name: Option<&str>,
    source_node_name: Option<&str>,
    source_dsn: Option<&str>,
    target_node_name: Option<&str>,
    target_dsn: Option<&str>,
    stop_lsn: Option<i64>,
    skip_lsn: Option<i64>,
    stop_timestamp: Option<i64>,
    verb: Option<bool>,
    force: Option<bool>,
    verify: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<()> {
    entry::procedure(fcinfo, "spock.recover_run", |local| {
        let request = Request {
            stop_lsn: lsn(stop_lsn),
            skip_lsn: lsn(skip_lsn),
            stop_timestamp,
            verbose: verb.unwrap_or(false),
            force: force.unwrap_or(false),
            verify: verify.unwrap_or(false),
            ..nodes(
                failed_node_name,
                source_node_name,
                source_dsn,
                target_node_name,
                target_dsn,
            )?
        };
        recover::recover_run(local, request)
    })
}

#[pg_extern(sql = "")]
fn recover_precheck(
    failed_node_name: Option<&str>,
    source_node_name: Option<&str>,
    source_dsn: Option<&str>,
    target_node_name: Option<&str>,
    target_dsn: Option<&str>,
    verb: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<Option<AnyElement>> {
    let needed = entry::procedure(fcinfo, "spock.recover_precheck", |local| {
        let request = Request {
            verbose: verb.unwrap_or(false),
            ..nodes(
                failed_node_name,
                source_node_name,
                source_dsn,
                target_node_name,
                target_dsn,
            )?
        };
        recover::recovery_needed(local, request)
    })?;
    Ok(out(fcinfo, needed.into_datum())?)
}

#[pg_extern(sql = "")]
fn recover_phase_clone(
    failed_node_name: Option<&str>,
    source_node_name: Option<&str>,
    source_dsn: Option<&str>,
    target_node_name: Option<&str>,
    target_dsn: Option<&str>,
    stop_lsn: Option<i64>,
    skip_lsn: Option<i64>,
    stop_timestamp: Option<i64>,
    verb: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<Option<AnyElement>> {
    let clone = entry::procedure(fcinfo, "spock.recover_phase_clone", |local| {
        let request = Request {
            stop_lsn: lsn(stop_lsn),
            skip_lsn: lsn(skip_lsn),
            stop_timestamp,
            verbose: verb.unwrap_or(false),
            ..nodes(
                failed_node_name,
                source_node_name,
                source_dsn,
                target_node_name,
                target_dsn,
            )?
        };
        recover::phase_clone(local, request)
    })?;
    Ok(out(fcinfo, clone.into_datum())?)
}

#[pg_extern(sql = "")]
fn recover_finalize(
    target_dsn: Option<&str>,
    target_node_name: Option<&str>,
    failed_node_name: Option<&str>,
    source_dsn: Option<&str>,
    cloned_slot_name: Option<&str>,
    verb: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> raised::Result<()> {
    entry::procedure(fcinfo, "spock.recover_finalize", |local| {
        let request = Request {
            verbose: verb.unwrap_or(false),
            ..nodes(
                failed_node_name,
                None,
                source_dsn,
                target_node_name,
                target_dsn,
            )?
        };
        let clone = arguments::given("cloned_slot_name", cloned_slot_name)?;
        recover::finalize(local, request, clone)
    })
}

/// The row of a procedure with one OUT argument.
fn out(
    fcinfo: pg_sys::FunctionCallInfo,
    value: Option<pg_sys::Datum>,
) -> Result<Option<AnyElement>> {
    // SAFETY: our own call info; the tuple is made in the memory of the caller, with as many values as
    // the declaration in sql/recovery.sql has OUT arguments.
    unsafe {
        let mut row = std::ptr::null_mut();
        let class = pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut row);
        if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE || (*row).natts != 1 {
            return Err(Error::internal(
                "the procedure is not declared with one OUT argument",
            ));
        }
        let row = pg_sys::BlessTupleDesc(row);
        let mut nulls = [value.is_none()];
        let mut values = [value.unwrap_or_else(|| pg_sys::Datum::from(0))];
        let tuple = pg_sys::heap_form_tuple(row, values.as_mut_ptr(), nulls.as_mut_ptr());
        let datum = pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data);
        Ok(AnyElement::from_polymorphic_datum(
            datum,
            false,
            pg_sys::RECORDOID,
        ))
    }
}

/// From here on this session writes as the owners of the tables, and triggers do not fire but zodan's own.
#[pg_extern(sql = "")]
fn replay_as_owners() -> raised::Result<bool> {
    entry::superuser_function("zodan.replay_as_owners", || {
        // Without an id of its own the transaction leaves no trace under the origin of the session.
        let spared = Spi::connect(|client| {
            let sql =
                "SELECT pg_catalog.to_regprocedure('zodan.last_update_wins()')::pg_catalog.oid";
            client.select(sql, None, &[])?.first().get::<pg_sys::Oid>(1)
        });
        let spared = spared.map_err(|e: pgrx::spi::Error| Error::internal(e.to_string()))?;
        as_owner::arm(spared.unwrap_or(pg_sys::InvalidOid));
        Ok(true)
    })
}

/// Commits the transaction under way as of that position of the session's origin and that time.
#[pg_extern(sql = "")]
fn commit_position(position: i64, at: i64) -> raised::Result<bool> {
    entry::superuser_function("zodan.commit_position", || {
        // SAFETY: reads the session's variable.
        let origin = unsafe { pg_sys::replorigin_session_origin };
        if origin == pg_sys::InvalidRepOriginId as pg_sys::RepOriginId {
            return Err(no_origin("no replication origin is set up in this session"));
        }
        position_of_commit::set(position as u64, at);
        Ok(true)
    })
}

fn no_origin(problem: &str) -> Error {
    Error::refused(
        crate::error::SqlState::NOT_IN_PREREQUISITE_STATE,
        problem,
        "Call pg_replication_origin_session_setup first.",
    )
}

/// Marks what this session commits as of `origin`.
#[pg_extern(sql = "")]
fn session_origin(origin: i32) -> raised::Result<bool> {
    let origin = pg_sys::RepOriginId::try_from(origin)
        .map_err(|_| no_origin("the number is none of an origin"))?;
    // SAFETY: the session's variables that commit records take their origin from; with an origin set up,
    // whose progress a commit advances whatever the mark is.
    unsafe {
        if pg_sys::replorigin_session_origin == pg_sys::InvalidRepOriginId as pg_sys::RepOriginId {
            return Err(no_origin("no replication origin is set up in this session").into());
        }
        pg_sys::replorigin_session_origin = origin;
    }
    Ok(true)
}
