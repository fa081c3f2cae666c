//! A node becomes one, and ceases to be one.

use super::Spock;
use super::former::Former;
use crate::engine::{Identity, Membership, Path, names};
use crate::error::Result;
use crate::node::{Node, Statement, server};

impl Membership for Spock {
    fn create_node(&self, identity: &Identity) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT spock.node_create(node_name := $1::name, dsn := $2, location := $3,
                                      country := $4, info := $5::jsonb)",
            &[
                &identity.member.name,
                &identity.member.dsn.reveal(),
                &identity.location,
                &identity.country,
                &identity.info,
            ],
        )]
    }

    fn drop_node(&self) -> Vec<Statement> {
        // The others first: the local node is the last to go.
        vec![
            Statement::new(
                "SELECT spock.node_drop(node_name, true) FROM spock.node
                  WHERE node_id NOT IN (SELECT node_id FROM spock.local_node)",
                &[],
            ),
            Statement::new(
                "SELECT spock.node_drop(n.node_name, true)
                   FROM spock.node n JOIN spock.local_node USING (node_id)",
                &[],
            ),
        ]
    }

    fn forget_node(&self, name: &str) -> Vec<Statement> {
        vec![
            Statement::new("SELECT spock.node_drop($1::name, true)", &[name]),
            server::forget_recoveries(Some(name)),
        ]
    }

    fn drops_node_with_last_subscription(&self) -> bool {
        true // sub_drop drops the provider's node, too, if no other subscription is to it
    }

    fn times_removed(&self, name: &str, begun: Option<u32>) -> Option<u32> {
        let known = self.former.times(name);
        let (Some(begun), None) = (begun, begun.and_then(|times| self.named_after(name, times)))
        else {
            return Some(known + 1);
        };
        Some(begun.max(known))
    }

    fn remember_removed(&self, node: &mut Node, name: &str, times: u32) -> Result<()> {
        Former::remember(node, name, times)
    }

    fn inherit_removed(&self, new: &mut Node) -> Result<()> {
        self.former.inherit(new)
    }
}

impl Spock {
    /// A path of a node that joined when nodes of its name had been removed so often.
    fn named_after(&self, name: &str, times: u32) -> Option<&Path> {
        let of_it = |(p, s): &&(String, String)| p == name || s == name;
        let paths = self.seen.iter().filter(of_it);
        let mut paths = paths.filter_map(|ends| self.paths.get(ends)).flatten();
        paths.find(|path| {
            let other = match path.provider == name {
                true => &path.subscriber,
                false => &path.provider,
            };
            names::generation(&path.subscription).1 > times + self.former.times(other)
        })
    }
}
