//! `spock.add_node_plan(...)`, `spock.remove_node_plan(...)`, `spock.recover_plan(...)`.

use super::entry::{self, raised};
use super::{add_node, recover, remove_node};
use crate::run::Act;
use crate::workflow::join::Request;
use crate::workflow::plan::Planned;
use crate::workflow::{join, recover as recovery, remove};
use pgrx::JsonB;
use pgrx::prelude::*;

type Row = (
    i32,
    i32,
    String,
    String,
    &'static str,
    &'static str,
    Option<i64>,
    Option<i64>,
    Option<f64>,
);

fn row((i, planned): (usize, Planned)) -> Row {
    let Planned { step, estimate } = planned;
    let estimate = estimate.as_ref();
    (
        i as i32 + 1,
        step.phase() as i32,
        step.node().to_owned(),
        step.action().to_string(),
        step.action().why(),
        step.action().undo_words(),
        estimate.and_then(|e| e.rows).map(|rows| rows as i64),
        estimate.map(|e| e.bytes as i64),
        estimate.map(|e| e.time.as_secs_f64()),
    )
}

/// A function with the columns of [`Row`], which have to be written where pgrx sees them.
macro_rules! plan_function {
    (fn $name:ident($($arguments:tt)*) { $sql_name:literal, $plan:expr }) => {
        #[pg_extern(sql = "")]
        fn $name($($arguments)*) -> raised::Result<
            TableIterator<
                'static,
                (
                    name!(step, i32),
                    name!(phase, i32),
                    name!(node, String),
                    name!(action, String),
                    name!(reason, &'static str),
                    name!(undo, &'static str),
                    name!(rows, Option<i64>),
                    name!(bytes, Option<i64>),
                    name!(seconds, Option<f64>),
                ),
            >,
        > {
            let plan = entry::function($sql_name, $plan)?;
            Ok(TableIterator::new(plan.into_iter().enumerate().map(row)))
        }
    };
}

plan_function! {
    fn add_node_plan(
        src_node_name: Option<&str>,
        src_dsn: Option<&str>,
        new_node_name: Option<&str>,
        new_node_dsn: Option<&str>,
        _verb: Option<bool>,
        _new_node_location: Option<&str>,
        _new_node_country: Option<&str>,
        _new_node_info: Option<JsonB>,
        _verify: Option<bool>,
        readers: Option<Vec<Option<String>>>,
    ) {
        "spock.add_node_plan",
        |reader| {
            let request = Request {
                readers: add_node::readers_given(readers)?,
                ..add_node::request(src_node_name, src_dsn, new_node_name, new_node_dsn)?
            };
            join::plan::plan(reader, &request)
        }
    }
}

plan_function! {
    fn remove_node_plan(
        target_node_name: Option<&str>,
        target_node_dsn: Option<&str>,
        _verbose_mode: Option<bool>,
        force: Option<bool>,
    ) {
        "spock.remove_node_plan",
        |reader| {
            let request = remove_node::request(target_node_name, target_node_dsn, force)?;
            remove::plan(reader, &request)
        }
    }
}

plan_function! {
    fn recover_plan(
        failed_node_name: Option<&str>,
        source_node_name: Option<&str>,
        source_dsn: Option<&str>,
        target_node_name: Option<&str>,
        target_dsn: Option<&str>,
        stop_lsn: Option<i64>,
        skip_lsn: Option<i64>,
        stop_timestamp: Option<i64>,
        _verb: Option<bool>,
        force: Option<bool>,
        _verify: Option<bool>,
    ) {
        "spock.recover_plan",
        |reader| {
            let request = recovery::Request {
                stop_lsn: recover::lsn(stop_lsn),
                skip_lsn: recover::lsn(skip_lsn),
                stop_timestamp,
                force: force.unwrap_or(false),
                ..recover::nodes(
                    failed_node_name,
                    source_node_name,
                    source_dsn,
                    target_node_name,
                    target_dsn,
                )?
            };
            recovery::plan(reader, request)
        }
    }
}
