//! `spock.health_report(...)` and `CALL spock.health_check(...)`.

use super::arguments;
use super::entry::{self, raised};
use crate::encoding::shown;
use crate::ereport;
use crate::error::{Error, Result, SqlState};
use crate::node::Member;
use crate::workflow::health::{self, Request, When};
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

#[pg_extern(sql = "")]
fn health_report(
    src_node_name: Option<&str>,
    src_dsn: Option<&str>,
    new_node_name: Option<&str>,
    new_node_dsn: Option<&str>,
    check_type: Option<&str>,
) -> raised::Result<
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
> {
    let outcomes = entry::function("spock.health_report", |reader| {
        let request = request(
            src_node_name,
            src_dsn,
            new_node_name,
            new_node_dsn,
            check_type,
        )?;
        health::check(reader, request)
    })?;
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
) -> raised::Result<()> {
    entry::function("CALL spock.health_check", |reader| {
        let request = request(
            src_node_name,
            src_dsn,
            new_node_name,
            new_node_dsn,
            check_type,
        )?;
        let when = request.when;
        let outcomes = health::check(reader, request)?;
        for line in health::lines(&outcomes, verb.unwrap_or(false)) {
            ereport::notice(&line);
        }
        health::verdict(&outcomes, when)
    })
}
