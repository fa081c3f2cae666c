//! What a recovery reads, and how it writes.

use super::sets::Names;
use super::ways::Ways;
use super::{Spock, set_tables, sets, ways};
use crate::engine::{ByTable, CommitOrigin, Path, Recovery};
use crate::error::Result;
use crate::node::{Node, Query, Statement};
use crate::replay::share::Share;
use crate::replay::{Decoding, Protocol};

impl Recovery for Spock {
    fn decoding(&self) -> Decoding {
        // PostgreSQL's own plugin does not tell Spock's origins, which are in no catalog of its, and its
        // publications would forbid updates of tables without a key.
        Decoding {
            plugin: "spock_output",
            options: "'startup_params_format', '1', 'min_proto_version', '4', 'max_proto_version', '4',
                      'expected_encoding', 'UTF8', 'proto_format', 'native',
                      'spock_version', spock.spock_version(),
                      'spock_version_num', spock.spock_version_num()::text, 'spock.forward_origins', 'all',
                      'spock.replication_set_names',
                      (SELECT string_agg(quote_ident(s.set_name), ',') FROM spock.replication_set s
                         JOIN spock.local_node l ON l.node_id = s.set_nodeid
                        WHERE EXISTS (SELECT FROM spock.subscription u
                                       WHERE u.sub_target = l.node_id AND s.set_name = ANY (u.sub_replication_sets))
                           OR NOT EXISTS (SELECT FROM spock.replication_set_table t
                                           WHERE t.set_id = s.set_id
                                             AND (t.set_row_filter IS NOT NULL OR t.set_att_list IS NOT NULL)))",
            protocol: Protocol::Spock,
        }
    }

    fn decoded_tables(&self, node: &mut Node) -> Result<Option<ByTable<Option<String>>>> {
        let tables = set_tables(node)?;
        // As the options of the slot have it.
        let subscribed = self.sets.all_taken_by(&node.name);
        let whole = |set: &str| {
            let mut entries = tables.iter().filter(|t| t.set == set);
            entries.all(|t| t.filter.is_none() && t.columns.is_empty())
        };
        let sets = tables.iter().map(|t| t.set.clone());
        let sets: Names = sets
            .filter(|s| subscribed.contains(s) || whole(s))
            .collect();
        Ok(Some(ways::filters(&tables, &sets)))
    }

    fn origin(&self, path: &Path) -> Query<String> {
        Query::new(
            "SELECT sub_slot_name FROM spock.subscription WHERE sub_name = $1",
            &[&path.subscription],
            |row| row.only(),
        )
    }

    fn row_origin(&self, path: &Path) -> Query<String> {
        Query::new(
            "SELECT node_id FROM spock.node WHERE node_name = $1",
            &[&path.provider],
            |row| row.only(),
        )
    }

    fn shares(
        &self,
        nodes: &mut [&mut Node],
        left: usize,
        right: usize,
    ) -> Result<Option<ByTable<Share>>> {
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        let known = sets::contents(nodes)?;
        let ways = |from: usize, to: usize| {
            let mut ways = Ways::default();
            let (mine, others) = (&names[from], &names[to]);
            for (provider, (tables, kinds)) in names.iter().zip(&known) {
                let subscriptions = match provider == others {
                    true => self.subscriptions_of(provider, mine),
                    false => self.subscriptions_of(provider, others),
                };
                match provider == mine {
                    true => ways.add_own(tables, kinds, &subscriptions),
                    false => ways.add_received(tables, kinds, &subscriptions),
                }
            }
            ways
        };
        Ok(Some(ways::shares(&ways(left, right), &ways(right, left))))
    }

    fn commit_origin(&self, origin: &str) -> CommitOrigin {
        CommitOrigin::Marked(Statement::new(
            "SELECT zodan.session_origin(node_id::integer) FROM spock.node WHERE node_name = $1",
            &[origin],
        ))
    }
}
