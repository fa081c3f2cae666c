//! `spock.health_report(...)` and `CALL spock.health_check(...)`.

use super::arguments;
use crate::encoding::shown;
use crate::error::{Error, Result, SqlState};
use crate::node::{HiddenContext, Member, Reader, hide_statement};
use crate::workflow::findings::Outcome;
use crate::workflow::health::{self, Request, When};
use crate::{ereport, sqlstate};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

fn request(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
    check_type: Option<&str>,
) -> Result<Request> {
    let when = match arguments::given("check_type", check_type)? {
        "pre" => When::Before,
        "post" => When::After,
        other => {
            return Err(Error::Argument {
                argument: "check_type",
                problem: format!("is \"{other}\", which is not a type of check"),
                hint: "Give pre or post.".into(),
                state: SqlState::INVALID_PARAMETER_VALUE,
            });
        }
    };
    let source = Member {
        name: arguments::node_name("src_node_name", src_node_name)?,
        dsn: arguments::dsn("src_dsn", src_dsn)?,
    };
    let new = match (new_node_name, new_node_dsn) {
        (None, None) => None,
        (name, dsn) => Some(Member {
            name: arguments::node_name("new_node_name", name)?,
            dsn: arguments::dsn("new_node_dsn", dsn)?,
        }),
    };
    Ok(Request { source, new, when })
}

/// What both have in common: the text hidden, which may hold passwords, and a superuser.
fn checked(
    name: &str,
    request: impl FnOnce() -> Result<Request>,
    then: impl FnOnce(&[Outcome], When) -> Result<()>,
) -> std::result::Result<Vec<Outcome>, ErrorReport> {
    let context = HiddenContext::hide();
    hide_statement(&format!("{name}(...)"));
    let outcomes = (|| {
        arguments::superuser_for(name)?;
        let request = request()?;
        let when = request.when;
        let outcomes = health::check(&Reader::enter(name)?, request)?;
        then(&outcomes, when)?;
        Ok(outcomes)
    })()
    .inspect_err(|e: &Error| sqlstate::keep(e.sqlstate()))?;
    context.show();
    Ok(outcomes)
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)] // the columns
fn health_report(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
    check_type: Option<&str>,
) -> std::result::Result<
    TableIterator<
        'static,
        (
            name!(node, String),
            name!(check, &'static str),
            name!(status, &'static str),
            name!(found, String),
            name!(wanted, String),
            name!(remedy, String),
            name!(statement, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let outcomes = checked(
        "spock.health_report",
        || {
            request(
                src_node_name,
                src_dsn,
                new_node_name,
                new_node_dsn,
                check_type,
            )
        },
        |_, _| Ok(()),
    )?;
    Ok(TableIterator::new(outcomes.into_iter().map(|o| {
        (
            o.node,
            o.check,
            o.status.label(),
            shown(&o.found).into_owned(),
            o.wanted,
            shown(&o.remedy).into_owned(),
            o.statement,
        )
    })))
}

#[pg_extern(sql = "")]
fn health_check(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
    check_type: Option<&str>,
    verb: Option<bool>,
) -> std::result::Result<(), ErrorReport> {
    checked(
        "CALL spock.health_check",
        || {
            request(
                src_node_name,
                src_dsn,
                new_node_name,
                new_node_dsn,
                check_type,
            )
        },
        |outcomes, when| {
            for line in health::lines(outcomes, verb.unwrap_or(false)) {
                ereport::notice(&line);
            }
            health::verdict(outcomes, when)
        },
    )?;
    Ok(())
}
