//! What a recovery writes it writes as the owners of the tables, by the operators of their keys, and the rows that
//! it leaves alone it tells.

mod common;

use common::engines::On;
use common::recovery::{
    CONTENT, assert_nothing_held, assert_nothing_to_do, form, keep, options, recover,
};
use common::{Hang, assert_failed, wait_mesh};
use lab::cluster::add_node_call;
use lab::{Cluster, Server, assert_same_content, wait_quiet};

const ON: On = On::Native;

/// A mesh of three whose first node has `content` before it is founded, with roles that own tables.
fn mesh(content: &str, slots: bool) -> Cluster {
    let cluster = Cluster::start_with(3, &options());
    for node in cluster.all() {
        node.sql("CREATE ROLE owner1");
    }
    cluster.form_mesh(3, &format!("{}{content}", lab::load::SCHEMA));
    wait_mesh(&cluster.all());
    if slots {
        keep(&cluster.all());
    }
    cluster
}

/// n1 runs `sql`, which n3 gets and n2 does not, and dies. `seen` is what n3 says then.
fn die_after(cluster: &Cluster, sql: &str, query: &str, seen: &str) {
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    wait_quiet(&cluster.all());
    ON.suspend(n2, n1);
    n1.sql(sql);
    n3.wait_for(query, seen);
    n1.crash();
}

/// Whatever an owner can have run for a row says so if it runs as somebody with more rights.
const OWNED: &str = "
GRANT CREATE ON SCHEMA public TO owner1;
SET ROLE owner1;
CREATE FUNCTION as_owner(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF current_user <> 'owner1' THEN
        RAISE EXCEPTION 'run by %', current_user;
    END IF;
    RETURN v;
END $$;
CREATE DOMAIN checked AS text CHECK (public.as_owner(VALUE) <> '');
CREATE TYPE pair AS (a int, b checked);
CREATE TABLE audit (id int, who text);
CREATE TABLE named (d checked PRIMARY KEY, p pair);
CREATE TABLE t (id int PRIMARY KEY, v text, d checked, l checked[], p pair,
                g text GENERATED ALWAYS AS (public.as_owner(v)) STORED,
                CHECK (public.as_owner(v) <> 'no'));
CREATE INDEX ON t (public.as_owner(v)) WHERE public.as_owner(v) <> '';
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.audit VALUES (coalesce(NEW.id, OLD.id), current_user);
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION audited();
ALTER TABLE t ENABLE ALWAYS TRIGGER always;
CREATE TRIGGER replica BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION audited();
ALTER TABLE t ENABLE REPLICA TRIGGER replica;
RESET ROLE;
";

#[test]
fn code_of_table_owners_runs_as_them_during_a_recovery() {
    for slots in [true, false] {
        eprintln!("slots: {slots}");
        let cluster = mesh(OWNED, slots);
        let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
        n1.sql(
            "SET ROLE owner1; INSERT INTO t SELECT i, 'old', 'x', '{x}', '(1,x)' FROM generate_series(1, 4) i;
             INSERT INTO named VALUES ('a', '(1,x)'), ('b', '(1,x)')",
        );
        die_after(
            &cluster,
            "SET ROLE owner1; UPDATE named SET p = '(2,x)' WHERE d = 'a'; DELETE FROM named WHERE d = 'b';
             INSERT INTO t SELECT i, 'new', 'x', '{x}', '(1,x)' FROM generate_series(11, 12) i;
             UPDATE t SET v = 'changed' WHERE id = 1; DELETE FROM t WHERE id = 2",
            "SELECT count(*) FROM t",
            "5",
        );
        wait_quiet(&[n2, n3]);
        recover(n2, "n1");
        wait_quiet(&[n2, n3]);
        assert_same_content(&[n2, n3]);
        assert_eq!(
            n2.value("SELECT string_agg(id || v || g, ' ' ORDER BY id) FROM t"),
            "1changedchanged 3oldold 4oldold 11newnew 12newnew"
        );
        assert_eq!(n2.value("SELECT DISTINCT who FROM audit"), "owner1");
        assert_eq!(
            n2.value("SELECT count(*) FROM audit"),
            n3.value("SELECT count(*) FROM audit")
        );
    }
}

const TYPES: &str = "
CREATE SCHEMA ext;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION ltree SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE DOMAIN name_of AS ext.citext;
CREATE TABLE bag (a int, h ext.hstore, c char(3), f float8, tags text[], s numeric(10, 4));
CREATE TABLE path (p ext.ltree PRIMARY KEY, v text);
CREATE TABLE person (name name_of PRIMARY KEY, v text);
CREATE TABLE chosen (id int, code ext.citext NOT NULL UNIQUE, v json);
ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code_key;
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO bag SELECT i % 3, 'k=>1', 'a', 0.1, '{x,NULL}', 1.50 FROM generate_series(1, 6) i;
INSERT INTO path SELECT text2ltree('top.n' || i), 'old' FROM generate_series(1, 6) i;
INSERT INTO person SELECT 'Name' || i, 'old' FROM generate_series(1, 2000) i;
INSERT INTO chosen SELECT i, 'Code' || i, '{\"a\": 1}' FROM generate_series(1, 6) i;
INSERT INTO parent VALUES (1, 'parent'), (2, 'parent');
INSERT INTO child VALUES (1, 'child'), (2, 'child');
";

#[test]
fn recovery_compares_keys_by_their_own_operators() {
    for slots in [true, false] {
        eprintln!("slots: {slots}");
        let cluster = mesh(&TYPES.replace("text2ltree", "ext.text2ltree"), slots);
        let [n2, n3] = [2, 3].map(|i| cluster.n(i));
        die_after(
            &cluster,
            "UPDATE bag SET h = 'k=>2' WHERE a = 1; UPDATE bag SET s = 2 WHERE a = 2;
             DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 0);
             INSERT INTO bag (a) VALUES (NULL), (NULL);
             UPDATE path SET v = 'new' WHERE p = 'top.n1'::ext.ltree; DELETE FROM path WHERE p = 'top.n2'::ext.ltree;
             UPDATE path SET p = 'top.moved' WHERE p = 'top.n3'::ext.ltree;
             UPDATE person SET v = 'new' WHERE name::text = 'Name1'; DELETE FROM person WHERE name::text = 'Name2';
             UPDATE person SET name = 'NAME3' WHERE name::text = 'Name3';
             UPDATE chosen SET v = '[]' WHERE id = 1; DELETE FROM chosen WHERE id = 2;
             UPDATE ONLY parent SET v = 'new' WHERE id = 1; DELETE FROM ONLY parent WHERE id = 2"
                .replace(" = 'top.", " OPERATOR(ext.=) 'top.")
                .replace("p OPERATOR(ext.=) 'top.moved' WHERE", "p = 'top.moved' WHERE")
                .as_str(),
            "SELECT count(*) FROM ONLY parent",
            "1",
        );
        wait_quiet(&[n2, n3]);
        let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'person'";
        let before = n2.value(scans);
        let called = recover(n2, "n1");
        assert!(called.warnings().is_empty(), "{called:?}");
        if slots {
            n2.wait_for(
                "SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname = 'person_pkey'",
                "t",
            );
            assert_eq!(n2.value(scans), before, "the key's index is used");
        }
        assert_same_content(&[n2, n3]);
        assert_eq!(
            n2.value("SELECT string_agg(v, ' ' ORDER BY v) FROM parent"),
            "child child new"
        );
        assert_eq!(
            n2.value("SELECT string_agg(name::text || v, ' ' ORDER BY v) FROM person WHERE lower(name::text) IN ('name1', 'name2', 'name3')"),
            "Name1new NAME3old"
        );
    }
}

/// The clock of n2 was ahead when it wrote a row that n1 has changed since.
#[test]
fn rows_newer_by_a_wrong_clock_are_counted() {
    let cluster = On::Native.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    for node in [n1, n3] {
        node.sql(
            "BEGIN; SELECT zodan.unreplicated();
             INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i; COMMIT",
        );
    }
    n2.sql("SELECT pg_replication_origin_create('ahead')");
    n2.sql(
        "SELECT pg_replication_origin_session_setup('ahead'); BEGIN;
         SELECT pg_replication_origin_xact_setup('0/1', now() + interval '1 hour');
         INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i; COMMIT",
    );
    n2.sql("SELECT pg_replication_origin_drop('ahead')");
    die_after(
        &cluster,
        "UPDATE crash_test SET data = 'later' WHERE id = 1; DELETE FROM crash_test WHERE id = 2;
         INSERT INTO crash_test VALUES (4)",
        "SELECT count(*) FROM crash_test",
        "3",
    );
    let called = recover(n2, "n1");
    assert_eq!(
        called.warnings(),
        [
            r#"2 changes of "n1" were for rows that are newer on node "n2", and left them as they are; 2 of these rows are not the same on node "n3": "public"."crash_test" (1), "public"."crash_test" (2)"#
        ]
    );
    assert_eq!(
        n2.value("SELECT string_agg(id || coalesce(data, ''), ' ' ORDER BY id) FROM crash_test"),
        "1old 2old 3old 4"
    );
}

/// n2 died with rows that only n4 has, which a survivor and n1 have changed since; nobody knows that of them.
#[test]
fn changes_of_rows_of_an_absent_node_stay() {
    let cluster = form(4, &options());
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    ON.suspend(n3, n2);
    ON.suspend(n4, n1);
    n2.sql("INSERT INTO debit SELECT i, 2 FROM generate_series(1, 5) i");
    n4.wait_for("SELECT count(*) FROM debit", "5");
    n4.sql("UPDATE debit SET amount = 4 WHERE id <= 2");
    wait_quiet(&[n3, n4]);
    // Newer than all that, so that it is not what makes a row count as n1's work.
    n1.sql("INSERT INTO credit (amount) SELECT 1 FROM generate_series(1, 10)");
    n3.wait_for("SELECT count(*) FROM credit", "10");
    n1.crash();
    n2.crash();
    let first = recover(n4, "n1");
    assert_eq!(
        n4.value("SELECT count(*) || ' ' || sum(amount) FROM debit"),
        "5 14"
    );
    let told = first.warnings();
    assert!(
        told.iter().any(|w| w.starts_with(
            r#"5 rows differ between node "n3" and node "n4", and are left alone, since they are or may be of node "n2", which is away: "#
        )),
        "{told:?}"
    );
    recover(n4, "n2");
    wait_quiet(&[n3, n4]);
    assert_same_content(&[n3, n4]);
    assert_eq!(n3.value("SELECT sum(amount) FROM debit"), "14");
    assert_nothing_to_do(&recover(n3, "n1"));
}

/// Without commit timestamps nobody knows what is newer, or whose.
#[test]
fn recovery_without_commit_timestamps_only_inserts() {
    let cluster = form(3, &options().set("track_commit_timestamp", "off"));
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO crash_test SELECT i, 'old', NULL FROM generate_series(1, 3) i");
    n2.sql("INSERT INTO crash_test VALUES (9, 'of n2')");
    die_after(
        &cluster,
        "UPDATE crash_test SET data = 'new' WHERE id = 1; DELETE FROM crash_test WHERE id = 2;
         INSERT INTO crash_test VALUES (5, 'new')",
        "SELECT count(*) FROM crash_test",
        "4",
    );
    n2.sql("BEGIN; SELECT zodan.unreplicated(); INSERT INTO crash_test VALUES (10, 'own'); COMMIT");
    let called = recover(n2, "n1");
    assert_eq!(
        called.warnings(),
        [
            r#"3 rows differ between node "n3" and node "n2", and are left alone, since it is not known who wrote them: their commit timestamps are not there: "public"."crash_test" (1), "public"."crash_test" (10), "public"."crash_test" (2)"#
        ]
    );
    assert_eq!(
        n2.value("SELECT string_agg(id || data, ' ' ORDER BY id) FROM crash_test"),
        "1old 2old 3old 5new 9of n2 10own"
    );
    assert_eq!(n3.value("SELECT count(*) FROM crash_test"), "4");
}

/// A slot's replay, too: what n2 did to a row of n1 that n4 did not have. n4 has got it, so nobody sends it again.
#[test]
fn changes_of_a_dead_node_to_rows_of_another_are_repeated() {
    for (first, second) in [("n1", "n2"), ("n2", "n1")] {
        let cluster = ON.mesh(4);
        let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
        ON.suspend(n4, n1);
        n1.sql("INSERT INTO debit SELECT i, 1 FROM generate_series(1, 5) i");
        for node in [n2, n3] {
            node.wait_for("SELECT count(*) FROM debit", "5");
        }
        n2.sql("UPDATE debit SET amount = 2 WHERE id = 1; DELETE FROM debit WHERE id = 2");
        wait_quiet(&[n2, n3, n4]);
        n1.crash();
        n2.crash();
        recover(n3, first);
        recover(n3, second);
        assert_same_content(&[n3, n4]);
        assert_eq!(
            n4.value("SELECT string_agg(id || ':' || amount, ' ' ORDER BY id) FROM debit"),
            "1:2 3:1 4:1 5:1"
        );
    }
}

/// Another database of the server has a note of its own recovery from a node of the same name.
#[test]
fn notes_of_recoveries_of_other_databases_are_kept() {
    let cluster = ON.mesh(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    let other = "zodan_recovering_1_0/1_n1";
    n2.sql(&format!("SELECT pg_replication_origin_create('{other}')"));
    die_after(
        &cluster,
        "INSERT INTO debit VALUES (1, 1)",
        "SELECT count(*) FROM debit",
        "1",
    );
    recover(n2, "n1");
    assert_nothing_to_do(&recover(n2, "n1"));
    common::recovery::remove(n2, "n1");
    let left =
        "SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE 'zodan%'";
    assert_eq!(n2.value(left), other);
    n2.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n2.value(left), other);
    assert_nothing_held(&[n3]);
}

/// More rows than are held in memory at the same time, and more of them alike than a bucket is to have.
#[test]
fn large_differences_are_compared_in_parts() {
    let cluster = ON.mesh_without_slots(3);
    let [n2, n3] = [2, 3].map(|i| cluster.n(i));
    cluster
        .n(1)
        .sql("INSERT INTO journal SELECT 1, 'alike' FROM generate_series(1, 3000)");
    die_after(
        &cluster,
        "INSERT INTO scratch SELECT generate_series(1, 70000);
         INSERT INTO journal SELECT 1, 'alike' FROM generate_series(1, 2000);
         UPDATE journal SET what = 'changed' WHERE ctid = (SELECT min(ctid) FROM journal)",
        "SELECT count(*) FROM journal",
        "5000",
    );
    let called = recover(n2, "n1");
    assert!(called.warnings().is_empty(), "{called:?}");
    assert_same_content(&[n2, n3]);
    assert_eq!(n2.value("SELECT count(*) FROM scratch"), "70000");
}

/// What a peer has committed, and the source has applied, is on its way to the new node.
#[test]
fn verification_of_a_join_waits_for_changes_of_peers() {
    let cluster = Cluster::start_with(3, &options());
    cluster.form_mesh(2, &format!("{}{CONTENT}", lab::load::SCHEMA));
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let call =
        add_node_call(n3, "n3", n1, "n1").replace("new_node_dsn", "verify := true, new_node_dsn");
    let (hang, joining) = Hang::start(n3, "", "within it is proved", &call);
    let mut holder = n3.client_named("zodan test");
    holder
        .batch_execute("BEGIN; LOCK TABLE debit IN SHARE MODE")
        .expect("hold up what comes from n2");
    n2.sql("INSERT INTO debit VALUES (1, 2)");
    n1.wait_for("SELECT count(*) FROM debit", "1");
    hang.release();
    // The second look is not before the row has come.
    n2.wait_for("SELECT count(*) FROM zodan.marker WHERE node = 'n2'", "2");
    wait_settled(n3);
    assert!(!joining.is_finished());
    drop(holder);
    joining.succeeds();
    assert_eq!(n3.value("SELECT count(*) FROM debit"), "1");
}

/// Waits until the CALL on the node has looked for markers some times.
fn wait_settled(node: &Server) {
    let now = node.value("SELECT clock_timestamp()");
    node.wait_for(
        &format!("SELECT clock_timestamp() > timestamptz '{now}' + interval '1 s'"),
        "t",
    );
}

#[test]
fn last_update_wins_is_refused_for_a_table_without_a_key() {
    let cluster = Cluster::start_with(2, &options());
    cluster.form_mesh(
        2,
        "CREATE TABLE keyless (a int, v text); CREATE TABLE keyed (id int NOT NULL UNIQUE);
         ALTER TABLE keyed REPLICA IDENTITY USING INDEX keyed_id_key",
    );
    let n1 = cluster.n(1);
    let failed = n1.sql_error("SELECT spock.enable_last_update_wins('keyless')");
    assert_failed(
        &failed,
        "55000",
        "table public.keyless has no key",
        "Give the table a primary key that is not deferrable.",
    );
    for node in cluster.all() {
        assert_eq!(
            node.value("SELECT count(*) FROM pg_attribute WHERE attname = 'zodan_updated_at'"),
            "0"
        );
    }
    assert_eq!(
        n1.value("SELECT spock.enable_last_update_wins('keyed')"),
        "2"
    );
}

/// It is the one trigger that fires: n2 has an update that is later by the time that it bears, though it was
/// committed before.
#[test]
fn last_update_wins_applies_during_a_recovery() {
    let cluster = ON.mesh(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("SELECT spock.enable_last_update_wins('debit')");
    n1.sql("INSERT INTO debit VALUES (1, 1), (2, 1)");
    wait_quiet(&cluster.all());
    n2.sql(
        "BEGIN; SELECT zodan.unreplicated(); SET LOCAL session_replication_role = replica;
         UPDATE debit SET amount = 2, zodan_updated_at = now() + interval '1 hour' WHERE id = 1; COMMIT",
    );
    die_after(
        &cluster,
        "UPDATE debit SET amount = 3",
        "SELECT string_agg(amount::text, ' ' ORDER BY id) FROM debit",
        "3 3",
    );
    wait_quiet(&[n2, n3]);
    recover(n2, "n1");
    assert_eq!(
        n2.value("SELECT string_agg(amount::text, ' ' ORDER BY id) FROM debit"),
        "2 3"
    );
}
