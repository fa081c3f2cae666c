//! Tables that the source gets from a peer and does not send itself, with rows that both have from elsewhere: as where
//! all nodes were filled from one dump. The copy leaves out what was written on the source itself in such a table, since
//! nobody gets that from it, and the peer sent it before there was a slot for the new node.

use super::Spock;
use super::sets::SetTable;
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, Statement};
use crate::quote::{literal, qualified};
use crate::replay::share::{IDENTITY_INDEX, ORIGIN};
use std::collections::BTreeSet;

/// So many blocks of a table are looked at, and so many of the rows in them.
const BLOCKS: f64 = 1000.0;
const ROWS: usize = 100;

/// The columns by which rows of a table are told apart, and what part of it is looked at, in percent.
fn key(table: &str) -> Statement {
    Statement::new(
        include_str!("sampled_key.sql")
            .replace(":blocks", &BLOCKS.to_string())
            .replace(":identity_index", IDENTITY_INDEX),
        &[table],
    )
}

impl Spock {
    pub(super) fn check_filled_twice(
        &self,
        members: &mut [&mut Node],
        sent: &[SetTable],
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let Some((source, peers)) = members.split_first_mut() else {
            return Ok(());
        };
        let own = self.sets.taken_of(&source.name).unwrap_or_default();
        let sent: BTreeSet<(&str, &str)> = sent
            .iter()
            .filter(|t| own.contains(&t.set))
            .map(|t| (t.schema.as_str(), t.name.as_str()))
            .collect();
        for peer in peers {
            let taken = self.sets.subscriptions(&peer.name, &source.name);
            let theirs = self.of_peers.get(&peer.name).into_iter().flatten();
            let mut looked = BTreeSet::new();
            for table in theirs {
                let name = (table.schema.as_str(), table.name.as_str());
                let comes = taken.iter().any(|s| s.sets.contains(&table.set));
                if !comes || sent.contains(&name) || !looked.insert(name) {
                    continue;
                }
                let quoted = qualified(&table.schema, &table.name);
                let Some((looked_at, both)) = rows_of_both(source, peer, &quoted)? else {
                    continue;
                };
                findings.push(Finding::new(
                    &source.name,
                    SqlState::NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "rows of table {quoted} that were written on it have not come from node \"{}\", which has them too ({both} of {looked_at} looked at), and it does not send them itself: the new node would lack them",
                        peer.name
                    ),
                    format!(
                        "Put the table into a set of \"{}\" that members subscribe to, as SELECT spock.repset_add_table('default', {}) there.",
                        source.name,
                        literal(&quoted)
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// How many rows were looked at that were written on the source itself, and how many of them the peer has, too; `None`
/// where that is none.
fn rows_of_both(source: &mut Node, peer: &mut Node, table: &str) -> Result<Option<(u64, u64)>> {
    let known = key(table).run(source)?;
    let Some(row) = known.first() else {
        return Ok(None);
    };
    let (key, percent): (&str, &str) = (row.get("columns")?, row.get("percent")?);
    let written = source.query(
        &format!(
            "SELECT coalesce(json_agg(k), '[]') AS keys, count(*) AS number
               FROM (SELECT {key} FROM {table} TABLESAMPLE SYSTEM ({percent}) WHERE {ORIGIN} = 0 LIMIT {ROWS}) k"
        ),
        &[],
    )?;
    let written = written.one()?;
    let looked_at: u64 = written.get("number")?;
    if looked_at == 0 {
        return Ok(None);
    }
    let found = peer.query(
        &format!(
            "SELECT count(*) FROM {table} JOIN json_populate_recordset(NULL::{table}, $1::json) k USING ({key})"
        ),
        &[written.get("keys")?],
    )?;
    let both = found.one()?.only()?;
    Ok(Some((looked_at, both)).filter(|_| both > 0))
}
