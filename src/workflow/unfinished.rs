//! Recoveries that were begun and not finished, as the nodes that they are for know them.
//!
//! Until the end of one its node counts as having of the failed node what it had before: changes of others to
//! what it has got meanwhile may be missing.

use crate::error::Result;
use crate::lsn::Lsn;
use crate::node::{Node, server};
use std::collections::BTreeMap;

/// By failed node, from where on a recovery of `node` is not finished. To be read after its progress, or the
/// progress of one that begins in between would count.
pub fn unfinished(node: &mut Node) -> Result<BTreeMap<String, Lsn>> {
    let recoveries = server::unfinished_recoveries().on(node)?.into_iter();
    Ok(recoveries.map(|r| (r.failed, r.from)).collect())
}
