//! Who the members are, and what a node takes of others.

use super::former::Former;
use super::{Spock, is_node, non_members};
use crate::engine::{Path, Provider, RegisteredNode, Survey, Topology, names};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::{Member, Node, Query, Statement, server};

impl Topology for Spock {
    fn local_name(&self, node: &mut Node) -> Result<Option<String>> {
        if !is_node(node)? {
            return Ok(None);
        }
        let rows = node.query(
            "SELECT n.node_name FROM spock.node n JOIN spock.local_node USING (node_id)",
            &[],
        )?;
        rows.first().map(|row| row.only()).transpose()
    }

    fn survey(&self, source: &mut Node) -> Result<Survey> {
        let rows = source.query(
            "SELECT n.node_name, i.if_dsn, l.node_id IS NOT NULL AS is_local
               FROM spock.node n
               LEFT JOIN spock.local_node l ON l.node_id = n.node_id
               LEFT JOIN spock.subscription s ON s.sub_origin = n.node_id
               JOIN spock.node_interface i
                 ON i.if_id = coalesce(l.node_local_interface, s.sub_origin_if)
              ORDER BY 1",
            &[],
        )?;
        let mut members: Vec<Member> = vec![];
        for row in &rows {
            let name: String = row.get("node_name")?;
            if row.get("is_local")? && name != source.name {
                return Err(Error::Argument {
                    argument: "src_node_name",
                    problem: format!(
                        "is \"{}\", but src_dsn leads to the node \"{name}\"",
                        source.name
                    ),
                    hint: format!(
                        "Give \"{name}\", or the connection string of \"{}\".",
                        source.name
                    ),
                    state: SqlState::INVALID_PARAMETER_VALUE,
                });
            }
            let dsn = Dsn::parse(row.get("if_dsn")?).map_err(|bad| {
                Error::refused(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("the connection string of node \"{name}\" {}", bad.problem()),
                    "See spock.node_interface on the source.",
                )
            })?;
            if !members.iter().any(|m| m.name == name) {
                members.push(Member { name, dsn });
            }
        }
        Ok(Survey {
            members,
            is_member: true,
        })
    }

    fn members(&self) -> Query<RegisteredNode> {
        Query::new(include_str!("members.sql"), &[], RegisteredNode::read)
    }

    fn providers(&self, node: &mut Node) -> Result<Option<Vec<Provider>>> {
        match is_node(node)? {
            true => non_members::providers(node).map(Some),
            false => Ok(None),
        }
    }

    fn links_to_non_members(&self, leaving: &mut Node, members: &[String]) -> Result<Vec<Finding>> {
        non_members::links(&self.paths, leaving, members)
    }

    fn unclaimed_slots(&self, node: &mut Node) -> Result<Vec<(String, bool)>> {
        non_members::unclaimed_slots(&self.paths, node)
    }

    fn probe(&self, dsn: &str) -> Vec<Statement> {
        // A subscription of PostgreSQL's own that connects and is rolled back: nothing else that a
        // server without extensions of ours has connects to another one.
        vec![
            // Whatever is said about the attempt has the statement in its context, and so the
            // connection string with its password.
            Statement::new("SET log_min_messages = panic", &[]),
            Statement::new("SELECT set_config('zodan_probe.dsn', $1, false)", &[dsn]),
            Statement::new(include_str!("probe.sql"), &[]),
            Statement::new("RESET log_min_messages", &[]),
            Statement::new(
                "SELECT 1 WHERE set_config('zodan_probe.dsn', '', false) IS NULL",
                &[],
            ),
        ]
    }

    fn path_to_successor(&self, nodes: &mut [&mut Node]) -> Result<Option<Path>> {
        for node in nodes {
            for path in self.of_later_pairs(&node.name) {
                let present = server::slots_named(std::slice::from_ref(&path.slot)).on(node)?;
                if !present.iter().any(|slot| slot.is_own) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    fn has_removed(&self, other: &mut Node, me: &mut Node) -> Result<bool> {
        if !Former::is_remembered(other, &me.name)? {
            return Ok(false);
        }
        let read = "SELECT sub_slot_name FROM spock.subscription";
        let read = Query::<String>::new(read, &[], |row| row.only()).on(me)?;
        let rows = other.query(
            "SELECT NOT EXISTS (SELECT FROM spock.node WHERE node_name = $1)
                AND NOT EXISTS (SELECT FROM pg_replication_slots
                                 WHERE database = current_database()
                                   AND slot_name = ANY (string_to_array($2, ',')))",
            &[&me.name, &read.join(",")],
        )?;
        rows.one()?.only()
    }
}

impl Spock {
    /// Those from `provider` to nodes to which it has paths of earlier generations only. Both directions of a pair have
    /// the same, but where somebody has given a name by hand.
    fn of_later_pairs(&self, provider: &str) -> Vec<Path> {
        let newest = |ends: &(String, String)| {
            let paths = self.seen.contains(ends).then(|| self.paths.get(ends));
            let paths = paths.flatten().into_iter().flatten();
            let generations = paths.map(|path| (names::generation(&path.subscription).1, path));
            generations.max_by_key(|(generation, _)| *generation)
        };
        let later = |ends: &(String, String)| {
            let (from, to) = (ends.1.clone(), ends.0.clone());
            let ((to_it, path), (from_it, _)) = (newest(ends)?, newest(&(from, to))?);
            (to_it > from_it).then(|| path.clone())
        };
        let ends = self.seen.iter().filter(|(from, _)| from == provider);
        ends.filter_map(later).collect()
    }
}
