//! What a database holds, so that two nodes can be compared to the byte.

use crate::parallel::in_parallel;
use crate::server::Server;
use postgres::{Client, SimpleQueryMessage};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The content of one table: how many rows, and a hash of them that does not depend on their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDigest {
    /// Number of rows.
    pub rows: u64,
    /// Sum of 128 bits of hash per row. A sum, so that a duplicate row counts, as it would not in an XOR.
    pub hash: String,
}

/// Qualified and quoted table name to content.
pub type Digest = BTreeMap<String, TableDigest>;

/// Rows are hashed as text, so whatever changes a type's output is the same in every session.
const SESSION: &str = "
SET search_path = pg_catalog; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content';
SET quote_all_identifiers = off; SET row_security = off; SET client_encoding = 'UTF8';
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
";

/// Ordinary permanent tables with the leaves of partitioned ones; the nodes' own bookkeeping is left out.
const TABLES: &str = "
SELECT format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'zodan', 'spock')
 ORDER BY 1";

/// Number of parts that a differing table is compared in, so that only the rows of differing parts are fetched.
const BUCKETS: u32 = 4096;

/// Digests of all user tables of the server's database, in one snapshot.
pub fn digest(server: &Server) -> Digest {
    let mut session = Session::begin(server);
    let tables = session.rows(TABLES);
    tables
        .into_iter()
        .map(|mut row| {
            let table = row.swap_remove(0);
            let sums = session.rows(&format!("SELECT {SUMS} FROM {}", rows_of(&table)));
            let rows = sums[0][0].parse().expect("a count");
            (
                table,
                TableDigest {
                    rows,
                    hash: sums[0][1].clone(),
                },
            )
        })
        .collect()
}

const SUMS: &str = "count(*), format('%s:%s', sum(hashtextextended(r, 0)::numeric), sum(hashtextextended(r, 1)::numeric))";

/// The table's own rows (not its children's) as text. OFFSET 0 keeps the planner from computing the text once per hash.
fn rows_of(table: &str) -> String {
    format!("(SELECT t::text AS r FROM ONLY {table} t OFFSET 0) s")
}

/// Compares the content of all `servers` with the first one's. The error names the tables and shows rows.
pub fn compare(servers: &[&Server]) -> Result<(), String> {
    let digests = in_parallel(servers, |server| digest(server));
    let mut report = String::new();
    for (server, theirs) in servers.iter().zip(&digests).skip(1) {
        report += &difference(servers[0], &digests[0], server, theirs);
    }
    if report.is_empty() {
        Ok(())
    } else {
        Err(report)
    }
}

/// Panics with the differences unless all `servers` have the same content.
pub fn assert_same_content(servers: &[&Server]) {
    if let Err(report) = compare(servers) {
        panic!("the nodes differ\n{report}");
    }
}

fn difference(a: &Server, a_digest: &Digest, b: &Server, b_digest: &Digest) -> String {
    let mut report = String::new();
    let tables: std::collections::BTreeSet<_> = a_digest.keys().chain(b_digest.keys()).collect();
    for table in tables {
        match (a_digest.get(table), b_digest.get(table)) {
            (Some(x), Some(y)) if x == y => {}
            (Some(x), Some(y)) => {
                let _ = writeln!(
                    report,
                    "{table}: {} rows on {}, {} on {}",
                    x.rows,
                    a.name(),
                    y.rows,
                    b.name()
                );
                report += &differing_rows(table, a, b);
            }
            (present, _) => {
                let absent = if present.is_some() { b } else { a };
                let _ = writeln!(report, "{table}: does not exist on {}", absent.name());
            }
        }
    }
    report
}

/// Some of the rows that only one of two nodes has.
fn differing_rows(table: &str, a: &Server, b: &Server) -> String {
    const SHOWN_BUCKETS: usize = 3;
    const SHOWN_ROWS: usize = 5;
    let (mut a_session, mut b_session) = (Session::begin(a), Session::begin(b));
    let bucket = format!("hashtextextended(r, 2) & {}", BUCKETS - 1);
    let by_bucket = format!("SELECT {bucket}, {SUMS} FROM {} GROUP BY 1", rows_of(table));
    let mut parts: BTreeMap<String, [Option<Vec<String>>; 2]> = BTreeMap::new();
    for (side, session) in [&mut a_session, &mut b_session].into_iter().enumerate() {
        for mut row in session.rows(&by_bucket) {
            let sums = row.split_off(1);
            parts.entry(row.swap_remove(0)).or_default()[side] = Some(sums);
        }
    }
    let differing: Vec<String> = parts
        .into_iter()
        .filter(|(_, [x, y])| x != y)
        .map(|(part, _)| part)
        .take(SHOWN_BUCKETS)
        .collect();
    if differing.is_empty() {
        return "  (equal by now: were the writers still running?)\n".into();
    }
    let fetch = format!(
        "SELECT r FROM {} WHERE {bucket} IN ({})",
        rows_of(table),
        differing.join(", ")
    );
    let mut surplus: BTreeMap<String, i64> = BTreeMap::new();
    for (session, weight) in [(&mut a_session, 1), (&mut b_session, -1)] {
        for mut row in session.rows(&fetch) {
            *surplus.entry(row.swap_remove(0)).or_default() += weight;
        }
    }
    let mut report = String::new();
    for (side, sign) in [(a, 1), (b, -1)] {
        for (row, count) in surplus
            .iter()
            .filter(|(_, count)| **count * sign > 0)
            .take(SHOWN_ROWS)
        {
            let times = if count.abs() > 1 {
                format!(" ({} times)", count.abs())
            } else {
                String::new()
            };
            let _ = writeln!(
                report,
                "  only on {}{times}: {}",
                side.name(),
                shortened(row)
            );
        }
    }
    report
}

/// A row cut to a readable length; its full length then tells different ones apart.
fn shortened(row: &str) -> String {
    const LONGEST: usize = 200;
    match row.char_indices().nth(LONGEST) {
        None => row.into(),
        Some((end, _)) => format!("{}... ({} bytes)", &row[..end], row.len()),
    }
}

struct Session<'a> {
    server: &'a Server,
    client: Client,
}

impl<'a> Session<'a> {
    fn begin(server: &'a Server) -> Session<'a> {
        let mut client = server.client();
        if let Err(e) = client.batch_execute(SESSION) {
            panic!("{}: {}", server.name(), crate::explain(&e));
        }
        Session { server, client }
    }

    fn rows(&mut self, query: &str) -> Vec<Vec<String>> {
        let messages = self
            .client
            .simple_query(query)
            .unwrap_or_else(|e| panic!("{}: {}\n{query}", self.server.name(), crate::explain(&e)));
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|i| row.get(i).unwrap_or_default().into())
                        .collect(),
                ),
                _ => None,
            })
            .collect()
    }
}

/// The structure of the server's database as pg_dump writes it, without what differs between nodes by nature:
/// publications, subscriptions, the extension zodan and the schemas of zodan and Spock.
pub fn structure(server: &Server) -> String {
    let out = server
        .tool("pg_dump")
        .args([
            "--schema-only",
            "--no-publications",
            "--no-subscriptions",
            "-N",
            "zodan",
            "-N",
            "spock",
        ])
        .output()
        .unwrap_or_else(|e| panic!("cannot run pg_dump: {e}"));
    assert!(
        out.status.success(),
        "pg_dump of {}: {}",
        server.name(),
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8_lossy(&out.stdout);
    // The key of \restrict is another one in each dump.
    // On the extension itself depends which node a join was run on.
    let same = |line: &&str| {
        let ours = line.contains("EXTENSION") && line.contains("zodan");
        let varies = line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
        !(matches!(*line, "" | "--") || varies || ours)
    };
    text.lines().filter(same).collect::<Vec<_>>().join("\n")
}

/// Panics with the first differing lines unless both databases have the same structure.
pub fn assert_same_structure(a: &Server, b: &Server) {
    let (left, right) = (structure(a), structure(b));
    if left == right {
        return;
    }
    let (mut only_left, mut only_right) =
        (surplus_lines(&left, &right), surplus_lines(&right, &left));
    only_left.truncate(10);
    only_right.truncate(10);
    panic!(
        "the structures differ\nonly on {}:\n{}\nonly on {}:\n{}",
        a.name(),
        only_left.join("\n"),
        b.name(),
        only_right.join("\n")
    );
}

fn surplus_lines<'t>(text: &'t str, other: &str) -> Vec<&'t str> {
    let known: std::collections::HashSet<&str> = other.lines().collect();
    text.lines().filter(|line| !known.contains(line)).collect()
}
