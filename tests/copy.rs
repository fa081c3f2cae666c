//! What is easily got wrong between two servers on which the same thing has different OIDs, and what a
//! copy does when something goes wrong in it.

use lab::digest::assert_same_structure;
use lab::extension::Extension;
use lab::{Cluster, Server, add_node, assert_same_content, wait_quiet};
use std::thread;
use std::time::Duration;

/// Everything made after this has other OIDs on the source than on a new node.
const OTHER_OIDS: &str = "
DO $$ BEGIN FOR i IN 1..50 LOOP CREATE TYPE burnt AS ENUM ('x'); DROP TYPE burnt; END LOOP; END $$;
";

/// The new node is the second of two.
fn join(content: &str) -> Cluster {
    let cluster = Cluster::start(2);
    cluster.form_mesh(1, &format!("{OTHER_OIDS}{content}"));
    add_node(cluster.n(2), "n2", cluster.n(1), "n1").unwrap_or_else(|e| panic!("{e}"));
    cluster
}

#[test]
fn types_that_are_stored_by_oid_are_copied() {
    let cluster = join(
        r#"
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s');
        CREATE TYPE pair AS (a integer, m mood, t text);
        CREATE TYPE nest AS (p pair, ps pair[], d date);
        CREATE TYPE moodrange AS RANGE (subtype = mood);
        CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
        CREATE DOMAIN relation AS regclass;
        CREATE TABLE enums (id integer PRIMARY KEY, m mood, ms mood[]);
        INSERT INTO enums VALUES (1, 'sad', '{ok,"it''s",NULL}'), (2, NULL, '{}'), (3, 'it''s', NULL);
        CREATE TABLE nested (id integer PRIMARY KEY, p pair, ps pair[], n nest, d positive[], r moodrange, mr moodmultirange);
        INSERT INTO nested VALUES
          (1, (1, 'ok', 'x'), ARRAY[(1, 'ok', '"')::pair, NULL],
           ((5, 'sad', ','), ARRAY[(6, 'ok', '\')::pair], '2020-02-29'), '{1,2}', '[sad,ok]', '{[sad,ok),[ok,ok]}'),
          (2, NULL, '{}', NULL, NULL, 'empty', '{}');
        CREATE TABLE oids (id integer PRIMARY KEY, c regclass, t regtype[], f regprocedure, r relation);
        INSERT INTO oids VALUES (1, 'enums', '{mood,nest[]}', 'lower(text)', 'nested'), (2, NULL, NULL, NULL, NULL);
        CREATE TABLE textual (id integer PRIMARY KEY, a aclitem, m money, i interval, s timestamptz, f float8, n numeric, c regclass);
        INSERT INTO textual VALUES (1, 'postgres=r/postgres', '-12345.67', '-1 year 2 mons -3 days 04:05:06.789',
           '2020-01-01 12:34:56.789012+05:45', 0.1::float8 + 0.2, 'NaN', 'pg_class');
        "#,
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let differs = "SELECT 'mood'::regtype::oid::text";
    assert_ne!(
        n1.value(differs),
        n2.value(differs),
        "the test tests nothing"
    );
    assert_same_content(&[n1, n2]);
    assert_same_structure(n1, n2);
    assert_eq!(
        n2.value("SELECT c::text || ' ' || t::text FROM oids WHERE id = 1"),
        "enums {mood,nest[]}"
    );
}

#[test]
fn tables_of_odd_shapes_are_copied() {
    // From 18 on its rows cannot be told by the only column that they have.
    let only_generated = match lab::pg::major() {
        ..18 => {
            "CREATE TABLE only_generated (g integer GENERATED ALWAYS AS (7) STORED);
             INSERT INTO only_generated DEFAULT VALUES;"
        }
        _ => "",
    };
    let odd = r#"
        CREATE SCHEMA "a "" b";
        CREATE TABLE "a "" b"."T 'able;" ("select" integer PRIMARY KEY, " col "" ümläut" text);
        INSERT INTO "a "" b"."T 'able;" SELECT g, E'\\N\t\n' || g FROM generate_series(1, 500) g;
        CREATE TABLE no_columns ();
        INSERT INTO no_columns DEFAULT VALUES;
        INSERT INTO no_columns DEFAULT VALUES;
        CREATE TABLE dropped (a integer, b integer, c text);
        INSERT INTO dropped VALUES (1, 2, 'x');
        ALTER TABLE dropped DROP b, ADD d integer DEFAULT 42;
        INSERT INTO dropped VALUES (2, 'y', 3);
        CREATE TABLE parent (a integer);
        CREATE TABLE child (b integer) INHERITS (parent);
        INSERT INTO parent VALUES (1), (2);
        INSERT INTO child VALUES (3, 4);
        CREATE TABLE parts (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE other_order (v text, gone text, id integer NOT NULL);
        ALTER TABLE other_order DROP gone;
        ALTER TABLE parts ATTACH PARTITION other_order FOR VALUES FROM (0) TO (100);
        CREATE TABLE rest PARTITION OF parts DEFAULT;
        INSERT INTO parts SELECT g, 'v' || g FROM generate_series(0, 199) g;
        CREATE FUNCTION helper(integer) RETURNS boolean LANGUAGE sql AS 'SELECT $1 > 0';
        CREATE FUNCTION check_it(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN helper($1); END';
        CREATE TABLE checked (a integer PRIMARY KEY CHECK (check_it(a)));
        INSERT INTO checked VALUES (1), (2);
        "#;
    let cluster = join(&format!("{odd}{only_generated}"));
    assert_same_content(&cluster.all());
    assert_same_structure(cluster.n(1), cluster.n(2));
    assert_eq!(cluster.n(2).value("SELECT count(*) FROM no_columns"), "2");
}

/// The hash of an enum is the hash of its OID, so the rows belong into other partitions on the new node.
#[test]
fn table_partitioned_by_hash_of_an_enum_is_copied() {
    let cluster = join(
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f');
         CREATE TABLE hashed (id integer, m mood, PRIMARY KEY (id, m)) PARTITION BY HASH (m);
         CREATE TABLE h0 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE h1 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE h2 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         INSERT INTO hashed SELECT g, (enum_range(NULL::mood))[1 + g % 6] FROM generate_series(1, 600) g",
    );
    let n2 = cluster.n(2);
    assert_eq!(
        n2.value(
            "SELECT string_agg(n::text, ',') FROM (SELECT count(*) n FROM hashed GROUP BY m) g"
        ),
        "100,100,100,100,100,100"
    );
    // A row in the wrong partition is not found by its key.
    assert_eq!(
        n2.value("SELECT count(*) FROM hashed WHERE id = 6 AND m = 'a'"),
        "1"
    );
}

/// An extension whose tables hold rows of its own and of its users, refer to each other, and have a trigger.
/// What is not said to be configuration is the business of each node.
const CONFIGURED: &str = "
CREATE SCHEMA conf;
CREATE TABLE conf.kind (
    id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, own boolean NOT NULL DEFAULT false);
CREATE TABLE conf.a_child (kind integer PRIMARY KEY REFERENCES conf.kind, note text);
CREATE TABLE conf.state (id integer PRIMARY KEY);
CREATE FUNCTION conf.changed() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN NEW.note := 'the trigger has fired'; RETURN NEW; END $$;
CREATE TRIGGER changed BEFORE INSERT ON conf.a_child FOR EACH ROW EXECUTE FUNCTION conf.changed();
INSERT INTO conf.kind (name, own) VALUES ('script 1', true), ('script 2', true);
INSERT INTO conf.state VALUES (0);
SELECT pg_catalog.pg_extension_config_dump('conf.kind', E'\n  where NOT own OR name = ''chosen''');
SELECT pg_catalog.pg_extension_config_dump('conf.kind_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('conf.a_child', '');
";

/// What users put into the tables of [`CONFIGURED`].
const CONFIGURATION: &str = "
CREATE EXTENSION lab_configured;
INSERT INTO conf.kind (name) SELECT 'user ' || g FROM generate_series(1, 500) g;
INSERT INTO conf.kind (name, own) VALUES ('chosen', true), ('not chosen', true);
INSERT INTO conf.a_child SELECT id FROM conf.kind WHERE NOT own;
UPDATE conf.a_child SET note = 'of user';
INSERT INTO conf.state SELECT generate_series(1, 9);
";

#[test]
fn configuration_rows_of_an_extension_are_copied() {
    let extension = Extension::new("lab_configured", CONFIGURED);
    let cluster = Cluster::start_with(3, &extension.options());
    cluster.form_mesh(1, CONFIGURATION);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    // The administrator of n3 has created it already.
    n3.sql("CREATE EXTENSION lab_configured");
    let kinds =
        "SELECT string_agg(k::text, ' ' ORDER BY name) FROM conf.kind k WHERE name <> 'not chosen'";
    let children = "SELECT string_agg(c::text, ' ' ORDER BY kind) FROM conf.a_child c";
    for (new, name) in [(n2, "n2"), (n3, "n3")] {
        add_node(new, name, n1, "n1").unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(new.value("SELECT count(*) FROM conf.kind"), "503", "{name}");
        assert_eq!(new.value(kinds), n1.value(kinds), "{name}");
        assert_eq!(new.value(children), n1.value(children), "{name}");
        assert_eq!(
            new.value("SELECT count(*) || ' ' || min(note) || max(note) FROM conf.a_child"),
            "500 of userof user",
            "{name}"
        );
        assert_eq!(
            new.value("SELECT string_agg(id::text, ' ') FROM conf.state"),
            "0",
            "{name}"
        );
    }
    // Keys go on where those of the source are, and changes are replicated as those of other tables.
    n3.sql("INSERT INTO conf.kind (name) VALUES ('from n3')");
    n2.sql("DELETE FROM conf.a_child WHERE kind < 100");
    wait_quiet(&cluster.all());
    for server in [n1, n2] {
        assert_eq!(server.value(kinds), n3.value(kinds), "{}", server.name());
    }
    for server in [n1, n3] {
        assert_eq!(
            server.value(children),
            n2.value(children),
            "{}",
            server.name()
        );
    }
}

/// A table of which the source reads for long before there is a row to send.
const SLOW: &str = "
CREATE SCHEMA slow;
CREATE TABLE slow.kind (id integer PRIMARY KEY);
CREATE FUNCTION slow.wanted(id integer) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE until timestamptz := clock_timestamp() + interval '1 s';
BEGIN
  WHILE clock_timestamp() < until LOOP END LOOP;
  RETURN id = 5;
END $$;
SELECT pg_catalog.pg_extension_config_dump('slow.kind', 'WHERE slow.wanted(id)');
";

#[test]
fn copy_waits_for_a_source_that_is_slow_to_send() {
    let extension = Extension::new("lab_slow", SLOW);
    let cluster = Cluster::start_with(2, &extension.options());
    cluster.form_mesh(
        1,
        "CREATE EXTENSION lab_slow; INSERT INTO slow.kind SELECT generate_series(1, 5)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.configure("zodan.no_progress_timeout", "2s");
    n2.reload();
    n2.wait_for("SHOW zodan.no_progress_timeout", "2s");
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        n2.value("SELECT string_agg(id::text, ' ') FROM slow.kind"),
        "5"
    );
}

/// PostgreSQL's COPY collects a thousand rows before it writes them: here that would be all of them.
#[test]
fn copy_of_wide_rows_does_not_fill_the_memory() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.configure("zodan.copy_jobs", "1");
    n2.reload();
    cluster.form_mesh(
        1,
        "CREATE TABLE wide (id integer PRIMARY KEY, v text);
         ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT g, repeat(md5(g::text), 32768) FROM generate_series(1, 300) g",
    );
    let most = thread::scope(|scope| {
        let join = scope.spawn(|| add_node(n2, "n2", n1, "n1"));
        let mut client = n2.client();
        let mut most = 0;
        while !join.is_finished() {
            let workers = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'zodan copy'";
            for row in client.query(workers, &[]).unwrap_or_default() {
                most = most.max(private_kb(row.get(0)));
            }
            thread::sleep(Duration::from_millis(2));
        }
        join.join().unwrap().unwrap_or_else(|e| panic!("{e}"));
        most
    });
    assert!(most > 0, "no worker was seen");
    assert!(most < 64 * 1024, "{most} kB");
    assert_eq!(
        n2.value("SELECT count(*) || ' ' || sum(length(v)) FROM wide"),
        "300 314572800"
    );
}

/// What a process has of memory that it shares with nobody.
fn private_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .unwrap_or("0");
    line.split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// A table that takes for ever on the new node, and only there.
const ENDLESS: &str = "
CREATE FUNCTION endless(integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM pg_stat_activity WHERE pid = pg_backend_pid() AND backend_type = 'zodan copy') THEN
    PERFORM pg_sleep(600);
  END IF;
  RETURN true;
END $$;
CREATE TABLE endless (a integer PRIMARY KEY CHECK (endless(a)));
CREATE TABLE quick (a integer PRIMARY KEY);
INSERT INTO endless VALUES (1);
INSERT INTO quick SELECT generate_series(1, 1000);
";

fn relations(server: &Server) -> String {
    server.value(
        "SELECT coalesce(string_agg(relname, ','), '') FROM pg_class
          WHERE oid >= 16384 AND relnamespace = 'public'::regnamespace",
    )
}

#[test]
fn join_fails_when_a_copy_worker_is_terminated() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(1, ENDLESS);
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'zodan copy' AND query LIKE '%\"endless\"%'";
    let error = thread::scope(|scope| {
        let join = scope.spawn(|| add_node(n2, "n2", n1, "n1"));
        n2.wait_for(copying, "1");
        n2.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'zodan copy' AND query LIKE '%\"endless\"%'");
        join.join()
            .unwrap()
            .expect_err("the join went through without its data")
    });
    assert_eq!(error.code(), "57P01", "{error}");
    assert!(
        error.message().contains("\"public\".\"endless\""),
        "{error}"
    );
    assert_eq!(relations(n2), "", "not undone");
    n2.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'zodan copy'",
        "0",
    );

    n1.sql("ALTER TABLE endless DROP CONSTRAINT endless_a_check");
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    assert_same_content(&cluster.all());
}

#[test]
fn join_fails_naming_the_row_that_the_new_node_refuses() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(
        1,
        "CREATE FUNCTION fickle(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN length(current_setting('lab.lenient', true)); END $$;
         SET lab.lenient = 'yes';
         CREATE TABLE refused (a integer PRIMARY KEY CHECK (a > 0),
                               more integer NOT NULL GENERATED ALWAYS AS (fickle(a)) STORED);
         INSERT INTO refused VALUES (42)",
    );
    let error = add_node(n2, "n2", n1, "n1").expect_err("the row is refused");
    assert_eq!(error.code(), "23502", "{error}");
    for part in ["\"public\".\"refused\"", "node \"n1\"", "column \"more\""] {
        assert!(error.message().contains(part), "{error}");
    }
    assert!(error.detail().contains("42"), "{error}");
    assert_eq!(relations(n2), "", "not undone");
}
