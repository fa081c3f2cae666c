//! Decoded changes as statements, which keep what somebody has written later.
//!
//! A transaction that comes late meets rows that other nodes have changed since. With commit timestamps
//! the newer value stays, as under last-update-wins; without them nothing is known, and the late one wins.

use super::share::IDENTITY_INDEX;
use crate::error::{Error, Result};
use crate::libpq::Param;
use crate::lsn::Lsn;
use crate::node::{Node, Query, server};
use crate::quote::{ident, qualified};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use zodan_core::decoding::{Column, Message, Relation, Tuple, Value};

/// What has to be known of the tables of the node that the statements are for.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Identity columns that take no value but by OVERRIDING, by qualified table.
    pub always: BTreeMap<String, Vec<String>>,
    /// Whether the node knows when rows were written.
    pub timestamps: bool,
    /// Whether the node has `zodan.commit_position`.
    pub commit_position: bool,
    /// How values of columns are compared, by qualified table and column.
    pub equality: BTreeMap<String, BTreeMap<String, Equality>>,
    /// Tables that have no rows of their own, but those of their partitions.
    pub partitioned: BTreeSet<String>,
    /// Tables with triggers for TRUNCATE that would fire.
    pub truncate_fires: BTreeSet<String>,
}

/// How values of a column are written and compared, whatever the search_path is.
#[derive(Clone, Debug)]
pub struct Equality {
    /// The type of the column, below its domains.
    pub of: String,
    /// Constraints of domains would run before the statement does: the type is one, ...
    pub domain: bool,
    /// ... or may have such parts.
    pub nested: bool,
    /// The operator of its class in the index that is the identity, if it is part of that.
    pub operator: Option<String>,
    /// Whether the type has an operator for it at all.
    pub comparable: bool,
}

impl Catalog {
    pub fn read(node: &mut Node) -> Result<Self> {
        let mut catalog = Self::default();
        for (table, column) in always_identity().on(node)? {
            catalog.always.entry(table).or_default().push(column);
        }
        catalog.timestamps = server::has_commit_timestamps(node)?;
        catalog.commit_position = server::has_commit_position().one(node)?;
        for compared in equality().on(node)? {
            let columns = catalog.equality.entry(compared.table).or_default();
            columns.insert(compared.column, compared.equality);
        }
        for special in special_truncates().on(node)? {
            let of = match special.partitioned {
                true => &mut catalog.partitioned,
                false => &mut catalog.truncate_fires,
            };
            of.insert(special.table);
        }
        Ok(catalog)
    }
}

/// Tables and those of their columns that are identity columns, GENERATED ALWAYS.
fn always_identity() -> Query<(String, String)> {
    Query::new(
        "SELECT n.nspname, c.relname, a.attname
           FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE a.attidentity = 'a' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')",
        &[],
        |row| {
            let table = qualified(row.get("nspname")?, row.get("relname")?);
            Ok((table, row.get("attname")?))
        },
    )
}

/// A column of a table, and how its values are compared.
struct ComparedColumn {
    table: String,
    column: String,
    equality: Equality,
}

fn equality() -> Query<ComparedColumn> {
    let sql = include_str!("equality.sql").replace(":identity_index", IDENTITY_INDEX);
    Query::new(sql, &[], |row| {
        let operator: (Option<&str>, &str) = (row.get("operator_schema")?, row.get("operator")?);
        Ok(ComparedColumn {
            table: qualified(row.get("schema")?, row.get("table_name")?),
            column: row.get("column")?,
            equality: Equality {
                of: qualified(row.get("type_schema")?, row.get("type")?),
                domain: row.get("domain")?,
                nested: row.get("nested")?,
                operator: operator
                    .0
                    .map(|schema| format!("OPERATOR({}.{})", ident(schema), operator.1)),
                comparable: row.get("comparable")?,
            },
        })
    })
}

/// A table of which TRUNCATE does more than to empty it.
struct SpecialTruncate {
    table: String,
    /// Or else it has triggers that would fire.
    partitioned: bool,
}

fn special_truncates() -> Query<SpecialTruncate> {
    Query::new(
        "SELECT n.nspname, c.relname, c.relkind = 'p' AS partitioned
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'p' OR c.relkind = 'r' AND EXISTS (
                    SELECT FROM pg_trigger t
                     WHERE t.tgrelid = c.oid AND t.tgtype & 32 <> 0 AND t.tgenabled IN ('A', 'R'))",
        &[],
        |row| {
            Ok(SpecialTruncate {
                table: qualified(row.get("nspname")?, row.get("relname")?),
                partitioned: row.get("partitioned")?,
            })
        },
    )
}

/// A statement with its values apart, so that it is the same for all changes of the same columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub sql: String,
    pub params: Vec<Param>,
    /// The row, where it is to be known if it was newer.
    pub about: Option<About>,
}

/// A row as it is found on a node.
pub struct Look {
    pub digest: String,
    pub key: String,
}

/// A row that a change of the failed node is about, by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    relation: u32,
    key: Tuple,
    time: i64,
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
    /// What changes of it are about is to be known.
    watched: bool,
    /// Rows of unknown age stay as they are.
    careful: bool,
    rendered: Vec<Change>,
}

impl Equality {
    /// The value as one of the type. It becomes one when the statement runs, as whoever runs it.
    fn cast(&self, value: &str) -> String {
        match self.nested {
            true => format!("{value}::text::{}", self.of),
            false => format!("{value}::{}", self.of),
        }
    }
}

impl Rendering {
    pub fn new(catalog: Catalog, left_out: &[&'static str]) -> Self {
        Self {
            catalog,
            relations: BTreeMap::new(),
            left_out: left_out.to_vec(),
            place: Lsn::ZERO,
            time: 0,
            watched: false,
            careful: false,
            rendered: vec![],
        }
    }

    /// Where it is not known which is newer, the row that is there stays.
    pub fn careful(self) -> Self {
        Self {
            careful: true,
            ..self
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
        self.watched = false;
        self.rendered.push(Change::bare("BEGIN"));
    }

    /// As [`Self::begin`], and it is to be known which rows it left as they were.
    pub fn begin_watched(&mut self, end: Lsn, timestamp: i64) {
        self.begin(end, timestamp);
        self.watched = self.catalog.timestamps;
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
        // Without the extension an abort behind this moves the progress as well.
        let set = match self.catalog.commit_position {
            true => "zodan.commit_position",
            false => "pg_replication_origin_xact_setup",
        };
        change.sql = format!("SELECT {set}({place}::pg_lsn, {time})");
        self.rendered.push(change);
        self.rendered.push(Change::bare("COMMIT"));
        Ok(())
    }

    /// Asks for a digest of the row, on the target if it is newer than the change about it. Nothing without a key.
    pub fn look(&self, about: &About, newer: bool) -> Option<(String, Query<Look>)> {
        let relation = self.relations.get(&about.relation)?;
        let mut change = Change::default();
        let found = self.row(relation, &about.key, &mut change).ok()?;
        let values: Vec<String> = change
            .params
            .iter()
            .map(|param| match param {
                Param::Text(text) => Some(text.to_string_lossy().into_owned()),
                Param::Null | Param::Time(_) => None,
            })
            .collect::<Option<_>>()?;
        let mut values: Vec<&str> = values.iter().map(String::as_str).collect();
        let time = about.time.to_string();
        let condition = match newer {
            true => {
                values.push(&time);
                format!(
                    " AND pg_xact_commit_timestamp(z.xmin) > timestamptz '2000-01-01 00:00:00+00' + ${}::bigint * interval '1 microsecond'",
                    values.len()
                )
            }
            false => String::new(),
        };
        let columns = |of: &dyn Fn(&Column) -> bool| -> String {
            let columns = relation.columns.iter().filter(|c| of(c));
            let columns: Vec<String> = columns.map(|c| format!("z.{}", ident(&c.name))).collect();
            format!("ROW({})::text", columns.join(", "))
        };
        let sql = format!(
            "SELECT md5({}) AS digest, {} AS key FROM {} AS z WHERE {found}{condition}",
            columns(&|_| true),
            columns(&|c| c.key),
            self.only(relation)
        );
        let look = Query::new(sql, &values, |row| {
            Ok(Look {
                digest: row.get("digest")?,
                key: row.get("key")?,
            })
        });
        Some((name(relation), look))
    }

    /// How many statements have been rendered since the last [`Self::take`].
    pub fn rendered(&self) -> usize {
        self.rendered.len()
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
        let known = self.equality(relation);
        let values = relation
            .columns
            .iter()
            .zip(new)
            .map(|(column, v)| written(known, column, v, &mut change))
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
                false => {
                    change.about = self.about(relation, new);
                    write!(
                        sql,
                        " ON CONFLICT ({}) DO UPDATE SET {} WHERE {}",
                        keys.join(", "),
                        sets.join(", "),
                        self.not_newer(&mut change)
                    )
                }
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
        let known = self.equality(relation);
        let sets = self
            .settable(relation)
            .zip_values(relation, new)
            .filter(|(column, value)| {
                **value != Value::Unchanged && (!column.key || relation.full || moved.is_some())
            })
            .map(|(column, v)| {
                let value = written(known, column, v, &mut change)?;
                Ok(format!("{} = {value}", ident(&column.name)))
            })
            .collect::<Result<Vec<_>>>()?;
        if sets.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE {} AS z SET {} WHERE {} AND {}",
            self.only(relation),
            sets.join(", "),
            self.row(relation, old.unwrap_or(new), &mut change)?,
            self.not_newer(&mut change)
        );
        change.about = self.about(relation, old.unwrap_or(new));
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
            self.only(relation),
            self.row(relation, old, &mut change)?,
            self.not_newer(&mut change)
        );
        change.about = self.about(relation, old);
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
        let fires = |table: &String| self.catalog.truncate_fires.contains(table);
        if !self.catalog.timestamps && !names.iter().any(fires) {
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
                "coalesce(pg_xact_commit_timestamp(z.xmin) <= {}, {})",
                change.time(self.time),
                !self.careful
            ),
            false => (!self.careful).to_string(),
        }
    }

    fn about(&self, relation: &Relation, tuple: &Tuple) -> Option<About> {
        let wanted = self.watched && !relation.full;
        wanted.then(|| About {
            relation: relation.id,
            key: relation
                .columns
                .iter()
                .zip(tuple)
                .map(|(column, value)| match column.key {
                    true => value.clone(),
                    false => Value::Null,
                })
                .collect(),
            time: self.time,
        })
    }

    /// The table, without those that inherit from it; partitions are no tables beside it.
    fn only(&self, relation: &Relation) -> String {
        let table = name(relation);
        match self.catalog.partitioned.contains(&table) {
            true => table,
            false => format!("ONLY {table}"),
        }
    }

    fn equality(&self, relation: &Relation) -> Option<&BTreeMap<String, Equality>> {
        self.catalog.equality.get(&name(relation))
    }

    /// Which row is meant.
    fn row(&self, relation: &Relation, old: &Tuple, change: &mut Change) -> Result<String> {
        // What is not there the server says itself.
        let known = self.equality(relation);
        let identity = relation
            .columns
            .iter()
            .zip(old)
            .filter(|(column, v)| (column.key || relation.full) && **v != Value::Unchanged);
        if !relation.full {
            let conditions = identity
                .map(|(column, value)| {
                    let value = change.value(value)?;
                    let of = known.and_then(|of| of.get(&column.name));
                    let column = format!("z.{}", ident(&column.name));
                    Ok(match of {
                        None => format!("{column} OPERATOR(pg_catalog.=) {value}"),
                        Some(of) => match &of.operator {
                            Some(operator) => format!("{column} {operator} {}", of.cast(&value)),
                            None => format!(
                                "ROW({column}::{})::record OPERATOR(pg_catalog.=) ROW({})::record",
                                of.of,
                                of.cast(&value)
                            ),
                        },
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            return Ok(conditions.join(" AND "));
        }
        // As PostgreSQL looks for a row without a key: by the operators of the default classes, and nulls are equal.
        // Without such operators, byte by byte.
        let (mut ours, mut theirs, mut equals) = (vec![], vec![], "=");
        for (column, value) in identity {
            let value = change.value(value)?;
            let Some(of) = known.and_then(|of| of.get(&column.name)) else {
                ours.push(format!("y.{}", ident(&column.name)));
                theirs.push(value);
                continue;
            };
            if !of.comparable {
                equals = "*=";
            }
            ours.push(format!("y.{}::{}", ident(&column.name), of.of));
            theirs.push(of.cast(&value));
        }
        // Of rows that are alike, one.
        Ok(format!(
            "z.ctid = (SELECT y.ctid FROM {} y \
             WHERE ROW({})::record OPERATOR(pg_catalog.{equals}) ROW({})::record LIMIT 1)",
            self.only(relation),
            ours.join(", "),
            theirs.join(", ")
        ))
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
            about: None,
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

/// The value as it is written into the column.
fn written(
    known: Option<&BTreeMap<String, Equality>>,
    column: &Column,
    value: &Value,
    change: &mut Change,
) -> Result<String> {
    let text = change.value(value)?;
    Ok(match known.and_then(|of| of.get(&column.name)) {
        Some(of) if *value != Value::Unchanged && (of.domain || of.nested) => of.cast(&text),
        _ => text,
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
        let of = |name: &str, key: bool| {
            let equality = Equality {
                of: format!("\"p\".\"{name}\""),
                domain: false,
                nested: false,
                operator: key.then(|| "OPERATOR(\"x\".=)".into()),
                comparable: true,
            };
            (name.to_owned(), equality)
        };
        let columns = BTreeMap::from([of("id", true), of("v", false)]);
        let catalog = Catalog {
            timestamps,
            equality: BTreeMap::from([(r#""s"."t""#.into(), columns)]),
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
                "UPDATE ONLY \"s\".\"t\" AS z SET \"id\" = $1 \
                 WHERE z.\"id\" OPERATOR(\"x\".=) $2::\"p\".\"id\" AND true"
                    .into(),
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
                format!(
                    "UPDATE ONLY \"s\".\"t\" AS z SET \"v\" = $1 \
                     WHERE z.\"id\" OPERATOR(\"x\".=) $2::\"p\".\"id\" AND {NOT_NEWER}"
                ),
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
                "DELETE FROM ONLY \"s\".\"t\" AS z WHERE z.ctid = (SELECT y.ctid FROM ONLY \"s\".\"t\" y \
                 WHERE ROW(y.\"id\"::\"p\".\"id\", y.\"v\"::\"p\".\"v\")::record OPERATOR(pg_catalog.=) \
                 ROW($1::\"p\".\"id\", $2::\"p\".\"v\")::record LIMIT 1) AND true"
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
