//! Values, names and statements mean the same on every node, whatever the servers, databases and roles have for
//! settings, and whatever event triggers there are.

mod common;

use common::engines::On;
use common::recovery;
use common::{Call, fingerprint, open_writer, quick, wait_mesh};
use lab::postgres::Client;
use lab::{Cluster, Server, assert_same_content, quote_literal, wait_quiet};

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
     ARRAY[ROW('0044-03-15 BC', '1 day', 'infinity', '')::part, NULL], DEFAULT),
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
CREATE MATERIALIZED VIEW days AS SELECT id, date_trunc('day', at)::text AS day, span::text FROM "in Binary";
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
    cluster.form_mesh(1, CONTENT);
    for node in cluster.all() {
        node.sql("CREATE ROLE odd SUPERUSER LOGIN");
        for (name, value) in COURSE
            .into_iter()
            .filter(|(name, _)| lab::pg::has_setting(name))
        {
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
    assert_unchanged(&mut session, &before);
}

/// What the session has for settings.
fn settings(session: &mut Client) -> Vec<(String, String)> {
    let rows = session
        .query(
            "SELECT name, setting FROM pg_settings WHERE source <> 'override' AND name !~ '^(zodan|plpgsql)' ORDER BY 1",
            &[],
        )
        .unwrap();
    rows.iter().map(|r| (r.get(0), r.get(1))).collect()
}

/// Panics with what a CALL has left of its own.
fn assert_unchanged(session: &mut Client, before: &[(String, String)]) {
    let now = settings(session);
    let changed: Vec<_> = now.iter().filter(|s| !before.contains(s)).collect();
    assert!(changed.is_empty(), "{changed:?}");
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
fn join_works_with_odd_settings_on_the_source() {
    let cluster = pair();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    set(n1, "ALTER DATABASE postgres", &MEANING);
    // As a job of the application's would do it.
    n1.sql("REFRESH MATERIALIZED VIEW public.days");
    join_as_odd(n1, n2);
    assert_equal(n1, n2);
    let days = "SELECT string_agg(concat_ws(' ', day, span), ', ' ORDER BY id) FROM public.days";
    assert_eq!(n1.value(days), n2.value(days));
    assert!(
        n2.value(days).starts_with("02/03/2024 00:00:00 +0545"),
        "{}",
        n2.value(days)
    );
}

#[test]
fn join_works_with_odd_settings_on_the_new_node() {
    let cluster = pair();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let (some, more) = MEANING.split_at(MEANING.len() / 2);
    set(n2, "ALTER SYSTEM", some);
    set(n2, "ALTER ROLE odd", more);
    join_as_odd(n1, n2);
    assert_equal(n1, n2);
}

/// What a survivor lacks is found by comparison, whatever time zones there are.
#[test]
fn recovery_by_comparison_works_with_odd_settings() {
    let cluster = Cluster::start_with(3, &recovery::options());
    cluster.form_mesh(
        3,
        "CREATE TABLE ev (id integer PRIMARY KEY, at timestamptz, span interval, tab regclass)",
    );
    wait_mesh(&cluster.all());
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    for (node, zone, style) in [
        (n1, "America/New_York", "postgres"),
        (n2, "Europe/London", "sql_standard"),
        (n3, "Asia/Tokyo", "iso_8601"),
    ] {
        node.sql(&format!("ALTER DATABASE postgres SET timezone = '{zone}'"));
        node.sql(&format!(
            "ALTER DATABASE postgres SET intervalstyle = '{style}'"
        ));
        node.sql("ALTER DATABASE postgres SET quote_all_identifiers = on");
    }
    n1.sql("INSERT INTO ev SELECT i, '2024-03-02 01:02:03+00', '-1 day -02:03:04', 'ev' FROM generate_series(1, 5) i");
    wait_quiet(&[n1, n2, n3]);
    assert_eq!(n1.value("SELECT count(*) FROM spock.verify_nodes()"), "0");

    On::Native.suspend(n3, n1);
    n1.sql(
        "INSERT INTO ev VALUES (10, '2024-07-01 12:00:00+00', '-1 day -02:03:04', 'ev');
         UPDATE ev SET at = at + interval '1 hour' WHERE id = 2; DELETE FROM ev WHERE id = 3",
    );
    n2.wait_for("SELECT count(*) FROM ev WHERE id IN (3, 10)", "1");
    n1.crash();
    let called = recovery::recover(n3, "n1");
    assert_same_content(&[n2, n3]);
    assert_eq!(n3.value("SELECT count(*) FROM ev"), "5");
    let warned = called
        .notices
        .iter()
        .find(|n| n.message.contains("ev") && n.severity == "WARNING");
    assert!(warned.is_none(), "{called:?}");
}

/// Event triggers fire for what users do. What they note or forbid of zodan's own statements would be a row of
/// each node's own, or the end of the join.
#[test]
fn event_triggers_do_not_fire_during_a_join() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    if n1.value("SELECT count(*) FROM pg_settings WHERE name = 'event_triggers'") == "0" {
        eprintln!("skipped: PostgreSQL before 17 cannot keep event triggers from a session");
        return;
    }
    cluster.create_extension();
    n1.sql(
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1);
         CREATE TABLE keyless (a integer);
         CREATE TABLE noted (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tag text, application text);
         CREATE TABLE logins (application text);
         CREATE FUNCTION note_login() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.logins VALUES (current_setting('application_name'));
         END $$;
         CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.noted (tag, application) VALUES (tg_tag, current_setting('application_name'));
         END $$;
         CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             IF current_setting('app.migrating', true) IS DISTINCT FROM 'on' THEN
                 RAISE EXCEPTION 'DDL only by migrations (%)', tg_tag;
             END IF; END $$;
         CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();
         ALTER EVENT TRIGGER note ENABLE ALWAYS;
         CREATE EVENT TRIGGER note_login ON login EXECUTE FUNCTION note_login();
         ALTER EVENT TRIGGER note_login ENABLE ALWAYS;
         CREATE EVENT TRIGGER forbid ON ddl_command_start EXECUTE FUNCTION forbid();
         ALTER EVENT TRIGGER forbid ENABLE ALWAYS",
    );
    let call = Call::of(n2, n1).sql().replace(")", ", verify := true)");
    n2.call(&call).unwrap_or_else(|e| panic!("{e}"));
    let noted = "SELECT string_agg(DISTINCT concat_ws(' ', tag, application), ', ') FROM noted
                  WHERE tag <> 'CREATE EVENT TRIGGER'";
    // The sessions of subscriptions are PostgreSQL's own.
    let logins = "SELECT string_agg(DISTINCT application, ', ') FROM logins WHERE application NOT LIKE 'sub%'";
    for node in cluster.all() {
        assert_eq!(node.value(noted), "");
        assert_eq!(node.value(logins), "lab");
    }
    let error = n2.sql_error("CREATE TABLE later (id integer)");
    assert!(
        error.message().contains("DDL only by migrations"),
        "{error}"
    );

    // The undo of a join too.
    n2.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(n1.value(noted), "");
}

#[test]
fn join_works_with_names_outside_of_ascii_in_a_latin1_database() {
    let options = quick().initdb("--encoding=LATIN1").initdb("--locale=C");
    let cluster = Cluster::start_with(2, &options);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(
        1,
        r#"CREATE TYPE "état" AS ENUM ('été', 'hiver');
           CREATE TABLE "größe" ("straße" integer PRIMARY KEY, v text, tab regclass,
                                 gen text GENERATED ALWAYS AS (v || 'ß') STORED);
           COMMENT ON TABLE "größe" IS 'naïve façade';
           CREATE TABLE "clé" (s "état" PRIMARY KEY, n serial, t text DEFAULT 'ø');
           INSERT INTO "clé" (s) VALUES ('été');
           INSERT INTO "größe" ("straße", v, tab) VALUES (1, 'é\ü', '"größe"');
           CREATE MATERIALIZED VIEW "vué" AS SELECT v FROM public."größe";
           CREATE INDEX "índice" ON "größe" (v);
           ALTER DATABASE postgres SET "app.où" = 'là'"#,
    );
    let call = Call::of(n2, n1).sql().replace(")", ", verify := true)");
    n2.call(&call).unwrap_or_else(|e| panic!("{e}"));
    n1.sql(r#"INSERT INTO "größe" VALUES (2, 'Ø')"#);
    n2.sql(r#"INSERT INTO "clé" (s) VALUES ('hiver'); UPDATE "clé" SET t = 'õ' WHERE s = 'été'"#);
    wait_quiet(&[n1, n2]);
    assert_same_content(&[n1, n2]);
    assert_eq!(n2.value(r#"SELECT v FROM "vué""#), r"é\ü");
    assert_eq!(n1.value("SELECT count(*) FROM spock.verify_nodes()"), "0");
    let names =
        "SELECT string_agg(encode(relname::bytea, 'escape'), ' ' ORDER BY relname) FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(n1.value(names), n2.value(names));
}

/// A copy worker asks for them with several messages, whose text is UTF-8.
#[test]
fn join_works_with_many_tables_and_columns_outside_of_ascii_in_a_latin1_database() {
    let options = quick().initdb("--encoding=LATIN1").initdb("--locale=C");
    let cluster = Cluster::start_with(2, &options);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(
        1,
        r#"DO $$ BEGIN
               FOR i IN 1..40 LOOP
                   EXECUTE format('CREATE TABLE t%s (id integer PRIMARY KEY, "é" text)', i);
                   EXECUTE format('INSERT INTO t%s SELECT g, ''ä'' FROM generate_series(1, 9) g', i);
               END LOOP;
           END $$"#,
    );
    n2.call(&Call::of(n2, n1).sql())
        .unwrap_or_else(|e| panic!("{e}"));
    wait_quiet(&[n1, n2]);
    assert_same_content(&[n1, n2]);
    assert_eq!(n2.value(r#"SELECT count(*) FROM t40 WHERE "é" = 'ä'"#), "9");
}

#[test]
fn failed_join_is_undone_in_a_latin1_database() {
    let options = quick().initdb("--encoding=LATIN1").initdb("--locale=C");
    let cluster = Cluster::start_with(2, &options);
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(&format!(
        r#"CREATE TABLE "größe" (id integer PRIMARY KEY, "straße" text);
           INSERT INTO "größe" VALUES (1);
           CREATE TYPE "état" AS ENUM ('été');
           CREATE FUNCTION public."très"(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
               IF current_setting('port') <> '{}' THEN RAISE EXCEPTION 'à la fin'; END IF; RETURN $1; END $$;
           CREATE INDEX "índice" ON "größe" ("très"(id))"#,
        n1.port()
    ));
    let before = fingerprint(&cluster.all());
    let failed = Call::of(n2, n1).fails_on(n2);
    assert_eq!(failed.code(), "38000", "{failed}");
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    before.assert_same_now(&cluster.all());
}

/// A limit that the user has set for this session is meant for the CALL, one of a role or database is not.
#[test]
fn statement_timeout_of_the_session_ends_the_call() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(1, "CREATE TABLE t (id integer PRIMARY KEY)");
    let mut writer = open_writer(n1);
    let mut session = n2.client();
    session
        .batch_execute("SET statement_timeout = '1500ms'")
        .unwrap();
    let error = session.simple_query(&Call::of(n2, n1).sql()).unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some("57014"), "{error}");
    session
        .batch_execute("SET default_transaction_read_only = on")
        .unwrap();
    let before = settings(&mut session);
    session.simple_query(&Call::of(n2, n1).sql()).unwrap_err();
    assert_unchanged(&mut session, &before);
    writer.batch_execute("ROLLBACK").unwrap();
}

/// What apply workers have by default, and what they cannot do with, is told before the first change.
#[test]
fn health_report_warns_of_defaults_that_disturb_apply() {
    let cluster = Cluster::start(2);
    cluster.form_mesh(1, "CREATE TABLE t (id integer PRIMARY KEY, price money)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let told = || -> Vec<String> {
        let report = format!(
            "SELECT node || ' ' || found FROM spock.health_report('n1', {}, 'n2', {}, 'pre')
              WHERE \"check\" = 'settings of apply workers' AND status = 'warning' ORDER BY 1",
            quote_literal(&n1.dsn()),
            quote_literal(&n2.dsn())
        );
        let rows = n2.rows(&report);
        rows.into_iter()
            .map(|row| row[0].clone().unwrap_or_default())
            .collect()
    };
    assert_eq!(told(), [""; 0]);
    n1.sql("ALTER DATABASE postgres SET lc_monetary = 'POSIX'");
    let harm = "amounts of money are sent as text, and read as other amounts where it differs";
    assert_eq!(
        told(),
        [
            format!("n1 lc_monetary is POSIX by default: {harm}"),
            format!("n2 lc_monetary is C by default: {harm}")
        ]
    );
    n1.sql("ALTER DATABASE postgres RESET lc_monetary");
    if lab::pg::has_setting("transaction_timeout") {
        n1.sql("ALTER DATABASE postgres SET transaction_timeout = '1h'");
        assert_eq!(
            told(),
            [
                "n1 transaction_timeout is 1h by default: it ends what sends and what applies a transaction that takes longer, again and again"
            ]
        );
    }
}
