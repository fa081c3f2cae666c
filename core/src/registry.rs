//! The registry of a cluster as one value: who its members are, and which of two registries is the newer.

use crate::error::Result;
use crate::names::Numbered;
use serde::{Deserialize, Serialize};

/// How the members share their sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SequencePolicy {
    /// Every member has a copy.
    Copy,
    /// Every member has its own values, evenly among those of the others.
    Stride,
    /// Every member has a range of its own.
    Range,
}

impl SequencePolicy {
    pub fn label(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Stride => "stride",
            Self::Range => "range",
        }
    }
}

/// No `Debug`: connection strings may hold passwords.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Registry {
    /// Made up when the cluster got its first member.
    pub cluster: String,
    pub generation: i64,
    /// Microseconds since 1970, by the clock of who made the change.
    pub changed_at: i64,
    pub next_number: i32,
    pub sequence_policy: SequencePolicy,
    pub sequence_parts: i32,
    members: Vec<Entry>,
}

/// A member.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub dsn: String,
    pub system_identifier: String,
    pub database: String,
    pub location: Option<String>,
    pub country: Option<String>,
    pub info: Option<String>,
    pub joined_at: String,
    /// Given by the registry that the member comes into.
    pub number: i32,
}

impl Registry {
    /// That of a cluster of one.
    pub fn first(cluster: &str, first: impl Into<Entry>, now: i64) -> Self {
        Self {
            cluster: cluster.to_owned(),
            generation: 1,
            changed_at: now,
            next_number: 1,
            sequence_policy: SequencePolicy::Copy,
            sequence_parts: 1,
            members: vec![numbered(first, 0)],
        }
    }

    pub fn parse(text: &str) -> Result<Self> {
        Ok(serde_json::from_str(text)?)
    }

    pub fn to_text(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// Of two changes that could both be the next one, the later was made by who had not seen the earlier on a
    /// majority, so that one had not come to hold.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && (self.generation, self.changed_at) > (other.generation, other.changed_at)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|m| m.name.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.members.iter().any(|m| m.name == name)
    }

    /// Whether `name` is the same database in both, by the same joining.
    pub fn has_same(&self, name: &str, other: &Self) -> bool {
        let of = |registry: &Self| {
            let member = registry.members.iter().find(|m| m.name == name)?;
            let server = member.system_identifier.clone();
            Some((server, member.database.clone(), member.number))
        };
        of(self).is_some() && of(self) == of(other)
    }

    pub fn number_of(&self, name: &str) -> Option<i32> {
        let member = self.members.iter().find(|m| m.name == name)?;
        Some(member.number)
    }

    /// The member with its number.
    pub fn numbered<'a>(&self, name: &'a str) -> Option<Numbered<'a>> {
        let number = self.number_of(name)?;
        Some(Numbered { name, number })
    }

    /// What the database of the member was called when it joined.
    pub fn database_of(&self, name: &str) -> Option<&str> {
        let member = self.members.iter().find(|m| m.name == name)?;
        Some(&member.database)
    }

    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The next registry, with one member more.
    pub fn with(&self, new: impl Into<Entry>, now: i64) -> Self {
        let mut next = self.next(now);
        next.members.push(numbered(new, self.next_number));
        next.next_number += 1;
        next
    }

    /// The next registry, without `name`.
    pub fn without(&self, name: &str, now: i64) -> Self {
        let mut next = self.next(now);
        next.members.retain(|m| m.name != name);
        next
    }

    /// The next registry, with the same members. A node that was half added may have used the number that the next one
    /// would get.
    pub fn without_next_number(&self, now: i64) -> Self {
        let mut next = self.next(now);
        next.next_number += 1;
        next
    }

    fn next(&self, now: i64) -> Self {
        Self {
            generation: self.generation + 1,
            changed_at: now.max(self.changed_at + 1),
            ..self.clone()
        }
    }

    /// Names and connection strings of its members.
    pub fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members
            .iter()
            .map(|m| (m.name.as_str(), m.dsn.as_str()))
    }
}

fn numbered(entry: impl Into<Entry>, number: i32) -> Entry {
    Entry {
        number,
        ..entry.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.into(),
            dsn: "host=h password=hunter2".into(),
            system_identifier: format!("id of {name}"),
            database: "d".into(),
            location: Some("NY".into()),
            country: Some(String::new()),
            info: Some(r#"{"n": 12345678901234567890.10}"#.into()),
            joined_at: "2026-01-01 00:00:00+00".into(),
            number: 0,
        }
    }

    #[test]
    fn generations_grow_by_one_and_numbers_are_not_used_again() {
        let one = Registry::first("c", entry("n1"), 10);
        let two = one.with(entry("n2"), 5);
        assert_eq!((two.generation, two.changed_at), (2, 11));
        let three = two.without("n2", 20).with(entry("n2"), 30);
        assert_eq!(three.generation, 4);
        assert_eq!(
            (two.number_of("n2"), three.number_of("n2")),
            (Some(1), Some(2))
        );
        assert!(three.is_newer_than(&two) && !two.is_newer_than(&three));
        assert!(!three.is_newer_than(&three));
    }

    #[test]
    fn the_later_of_two_changes_of_one_generation_holds() {
        let one = Registry::first("c", entry("n1"), 10);
        let (earlier, later) = (one.with(entry("n2"), 20), one.with(entry("n3"), 21));
        assert!(later.is_newer_than(&earlier));
        let other = Registry::first("d", entry("n1"), 99);
        assert!(!other.is_newer_than(&one) && !one.is_newer_than(&other));
    }

    #[test]
    fn registries_survive_the_way_to_a_member() {
        let registry = Registry::first("c", entry("n1"), 10);
        let there = Registry::parse(&registry.to_text().unwrap()).unwrap();
        assert!(there == registry && there.has_same("n1", &registry));
        let members: Vec<_> = there.members().collect();
        assert_eq!(members, [("n1", "host=h password=hunter2")]);
    }
}
