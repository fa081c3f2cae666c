//! What Spock does not send is nobody's business: verification does not ask for it, a recovery by comparison does not
//! touch it.

use lab::cluster::add_node_call;
use lab::spock::{self, Mesh};
use lab::{Called, Cluster, Server, wait_quiet};

fn call(node: &Server, sql: &str) -> Called {
    node.call(sql).unwrap_or_else(|e| panic!("{e}"))
}

fn said(called: &Called) -> String {
    let lines: Vec<String> = called.notices.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Every row of a table as text, in their order.
fn content(node: &Server, table: &str) -> String {
    node.value(&format!(
        "SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM {table} t"
    ))
}

/// What the function says of `other`, line by line.
fn found(asked: &Server, other: &str, by_design: bool) -> Vec<String> {
    let rows = asked.rows(&format!(
        "SELECT concat_ws('|', table_name, missing_rows, extra_rows, different_rows, keys)
           FROM spock.verify_nodes(by_design := {by_design})
          WHERE node = '{other}' AND reference_node = '{}' ORDER BY 1",
        asked.name()
    ));
    rows.into_iter().flatten().flatten().collect()
}

const TABLES: &str = "
CREATE TABLE plain (id integer PRIMARY KEY, v text);
CREATE TABLE offer (item integer PRIMARY KEY, price numeric);
CREATE TABLE listed (id integer PRIMARY KEY, v text, own text DEFAULT 'none');
CREATE TABLE ins (x integer, v text);
CREATE TABLE inskey (id integer PRIMARY KEY, v text);
CREATE TABLE kept (id integer PRIMARY KEY);
CREATE TABLE \"Od'd \"\"T\" (\"K y\" integer, \"A b\" text, v text, PRIMARY KEY (\"K y\", \"A b\"));
";

/// A row filter, a column list, sets that send no updates and deletes, and one that sends no TRUNCATE.
const SETS: &str = "
SELECT spock.repset_create('priced'), spock.repset_create('no truncate', true, true, true, false);
SELECT spock.repset_add_table('default', 'plain'), spock.repset_add_table('default', 'lab.marker'),
       spock.repset_add_table('priced', 'offer', row_filter := 'price IS NOT NULL'),
       spock.repset_add_table('default', 'listed', false, '{id,v}'),
       spock.repset_add_table('default_insert_only', 'ins'), spock.repset_add_table('default_insert_only', 'inskey'),
       spock.repset_add_table('no truncate', 'kept'),
       spock.repset_add_table('default', '\"Od''d \"\"T\"', row_filter := '\"A b\" > ''a''')";

#[test]
fn verification_compares_only_what_is_sent() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: TABLES,
        sets: Some(SETS),
        ..Mesh::default()
    }
    .start_with_extension(2);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql(
        "INSERT INTO plain VALUES (1, 'a'), (2, 'b'); INSERT INTO offer VALUES (1, 9.90), (2, 5), (11, NULL);
         INSERT INTO listed VALUES (1, 'a', 'n1'); INSERT INTO ins VALUES (1, 'a'), (3, 'b'), (3, 'b');
         INSERT INTO inskey VALUES (1, 'a'), (3, 'b'); INSERT INTO kept VALUES (1), (2);
         INSERT INTO \"Od'd \"\"T\" VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    );
    wait_quiet(&[n1, n2]);
    // None of this is sent.
    n2.sql(
        "DELETE FROM offer WHERE item = 1; UPDATE offer SET price = NULL WHERE item = 2;
         INSERT INTO offer VALUES (12, NULL); UPDATE ins SET v = 'n2' WHERE x = 1; DELETE FROM ins WHERE x = 3;
         UPDATE inskey SET v = 'n2' WHERE id = 1; DELETE FROM inskey WHERE id = 3; TRUNCATE kept;
         INSERT INTO \"Od'd \"\"T\" VALUES (9, 'a')",
    );
    // And this is, since the filter looks at the key only.
    n2.sql("DELETE FROM \"Od'd \"\"T\" WHERE \"K y\" = 3");
    n1.wait_for("SELECT count(*) FROM \"Od'd \"\"T\"", "2");
    let verified = add_node_call(n3, "n3", n1, "n1");
    let verified = call(
        n3,
        &verified.replace("new_node_dsn", "verify := true, new_node_dsn"),
    );
    let line = "node \"n3\" has the same content as node \"n1\", as far as it is sent; \
                spock.verify_nodes(by_design := true) lists what differs else";
    assert!(said(&verified).contains(line), "{}", said(&verified));
    for (node, others) in [(n1, [n2, n3]), (n2, [n1, n3]), (n3, [n1, n2])] {
        for other in others {
            let differences = found(node, other.name(), false);
            assert_eq!(differences, [""; 0], "{}", node.name());
        }
    }
    assert_eq!(
        found(n1, "n2", true),
        [
            r#""public"."Od'd ""T"|1|1|0|{"(1,a)","(9,a)"}"#,
            r#""public"."ins"|3|1|0|{"(1,a)","(1,n2)","(3,b)","(3,b) (no. 2)"}"#,
            r#""public"."inskey"|1|0|1|{(1),(3)}"#,
            r#""public"."kept"|2|0|0|{(1),(2)}"#,
            r#""public"."listed"|0|0|1|{(1)}"#,
            r#""public"."offer"|2|1|1|{(1),(11),(12),(2)}"#,
        ]
    );
    assert_eq!(
        found(n1, "n3", true),
        [
            r#""public"."Od'd ""T"|1|0|0|{"(1,a)"}"#,
            r#""public"."listed"|0|0|1|{(1)}"#,
            r#""public"."offer"|1|0|0|{(11)}"#,
        ]
    );
    // What should have been sent and was not.
    n3.sql(
        "BEGIN; SELECT spock.repair_mode(true); DELETE FROM plain WHERE id = 1;
         UPDATE listed SET v = 'n3' WHERE id = 1; UPDATE offer SET price = 6 WHERE item = 2;
         DELETE FROM \"Od'd \"\"T\" WHERE \"K y\" = 2;
         INSERT INTO plain VALUES (3, 'n3'); COMMIT",
    );
    assert_eq!(
        found(n1, "n3", false),
        [
            r#""public"."Od'd ""T"|1|0|0|{"(2,b)"}"#,
            r#""public"."listed"|0|0|1|{(1)}"#,
            r#""public"."offer"|0|0|1|{(2)}"#,
            r#""public"."plain"|1|1|0|{(1),(3)}"#,
        ]
    );
}

/// Tables and a column that one member has dropped do not keep the others from being compared.
#[test]
fn tables_a_member_lacks_are_reported_and_the_rest_compared() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: TABLES,
        sets: Some(SETS),
        ..Mesh::default()
    }
    .start_with_extension(2);
    let [n1, n2] = [1, 2].map(|i| cluster.n(i));
    n1.sql(
        "INSERT INTO plain VALUES (1, 'a'), (2, 'b'); INSERT INTO listed (id, v) VALUES (1, 'a');
         INSERT INTO offer VALUES (1, 9.90), (11, NULL); INSERT INTO kept VALUES (1), (2), (3)",
    );
    wait_quiet(&[n1, n2]);
    n2.sql(
        "SET spock.enable_ddl_replication = off; DROP TABLE kept, offer CASCADE;
         ALTER TABLE plain DROP COLUMN v",
    );
    n2.sql("BEGIN; SELECT spock.repair_mode(true); DELETE FROM listed; COMMIT");
    assert_eq!(
        found(n1, "n2", false),
        [
            r#""public"."kept"|3|0|0|{}"#,
            r#""public"."listed"|1|0|0|{(1)}"#,
            r#""public"."offer"|1|0|0|{}"#,
            r#""public"."plain"|0|0|2|{}"#,
        ]
    );
    assert_eq!(
        found(n2, "n1", false),
        [
            r#""public"."kept"|0|3|0|{}"#,
            r#""public"."listed"|0|1|0|{(1)}"#,
            r#""public"."offer"|0|1|0|{}"#,
            r#""public"."plain"|0|0|2|{}"#,
        ]
    );
    for node in [n1, n2] {
        let asked = call(node, "SELECT count(*) FROM spock.verify_nodes()");
        let told: Vec<(&str, &str)> = asked
            .notices
            .iter()
            .map(|n| (n.code.as_str(), n.message.as_str()))
            .collect();
        for (state, lack) in [
            ("42P01", "table \"public\".\"kept\""),
            ("42P01", "table \"public\".\"offer\""),
            ("42703", "columns \"v\" of table \"public\".\"plain\""),
        ] {
            let lack = format!("node \"n2\" lacks {lack}, which node \"n1\" has");
            assert!(told.contains(&(state, &lack)), "{lack}: {told:?}");
        }
        assert!(found(node, "n2", true).is_empty());
    }
}

/// A set that sends nothing but what a join could not undo: one member alone, as the tutorial has it.
#[test]
fn join_to_a_single_member_copies_by_filter_and_columns() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: TABLES,
        sets: Some(SETS),
        ..Mesh::default()
    }
    .start(1);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(
        "INSERT INTO offer VALUES (1, 9.90), (11, NULL); INSERT INTO listed VALUES (1, 'a', 'n1');
         INSERT INTO ins VALUES (1, 'a'), (1, 'a')",
    );
    let verified = add_node_call(n2, "n2", n1, "n1");
    call(
        n2,
        &verified.replace("new_node_dsn", "verify := true, new_node_dsn"),
    );
    assert_eq!(content(n2, "offer"), "(1,9.90)");
    assert_eq!(content(n2, "listed"), "(1,a,none)");
    assert_eq!(content(n2, "ins"), "(1,a) (1,a)");
    assert_eq!(found(n2, "n1", false), [""; 0]);
}

/// n1 dies when n3 has something of it that n2 has not. Beside that each of them has what no set sends.
#[test]
fn recovery_by_comparison_stays_within_the_sets() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: &format!(
            "{TABLES} CREATE TABLE cust (id integer PRIMARY KEY, region text, v text);
             CREATE TABLE hits (id integer PRIMARY KEY, v text, hits integer DEFAULT 0);
             CREATE TABLE of_one (id integer PRIMARY KEY, v text)"
        ),
        sets: Some(&format!(
            "{SETS}; SELECT spock.repset_add_table('default', 'cust', false, NULL, 'region = ''eu'''),
                            spock.repset_add_table('default', 'hits', false, '{{id,v}}')"
        )),
        ..Mesh::default()
    }
    .start_with_extension(3);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("SELECT spock.repset_add_table('default', 'of_one')");
    n1.sql(
        "INSERT INTO cust SELECT i, 'eu', 'n1' FROM unnest('{1,4,5,7}'::integer[]) i;
         INSERT INTO hits VALUES (1, 'n1', 5), (2, 'n1', 5);
         INSERT INTO ins VALUES (1, 'a'), (3, 'b'), (6, 'purged'); INSERT INTO inskey VALUES (1, 'a'), (3, 'b');
         INSERT INTO kept VALUES (1), (2); INSERT INTO plain VALUES (1, 'a'), (2, 'b');
         INSERT INTO of_one VALUES (1, 'a')",
    );
    let members = cluster.first(3);
    wait_quiet(&members);
    n2.sql(
        "INSERT INTO cust VALUES (100, 'us', 'n2'), (300, 'us', 'n2'); DELETE FROM cust WHERE id = 5;
         UPDATE hits SET hits = 22 WHERE id = 1; DELETE FROM ins WHERE x = 6;
         INSERT INTO of_one VALUES (100, 'n2')",
    );
    wait_quiet(&members);
    n3.sql(
        "INSERT INTO cust VALUES (200, 'us', 'n3'), (300, 'us', 'n3'); DELETE FROM cust WHERE id = 4;
         UPDATE hits SET hits = 33 WHERE id = 1; DELETE FROM ins WHERE x = 3;
         UPDATE inskey SET v = 'n3' WHERE id = 1; DELETE FROM inskey WHERE id = 3; TRUNCATE kept;
         INSERT INTO of_one VALUES (100, 'n3'), (200, 'n3')",
    );
    wait_quiet(&members);
    n2.sql("SELECT spock.sub_disable('sub_n1_n2', true)");
    let slot = "SELECT active FROM pg_replication_slots WHERE slot_name LIKE '%sub_n1_n2'";
    n1.wait_for(slot, "f");
    n1.sql(
        "INSERT INTO cust VALUES (2, 'eu', 'lost'), (3, 'us', 'n1 own'); UPDATE cust SET v = 'lost' WHERE id = 7;
         INSERT INTO hits VALUES (3, 'lost', 7); UPDATE hits SET v = 'lost' WHERE id = 2;
         INSERT INTO ins VALUES (2, 'lost'), (2, 'lost'); INSERT INTO inskey VALUES (2, 'lost');
         INSERT INTO plain VALUES (3, 'lost'); DELETE FROM plain WHERE id = 2;
         INSERT INTO of_one VALUES (2, 'lost'); UPDATE of_one SET v = 'lost' WHERE id = 1",
    );
    n3.wait_for("SELECT v FROM of_one WHERE id = 1", "lost");
    n1.crash();
    n3.sql("UPDATE ins SET v = 'n3' WHERE x = 1");
    let tables = ["plain", "cust", "hits", "ins", "inskey", "kept", "of_one"];
    let before = tables.map(|table| content(n3, table));
    let recovered = call(n3, "CALL spock.recover_run('n1')");
    assert_eq!(
        tables.map(|table| content(n2, table)),
        [
            "(1,a) (3,lost)",
            "(1,eu,n1) (100,us,n2) (2,eu,lost) (300,us,n2) (4,eu,n1) (7,eu,lost)",
            "(1,n1,22) (2,lost,0) (3,lost,0)",
            "(1,a) (2,lost) (2,lost) (3,b)",
            "(1,a) (2,lost) (3,b)",
            "(1) (2)",
            "(1,lost) (100,n2) (2,lost)",
        ]
    );
    assert_eq!(tables.map(|table| content(n3, table)), before);
    let told = said(&recovered);
    assert!(
        told.contains(
            "copied 10 rows to node \"n2\" and deleted 1 there, by comparison with node \"n3\""
        ),
        "{told}"
    );
    assert!(
        told.contains("are each node's own: what is sent between them does not make them alike"),
        "{told}"
    );
    // A row without a key that n3 has written, or changed; and what a TRUNCATE of n3 has taken, or a DELETE of n1.
    let doubt = "WARNING: 3 rows differ between node \"n3\" and node \"n2\", and they cannot be resolved automatically: \
                 \"public\".\"ins\" (1,n3), \"public\".\"kept\" (1), \"public\".\"kept\" (2)";
    assert!(told.contains(doubt), "{told}");
    call(n3, "CALL spock.remove_node('n1')");
    for (node, other) in [(n2, "n3"), (n3, "n2")] {
        assert_eq!(found(node, other, false), [""; 0]);
    }
}

/// A mesh of three that keeps recovery slots, where n2 gets nothing from n1 any more. `of_one` is in a set of n1 only,
/// and `plain` of every node also in a set that nobody subscribes to and whose filter keeps all rows.
fn mesh_with_slots() -> Cluster {
    let cluster = Mesh {
        content: &format!("{TABLES} CREATE TABLE of_one (id integer PRIMARY KEY, v text)"),
        sets: Some(SETS),
        ..Mesh::default()
    }
    .start_with_extension(3);
    let members = cluster.first(3);
    for node in &members {
        node.sql(
            "SELECT spock.repset_create('unused');
             SELECT spock.repset_add_table('unused', 'plain', row_filter := 'id < 0');
             SELECT zodan.start_node_worker()",
        );
    }
    members[0].sql(
        "SELECT spock.repset_add_table('default', 'of_one'); INSERT INTO of_one VALUES (1, 'a');
         INSERT INTO plain VALUES (1, 'a')",
    );
    for node in &members {
        node.wait_for(
            "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL",
            "2",
        );
    }
    wait_quiet(&members);
    members[1].sql("SELECT spock.sub_disable('sub_n1_n2', true)");
    let slot = "SELECT active FROM pg_replication_slots WHERE slot_name LIKE '%sub_n1_n2'";
    members[0].wait_for(slot, "f");
    cluster
}

#[test]
fn recovery_slot_yields_only_what_subscribed_sets_send() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh_with_slots();
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO plain VALUES (2, 'lost'); INSERT INTO listed VALUES (1, 'lost', 'n1')");
    n3.wait_for("SELECT count(*) FROM listed", "1");
    n1.crash();
    let told = said(&call(n3, "CALL spock.recover_run('n1')"));
    assert!(!told.contains("their contents are compared"), "{told}");
    assert_eq!(content(n2, "plain"), "(1,a) (2,lost)");
    assert_eq!(content(n2, "listed"), "(1,lost,none)");
}

#[test]
fn comparison_finds_what_the_recovery_slot_leaves_out() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh_with_slots();
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n1.sql("INSERT INTO plain VALUES (2, 'lost'); INSERT INTO of_one VALUES (2, 'lost')");
    n3.wait_for("SELECT count(*) FROM of_one", "2");
    n1.sql("DELETE FROM of_one WHERE id = 1");
    n3.wait_for("SELECT count(*) FROM of_one", "1");
    n1.crash();
    let told = said(&call(n3, "CALL spock.recover_run('n1')"));
    // n3 may have deleted it as well.
    let doubt = "WARNING: 1 rows differ between node \"n3\" and node \"n2\", and no survivor sends their tables, \
                 so it cannot be told whether \"n1\" has deleted them or \"n3\" itself: \"public\".\"of_one\" (1)";
    assert!(told.contains(doubt), "{told}");
    let why = "their contents are compared: cannot recover from the slot of node \"n3\": it gives nothing of rows of \
               \"n1\" in table \"public\".\"of_one\", which no replication set of node \"n3\" lets through";
    assert!(told.contains(why), "{told}");
    assert_eq!(content(n2, "plain"), "(1,a) (2,lost)");
    assert_eq!(content(n2, "of_one"), "(1,a) (2,lost)");
}
