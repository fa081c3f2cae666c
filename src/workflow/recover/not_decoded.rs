//! What a recovery slot does not give. Where replication sets are each node's own, the source may have got rows of the
//! failed node that its own sets would not send, and a slot is read by these.

use super::{MissingRange, Recovery};
use crate::error::{Error, Result};
use crate::node::Query;
use crate::quote::qualified;
use crate::replay::content::relations;
use crate::replay::share::{ORIGIN, WRITTEN};

impl Recovery {
    /// A table of the source with rows of the failed node that the target lacks, and that the slot leaves out.
    pub fn not_decoded(&mut self, missing: &MissingRange) -> Result<Option<String>> {
        let failed = self.request.failed.clone();
        let Some(at) = self
            .cluster
            .members
            .iter()
            .position(|n| n.name == missing.source)
        else {
            return Err(Error::internal("a node was not connected"));
        };
        let Some(decoded) = self
            .cluster
            .engine
            .decoded_tables(&mut self.cluster.members[at])?
        else {
            return Ok(None);
        };
        let Some(origin) = self.origin_number(&failed, &missing.source)? else {
            return Ok(None);
        };
        let had = self.last_commit(&failed, &missing.target)?.unwrap_or(0);
        let source = &mut self.cluster.members[at];
        for relation in relations(source, self.cluster.engine.own_schemas())? {
            let name = (relation.schema.clone(), relation.name.clone());
            let left_out = match decoded.get(&name) {
                None => "true".to_owned(),
                Some(Some(filter)) => format!("({filter}) IS NOT TRUE"),
                Some(None) => continue,
            };
            let table = qualified(&relation.schema, &relation.name);
            let found = Query::<bool>::new(
                format!(
                    "SELECT EXISTS (SELECT FROM ONLY {table} WHERE {ORIGIN} = {origin} AND {WRITTEN} > $1::bigint AND {left_out})"
                ),
                &[&had.to_string()],
                |row| row.only(),
            );
            if found.one(source)? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }
}
