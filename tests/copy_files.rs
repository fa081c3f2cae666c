//! What happens to the files and the names of tables while they are copied: the new node gets what the snapshot
//! saw, or the join says what happened to which table.

mod common;

use common::{Call, Hang};
use lab::postgres::Client;
use lab::{CallFailed, Called, Cluster, Server, add_node, assert_same_content, wait_quiet};
use std::thread;

/// On a server with `lab.gate`, workers wait at the first row of whatever they copy while somebody holds it.
const GATE: &str = "
CREATE FUNCTION pass() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('lab.gate', true) = 'on' THEN PERFORM pg_advisory_xact_lock_shared(77); END IF;
    RETURN true;
END $$;
";

/// A table of three pieces, most of it out of line, of which the first is dead.
fn big(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id integer PRIMARY KEY, line text, pad text, CHECK (pass()));
         ALTER TABLE {name} ALTER pad SET STORAGE EXTERNAL;
         INSERT INTO {name} SELECT g, repeat('line', 60), repeat(md5(g::text), 3000) FROM generate_series(1, 1100) g;
         DELETE FROM {name} WHERE id <= 350;
         ALTER TABLE {name} ADD more integer NOT NULL DEFAULT 7;"
    )
}

struct Gate<'a> {
    server: &'a Server,
    holder: Client,
}

impl<'a> Gate<'a> {
    fn close(server: &'a Server, jobs: usize) -> Gate<'a> {
        server.configure("lab.gate", "on");
        server.configure("zodan.copy_jobs", &jobs.to_string());
        server.reload();
        server.wait_for("SHOW lab.gate", "on");
        let mut holder = server.client_named("gate");
        holder
            .batch_execute("SELECT pg_advisory_lock(77)")
            .expect("hold the gate");
        Gate { server, holder }
    }

    /// Waits until so many workers are there.
    fn wait(&self, workers: usize) {
        self.server.wait_for(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted",
            &workers.to_string(),
        );
    }

    fn open(mut self) {
        self.holder
            .batch_execute("SELECT pg_advisory_unlock_all()")
            .expect("open the gate");
    }
}

/// Adds `new` to the cluster of n1 with `statements` on n1 between two pieces: they wait for the pieces in hand, and
/// all others wait for them.
fn join_with(cluster: &Cluster, new: usize, statements: &[&str]) -> Result<Called, CallFailed> {
    let (n1, new) = (cluster.n(1), cluster.n(new));
    thread::scope(|scope| {
        let gate = Gate::close(new, 2);
        let join = scope.spawn(|| add_node(new, new.name(), n1, "n1"));
        gate.wait(2);
        let running: Vec<_> = statements
            .iter()
            .map(|statement| scope.spawn(|| n1.sql(statement)))
            .collect();
        n1.wait_for(
            "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted",
            &statements.len().to_string(),
        );
        gate.open();
        running.into_iter().for_each(|r| r.join().expect("DDL"));
        join.join().expect("the join's own thread")
    })
}

fn notices(called: &Called) -> String {
    let lines: Vec<String> = called.notices.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Gives a table another one's file, as pg_repack does it.
fn repack(table: &str) -> String {
    format!(
        "BEGIN;
         LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;
         CREATE TABLE repacked (LIKE {table} INCLUDING STORAGE);
         INSERT INTO repacked SELECT * FROM {table};
         SET LOCAL allow_system_table_mods = on;
         UPDATE pg_class c SET relfilenode = o.relfilenode, reltoastrelid = o.reltoastrelid
           FROM pg_class o
          WHERE (c.oid, o.oid) IN (('{table}'::regclass, 'repacked'::regclass), ('repacked'::regclass, '{table}'::regclass));
         UPDATE pg_depend d SET refobjid = c.oid
           FROM pg_class c
          WHERE c.oid IN ('{table}'::regclass, 'repacked'::regclass) AND d.classid = 'pg_class'::regclass
            AND d.objid = c.reltoastrelid AND d.deptype = 'i';
         DROP TABLE repacked;
         REINDEX TABLE {table};
         COMMIT"
    )
}

#[test]
fn table_rewritten_during_its_copy_is_copied_again_as_a_whole() {
    let cluster = Cluster::start(3);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    for server in cluster.all() {
        let mut client = server.client();
        for statement in [
            "SET allow_in_place_tablespaces = on",
            "CREATE TABLESPACE other LOCATION ''",
        ] {
            client.batch_execute(statement).expect(statement);
        }
    }
    cluster.form_mesh(1, &format!("{GATE}{}{}", big("a"), big("b")));

    let failed = join_with(&cluster, 2, &[&repack("a")]).expect_err("rows of a are gone");
    assert_eq!(failed.code(), "55000", "{failed}");
    for part in [
        "table \"public\".\"a\" of node \"n1\"",
        "other row versions",
        "pg_repack",
    ] {
        assert!(failed.message().contains(part), "{failed}");
    }

    let called = join_with(&cluster, 2, &["VACUUM FULL a", "CLUSTER b USING b_pkey"])
        .unwrap_or_else(|e| panic!("{e}"));
    for table in ["\"public\".\"a\"", "\"public\".\"b\""] {
        let said = format!("table {table} was copied again as a whole");
        assert!(notices(&called).contains(&said), "{}", notices(&called));
    }
    wait_quiet(&cluster.first(2));
    assert_same_content(&cluster.first(2));
    assert_eq!(n2.value("SELECT count(*) FROM a"), "750");

    // One table is emptied and filled with others, one gets the same rows elsewhere.
    n1.sql("DELETE FROM b WHERE id % 3 = 0");
    join_with(
        &cluster,
        3,
        &[
            "TRUNCATE a; INSERT INTO a SELECT g, 'new', 'new' FROM generate_series(1, 5000) g",
            "ALTER TABLE b SET TABLESPACE other",
        ],
    )
    .unwrap_or_else(|e| panic!("{e}"));
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n3.value("SELECT count(*) FROM a"), "5000");
}

#[test]
fn rewritten_table_whose_rows_violate_a_check_is_copied_again() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let fits = "CREATE OR REPLACE FUNCTION fits(integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS";
    let (a, b) = (big("a"), big("b"));
    cluster.form_mesh(
        1,
        &format!(
            "{GATE}{a}{b}
             {fits} 'SELECT true'; ALTER TABLE a ADD CONSTRAINT fits CHECK (fits(id));
             {fits} 'SELECT $1 NOT IN (1090, 1099)'"
        ),
    );
    let called = join_with(&cluster, 2, &["VACUUM FULL a"]).unwrap_or_else(|e| panic!("{e}"));
    let told = notices(&called);
    for says in [
        "table \"public\".\"a\" was copied again as a whole",
        "check constraint \"fits\" of table \"public\".\"a\" is NOT VALID on node \"n2\": rows that break it, on node \"n1\" as well: 2",
    ] {
        assert!(told.contains(says), "{told}");
    }
    let valid =
        "SELECT string_agg(conname || convalidated, ' ' ORDER BY conname) FROM pg_constraint
                  WHERE contype = 'c' AND conrelid = 'a'::regclass";
    assert_eq!(n2.value(valid), "a_checktrue fitsfalse");
    assert_eq!(n1.value(valid), "a_checktrue fitstrue");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// Tables that are copied in one piece.
const SMALL: &str = "
CREATE SCHEMA elsewhere;
CREATE TABLE narrow (id integer PRIMARY KEY, v integer);
CREATE TABLE other (id integer PRIMARY KEY, v integer);
CREATE TABLE wide (id integer PRIMARY KEY, v text);
INSERT INTO narrow SELECT g, g FROM generate_series(1, 100) g;
INSERT INTO other SELECT g, -g FROM generate_series(1, 100) g;
INSERT INTO wide SELECT g, g FROM generate_series(1, 100) g;
CREATE TABLE parted (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (10);
CREATE TABLE apart (id integer PRIMARY KEY);
CREATE UNLOGGED TABLE unlogged (id integer PRIMARY KEY);
INSERT INTO parted VALUES (1);
INSERT INTO apart VALUES (11);
INSERT INTO unlogged VALUES (1);
";

/// Adds `new` with statements on n1 after the snapshot and before any rows are copied.
fn join_before_copy(
    cluster: &Cluster,
    new: usize,
    statements: &[&str],
) -> Result<Called, CallFailed> {
    let (n1, new) = (cluster.n(1), cluster.n(new));
    let call = Call::of(new, n1).sql();
    let (hang, join) = Hang::start(new, "", "within tables are created", &call);
    statements.iter().for_each(|s| n1.sql(s));
    hang.release();
    join.join()
}

#[test]
fn join_fails_when_a_table_is_renamed_during_the_copy() {
    let cluster = Cluster::start(3);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(1, SMALL);
    let swap = "BEGIN; ALTER TABLE narrow RENAME TO x; ALTER TABLE other RENAME TO narrow;
                ALTER TABLE x RENAME TO other; COMMIT";
    let repack = [repack("narrow"), repack("wide")];
    let table = |name: &str| format!("could not copy table \"public\".\"{name}\" of node \"n1\"");
    for (statement, name, says, back) in [
        (
            swap,
            "narrow",
            "it was renamed to public.other since the snapshot was taken, and another table has its name",
            swap,
        ),
        (
            "ALTER TABLE wide RENAME TO wider",
            "wide",
            "it was renamed to public.wider since the snapshot was taken",
            "ALTER TABLE wider RENAME TO wide",
        ),
        (
            "ALTER TABLE wide SET SCHEMA elsewhere",
            "wide",
            "it was renamed to elsewhere.wide since",
            "ALTER TABLE elsewhere.wide SET SCHEMA public",
        ),
        (
            "DROP TABLE other; CREATE TABLE other (id integer PRIMARY KEY, v integer)",
            "other",
            "it was dropped since the snapshot was taken, and another table has its name",
            "INSERT INTO other SELECT g, -g FROM generate_series(1, 100) g",
        ),
        (
            "ALTER TABLE wide ALTER v TYPE integer USING v::integer",
            "wide",
            "its definition has changed since the snapshot was taken",
            "ALTER TABLE wide ALTER v TYPE text",
        ),
        (
            "ALTER TABLE narrow RENAME id TO x; ALTER TABLE narrow RENAME v TO id; ALTER TABLE narrow RENAME x TO v",
            "narrow",
            "its definition has changed since the snapshot was taken",
            "ALTER TABLE narrow RENAME id TO x; ALTER TABLE narrow RENAME v TO id; ALTER TABLE narrow RENAME x TO v",
        ),
        (
            "ALTER TABLE wide ALTER v TYPE text USING v || '!'",
            "wide",
            "it has got other row versions",
            "SELECT 1",
        ),
        (
            "ALTER TABLE narrow SET UNLOGGED; ALTER TABLE narrow SET LOGGED",
            "narrow",
            "it has got other row versions",
            "SELECT 1",
        ),
        (
            &repack[0],
            "narrow",
            "it has got other row versions",
            "SELECT 1",
        ),
        (
            &repack[1],
            "wide",
            "it has got other row versions",
            "SELECT 1",
        ),
    ] {
        let failed = join_before_copy(&cluster, 2, &[statement]).expect_err(statement);
        assert_eq!(failed.code(), "55000", "{statement}\n{failed}");
        assert!(
            failed.message().contains(&table(name)),
            "{statement}\n{failed}"
        );
        assert!(failed.message().contains(says), "{statement}\n{failed}");
        assert!(
            failed.hint().contains("Run the same CALL again"),
            "{failed}"
        );
        n1.sql(back);
    }

    // All rows are there already, and what comes next would come under the wrong names.
    let (hang, running) = Hang::start(n2, "", "within rows are copied", &Call::of(n2, n1).sql());
    n1.sql(swap);
    hang.release();
    let failed = running.fails();
    assert_eq!(failed.code(), "55000", "{failed}");
    let says =
        "table \"public\".\"narrow\", \"public\".\"other\" of node \"n1\" was renamed or replaced";
    assert!(failed.message().contains(says), "{failed}");
    n1.sql(swap);
    for (statement, table, says, back) in [
        (
            "ALTER TABLE parted DETACH PARTITION parted_1",
            "parted_1",
            "attached to another table or detached from it",
            "ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (1) TO (10)",
        ),
        (
            "ALTER TABLE parted ATTACH PARTITION apart FOR VALUES FROM (10) TO (20)",
            "apart",
            "attached to another table or detached from it",
            "ALTER TABLE parted DETACH PARTITION apart",
        ),
        (
            "ALTER TABLE parted DETACH PARTITION parted_1;
             ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (1) TO (11)",
            "parted_1",
            "attached to another table or detached from it",
            "ALTER TABLE parted DETACH PARTITION parted_1;
             ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (1) TO (10)",
        ),
        (
            "ALTER TABLE unlogged SET LOGGED",
            "unlogged",
            "set LOGGED or UNLOGGED",
            "ALTER TABLE unlogged SET UNLOGGED",
        ),
    ] {
        let failed = join_before_copy(&cluster, 2, &[statement]).expect_err(statement);
        assert_eq!(failed.code(), "55000", "{statement}\n{failed}");
        let says = format!("table \"public\".\"{table}\" of node \"n1\" was {says} since");
        assert!(failed.message().contains(&says), "{statement}\n{failed}");
        n1.sql(back);
    }

    // Likewise when all rows are there, and after every member has a subscription.
    let columns =
        "table \"public\".\"narrow\" of node \"n1\" was given other columns or another identity";
    let swapped = "ALTER TABLE narrow RENAME id TO x; ALTER TABLE narrow RENAME v TO id; ALTER TABLE narrow RENAME x TO v";
    for (point, statement, says, back) in [
        ("within rows are copied", swapped, columns, swapped),
        (
            "within every member has a subscription",
            "ALTER TABLE narrow ADD more integer",
            columns,
            "ALTER TABLE narrow DROP more",
        ),
        (
            "within every member has a subscription",
            "ALTER TABLE narrow REPLICA IDENTITY FULL",
            columns,
            "ALTER TABLE narrow REPLICA IDENTITY DEFAULT",
        ),
        (
            "within every member has a subscription",
            "CREATE TABLE fresh (id integer PRIMARY KEY)",
            "table \"public\".\"fresh\" of node \"n1\" was created since",
            "DROP TABLE fresh",
        ),
        (
            "within rows are copied",
            "ALTER TABLE narrow SET UNLOGGED; UPDATE narrow SET v = -1 WHERE id = 3; ALTER TABLE narrow SET LOGGED",
            "rows of \"public\".\"narrow\" on node \"n1\" have not come to node \"n2\"",
            "SELECT 1",
        ),
    ] {
        let (hang, running) = Hang::start(n2, "", point, &Call::of(n2, n1).sql());
        n1.sql(statement);
        hang.release();
        let failed = running.fails();
        assert_eq!(failed.code(), "55000", "{statement}\n{failed}");
        assert!(failed.message().contains(says), "{statement}\n{failed}");
        n1.sql(back);
    }

    // What nothing but the contents tells from a TRUNCATE: no row is older than the exchange, and what the
    // tool did with its own table is not replicated.
    n1.sql("SELECT pg_replication_origin_create('tool')");
    let exchange = format!(
        "SELECT pg_replication_origin_session_setup('tool'); {}",
        repack[0]
    );
    let unseen = [exchange.as_str(), "UPDATE narrow SET v = v + 1"];
    let failed = join_before_copy(&cluster, 2, &unseen).expect_err("rows are missing");
    assert_eq!(failed.code(), "55000", "{failed}");
    let says = "rows of \"public\".\"narrow\" on node \"n1\" have not come to node \"n2\"";
    assert!(failed.message().contains(says), "{failed}");

    join_before_copy(
        &cluster,
        2,
        &[
            "VACUUM FULL wide",
            "TRUNCATE other",
            "VACUUM FULL narrow",
            "TRUNCATE narrow; INSERT INTO narrow SELECT g, g FROM generate_series(1, 50) g",
        ],
    )
    .unwrap_or_else(|e| panic!("{e}"));
    wait_quiet(&cluster.first(2));
    for count in [
        "SELECT count(*) || ' ' || sum(v) FROM narrow",
        "SELECT count(*) FROM other",
        "SELECT count(*) || ' ' || min(v) FROM wide",
    ] {
        assert_eq!(n1.value(count), n2.value(count), "{count}");
    }
}

/// Joins n2 while a transaction on n1 has run `hold`; `waits` counts the workers that wait for
/// that. They hold no other table.
fn assert_holds_no_other(more: &str, hold: &str, waits: &str) {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(1, &format!("{SMALL}{more}"));
    let call = Call::of(n2, n1).sql();
    let settings = "SET zodan.copy_jobs = 1";
    let (hang, join) = Hang::start(n2, settings, "within tables are created", &call);
    let mut holder = n1.client_named("holder");
    holder
        .batch_execute(&format!("BEGIN; {hold}"))
        .expect("hold what a worker needs");
    hang.release();
    n1.wait_for(waits, "1");
    for table in ["narrow", "wide", "parted_1", "apart"] {
        n1.sql(&format!(
            "BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE {table}; COMMIT"
        ));
    }
    holder.batch_execute("COMMIT").expect("let go of it");
    join.succeeds();
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

#[test]
fn worker_that_waits_for_a_locked_table_holds_no_other() {
    assert_holds_no_other(
        "",
        "LOCK TABLE other IN ACCESS EXCLUSIVE MODE",
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass",
    );
}

#[test]
fn worker_that_waits_for_an_index_holds_no_other_table() {
    assert_holds_no_other(
        "CREATE TABLE toasted (id integer PRIMARY KEY, pad text);
         ALTER TABLE toasted ALTER pad SET STORAGE EXTERNAL;
         INSERT INTO toasted SELECT g, repeat('x', CASE WHEN g > 2000 THEN 5000 ELSE 5 END)
           FROM generate_series(1, 2100) g",
        "REINDEX TABLE toasted",
        // By itself: with one message for several it would have given up after a moment.
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE NOT l.granted AND a.query LIKE 'SET LOCAL client_encoding%'",
    );
}
