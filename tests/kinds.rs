//! What a database can hold arrives whole on the new node, whatever it is and whatever it is called.

use lab::digest::assert_same_structure;
use lab::{Cluster, Server, add_node, assert_same_content, quote_literal, schema, wait_quiet};

fn joined(new: &Server, name: &str, source: &Server, source_name: &str) {
    add_node(new, name, source, source_name).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// Two servers with the roles, the first with `content`.
fn pair(content: &str) -> Cluster {
    let cluster = Cluster::start(2);
    for node in cluster.all() {
        node.sql(schema::ROLES);
    }
    cluster.form_mesh(1, content);
    cluster
}

#[test]
fn tables_of_all_kinds_are_copied_and_replicated() {
    let cluster = pair(&schema::kinds(5_000));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(
        "ALTER DATABASE postgres SET work_mem = '7MB';
         ALTER ROLE lab_reader IN DATABASE postgres SET search_path = shop, public;
         GRANT CREATE ON SCHEMA public TO lab_reader",
    );
    joined(n2, "n2", n1, "n1");
    assert_same_content(&[n1, n2]);
    assert_same_structure(n1, n2);

    let settings =
        "SELECT string_agg(concat_ws(' ', setrole::regrole, setconfig), '; ' ORDER BY setrole)
                      FROM pg_db_role_setting";
    assert_eq!(n1.value(settings), n2.value(settings));
    assert!(n2.value(settings).contains("work_mem=7MB"));

    let populated =
        "SELECT string_agg(format('%s %s', matviewname, ispopulated), ', ' ORDER BY matviewname)
                       FROM pg_matviews";
    assert_eq!(
        n2.value(populated),
        "turnover t, turnover_top t, unpopulated f"
    );
    let top = "SELECT sum(total)::text FROM shop.turnover_top";
    assert_eq!(n1.value(top), n2.value(top));

    // Unlogged tables arrive empty: their changes do not replicate, so rows would be a lie.
    assert_eq!(n2.value("SELECT count(*) FROM shop.basket"), "0");
}

#[test]
fn sequences_continue_where_the_source_is() {
    let cluster = pair(
        "CREATE TABLE a (id serial PRIMARY KEY, v text);
         CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
         CREATE SEQUENCE down INCREMENT -1;
         CREATE SEQUENCE untouched START 77;
         INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 500);
         INSERT INTO b (v) SELECT 'x' FROM generate_series(1, 700);
         SELECT nextval('down'), nextval('down')",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    joined(n2, "n2", n1, "n1");
    assert_eq!(
        n2.value("INSERT INTO a (v) VALUES ('new') RETURNING id"),
        "501"
    );
    assert_eq!(
        n2.value("INSERT INTO b (v) VALUES ('new') RETURNING id"),
        "701"
    );
    assert_eq!(n2.value("SELECT nextval('down')"), "-3");
    assert_eq!(n2.value("SELECT nextval('untouched')"), "77");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// Updates and deletes of a table without a key must go on working on a source that has just become a
/// node, and must arrive.
#[test]
fn table_without_a_key_is_replicated() {
    let cluster = pair(
        "CREATE TABLE keyless (a integer, b text);
         INSERT INTO keyless SELECT g % 3, 'x' || g % 2 FROM generate_series(1, 30) g",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    joined(n2, "n2", n1, "n1");
    n1.sql("UPDATE keyless SET b = 'changed' WHERE a = 1; DELETE FROM keyless WHERE a = 2");
    n2.sql("INSERT INTO keyless VALUES (7, 'from n2')");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(
        n2.value("SELECT count(*) FILTER (WHERE b = 'changed') || ' ' || count(*) FROM keyless"),
        "10 21"
    );
}

#[test]
fn empty_database_can_be_joined() {
    let cluster = Cluster::start(3);
    cluster.create_extension();
    joined(cluster.n(2), "n2", cluster.n(1), "n1");
    joined(cluster.n(3), "n3", cluster.n(2), "n2");
    for node in cluster.all() {
        assert_eq!(
            node.value("SELECT string_agg(name, ',' ORDER BY name) FROM zodan.node"),
            "n1,n2,n3"
        );
        assert_eq!(
            node.value("SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL"),
            "2"
        );
    }
}

#[test]
fn empty_schemas_of_the_new_node_are_used() {
    let cluster = pair(
        "CREATE SCHEMA shared; CREATE TABLE shared.t (id integer PRIMARY KEY);
         INSERT INTO shared.t SELECT generate_series(1, 10)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.sql(
        "CREATE SCHEMA shared;
         CREATE SCHEMA own;
         CREATE FUNCTION own.f() RETURNS integer LANGUAGE sql AS 'SELECT 42'",
    );
    joined(n2, "n2", n1, "n1");
    assert_eq!(n2.value("SELECT count(*) FROM shared.t"), "10");
    assert_eq!(n2.value("SELECT own.f()"), "42");
}

#[test]
fn join_works_with_node_names_of_all_kinds() {
    let long = "sixty-bytes-".repeat(5);
    assert_eq!(long.len(), 60);
    let names = ["N 1", "n-2", "n'3\"", "ñ;4", &long];
    let cluster = Cluster::start(names.len());
    cluster.form_mesh(1, "CREATE TABLE t (id integer PRIMARY KEY, node text)");
    for (i, name) in names.iter().enumerate().skip(1) {
        joined(cluster.n(i + 1), name, cluster.n(1), names[0]);
    }
    for (i, name) in names.iter().enumerate() {
        cluster.n(i + 1).sql(&format!(
            "INSERT INTO t VALUES ({i}, {})",
            quote_literal(name)
        ));
    }
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(
        cluster.n(5).value("SELECT count(DISTINCT node) FROM t"),
        "5"
    );
    assert_eq!(
        cluster
            .n(4)
            .value("SELECT count(*) FROM pg_replication_slots WHERE active"),
        "4"
    );
}

/// json has no equality, so the rows of such a table cannot be told apart by all columns.
#[test]
fn join_is_refused_when_rows_of_a_table_cannot_be_identified() {
    let cluster = pair(
        "CREATE TABLE told (a integer, b text, c varchar(3), d integer[]);
         CREATE TABLE untold (a integer, doc json)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let error = add_node(n2, "n2", n1, "n1").expect_err("refused");
    assert_eq!(error.code(), "55000");
    assert_eq!(
        error.message(),
        "node \"n1\": table \"public\".\"untold\" has no usable replica identity: doc json has no equality"
    );
    n1.sql("ALTER TABLE untold ADD PRIMARY KEY (a)");
    joined(n2, "n2", n1, "n1");
}
