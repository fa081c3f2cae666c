//! Who the members are, and what a node takes of others.

use super::Native;
use super::checks::extension_missing;
use crate::engine::{Paths, RegisteredNode, Survey, Topology, parse_dsn};
use crate::error::{Error, Finding, Result, SqlState};
use crate::node::{Member, Node, Query, Statement};

impl Topology for Native {
    fn local_name(&self, node: &mut Node) -> Result<Option<String>> {
        let known = "SELECT to_regclass('zodan.local_node') IS NOT NULL";
        if !node.query(known, &[])?.one()?.only::<bool>()? {
            return Ok(None);
        }
        let name = "SELECT name FROM zodan.local_node";
        Query::new(name, &[], |row| row.only()).first(node)
    }

    fn survey(&self, source: &mut Node) -> Result<Survey> {
        let rows = match source.query(
            "SELECT n.name, n.dsn, n.name = (SELECT l.name FROM zodan.local_node l) AS is_own
               FROM zodan.node n ORDER BY n.joined_at, n.name",
            &[],
        ) {
            Err(error) if error.is_undefined() && !is_installed(source)? => {
                return Err(Error::Checks(vec![extension_missing(&source.name)]));
            }
            rows => rows?,
        };
        if rows.is_empty() {
            return Ok(Survey {
                members: vec![source.member()],
                is_member: false,
            });
        }
        let mut members = vec![];
        let mut own = None;
        for row in &rows {
            let name: String = row.get("name")?;
            if row.get("is_own")? {
                own = Some(name.clone());
            }
            let dsn = parse_dsn(&name, row.get("dsn")?)?;
            members.push(Member { name, dsn });
        }
        match own {
            Some(own) if own == source.name => Ok(Survey {
                members,
                is_member: true,
            }),
            Some(own) => Err(Error::Argument {
                argument: "src_node_name",
                problem: format!(
                    "is \"{}\", but src_dsn leads to the node \"{own}\"",
                    source.name
                ),
                hint: format!(
                    "Give \"{own}\", or the connection string of \"{}\".",
                    source.name
                ),
                state: SqlState::INVALID_PARAMETER_VALUE,
            }),
            None => Err(Error::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the database behind src_dsn has members in zodan.node, but is none of them itself: {}",
                    members
                        .iter()
                        .map(|m| m.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                "See zodan.local_node and zodan.node there, and delete what does not belong to it.",
            )),
        }
    }

    fn members(&self) -> Query<RegisteredNode> {
        Query::new(
            "SELECT n.name, n.location, n.country, n.dsn, n.system_identifier, n.database, n.info, n.joined_at,
                    NULL AS id, n.number, m.cluster
               FROM zodan.node n, zodan.membership m ORDER BY n.joined_at, n.name",
            &[],
            RegisteredNode::read,
        )
    }

    fn links_to_non_members(&self, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
        let streaming = Self::streaming().on(leaving)?;
        let outsiders = self.outsiders(&leaving.name, members, streaming);
        let found = outsiders.into_iter().map(|(slot, who)| {
            Finding::new(
                &leaving.name,
                SqlState::OBJECT_IN_USE,
                format!("{who} streams from slot {slot} by publication zodan, and is not a member of the cluster"),
                "The publication goes with the node: drop its subscription first.",
            )
        });
        Ok(found.collect())
    }

    fn cluster(&self) -> Option<&str> {
        Some(&self.cluster)
    }

    fn probe(&self, dsn: &str) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT server, database FROM zodan.probe($1)",
            &[dsn],
        )]
    }
}

fn is_installed(node: &mut Node) -> Result<bool> {
    let installed = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'zodan')";
    node.query(installed, &[])?.one()?.only()
}

impl Native {
    /// By slot, who streams what a node publishes for its cluster.
    pub(super) fn streaming() -> Query<(String, String)> {
        Query::new(
            "SELECT s.slot_name, concat_ws(' ', r.application_name, r.client_addr::text) AS who
               FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
               JOIN pg_stat_activity a ON a.pid = s.active_pid
              WHERE s.plugin = 'pgoutput' AND s.database = current_database()
                AND a.query ~ 'publication_names .*\"zodan\"'
                AND s.slot_name !~ '^pg_[0-9]+_sync_'
              ORDER BY 1",
            &[],
            |row| Ok((row.get("slot_name")?, row.get("who")?)),
        )
    }

    /// Those of `streaming` from `node` that are none of `members`.
    pub(super) fn outsiders(
        &self,
        node: &str,
        members: &[String],
        mut streaming: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let ours: Vec<String> = members
            .iter()
            .map(|member| self.path(node, member).slot)
            .collect();
        streaming.retain(|(slot, _)| !ours.contains(slot));
        streaming
    }
}
