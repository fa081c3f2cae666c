//! How often nodes were removed, by name: Spock's slots are called after the two nodes and the subscription, and a server
//! that was removed and comes back asks for those that it had. The members that have the extension zodan remember.

use crate::engine::names;
use crate::error::{Error, Result};
use crate::node::{Node, Query, ask_all};
use std::collections::BTreeMap;

/// By name.
#[derive(Clone, Debug, Default)]
pub(super) struct Former(BTreeMap<String, u32>);

/// Not every member has the extension, nor has every version of it the table, nor may everybody read it.
const HAS_TABLE: &str =
    "SELECT coalesce(has_table_privilege(to_regclass('zodan.former_node'), 'SELECT'), false)";

impl Former {
    /// Adds what these nodes remember.
    pub fn load_paths(&mut self, nodes: &mut [&mut Node]) -> Result<()> {
        let has = Query::<bool>::new(HAS_TABLE, &[], |row| row.only());
        let has = ask_all(nodes.iter_mut().map(|n| &mut **n), &has)?;
        let mut remembering = vec![];
        for (node, has) in nodes.iter_mut().zip(&has) {
            if has.iter().all(|has| *has) {
                remembering.push(&mut **node);
            }
        }
        let former = Query::new("SELECT name, times FROM zodan.former_node", &[], |row| {
            Ok((row.get::<String>("name")?, row.get::<u32>("times")?))
        });
        for (name, times) in ask_all(remembering, &former)?.into_iter().flatten() {
            let known = self.0.entry(name).or_default();
            *known = times.max(*known);
        }
        Ok(())
    }

    /// Whether `node` remembers one of the name.
    pub fn is_remembered(node: &mut Node, name: &str) -> Result<bool> {
        let mut former = Self::default();
        former.load_paths(&mut [node])?;
        Ok(former.times(name) > 0)
    }

    pub fn times(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Which pair of nodes of these names `new` and a member of the cluster are. A removal of either has been counted, so
    /// no pair has the number of another one; a node whose name nobody had makes the first.
    pub fn joining(&self, new: &str, member: &str) -> u32 {
        match self.times(new) {
            0 => 1,
            _ => self.newest(new, member),
        }
    }

    /// The number that no pair of nodes of these names exceeds.
    pub fn newest(&self, provider: &str, subscriber: &str) -> u32 {
        1 + self.times(provider) + self.times(subscriber)
    }

    /// The name of a subscription without the generation of its pair. What ends in a later one was called so by hand.
    pub fn stem<'n>(&self, name: &'n str, provider: &str, subscriber: &str) -> &'n str {
        match names::generation(name) {
            (stem, generation) if generation <= self.newest(provider, subscriber) => stem,
            _ => name,
        }
    }

    /// Writes down that nodes of the name have been removed so often.
    pub fn remember(node: &mut Node, name: &str, times: u32) -> Result<()> {
        if node.query(HAS_TABLE, &[])?.one()?.only()? {
            node.query(
                "INSERT INTO zodan.former_node AS f (name, times)
                 SELECT $1, $2::integer FROM zodan.unreplicated()
                     ON CONFLICT (name) DO UPDATE SET times = greatest(f.times, excluded.times)",
                &[name, &times.to_string()],
            )?;
        }
        Ok(())
    }

    /// The new node remembers the same, and nothing of a cluster that it was in before.
    pub fn inherit(&self, new: &mut Node) -> Result<()> {
        let all = serde_json::to_string(&self.0)
            .map_err(|e| Error::internal(format!("zodan.former_node: {e}")))?;
        new.query(
            "WITH former AS (SELECT key AS name, value::integer AS times FROM jsonb_each_text($1::jsonb)),
                  others AS (DELETE FROM zodan.former_node f USING zodan.unreplicated()
                              WHERE NOT EXISTS (SELECT FROM former WHERE former.name = f.name))
             INSERT INTO zodan.former_node (name, times)
             SELECT name, times FROM zodan.unreplicated(), former
                 ON CONFLICT (name) DO UPDATE SET times = excluded.times",
            &[&all],
        )?;
        Ok(())
    }
}

#[cfg(test)]
impl Former {
    pub fn of(times: &[(&str, u32)]) -> Self {
        let times = times.iter();
        Self(
            times
                .map(|(name, times)| ((*name).to_owned(), *times))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pair_has_the_number_of_another_one() {
        let mut former = Former::default();
        let mut numbers = vec![former.joining("n3", "n1")];
        for removed in ["n1", "n3", "n1", "n1", "n3"] {
            *former.0.entry(removed.into()).or_default() += 1;
            let other = if removed == "n1" { "n3" } else { "n1" };
            numbers.push(former.joining(removed, other));
        }
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
        assert_eq!(former.joining("n5", "n1"), 1);
        assert_eq!(former.newest("n5", "n1"), 4);
    }

    #[test]
    fn what_ends_otherwise_was_called_so() {
        let former = Former::of(&[("n3", 1)]);
        assert_eq!(former.stem("sub_n1_n3_gen2", "n1", "n3"), "sub_n1_n3");
        assert_eq!(former.stem("sub_n1_n3_gen3", "n1", "n3"), "sub_n1_n3_gen3");
        assert_eq!(former.stem("sub_n1_n2_gen2", "n1", "n2"), "sub_n1_n2_gen2");
    }
}
