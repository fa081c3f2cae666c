//! Decoded changes as statements, which keep what somebody has written later.
//!
//! A transaction that comes late meets rows that other nodes have changed since. With commit timestamps
//! the newer value stays, as under last-update-wins; without them nothing is known, and the late one wins.

use super::pgoutput::{Column, Message, Relation, Tuple, Value};
use crate::error::{Error, Result};
use crate::libpq::Param;
use crate::lsn::Lsn;
use crate::node::Node;
use crate::quote::{ident, qualified};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

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

/// A statement with its values apart, so that it is the same for all changes of the same columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub sql: String,
    pub params: Vec<Param>,
}

/// Renders changes, one transaction after the other.
pub struct Rendering {
    catalog: Catalog,
    relations: BTreeMap<u32, Relation>,
    /// Schemas whose tables are each node's own.
    left_out: Vec<&'static str>,
    /// Of the transaction under way: where its commit ends on the node that it is of, and when that was.
    place: Lsn,
    time: i64,
    rendered: Vec<Change>,
}

impl Rendering {
    pub fn new(catalog: Catalog, left_out: &[&'static str]) -> Self {
        Self {
            catalog,
            relations: BTreeMap::new(),
            left_out: left_out.to_vec(),
            place: Lsn(0),
            time: 0,
            rendered: vec![],
        }
    }

    /// A table, as the changes after this mean it.
    pub fn describe(&mut self, relation: Relation) {
        self.relations.insert(relation.id, relation);
    }

    /// Begins a transaction of another node: where its commit ends there, and when that was, in microseconds
    /// since 2000.
    pub fn begin(&mut self, end: Lsn, timestamp: i64) {
        self.place = end;
        self.time = timestamp;
        self.rendered.push(Change::bare("BEGIN"));
    }

    /// Adds a change of the transaction under way.
    pub fn change(&mut self, change: &Message) -> Result<()> {
        match change {
            Message::Insert { relation, new } => self.insert(*relation, new),
            Message::Update { relation, old, new } => self.update(*relation, old.as_ref(), new),
            Message::Delete { relation, old } => self.delete(*relation, old),
            Message::Truncate { relations } => self.truncate(relations),
            _ => Ok(()),
        }
    }

    /// The rows that a change is about: a digest of table and key. Nothing where rows have no key.
    pub fn rows_of(&self, change: &Message) -> Vec<u64> {
        let key = |relation: u32, tuple: &Tuple| {
            let known = self.relations.get(&relation).filter(|r| !r.full)?;
            let mut digest = DefaultHasher::new();
            relation.hash(&mut digest);
            let columns = known.columns.iter().zip(tuple).filter(|(c, _)| c.key);
            let mut some = false;
            for (_, value) in columns {
                value.hash(&mut digest);
                some = true;
            }
            some.then(|| digest.finish())
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
    pub fn commit(&mut self) -> Result<()> {
        let mut change = Change::default();
        let place = change.text(&self.place.to_string())?;
        let time = change.time(self.time);
        change.sql = format!("SELECT pg_replication_origin_xact_setup({place}::pg_lsn, {time})");
        self.rendered.push(change);
        self.rendered.push(Change::bare("COMMIT"));
        Ok(())
    }

    /// What has been rendered since the last call.
    pub fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.rendered)
    }

    /// A table that is replicated, as it was described.
    fn relation(&self, id: u32) -> Result<Option<&Relation>> {
        let relation = self.relations.get(&id).ok_or_else(|| {
            Error::internal(format!("a change of table {id}, which was not described"))
        })?;
        // A marker is a change like any other: whoever waits for it waits for what was before it.
        let marker = (relation.schema.as_str(), relation.name.as_str()) == ("zodan", "marker");
        let own = self.left_out.contains(&relation.schema.as_str()) && !marker;
        Ok((!own).then_some(relation))
    }

    fn insert(&mut self, relation: u32, new: &Tuple) -> Result<()> {
        let Some(relation) = self.relation(relation)? else {
            return Ok(());
        };
        let mut change = Change::default();
        let columns: Vec<String> = relation.columns.iter().map(|c| ident(&c.name)).collect();
        let values = new
            .iter()
            .map(|v| change.value(v))
            .collect::<Result<Vec<_>>>()?;
        let mut sql = format!(
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
                true => write!(sql, " ON CONFLICT ({}) DO NOTHING", keys.join(", ")),
                false => write!(
                    sql,
                    " ON CONFLICT ({}) DO UPDATE SET {} WHERE {}",
                    keys.join(", "),
                    sets.join(", "),
                    self.not_newer(&mut change)
                ),
            };
        }
        self.add(change, sql);
        Ok(())
    }

    fn update(&mut self, relation: u32, old: Option<&Tuple>, new: &Tuple) -> Result<()> {
        let Some(relation) = self.relation(relation)? else {
            return Ok(());
        };
        let mut change = Change::default();
        let moved = old.filter(|_| !relation.full);
        let sets = self
            .settable(relation)
            .zip_values(relation, new)
            .filter(|(column, value)| {
                **value != Value::Unchanged && (!column.key || relation.full || moved.is_some())
            })
            .map(|(column, v)| Ok(format!("{} = {}", ident(&column.name), change.value(v)?)))
            .collect::<Result<Vec<_>>>()?;
        if sets.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE {} AS z SET {} WHERE {} AND {}",
            name(relation),
            sets.join(", "),
            row(relation, old.unwrap_or(new), &mut change)?,
            self.not_newer(&mut change)
        );
        self.add(change, sql);
        Ok(())
    }

    fn delete(&mut self, relation: u32, old: &Tuple) -> Result<()> {
        let Some(relation) = self.relation(relation)? else {
            return Ok(());
        };
        let mut change = Change::default();
        let sql = format!(
            "DELETE FROM {} AS z WHERE {} AND {}",
            name(relation),
            row(relation, old, &mut change)?,
            self.not_newer(&mut change)
        );
        self.add(change, sql);
        Ok(())
    }

    /// What was written after it stays, so the rows go one by one where it is known when they were.
    fn truncate(&mut self, relations: &[u32]) -> Result<()> {
        let mut names = vec![];
        for relation in relations {
            names.extend(self.relation(*relation)?.map(name));
        }
        if names.is_empty() {
            return Ok(());
        }
        if !self.catalog.timestamps {
            let sql = format!("TRUNCATE ONLY {}", names.join(", ONLY "));
            self.add(Change::default(), sql);
            return Ok(());
        }
        for table in names {
            let mut change = Change::default();
            let sql = format!(
                "DELETE FROM ONLY {table} AS z WHERE {}",
                self.not_newer(&mut change)
            );
            self.add(change, sql);
        }
        Ok(())
    }

    fn add(&mut self, change: Change, sql: String) {
        self.rendered.push(Change { sql, ..change });
    }

    /// "The row is not newer than the transaction under way."
    fn not_newer(&self, change: &mut Change) -> String {
        match self.catalog.timestamps {
            true => format!(
                "coalesce(pg_xact_commit_timestamp(z.xmin) <= {}, true)",
                change.time(self.time)
            ),
            false => "true".into(),
        }
    }

    fn settable<'a>(&'a self, relation: &'a Relation) -> impl Iterator<Item = &'a Column> + 'a {
        let always = self.catalog.always.get(&name(relation));
        relation
            .columns
            .iter()
            .filter(move |c| always.is_none_or(|always| !always.contains(&c.name)))
    }
}

impl Change {
    fn bare(sql: &str) -> Self {
        Self {
            sql: sql.into(),
            params: vec![],
        }
    }

    /// How the value is written in the statement.
    fn value(&mut self, value: &Value) -> Result<String> {
        match value {
            Value::Null => Ok(self.param(Param::Null)),
            Value::Text(text) => self.text(text),
            Value::Unchanged => Ok("DEFAULT".into()),
        }
    }

    fn text(&mut self, text: &str) -> Result<String> {
        let text = CString::new(text).map_err(|_| Error::internal("a value holds a zero byte"))?;
        Ok(self.param(Param::Text(text)))
    }

    fn time(&mut self, time: i64) -> String {
        self.param(Param::Time(time)) + "::timestamptz"
    }

    fn param(&mut self, param: Param) -> String {
        self.params.push(param);
        format!("${}", self.params.len())
    }
}

/// Which row is meant.
fn row(relation: &Relation, old: &Tuple, change: &mut Change) -> Result<String> {
    let equals = if relation.full {
        "IS NOT DISTINCT FROM"
    } else {
        "="
    };
    let key = relation
        .columns
        .iter()
        .zip(old)
        .filter(|(column, v)| column.key && **v != Value::Unchanged)
        .map(|(column, v)| {
            Ok(format!(
                "{} {equals} {}",
                ident(&column.name),
                change.value(v)?
            ))
        })
        .collect::<Result<Vec<_>>>()?
        .join(" AND ");
    Ok(match relation.full {
        false => key,
        // Of rows that are alike, one.
        true => format!(
            "z.ctid = (SELECT ctid FROM {} WHERE {key} LIMIT 1)",
            name(relation)
        ),
    })
}

trait ZipValues<'a>: Iterator<Item = &'a Column> + Sized {
    /// Each column with its value.
    fn zip_values(
        self,
        relation: &'a Relation,
        tuple: &'a Tuple,
    ) -> impl Iterator<Item = (&'a Column, &'a Value)> {
        self.filter_map(|column| {
            let at = relation.columns.iter().position(|c| c == column)?;
            Some((column, tuple.get(at)?))
        })
    }
}

impl<'a, I: Iterator<Item = &'a Column>> ZipValues<'a> for I {}

fn name(relation: &Relation) -> String {
    qualified(&relation.schema, &relation.name)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    const TIME: i64 = 5_000_001;

    /// The statement, and its values.
    fn rendered(full: bool, timestamps: bool, change: &Message) -> (String, String) {
        let catalog = Catalog {
            timestamps,
            ..Catalog::default()
        };
        let mut rendering = Rendering::new(catalog, &["spock"]);
        rendering.describe(relation(full));
        rendering.begin(Lsn(0x10), TIME);
        rendering.take();
        rendering.change(change).unwrap();
        let mut changes = rendering.take();
        let change = changes.pop().unwrap();
        assert!(changes.is_empty());
        (change.sql, values(&change.params))
    }

    fn values(params: &[Param]) -> String {
        let value = |param: &Param| match param {
            Param::Null => "null".into(),
            Param::Text(text) => format!("{:?}", text.to_string_lossy()),
            Param::Time(time) => time.to_string(),
        };
        params.iter().map(value).collect::<Vec<_>>().join(", ")
    }

    const NOT_NEWER: &str = "coalesce(pg_xact_commit_timestamp(z.xmin) <= $3::timestamptz, true)";

    #[test]
    fn a_transaction_carries_its_place_and_time() {
        let mut rendering = Rendering::new(Catalog::default(), &[]);
        rendering.begin(Lsn(0x1_0000_0010), TIME);
        rendering.commit().unwrap();
        let changes = rendering.take();
        let texts: Vec<&str> = changes.iter().map(|c| c.sql.as_str()).collect();
        assert_eq!(
            texts,
            [
                "BEGIN",
                "SELECT pg_replication_origin_xact_setup($1::pg_lsn, $2::timestamptz)",
                "COMMIT"
            ]
        );
        assert_eq!(values(&changes[1].params), r#""1/10", 5000001"#);
        assert!(rendering.take().is_empty());
    }

    #[test]
    fn a_row_that_is_there_is_changed_unless_it_is_newer() {
        let insert = Message::Insert {
            relation: 1,
            new: vec![text("1"), text("it's")],
        };
        assert_eq!(
            rendered(false, true, &insert),
            (
                format!(
                    "INSERT INTO \"s\".\"t\" AS z (\"id\", \"v\") OVERRIDING SYSTEM VALUE VALUES ($1, $2) \
                     ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\" WHERE {NOT_NEWER}"
                ),
                r#""1", "it's", 5000001"#.into()
            )
        );
        let (sql, values) = rendered(false, false, &insert);
        assert!(sql.ends_with(" WHERE true"), "{sql}");
        assert_eq!(values, r#""1", "it's""#);
        assert!(
            rendered(true, false, &insert)
                .0
                .ends_with("VALUES ($1, $2)")
        );
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
            (
                "UPDATE \"s\".\"t\" AS z SET \"id\" = $1 WHERE \"id\" = $2 AND true".into(),
                r#""2", "1""#.into()
            )
        );
        let same_key = Message::Update {
            relation: 1,
            old: None,
            new: vec![text("2"), Value::Null],
        };
        assert_eq!(
            rendered(false, true, &same_key),
            (
                format!("UPDATE \"s\".\"t\" AS z SET \"v\" = $1 WHERE \"id\" = $2 AND {NOT_NEWER}"),
                r#"null, "2", 5000001"#.into()
            )
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
            (
                "DELETE FROM \"s\".\"t\" AS z WHERE z.ctid = (SELECT ctid FROM \"s\".\"t\" \
                 WHERE \"id\" IS NOT DISTINCT FROM $1 AND \"v\" IS NOT DISTINCT FROM $2 LIMIT 1) AND true"
                    .into(),
                r#""1", null"#.into()
            )
        );
    }

    #[test]
    fn a_truncate_spares_what_is_newer() {
        let truncate = Message::Truncate { relations: vec![1] };
        assert_eq!(
            rendered(false, false, &truncate).0,
            "TRUNCATE ONLY \"s\".\"t\""
        );
        let (sql, values) = rendered(false, true, &truncate);
        assert!(
            sql.starts_with("DELETE FROM ONLY \"s\".\"t\" AS z WHERE coalesce("),
            "{sql}"
        );
        assert_eq!(values, "5000001");
    }

    #[test]
    fn rows_are_told_by_table_and_key() {
        let mut rendering = Rendering::new(Catalog::default(), &[]);
        rendering.describe(relation(false));
        let insert = |id: &str, v: &str| Message::Insert {
            relation: 1,
            new: vec![text(id), text(v)],
        };
        let moved = Message::Update {
            relation: 1,
            old: Some(vec![text("1"), Value::Null]),
            new: vec![text("2"), text("c")],
        };
        let of = |change: &Message| rendering.rows_of(change);
        assert_eq!(of(&insert("1", "a")), of(&insert("1", "b")));
        assert_ne!(of(&insert("1", "a")), of(&insert("2", "a")));
        assert_eq!(
            of(&moved),
            [of(&insert("2", "")), of(&insert("1", ""))].concat()
        );
        rendering.describe(relation(true));
        assert!(rendering.rows_of(&insert("1", "a")).is_empty());
    }
}
