//! Recoveries that were begun and not finished, as the nodes that they are for know them.
//!
//! Until the end of one its node counts as having of the failed node what it had before: changes of others to
//! what it has got meanwhile may be missing.

use crate::error::Result;
use crate::lsn::Lsn;
use crate::node::{Node, ask_each, server};
use std::collections::{BTreeMap, BTreeSet};

/// By failed node, from where on a recovery of `node` is not finished. To be read after its progress, or the
/// progress of one that begins in between would count.
pub fn unfinished(node: &mut Node) -> Result<BTreeMap<String, Lsn>> {
    let recoveries = server::unfinished_recoveries().on(node)?.into_iter();
    Ok(recoveries.map(|r| (r.failed, r.from)).collect())
}

/// The `nodes` on which a comparison with `failed` is to be made again.
pub fn undecided(nodes: &mut [Node], failed: &str) -> Result<BTreeSet<String>> {
    let answers = ask_each(nodes.iter_mut(), |_| server::undecided_recoveries())?;
    let names = nodes.iter().map(|node| node.name.clone()).zip(answers);
    let undecided = names.filter(|(_, of)| of.iter().any(|name| name == failed));
    Ok(undecided.map(|(name, _)| name).collect())
}
