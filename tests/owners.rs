//! Apply workers store rows with the rights of the owners of tables. What an owner may not do is found before a join.

mod common;

use common::{Call, assert_findings, fingerprint, quick, runs};
use lab::{Cluster, add_node, assert_same_content, wait_quiet};

const ROLES: &str =
    "CREATE ROLE owner; CREATE ROLE app; CREATE ROLE boss SUPERUSER; CREATE ROLE passes BYPASSRLS;
    GRANT CREATE ON SCHEMA public TO owner, boss, passes";

const CONTENT: &str = "
CREATE FUNCTION positive(i int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN i > 0; END $$;
CREATE FUNCTION twice(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN i * 2; END $$;
CREATE FUNCTION beside(i int, j int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN i <> j; END $$;
REVOKE EXECUTE ON FUNCTION positive(int), twice(int), beside(int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION positive(int), twice(int), beside(int, int) TO app;
CREATE OPERATOR <!> (LEFTARG = int, RIGHTARG = int, FUNCTION = beside);
CREATE DOMAIN natural_number AS int CHECK (positive(VALUE));
CREATE TABLE a_check (k int PRIMARY KEY, CONSTRAINT above CHECK (positive(k)));
CREATE TABLE b_generated (k int PRIMARY KEY, g int GENERATED ALWAYS AS (twice(k)) STORED);
CREATE TABLE c_index (k int PRIMARY KEY); CREATE INDEX doubled ON c_index (twice(k));
CREATE TABLE d_domain (k int PRIMARY KEY, n natural_number);
CREATE DOMAIN small_number AS natural_number; CREATE TYPE numbers AS (n small_number[]);
CREATE TABLE d_nested (k int PRIMARY KEY, n numbers);
CREATE TABLE parted (k int) PARTITION BY LIST (twice(k)); CREATE TABLE p_leaf PARTITION OF parted DEFAULT;
ALTER TABLE p_leaf ADD PRIMARY KEY (k);
CREATE TABLE e_operator (k int PRIMARY KEY, CONSTRAINT apart CHECK (k <!> 7));
CREATE TABLE f_forced (k int PRIMARY KEY, tenant text);
ALTER TABLE f_forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE g_revoked (k int PRIMARY KEY, v text);
CREATE TABLE ok_default (k int PRIMARY KEY, d int DEFAULT twice(1));
CREATE TABLE ok_security (k int PRIMARY KEY); ALTER TABLE ok_security ENABLE ROW LEVEL SECURITY;
CREATE TABLE ok_boss (k int PRIMARY KEY CHECK (positive(k)));
ALTER TABLE ok_boss ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE ok_passes (k int PRIMARY KEY);
ALTER TABLE ok_passes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE ok_unlogged AS SELECT 1; ALTER TABLE ok_unlogged SET UNLOGGED;
ALTER TABLE ok_unlogged ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $$ DECLARE t text; BEGIN
    FOR t IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(._|ok_default|ok_security|ok_unlogged)' AND relnamespace = 'public'::regnamespace
    LOOP EXECUTE format('ALTER TABLE %I OWNER TO owner', t); END LOOP; END $$;
ALTER TABLE ok_boss OWNER TO boss; ALTER TABLE ok_passes OWNER TO passes;
REVOKE UPDATE, SELECT ON g_revoked FROM owner; GRANT UPDATE ON g_revoked TO app";

#[test]
fn table_owner_without_the_needed_rights_is_reported() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for server in cluster.all() {
        server.sql(ROLES);
    }
    cluster.form_mesh(1, CONTENT);
    let calls = |what: &str, table: &str, function: &str| {
        format!(
            "{what} of table \"public\".\"{table}\" calls public.{function}, which the owner of the table, role \"owner\", may not execute"
        )
    };
    let grant = |function: &str| format!("GRANT EXECUTE ON FUNCTION public.{function} TO owner");
    let wanted = [
        (calls("constraint above", "a_check", "positive(integer)"), grant("positive(integer)")),
        (calls("generated column g", "b_generated", "twice(integer)"), grant("twice(integer)")),
        (calls("index doubled", "c_index", "twice(integer)"), grant("twice(integer)")),
        (
            calls("column n with constraint natural_number_check of a domain", "d_domain", "positive(integer)"),
            grant("positive(integer)"),
        ),
        (
            calls(
                "column n with constraint natural_number_check of a domain",
                "d_nested",
                "positive(integer)",
            ),
            grant("positive(integer)"),
        ),
        (
            calls("partition key of public.parted", "p_leaf", "twice(integer)"),
            grant("twice(integer)"),
        ),
        (
            calls("constraint apart", "e_operator", "beside(integer,integer)"),
            grant("beside(integer,integer)"),
        ),
        (
            "table \"public\".\"f_forced\" forces row-level security on its owner, role \"owner\"".to_owned(),
            "ALTER ROLE \"owner\" BYPASSRLS".to_owned(),
        ),
        (
            "the owner of table \"public\".\"g_revoked\", role \"owner\", has not the privileges SELECT, UPDATE on it".to_owned(),
            "GRANT SELECT, UPDATE ON public.g_revoked TO owner".to_owned(),
        ),
    ];
    let wanted: Vec<(&str, &str, &str)> = wanted
        .iter()
        .map(|(message, hint)| ("42501", message.as_str(), hint.as_str()))
        .collect();
    let before = (fingerprint(&cluster.all()), runs(&cluster.all()));
    assert_findings(&Call::of(n2, n1).fails_on(n2), &wanted);

    // What a superuser or who passes row-level security owns, another node may see otherwise.
    n2.sql("ALTER ROLE boss NOSUPERUSER; ALTER ROLE passes NOBYPASSRLS");
    let failed = Call::of(n2, n1).fails_on(n2);
    for text in [
        "node \"n2\": constraint ok_boss_k_check of table \"public\".\"ok_boss\" calls public.positive(integer)",
        "node \"n2\": table \"public\".\"ok_passes\" forces row-level security on its owner, role \"passes\"",
    ] {
        assert!(failed.detail().contains(text), "{text}\n{failed}");
    }
    n2.sql("ALTER ROLE boss SUPERUSER; ALTER ROLE passes BYPASSRLS");
    before.0.assert_same_now(&cluster.all());
    assert_eq!(before.1, runs(&cluster.all()));

    // The remedies are remedies, with changes in both directions.
    n1.sql(
        "GRANT EXECUTE ON FUNCTION positive(int), twice(int), beside(int, int) TO owner;
         GRANT SELECT, UPDATE ON public.g_revoked TO owner",
    );
    for server in cluster.all() {
        server.sql("ALTER ROLE owner BYPASSRLS");
    }
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    let tables = n1.rows("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname ~ '^(._|ok_[^u])'");
    for (server, k) in [(n1, 1), (n2, 2)] {
        for row in &tables {
            let table = row[0].as_deref().expect("a name");
            server.sql(&format!(
                "INSERT INTO {table} (k) VALUES ({k}); UPDATE {table} SET k = k + 10 WHERE k = {k}"
            ));
        }
    }
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(
        n1.value("SELECT string_agg(k::text, ' ' ORDER BY k) FROM f_forced"),
        "11 12"
    );
}
