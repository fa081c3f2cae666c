//! What two nodes have in a table, compared by digests of buckets of keys, and row by row where those differ.
//!
//! What is held in memory has a bound: buckets are split until few rows share one with a row that differs, and
//! those that differ are looked at in parts.

use super::share::{IDENTITY_INDEX, Share};
use crate::error::{Error, Result, SqlState};
use crate::node::{Node, Query, ask};
use crate::quote::{ident, literal, qualified};
use std::collections::{BTreeMap, BTreeSet};
use zodan_core::decoding::{Column, Relation, Tuple, Value};

/// Buckets of a table at the first look, and at most that are asked for at once.
const FEWEST_BUCKETS: u64 = 1 << 10;
const MOST_BUCKETS: u64 = 1 << 16;
/// Rows that a bucket is to have when its rows are fetched.
const ROWS_PER_BUCKET: u64 = 32;
/// What of one node's rows is held in memory at the same time.
const PART_ROWS: u64 = 50_000;
const PART_BYTES: u64 = 16 << 20;
/// A bucket is not fetched in parts. One beyond that is a row of that size, or as many that are alike.
const LIMIT_ROWS: u64 = 1_000_000;
const LIMIT_BYTES: u64 = 256 << 20;
/// Longer keys are told by their beginning.
const KEY_LENGTH: usize = 1000;

/// A row as its node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of all columns that are compared.
    pub digest: String,
    /// Of those that are sent.
    pub shared: String,
    /// When it was written, in microseconds since 2000, if the node knows.
    pub written: Option<i64>,
    /// The transaction that wrote it on its node.
    pub xid: u32,
    /// The number of the origin that it bears on its node, if the node knows; 0 for the node itself.
    pub origin: Option<u32>,
    /// Others are to have it.
    pub sent: bool,
    /// Its DELETE is sent, where deletes are.
    pub deletable: bool,
    /// The values in the order of the relation's columns.
    pub values: Tuple,
}

/// The versions of one key on two nodes; never equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    pub left: Option<Version>,
    pub right: Option<Version>,
}

/// A table to be compared: its key, and the columns that two nodes are to have alike.
#[derive(Clone, Debug)]
pub struct Compared {
    pub relation: Relation,
    pub share: Share,
    /// Also what is not sent is compared.
    everything: bool,
    /// The rows of each of the two, as `t`, with what of a row is sent.
    rows: [String; 2],
}

/// What the rows of a table have besides its columns.
const SENT: &str = "\"zodan: sent\"";
const DELETABLE: &str = "\"zodan: deletable\"";

impl Compared {
    /// What of the table is sent.
    pub fn new(relation: Relation, share: Share) -> Self {
        let mut table = Self::with_all(relation, share);
        table.everything = false;
        let columns = std::mem::take(&mut table.relation.columns);
        let sent = columns.into_iter().filter(|c| table.is_sent(c)).collect();
        table.relation.columns = sent;
        table
    }

    /// Also the rows and columns that are not sent.
    pub fn with_all(relation: Relation, share: Share) -> Self {
        Self {
            rows: [0, 1].map(|side| rows(&relation, &share, side)),
            relation,
            share,
            everything: true,
        }
    }

    fn is_sent(&self, column: &Column) -> bool {
        let listed = self.share.columns.as_ref();
        column.key || listed.is_none_or(|listed| listed.contains(&column.name))
    }

    pub fn name(&self) -> String {
        qualified(&self.relation.schema, &self.relation.name)
    }
}

/// The rows of one of the two nodes, as a subquery.
fn rows(relation: &Relation, share: &Share, side: usize) -> String {
    let truth = |condition: Option<String>| match condition {
        Some(condition) => format!("({condition}) IS TRUE"),
        None => "true".into(),
    };
    let conditions: Vec<String> = share.deleted.iter().map(|c| format!("({c})")).collect();
    let conditions = conditions.join(" AND ");
    let deletable = match (conditions.is_empty(), relation.full) {
        (true, _) => None,
        (false, true) => Some(conditions),
        // Of the old row no more than its identity is known, unless that is the row as a whole.
        (false, false) => {
            let columns: Vec<String> = relation
                .columns
                .iter()
                .map(|c| match (c.key, ident(&c.name)) {
                    (true, name) => name,
                    (false, name) => format!("CASE WHEN false THEN {name} END AS {name}"),
                })
                .collect();
            Some(format!(
                "CASE WHEN (SELECT relreplident = 'f' FROM pg_class c WHERE c.oid = to_regclass({})) THEN {conditions}
                      ELSE EXISTS (SELECT FROM (SELECT {}) AS {} WHERE {conditions}) END",
                literal(&qualified(&relation.schema, &relation.name)),
                columns.join(", "),
                ident(&relation.name)
            ))
        }
    };
    format!(
        "(SELECT *, xmin, {} AS {SENT}, {} AS {DELETABLE} FROM ONLY {}) t",
        truth(share.rows[side].clone()),
        truth(deletable),
        qualified(&relation.schema, &relation.name)
    )
}

/// Buckets that differ, few enough to be looked at together.
pub struct Part {
    /// How many buckets the table was divided into.
    buckets: u64,
    ids: String,
}

/// The ordinary tables of the node but those in `left_out`.
pub fn relations(node: &mut Node, left_out: &[&str]) -> Result<Vec<Relation>> {
    let columns = Query::new(
        format!(
            "SELECT c.oid, n.nspname, c.relname, a.attname,
                    coalesce(a.attnum = ANY (i.indkey), false) AS key
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                                  AND a.attgenerated = ''
               LEFT JOIN pg_index i ON {IDENTITY_INDEX}
              WHERE c.relkind = 'r' AND c.relpersistence = 'p'
                AND n.nspname NOT IN ('pg_catalog', 'information_schema')
              ORDER BY 2, 3, a.attnum"
        ),
        &[],
        |row| {
            let relation = Relation {
                id: row.get("oid")?,
                schema: row.get("nspname")?,
                name: row.get("relname")?,
                full: false,
                columns: vec![],
            };
            let column = Column {
                name: row.get("attname")?,
                key: row.get("key")?,
            };
            Ok((relation, column))
        },
    );
    let mut found: Vec<Relation> = vec![];
    for (relation, column) in columns.on(node)? {
        if left_out.contains(&relation.schema.as_str()) {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.id == relation.id => last.columns.push(column),
            _ => found.push(Relation {
                columns: vec![column],
                ..relation
            }),
        }
    }
    for relation in &mut found {
        relation.full = !relation.columns.iter().any(|c| c.key);
    }
    Ok(found)
}

/// What is known of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bucket {
    id: u64,
    rows: u64,
    bytes: u64,
}

/// Where the two nodes differ in `relation`, in parts for [`differences`].
pub fn parts(table: &Compared, left: &mut Node, right: &mut Node) -> Result<Vec<Part>> {
    let mut buckets = FEWEST_BUCKETS;
    for rows in both(left, right, |_| estimate(&table.relation))? {
        let expected = rows.first().copied().unwrap_or(0);
        let wanted = (expected / (16 * ROWS_PER_BUCKET)).next_power_of_two();
        buckets = buckets.max(wanted.min(MOST_BUCKETS));
    }
    let mut differing = differing(table, buckets, None, left, right)?;
    loop {
        let (rows, bytes) = sum(&differing);
        let count = (differing.len() as u64).max(1);
        let fits = rows <= PART_ROWS && bytes <= PART_BYTES;
        let split = (rows / count / ROWS_PER_BUCKET)
            .min(MOST_BUCKETS / count)
            .checked_ilog2()
            .map_or(1, |exponent| 1 << exponent);
        if fits || split <= 1 {
            break;
        }
        let coarse = Part {
            buckets,
            ids: ids(&differing),
        };
        buckets *= split;
        differing = self::differing(table, buckets, Some(&coarse), left, right)?;
        // Rows that are alike stay together.
        if sum(&differing).0 > rows / 2 {
            break;
        }
    }
    if let Some(large) = differing
        .iter()
        .find(|b| b.rows > LIMIT_ROWS || b.bytes > LIMIT_BYTES)
    {
        return Err(Error::Refused {
            state: SqlState::PROGRAM_LIMIT_EXCEEDED,
            message: format!(
                "table {} cannot be compared between node \"{}\" and node \"{}\"",
                table.name(),
                left.name,
                right.name
            ),
            detail: Some(format!(
                "{} of its rows, {} MB, have to be looked at together: they are alike, or too large.",
                large.rows,
                large.bytes >> 20
            )),
            hint:
                "Give the table a primary key, or remove one of the two nodes and let it join anew."
                    .into(),
        });
    }
    Ok(divided(differing)
        .into_iter()
        .map(|part| Part {
            buckets,
            ids: ids(&part),
        })
        .collect())
}

/// As many together as can be held.
fn divided(differing: Vec<Bucket>) -> Vec<Vec<Bucket>> {
    let mut parts: Vec<Vec<Bucket>> = vec![];
    let (mut rows, mut bytes) = (0, 0);
    for bucket in differing {
        rows += bucket.rows;
        bytes += bucket.bytes;
        match parts.last_mut() {
            Some(part) if rows <= PART_ROWS && bytes <= PART_BYTES => part.push(bucket),
            _ => {
                (rows, bytes) = (bucket.rows, bucket.bytes);
                parts.push(vec![bucket]);
            }
        }
    }
    parts
}

fn sum(buckets: &[Bucket]) -> (u64, u64) {
    let of = |what: fn(&Bucket) -> u64| buckets.iter().map(what).sum();
    (of(|b| b.rows), of(|b| b.bytes))
}

fn ids(buckets: &[Bucket]) -> String {
    let ids: Vec<String> = buckets.iter().map(|b| b.id.to_string()).collect();
    ids.join(",")
}

/// The buckets of `within`, or of the whole table, that are not the same on both, with the larger of the two sizes.
fn differing(
    table: &Compared,
    buckets: u64,
    within: Option<&Part>,
    left: &mut Node,
    right: &mut Node,
) -> Result<Vec<Bucket>> {
    let digests = both(left, right, |side| digest(table, side, buckets, within))?;
    let [ours, theirs] = digests.map(|buckets| {
        let by_id = buckets
            .into_iter()
            .map(|(bucket, digest)| (bucket.id, (bucket, digest)));
        by_id.collect::<BTreeMap<u64, (Bucket, String)>>()
    });
    let mut theirs = theirs;
    let mut found = vec![];
    for (id, (bucket, digest)) in ours {
        match theirs.remove(&id) {
            Some((_, same)) if same == digest => {}
            None if digest == NONE_SENT => {}
            other => found.push(Bucket {
                rows: bucket.rows.max(other.as_ref().map_or(0, |(o, _)| o.rows)),
                bytes: bucket.bytes.max(other.as_ref().map_or(0, |(o, _)| o.bytes)),
                ..bucket
            }),
        }
    }
    let theirs = theirs.into_values();
    let theirs = theirs.filter(|(_, digest)| digest != NONE_SENT);
    found.extend(theirs.map(|(bucket, _)| bucket));
    found.sort_by_key(|b| b.id);
    Ok(found)
}

/// What differs in one part, by key. Without a key the whole row is one.
pub fn differences(
    table: &Compared,
    part: &Part,
    left: &mut Node,
    right: &mut Node,
) -> Result<Vec<Difference>> {
    let [ours, theirs] = both(left, right, |side| versions(table, side, part))?;
    let (mut ours, mut theirs) = (
        keyed(&table.relation, ours)?,
        keyed(&table.relation, theirs)?,
    );
    let keys: BTreeSet<String> = ours.keys().chain(theirs.keys()).cloned().collect();
    let mut found = vec![];
    for key in keys {
        let (left, right) = (
            ours.remove(&key).unwrap_or_default(),
            theirs.remove(&key).unwrap_or_default(),
        );
        found.extend(unequal(&key, left, right));
    }
    Ok(found)
}

/// What is left of the rows of one key when those that are the same on both are paired off. Only rows without a key
/// can be several: first those that were written at the same time, since they are the same row.
fn unequal(key: &str, mut left: Vec<Version>, mut right: Vec<Version>) -> Vec<Difference> {
    let before = left.len().min(right.len());
    for same_time in [true, false] {
        left.retain(|ours| {
            let same = right.iter().position(|theirs| {
                ours.digest == theirs.digest && (!same_time || ours.written == theirs.written)
            });
            same.map(|at| right.remove(at)).is_none()
        });
    }
    let paired = before - left.len().min(right.len());
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    let mut found = vec![];
    loop {
        let (left, right) = (left.next(), right.next());
        if left.is_none() && right.is_none() {
            return found;
        }
        let key = match paired + found.len() {
            0 => key.to_owned(),
            n => format!("{key} (no. {})", n + 1),
        };
        found.push(Difference { key, left, right });
    }
}

fn both<T>(
    left: &mut Node,
    right: &mut Node,
    query: impl Fn(usize) -> Query<T>,
) -> Result<[Vec<T>; 2]> {
    let queries = [query(0), query(1)];
    let mut answers = ask(vec![queries[0].ask(left), queries[1].ask(right)]).into_iter();
    let mut read = |query: &Query<T>| {
        let rows = answers.next();
        query.read(&rows.unwrap_or_else(|| Err(Error::internal("a node was not asked")))?)
    };
    Ok([read(&queries[0])?, read(&queries[1])?])
}

/// The text of a row of those columns.
fn text<'a>(columns: impl Iterator<Item = &'a Column>) -> String {
    let columns: Vec<String> = columns.map(|c| format!("t.{}", ident(&c.name))).collect();
    format!("ROW({})::text", columns.join(", "))
}

impl Compared {
    fn key(&self) -> String {
        let full = self.relation.full;
        let columns = self.relation.columns.iter();
        text(columns.filter(|c| c.key || full && self.is_sent(c)))
    }

    fn bucket(&self, buckets: u64) -> String {
        format!("(hashtextextended({}, 0) & {})", self.key(), buckets - 1)
    }

    fn row(&self) -> String {
        text(self.relation.columns.iter())
    }

    fn shared(&self) -> String {
        text(self.relation.columns.iter().filter(|c| self.is_sent(c)))
    }
}

/// Rows that the table is believed to have.
fn estimate(relation: &Relation) -> Query<u64> {
    Query::new(
        "SELECT greatest(c.reltuples, pg_relation_size(c.oid) / 250, 0)::bigint
           FROM pg_class c WHERE c.oid = to_regclass($1)",
        &[&qualified(&relation.schema, &relation.name)],
        |row| row.only(),
    )
}

/// The digest of a bucket of which nothing is sent.
const NONE_SENT: &str = "0";

/// The buckets with their digests, each of the rows that are sent.
fn digest(
    table: &Compared,
    side: usize,
    buckets: u64,
    within: Option<&Part>,
) -> Query<(Bucket, String)> {
    let (condition, ids) = match within {
        Some(part) => (
            format!(
                "WHERE {} = ANY (string_to_array($1, ',')::bigint[])",
                table.bucket(part.buckets)
            ),
            vec![part.ids.as_str()],
        ),
        None => (String::new(), vec![]),
    };
    // Behind the OFFSET the text of a row is made once.
    Query::new(
        format!(
            "SELECT bucket, count(*) AS rows,
                    concat_ws(' ', count(*) FILTER (WHERE sent), sum(octet_length(r)) FILTER (WHERE sent),
                              sum(hashtextextended(r, 1)::numeric) FILTER (WHERE sent)) AS digest,
                    sum(octet_length(r)) AS bytes
               FROM (SELECT {} AS bucket, {} AS r, {} AS sent FROM {} {condition} OFFSET 0) t GROUP BY 1",
            table.bucket(buckets),
            table.row(),
            match table.everything {
                true => "true".into(),
                false => format!("t.{SENT}"),
            },
            table.rows[side]
        ),
        &ids,
        |row| {
            let bucket = Bucket {
                id: row.get("bucket")?,
                rows: row.get("rows")?,
                bytes: row.get("bytes")?,
            };
            Ok((bucket, row.get("digest")?))
        },
    )
}

/// How many rows one of the two nodes has that others are to have.
pub fn count_sent(table: &Compared, side: usize) -> Query<usize> {
    let rows = &table.rows[side];
    let sql = format!("SELECT count(*) FROM {rows} WHERE t.{SENT}");
    Query::new(sql, &[], |row| row.only())
}

/// Each with its key.
fn versions(table: &Compared, side: usize, part: &Part) -> Query<(String, Version)> {
    let columns = table.relation.columns.iter();
    let values: Vec<String> = columns
        .map(|c| format!("t.{}::text", ident(&c.name)))
        .collect();
    Query::new(
        format!(
            "SELECT {} AS key, hashtextextended({}, 1) AS digest, hashtextextended({}, 1) AS shared,
                    (extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint AS written,
                    t.xmin AS xid, w.roident AS origin, t.{SENT} AS sent, t.{DELETABLE} AS deletable, {}
               FROM {}
               LEFT JOIN LATERAL pg_xact_commit_timestamp_origin(
                    CASE current_setting('track_commit_timestamp') WHEN 'on' THEN t.xmin END) w ON true
              WHERE {} = ANY (string_to_array($1, ',')::bigint[])",
            short(&table.key()),
            table.row(),
            table.shared(),
            values.join(", "),
            table.rows[side],
            table.bucket(part.buckets)
        ),
        &[&part.ids],
        |row| {
            let version = Version {
                digest: row.get("digest")?,
                shared: row.get("shared")?,
                written: row.get("written")?,
                xid: row.get("xid")?,
                origin: row.get("origin")?,
                sent: row.get("sent")?,
                deletable: row.get("deletable")?,
                values: row.from(8).map(Value::from).collect(),
            };
            Ok((row.get("key")?, version))
        },
    )
}

/// `text` where it is not too long, else its beginning and a digest.
fn short(text: &str) -> String {
    format!(
        "CASE WHEN octet_length({text}) <= {KEY_LENGTH} THEN {text}
              ELSE concat(left({text}, {}), '... ', md5({text})) END",
        KEY_LENGTH / 5
    )
}

fn keyed(
    relation: &Relation,
    versions: Vec<(String, Version)>,
) -> Result<BTreeMap<String, Vec<Version>>> {
    let mut found: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for (key, version) in versions {
        let alike = found.entry(key).or_default();
        if !alike.is_empty() && !relation.full {
            return Err(Error::internal("a row was read twice"));
        }
        alike.push(version);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(written: i64) -> Version {
        Version {
            digest: "1".into(),
            shared: "1".into(),
            written: Some(written),
            xid: 3,
            origin: Some(0),
            sent: true,
            deletable: true,
            values: vec![],
        }
    }

    #[test]
    fn of_rows_that_are_alike_the_one_that_the_other_node_has_not() {
        let left = unequal("(a)", vec![version(1), version(2)], vec![version(2)]);
        let expected = Difference {
            key: "(a) (no. 2)".into(),
            left: Some(version(1)),
            right: None,
        };
        assert_eq!(left, [expected]);
        assert!(unequal("(a)", vec![version(1)], vec![version(2)]).is_empty());
        let left = unequal("(a)", vec![], vec![version(2)]);
        assert_eq!(
            (left[0].key.as_str(), left[0].right.clone()),
            ("(a)", Some(version(2)))
        );
    }

    #[test]
    fn parts_are_no_larger_than_can_be_held() {
        let bucket = |id, rows, bytes| Bucket { id, rows, bytes };
        let parts = divided(vec![
            bucket(1, PART_ROWS - 1, 1),
            bucket(2, 1, 1),
            bucket(3, 1, 1),
            bucket(4, 1, PART_BYTES + 1),
            bucket(5, 1, 1),
        ]);
        let ids: Vec<String> = parts.iter().map(|part| super::ids(part)).collect();
        assert_eq!(ids, ["1,2", "3", "4", "5"]);
    }
}
