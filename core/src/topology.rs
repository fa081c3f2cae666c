//! What the subscriptions of a cluster form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What the nodes of a cluster form.
#[derive(Debug, PartialEq, Eq)]
pub enum Shape {
    Mesh,
    /// One node that all others exchange changes with, and they with no other.
    Star(String),
    /// Each exchanges changes with the next.
    Chain(Vec<String>),
    /// Some only take changes of others, or only give them.
    OneWay,
    Other,
}

impl Shape {
    /// `takes` holds provider and subscriber.
    pub fn of(nodes: &[String], takes: &BTreeSet<(String, String)>) -> Self {
        let has = |p: &String, s: &String| takes.contains(&(p.clone(), s.clone()));
        let mut neighbours: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        let mut one_way = false;
        for a in nodes {
            for b in nodes.iter().filter(|b| *b != a) {
                match (has(a, b), has(b, a)) {
                    (true, true) => neighbours.entry(a).or_default().push(b),
                    (false, false) => {}
                    _ => one_way = true,
                }
            }
        }
        let degree = |node: &String| neighbours.get(node).map_or(0, Vec::len);
        let others = nodes.len().saturating_sub(1);
        if nodes.iter().all(|node| degree(node) == others) {
            return Self::Mesh;
        }
        if one_way {
            return Self::OneWay;
        }
        let hubs: Vec<&String> = nodes.iter().filter(|n| degree(n) == others).collect();
        let ends: Vec<&String> = nodes.iter().filter(|n| degree(n) == 1).collect();
        if let ([hub], true) = (&hubs[..], ends.len() == others) {
            return Self::Star((*hub).clone());
        }
        let mut chain: Vec<String> = vec![];
        let mut next = ends.first().copied().filter(|_| ends.len() == 2);
        while let Some(node) = next.filter(|node| degree(node) <= 2) {
            chain.push(node.clone());
            let mut further = neighbours.get(node).into_iter().flatten().copied();
            next = further.find(|n| !chain.contains(n));
        }
        match chain.len() == nodes.len() {
            true => Self::Chain(chain),
            false => Self::Other,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("a full mesh"),
            Self::Star(hub) => write!(f, "a star around \"{hub}\""),
            Self::Chain(nodes) => write!(f, "a chain \"{}\"", nodes.join("\" - \"")),
            Self::OneWay => f.write_str("a cluster in which some changes go one way only"),
            Self::Other => f.write_str("a mesh with gaps"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;
    use std::collections::BTreeSet;

    /// `ab` is that b takes changes from a.
    fn shape(nodes: &str, takes: &str) -> String {
        let nodes: Vec<String> = nodes.chars().map(String::from).collect();
        let pair = |pair: &str| (pair[..1].to_owned(), pair[1..].to_owned());
        let takes: BTreeSet<_> = takes.split_whitespace().map(pair).collect();
        Shape::of(&nodes, &takes).to_string()
    }

    #[test]
    fn shapes_are_told_apart() {
        assert_eq!(shape("a", ""), "a full mesh");
        assert_eq!(shape("abc", "ab ba ac ca bc cb"), "a full mesh");
        assert_eq!(shape("abc", "ab ba ac ca"), "a star around \"a\"");
        assert_eq!(shape("abcd", "ba ab bc cb bd db"), "a star around \"b\"");
        assert_eq!(
            shape("abcd", "ca ac ab ba bd db"),
            "a chain \"c\" - \"a\" - \"b\" - \"d\""
        );
        let one_way = "a cluster in which some changes go one way only";
        assert_eq!(shape("ab", "ab"), one_way);
        assert_eq!(shape("abc", "ab ba ac ca bc"), one_way);
        // A ring of four, and two pairs.
        assert_eq!(shape("abcd", "ab ba bc cb cd dc da ad"), "a mesh with gaps");
        assert_eq!(shape("abcd", "ab ba cd dc"), "a mesh with gaps");
    }
}
