//! Values, names and statements mean the same on every node, whatever the servers, databases and roles have for
//! settings, and whatever event triggers there are.

mod common;

use common::{Call, quick};
use lab::postgres::Client;
use lab::{Cluster, Server, assert_same_content, wait_quiet};

/// Values whose text depends on settings, in a table that is copied as text and in one that is copied in binary.
const CONTENT: &str = r#"
SET search_path = public; SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET array_nulls = on;
SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET session_replication_role = 'origin';
CREATE TYPE part AS (day date, span interval, at timestamptz, bytes bytea);
CREATE TABLE "in Binary" (
    id integer PRIMARY KEY, span interval, at timestamptz, local timestamp, day date, clock timetz, big float8,
    small float4, bytes bytea, price money, words text[], n numeric, doc json, docb jsonb, net inet, bits varbit,
    during tstzrange, spot point, part part, parts part[], zone text DEFAULT 'a\b''c');
INSERT INTO "in Binary" VALUES
    (1, '-1 day -02:03:04', '2024-03-02 01:02:03.456789+05', '2024-03-02 01:02:03', '2024-03-02', '01:02:03+05:30',
     '1.7976931348623157e308', 1.1754944e-38, '\x00ff5c27', 1234.5, '{x,NULL,"NULL","a\\b"}', '1.10', '{"a" : 1}',
     '{"a": 1}', '10.0.0.1/8', '10101', '[2024-03-02 01:02:03+05,)', '(0.1,0.2)',
     ROW('2024-03-02', '-1 year -2 mons +3 days', '2024-03-02 01:02:03+05', '\x5c'),
     ARRAY[ROW('0044-03-15 BC', '1 day', 'infinity', '')::part, NULL]),
    (2, '-1 year -2 mons -3 days -04:05:06.7', '-infinity', '0044-03-15 12:00:00 BC', '0044-03-15 BC', NULL,
     '5e-324', 'NaN', '', -0.01, '{}', 'NaN', 'null', 'null', '::1', '', 'empty', NULL, NULL, NULL, NULL),
    (3, '1 mon -1 day', '0044-03-15 01:02:03+00 BC', 'infinity', 'infinity', '24:00:00-12', 0.1::float8 + 0.2,
     0.1, '\x80', 0, '{{1,NULL},{NULL,2}}', '-0.00', '[]', '[]', NULL, NULL, NULL, NULL, NULL, NULL, '');
CREATE TABLE as_text AS SELECT b.*, 'public."in Binary"'::regclass AS tab, 'numeric_send'::regproc AS fn FROM "in Binary" b;
ALTER TABLE as_text ADD PRIMARY KEY (id);
CREATE TABLE slow (id integer PRIMARY KEY);
CREATE FUNCTION public.slowly(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
    AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.5); RETURN $1; END';
ALTER TABLE slow ADD CHECK (public.slowly(id) > 0);
INSERT INTO slow VALUES (1);
CREATE INDEX ON slow (public.slowly(id));
CREATE MATERIALIZED VIEW seen AS SELECT public.slowly(id) FROM slow;
"#;

/// What changes texts, names and statements.
const MEANING: [(&str, &str); 24] = [
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kathmandu"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("xmlbinary", "hex"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("escape_string_warning", "on"),
    ("transform_null_equals", "on"),
    ("row_security", "off"),
    ("lo_compat_privileges", "on"),
    ("check_function_bodies", "off"),
    ("gin_fuzzy_search_limit", "1"),
    ("plan_cache_mode", "force_generic_plan"),
    ("session_replication_role", "replica"),
    ("synchronous_commit", "remote_apply"),
    ("client_min_messages", "error"),
    ("client_encoding", "latin1"),
    ("search_path", "nowhere"),
    ("plpgsql.extra_errors", "all"),
];

/// What ends sessions, statements and transactions, or keeps them from writing. Everything here takes longer.
const COURSE: [(&str, &str); 9] = [
    ("statement_timeout", "400ms"),
    ("lock_timeout", "1ms"),
    ("idle_in_transaction_session_timeout", "300ms"),
    ("idle_session_timeout", "400ms"),
    ("transaction_timeout", "400ms"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("exit_on_error", "on"),
];

/// Two servers with a role for the connection strings, which has every limit there is.
fn pair() -> Cluster {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    for node in cluster.all() {
        node.sql("CREATE ROLE odd SUPERUSER LOGIN");
        for (name, value) in COURSE {
            node.sql(&format!("ALTER ROLE odd SET {name} = '{value}'"));
        }
    }
    cluster
}

fn set(server: &Server, level: &str, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        server.sql(&format!("{level} SET {name} = '{value}'"));
    }
    server.reload();
}

/// Joins with the role `odd`, in a session of its.
fn join_as_odd(n1: &Server, n2: &Server) {
    let dsn = |server: &Server| Some(server.dsn().replace("user=postgres", "user=odd"));
    let call = Call {
        src_dsn: dsn(n1),
        new_node_dsn: dsn(n2),
        ..Call::of(n2, n1)
    };
    let call = call.sql().replace(")", ", verify := true)");
    let mut session = n2.client_as("odd", n2.database());
    let before = settings(&mut session);
    session
        .simple_query(&call)
        .unwrap_or_else(|e| panic!("{}", lab::explain(&e)));
    assert_eq!(settings(&mut session), before, "the session is as it was");
}

/// What the session has for settings.
fn settings(session: &mut Client) -> Vec<(String, String)> {
    let rows = session
        .query(
            "SELECT name, setting FROM pg_settings WHERE source <> 'override' AND name !~ '^zodan' ORDER BY 1",
            &[],
        )
        .unwrap();
    rows.iter().map(|r| (r.get(0), r.get(1))).collect()
}

fn assert_equal(n1: &Server, n2: &Server) {
    wait_quiet(&[n1, n2]);
    assert_same_content(&[n1, n2]);
    let mut session = n2.client();
    session
        .batch_execute("SET search_path = pg_catalog; SET intervalstyle = 'postgres'")
        .unwrap();
    let row = session
        .query_one(
            "SELECT span::text, words::text FROM public.as_text WHERE id = 1",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "-1 days -02:03:04");
    assert_eq!(row.get::<_, String>(1), r#"{x,NULL,"NULL","a\\b"}"#);
    let differing = n1.value("SELECT count(*) FROM spock.verify_nodes()");
    assert_eq!(differing, "0");
}

#[test]
fn a_source_whose_settings_are_odd() {
    let cluster = pair();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(CONTENT);
    set(n1, "ALTER DATABASE postgres", &MEANING);
    join_as_odd(n1, n2);
    assert_equal(n1, n2);
}

#[test]
fn a_new_node_whose_settings_are_odd() {
    let cluster = pair();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(CONTENT);
    let (some, more) = MEANING.split_at(MEANING.len() / 2);
    set(n2, "ALTER SYSTEM", some);
    set(n2, "ALTER ROLE odd", more);
    join_as_odd(n1, n2);
    assert_equal(n1, n2);
}
