//! Decoded changes as statements, which keep what somebody has written later.
//!
//! A transaction that comes late meets rows that other nodes have changed since. With commit timestamps
//! the newer value stays, as under last-update-wins; without them nothing is known, and the late one wins.

use super::pgoutput::{Message, Relation, Tuple, Value};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::node::Node;
use crate::quote::{ident, literal, qualified};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Microseconds from 1970, where Unix counts from, to 2000, where PostgreSQL does.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// What has to be known of the tables of the node that the statements are for.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Identity columns that take no value but by OVERRIDING, by qualified table.
    pub always: BTreeMap<String, Vec<String>>,
    /// Whether the node knows when rows were written.
    pub timestamps: bool,
}

impl Catalog {
    pub fn read(node: &mut Node) -> Result<Self> {
        let mut catalog = Self::default();
        let rows = node.query(
            "SELECT n.nspname, c.relname, a.attname
               FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE a.attidentity = 'a' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')",
            &[],
        )?;
        for row in &rows {
            let table = qualified(row.text(0), row.text(1));
            let columns = catalog.always.entry(table).or_default();
            columns.push(row.text(2).to_owned());
        }
        let rows = node.query("SELECT current_setting('track_commit_timestamp')", &[])?;
        catalog.timestamps = rows.one()?.text(0) == "on";
        Ok(catalog)
    }
}

/// Renders changes, one transaction after the other.
pub struct Rendering {
    catalog: Catalog,
    relations: BTreeMap<u32, Relation>,
    /// Schemas whose tables are each node's own.
    left_out: Vec<&'static str>,
    /// What ends the transaction under way.
    end: String,
    /// "The row is not newer than the transaction under way."
    not_newer: String,
    text: String,
}

impl Rendering {
    pub fn new(catalog: Catalog, left_out: &[&'static str]) -> Self {
        Self {
            catalog,
            relations: BTreeMap::new(),
            left_out: left_out.to_vec(),
            end: String::new(),
            not_newer: String::new(),
            text: String::new(),
        }
    }

    /// A table, as the changes after this mean it.
    pub fn describe(&mut self, relation: Relation) {
        self.relations.insert(relation.id, relation);
    }

    /// Begins a transaction of another node: where its commit ends there, and when that was.
    pub fn begin(&mut self, end: Lsn, timestamp: i64) {
        let at = timestamp + POSTGRES_EPOCH;
        let at = format!(
            "(timestamptz 'epoch' + interval '{} s' + interval '{} us')",
            at.div_euclid(1_000_000),
            at.rem_euclid(1_000_000)
        );
        self.not_newer = match self.catalog.timestamps {
            true => format!("coalesce(pg_xact_commit_timestamp(z.xmin) <= {at}, true)"),
            false => "true".into(),
        };
        self.end = format!("SELECT pg_replication_origin_xact_setup('{end}', {at});\nCOMMIT;\n");
        self.text.push_str("BEGIN;\n");
    }

    /// Adds a change of the transaction under way.
    pub fn change(&mut self, change: &Message) -> Result<()> {
        let statement = match change {
            Message::Insert { relation, new } => self.insert(self.relation(*relation)?, new),
            Message::Update { relation, old, new } => {
                let relation = self.relation(*relation)?;
                self.update(relation, old.as_ref(), new)
            }
            Message::Delete { relation, old } => {
                let relation = self.relation(*relation)?;
                self.delete(relation, old)
            }
            Message::Truncate { relations } => {
                let relations = relations
                    .iter()
                    .map(|id| self.relation(*id))
                    .collect::<Result<Vec<_>>>()?;
                self.truncate(&relations)
            }
            _ => return Ok(()),
        };
        self.text.push_str(&statement);
        Ok(())
    }

    /// The rows that a change is about: table, and key as text. Nothing where rows have no key.
    pub fn rows_of(&self, change: &Message) -> Vec<(u32, String)> {
        let key = |relation: u32, tuple: &Tuple| {
            let known = self.relations.get(&relation).filter(|r| !r.full)?;
            let text: Vec<String> = known
                .columns
                .iter()
                .zip(tuple)
                .filter(|(column, _)| column.key)
                .map(|(_, v)| value(v))
                .collect();
            (!text.is_empty()).then(|| (relation, text.join(",")))
        };
        match change {
            Message::Insert { relation, new } => key(*relation, new).into_iter().collect(),
            Message::Delete { relation, old } => key(*relation, old).into_iter().collect(),
            Message::Update { relation, old, new } => {
                let old = old.as_ref().and_then(|old| key(*relation, old));
                key(*relation, new).into_iter().chain(old).collect()
            }
            _ => vec![],
        }
    }

    /// Whether it can be known what is newer.
    pub fn has_timestamps(&self) -> bool {
        self.catalog.timestamps
    }

    /// Ends the transaction: all of it, and the progress of its origin, or nothing.
    pub fn commit(&mut self) {
        self.text.push_str(&self.end);
    }

    /// Bytes rendered and not taken.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// What has been rendered since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    fn relation(&self, id: u32) -> Result<&Relation> {
        let relation = self.relations.get(&id);
        relation.ok_or_else(|| {
            Error::internal(format!("a change of table {id}, which was not described"))
        })
    }

    fn is_left_out(&self, relation: &Relation) -> bool {
        // A marker is a change like any other: whoever waits for it waits for what was before it.
        let marker = (relation.schema.as_str(), relation.name.as_str()) == ("zodan", "marker");
        self.left_out.contains(&relation.schema.as_str()) && !marker
    }

    fn insert(&self, relation: &Relation, new: &Tuple) -> String {
        if self.is_left_out(relation) {
            return String::new();
        }
        let columns: Vec<String> = relation.columns.iter().map(|c| ident(&c.name)).collect();
        let values: Vec<String> = new.iter().map(value).collect();
        let mut text = format!(
            "INSERT INTO {} AS z ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            name(relation),
            columns.join(", "),
            values.join(", ")
        );
        let keys: Vec<String> = relation
            .columns
            .iter()
            .filter(|c| c.key)
            .map(|c| ident(&c.name))
            .collect();
        if !relation.full && !keys.is_empty() {
            let sets: Vec<String> = self
                .settable(relation)
                .filter(|c| !c.key)
                .map(|c| format!("{0} = excluded.{0}", ident(&c.name)))
                .collect();
            let _ = match sets.is_empty() {
                true => write!(text, " ON CONFLICT ({}) DO NOTHING", keys.join(", ")),
                false => write!(
                    text,
                    " ON CONFLICT ({}) DO UPDATE SET {} WHERE {}",
                    keys.join(", "),
                    sets.join(", "),
                    self.not_newer
                ),
            };
        }
        text.push_str(";\n");
        text
    }

    fn update(&self, relation: &Relation, old: Option<&Tuple>, new: &Tuple) -> String {
        if self.is_left_out(relation) {
            return String::new();
        }
        let moved = old.filter(|_| !relation.full);
        let sets: Vec<String> = self
            .settable(relation)
            .zip_values(relation, new)
            .filter(|(column, value)| {
                **value != Value::Unchanged && (!column.key || relation.full || moved.is_some())
            })
            .map(|(column, v)| format!("{} = {}", ident(&column.name), value(v)))
            .collect();
        if sets.is_empty() {
            return String::new();
        }
        format!(
            "UPDATE {} AS z SET {} WHERE {} AND {};\n",
            name(relation),
            sets.join(", "),
            self.row(relation, old.unwrap_or(new)),
            self.not_newer
        )
    }

    fn delete(&self, relation: &Relation, old: &Tuple) -> String {
        if self.is_left_out(relation) {
            return String::new();
        }
        format!(
            "DELETE FROM {} AS z WHERE {} AND {};\n",
            name(relation),
            self.row(relation, old),
            self.not_newer
        )
    }

    /// What was written after it stays, so the rows go one by one where it is known when they were.
    fn truncate(&self, relations: &[&Relation]) -> String {
        let names: Vec<String> = relations
            .iter()
            .filter(|r| !self.is_left_out(r))
            .map(|r| name(r))
            .collect();
        if names.is_empty() {
            return String::new();
        }
        if !self.catalog.timestamps {
            return format!("TRUNCATE ONLY {};\n", names.join(", ONLY "));
        }
        let delete =
            |table: &String| format!("DELETE FROM ONLY {table} AS z WHERE {};\n", self.not_newer);
        names.iter().map(delete).collect()
    }

    /// Which row is meant.
    fn row(&self, relation: &Relation, old: &Tuple) -> String {
        let of_key = |full: bool| {
            relation
                .columns
                .iter()
                .zip(old)
                .filter(|(column, v)| column.key && **v != Value::Unchanged)
                .map(|(column, v)| {
                    let equals = if full { "IS NOT DISTINCT FROM" } else { "=" };
                    format!("{} {equals} {}", ident(&column.name), value(v))
                })
                .collect::<Vec<_>>()
                .join(" AND ")
        };
        match relation.full {
            false => of_key(false),
            // Of rows that are alike, one.
            true => format!(
                "z.ctid = (SELECT ctid FROM {} WHERE {} LIMIT 1)",
                name(relation),
                of_key(true)
            ),
        }
    }

    fn settable<'a>(
        &'a self,
        relation: &'a Relation,
    ) -> impl Iterator<Item = &'a super::pgoutput::Column> + 'a {
        let always = self.catalog.always.get(&name(relation));
        relation
            .columns
            .iter()
            .filter(move |c| always.is_none_or(|always| !always.contains(&c.name)))
    }
}

trait ZipValues<'a>: Iterator<Item = &'a super::pgoutput::Column> + Sized {
    /// Each column with its value.
    fn zip_values(
        self,
        relation: &'a Relation,
        tuple: &'a Tuple,
    ) -> impl Iterator<Item = (&'a super::pgoutput::Column, &'a Value)> {
        self.filter_map(|column| {
            let at = relation.columns.iter().position(|c| c == column)?;
            Some((column, tuple.get(at)?))
        })
    }
}

impl<'a, I: Iterator<Item = &'a super::pgoutput::Column>> ZipValues<'a> for I {}

fn name(relation: &Relation) -> String {
    qualified(&relation.schema, &relation.name)
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Text(text) => literal(text),
        Value::Unchanged => "DEFAULT".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::pgoutput::Column;

    fn relation(full: bool) -> Relation {
        let column = |name: &str, key| Column {
            name: name.into(),
            key,
        };
        Relation {
            id: 1,
            schema: "s".into(),
            name: "t".into(),
            full,
            columns: vec![column("id", true), column("v", full)],
        }
    }

    fn text(v: &str) -> Value {
        Value::Text(v.into())
    }

    fn rendered(full: bool, timestamps: bool, change: &Message) -> String {
        let catalog = Catalog {
            timestamps,
            ..Catalog::default()
        };
        let mut rendering = Rendering::new(catalog, &["spock"]);
        rendering.describe(relation(full));
        rendering.begin(Lsn(0x10), 5_000_001);
        rendering.take();
        rendering.change(change).unwrap();
        rendering.take()
    }

    #[test]
    fn a_transaction_carries_its_place_and_time() {
        let mut rendering = Rendering::new(Catalog::default(), &[]);
        rendering.begin(Lsn(0x1_0000_0010), 5_000_001);
        rendering.commit();
        assert_eq!(
            rendering.take(),
            "BEGIN;\nSELECT pg_replication_origin_xact_setup('1/10', (timestamptz 'epoch' + interval '946684805 s' + interval '1 us'));\nCOMMIT;\n"
        );
        assert_eq!(rendering.len(), 0);
    }

    #[test]
    fn a_row_that_is_there_is_changed_unless_it_is_newer() {
        let insert = Message::Insert {
            relation: 1,
            new: vec![text("1"), text("it's")],
        };
        assert_eq!(
            rendered(false, true, &insert),
            "INSERT INTO \"s\".\"t\" AS z (\"id\", \"v\") OVERRIDING SYSTEM VALUE VALUES ('1', 'it''s') \
             ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\" \
             WHERE coalesce(pg_xact_commit_timestamp(z.xmin) <= (timestamptz 'epoch' + interval '946684805 s' + interval '1 us'), true);\n"
        );
        assert!(rendered(false, false, &insert).ends_with(" WHERE true;\n"));
        assert!(rendered(true, false, &insert).ends_with("VALUES ('1', 'it''s');\n"));
    }

    #[test]
    fn what_was_not_sent_is_not_touched() {
        let update = Message::Update {
            relation: 1,
            old: Some(vec![text("1"), Value::Null]),
            new: vec![text("2"), Value::Unchanged],
        };
        assert_eq!(
            rendered(false, false, &update),
            "UPDATE \"s\".\"t\" AS z SET \"id\" = '2' WHERE \"id\" = '1' AND true;\n"
        );
        let same_key = Message::Update {
            relation: 1,
            old: None,
            new: vec![text("2"), Value::Null],
        };
        assert_eq!(
            rendered(false, false, &same_key),
            "UPDATE \"s\".\"t\" AS z SET \"v\" = NULL WHERE \"id\" = '2' AND true;\n"
        );
    }

    #[test]
    fn without_a_key_one_of_the_rows_that_are_alike() {
        let delete = Message::Delete {
            relation: 1,
            old: vec![text("1"), Value::Null],
        };
        assert_eq!(
            rendered(true, false, &delete),
            "DELETE FROM \"s\".\"t\" AS z WHERE z.ctid = (SELECT ctid FROM \"s\".\"t\" \
             WHERE \"id\" IS NOT DISTINCT FROM '1' AND \"v\" IS NOT DISTINCT FROM NULL LIMIT 1) AND true;\n"
        );
    }

    #[test]
    fn a_truncate_spares_what_is_newer() {
        let truncate = Message::Truncate { relations: vec![1] };
        assert_eq!(
            rendered(false, false, &truncate),
            "TRUNCATE ONLY \"s\".\"t\";\n"
        );
        assert!(
            rendered(false, true, &truncate)
                .starts_with("DELETE FROM ONLY \"s\".\"t\" AS z WHERE coalesce(")
        );
    }
}
