//! `spock.verify_nodes(...)`.

use super::entry::{self, raised};
use super::recovery_slot::require_own;
use crate::encoding::shown;
use crate::engine;
use crate::ereport;
use crate::error::Result;
use crate::node::Node;
use crate::workflow::verify::{self, Lack, Of};
use crate::workflow::{members, own_session};
use pgrx::prelude::*;

/// Compares the content of all members with that of this one.
#[pg_extern(sql = "")]
fn verify_nodes(
    key_limit: i32,
    by_design: bool,
) -> raised::Result<
    TableIterator<
        'static,
        (
            name!(table_name, String),
            name!(reference_node, String),
            name!(node, String),
            name!(missing_rows, i64),
            name!(extra_rows, i64),
            name!(different_rows, i64),
            name!(keys, Vec<String>),
        ),
    >,
> {
    let of = match by_design {
        true => Of::Design,
        false => Of::Sent,
    };
    let keys = usize::try_from(key_limit).unwrap_or(0);
    let found = entry::superuser_function("spock.verify_nodes", || compare(keys, of))?;
    for lack in found.iter().filter_map(|m| m.lack.as_ref()) {
        ereport::warning_of(lack.sqlstate(), &lack.to_string(), Lack::HINT);
    }
    Ok(TableIterator::new(found.into_iter().map(|m| {
        (
            shown(&m.table).into_owned(),
            m.reference,
            m.node,
            m.missing as i64,
            m.extra as i64,
            m.different as i64,
            m.keys.iter().map(|key| shown(key).into_owned()).collect(),
        )
    })))
}

fn compare(most_keys: usize, of: Of) -> Result<Vec<verify::Mismatch>> {
    let own = require_own("Ask in the database of a node.")?;
    let mut local = own_session(&own)?;
    let mut engine = engine::detect(&mut local)?;
    let survey = engine.survey(&mut local)?;
    let others: Vec<_> = survey
        .members
        .into_iter()
        .filter(|m| m.name != own.name)
        .collect();
    let mut others = members::connect(&others)?;
    let mut nodes: Vec<&mut Node> = std::iter::once(&mut local).chain(&mut others).collect();
    engine.load_paths(&mut nodes, &[])?;
    let all = nodes.len();
    verify::mismatches(&*engine, &mut nodes, all, most_keys, of)
}
