//! Updates and deletes of every table work and arrive after a join, or the join is refused before the first change.

mod common;

use common::{Call, assert_findings, fingerprint, quick, runs, wait_mesh};
use lab::{Cluster, Server, add_node, pg, wait_quiet};

/// From this version on a server refuses updates that are told by columns it does not send.
fn refuses_unsent() -> bool {
    pg::major() >= 18
}

fn pair(content: &str) -> Cluster {
    let cluster = Cluster::start_with(2, &quick());
    cluster.form_mesh(1, content);
    cluster
}

fn identities(server: &Server) -> String {
    server.value(
        "SELECT string_agg(format('%s %s', relname, relreplident), ', ' ORDER BY relname COLLATE \"C\")
           FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname LIKE 'i\\_%'",
    )
}

/// Each of these has no replica identity by which its rows could be told, for a reason of its own.
#[test]
fn tables_without_replica_identity_get_one() {
    let mut tables = vec![
        ("i_deferrable", "(k int PRIMARY KEY DEFERRABLE, v text)", ""),
        (
            "i_initially",
            "(k int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)",
            "",
        ),
        ("i_keyless", "(k int, v text)", ""),
        ("i_nullable", "(k int UNIQUE, v text)", ""),
        (
            "i_partial",
            "(k int NOT NULL, v text)",
            "CREATE UNIQUE INDEX ON i_partial (k) WHERE k > 0",
        ),
        (
            "i_dropped",
            "(k int NOT NULL, v text)",
            "CREATE UNIQUE INDEX gone ON i_dropped (k); ALTER TABLE i_dropped REPLICA IDENTITY USING INDEX gone; DROP INDEX gone",
        ),
        (
            "i_nothing",
            "(k int PRIMARY KEY, v text, doc json)",
            "ALTER TABLE i_nothing REPLICA IDENTITY NOTHING",
        ),
        (
            "i_types",
            "(k int, v text, a mood[], b pair, c int4range, d int4multirange, e pair[], f citizen)",
            "",
        ),
    ];
    if refuses_unsent() {
        tables.push((
            "i_whole",
            "(k int PRIMARY KEY, v text, g int GENERATED ALWAYS AS (k * 2) STORED)",
            "ALTER TABLE i_whole REPLICA IDENTITY FULL",
        ));
    }
    let mut content =
        "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TYPE pair AS (a mood, b jsonb);
        CREATE DOMAIN citizen AS pair; CREATE TABLE fine (k int PRIMARY KEY, v text);"
            .to_owned();
    for (name, columns, more) in &tables {
        content += &format!(
            "CREATE TABLE {name} {columns}; {more};
             INSERT INTO {name} (k, v) SELECT i, 'old' FROM generate_series(1, 5) i;"
        );
    }
    let cluster = pair(&content);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let called = add_node(n2, "n2", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    let said: Vec<&str> = called.notices.iter().map(|n| n.message.as_str()).collect();
    let becomes = |name: &str| if name == "i_whole" { "DEFAULT" } else { "FULL" };
    for (name, ..) in &tables {
        let notice = format!(
            "table \"public\".\"{name}\" of node \"n1\" has no replica identity: it becomes {}, or",
            becomes(name)
        );
        assert!(
            said.iter().any(|s| s.contains(&notice)),
            "{notice}: {said:?}"
        );
    }
    assert!(!said.iter().any(|s| s.contains("\"fine\"")), "{said:?}");
    assert_eq!(identities(n1), identities(n2));
    for (name, ..) in &tables {
        n1.sql(&format!(
            "UPDATE {name} SET v = 'n1' WHERE k = 1; DELETE FROM {name} WHERE k = 2"
        ));
        n2.sql(&format!(
            "UPDATE {name} SET v = 'n2' WHERE k = 3; DELETE FROM {name} WHERE k = 4"
        ));
    }
    wait_quiet(&cluster.all());
    for (name, ..) in &tables {
        let rows = format!("SELECT string_agg(k || v, ' ' ORDER BY k) FROM {name}");
        for server in cluster.all() {
            assert_eq!(
                server.value(&rows),
                "1n1 3n2 5old",
                "{name} of {}",
                server.name()
            );
        }
    }
}

/// A failed join puts the identities back.
#[test]
fn replica_identities_are_restored_when_a_join_fails() {
    let cluster = pair(
        "CREATE TABLE i_dropped (k int NOT NULL); CREATE UNIQUE INDEX gone ON i_dropped (k);
         ALTER TABLE i_dropped REPLICA IDENTITY USING INDEX gone; DROP INDEX gone;
         CREATE TABLE i_deferrable (k int PRIMARY KEY DEFERRABLE);
         CREATE FUNCTION only_here(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN IF to_regclass('zodan.here') IS NULL THEN RAISE 'not here'; END IF; RETURN $1; END $$;
         CREATE TABLE late (k int PRIMARY KEY); INSERT INTO late VALUES (1)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE VIEW zodan.here AS SELECT 1; CREATE INDEX ON late (only_here(k))");
    assert_eq!(identities(n1), "i_deferrable d, i_dropped i");
    let failed = Call::of(n2, n1).fails_on(n2);
    assert!(failed.message().contains("not here"), "{failed}");
    // There is no way back to an index that is gone; the same is NOTHING.
    assert_eq!(identities(n1), "i_deferrable d, i_dropped n");
}

#[test]
fn join_is_refused_when_a_replica_identity_cannot_be_set() {
    let cluster = pair(
        "CREATE TYPE note AS (at date, body json); CREATE DOMAIN noted AS note; CREATE DOMAIN doc AS json;
         CREATE TYPE deep AS (n noted[]);
         CREATE TABLE a_composite (k int, n note);
         CREATE TABLE b_deep (k int, d deep[]);
         CREATE TABLE c_domains (k int, d doc[]);
         CREATE TABLE d_point (p point);
         CREATE TABLE e_whole (k int, j json); ALTER TABLE e_whole REPLICA IDENTITY FULL;
         CREATE TABLE f_key (c text NOT NULL, id text GENERATED ALWAYS AS (c || 'x') STORED PRIMARY KEY);
         CREATE TABLE fine (k int PRIMARY KEY, n note, j json); ALTER TABLE fine REPLICA IDENTITY FULL;
         CREATE TABLE partitioned (k int, j json) PARTITION BY LIST (k);
         CREATE TABLE h_part PARTITION OF partitioned FOR VALUES IN (1)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let none = "has no usable replica identity:";
    let hint = "Give the table a primary key, or a replica identity by a unique index";
    let mut wanted = vec![
        (
            "a_composite",
            format!("{none} n public.note has no equality, since json in it has none"),
        ),
        (
            "b_deep",
            format!("{none} d public.deep[] has no equality, since json in it has none"),
        ),
        (
            "c_domains",
            format!("{none} d public.doc[] has no equality, since json in it has none"),
        ),
        ("d_point", format!("{none} p point has no equality")),
        ("e_whole", format!("{none} j json has no equality")),
        (
            "f_key",
            "has a key with the generated column id, which is not replicated".to_owned(),
        ),
        ("h_part", format!("{none} j json has no equality")),
    ];
    if refuses_unsent() {
        n1.sql("CREATE TABLE g_stored (k int, g int GENERATED ALWAYS AS (k * 2) STORED)");
        n1.sql("CREATE TABLE g_virtual (k int, g int GENERATED ALWAYS AS (k * 2) VIRTUAL)");
        for name in ["g_stored", "g_virtual"] {
            wanted.push((
                name,
                format!("{none} the generated column g is not replicated"),
            ));
        }
    }
    let before = (fingerprint(&cluster.all()), runs(&cluster.all()));
    let failed = Call::of(n2, n1).fails_on(n2);
    let wanted: Vec<(&str, String)> = wanted
        .into_iter()
        .map(|(table, why)| ("55000", format!("table \"public\".\"{table}\" {why}")))
        .collect();
    let wanted: Vec<(&str, &str, &str)> = wanted
        .iter()
        .map(|(state, message)| (*state, message.as_str(), hint))
        .collect();
    assert_findings(&failed, &wanted);
    before.0.assert_same_now(&cluster.all());
    assert_eq!(before.1, runs(&cluster.all()));
}

/// Tables of a cluster, which others may have added since.
#[test]
fn replica_identities_are_checked_on_every_member() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let create = "CREATE TABLE late (k int, v text); CREATE TABLE stops (k int, j json);
                  ALTER TABLE stops REPLICA IDENTITY FULL";
    for member in [n1, n2] {
        member.sql(create);
    }
    for (member, from) in [(n1, "n2"), (n2, "n1")] {
        let subscription = format!("sub_{from}_{}", member.name());
        member.sql(&format!(
            "ALTER SUBSCRIPTION {subscription} REFRESH PUBLICATION WITH (copy_data = false)"
        ));
    }
    wait_mesh(&cluster.first(2));
    let before = (fingerprint(&cluster.all()), runs(&cluster.all()));
    let stops = "table \"public\".\"stops\" has no usable replica identity: j json has no equality";
    let hint = "Give the table a primary key, or a replica identity by a unique index";
    assert_findings(
        &Call::of(n3, n1).fails_on(n3),
        &[("55000", stops, hint), ("55000", stops, hint)],
    );
    before.0.assert_same_now(&cluster.all());
    assert_eq!(before.1, runs(&cluster.all()));
    let report = n2.rows(&format!(
        "SELECT node, status, found, statement FROM spock.health_report('n1', '{}', check_type := 'post')
          WHERE \"check\" = 'replica identity' ORDER BY status, node",
        n1.dsn()
    ));
    let report: Vec<String> = report
        .into_iter()
        .map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" "))
        .collect();
    let late = "warning table \"public\".\"late\" has no replica identity, so updates and deletes of it fail ALTER TABLE ONLY public.late REPLICA IDENTITY FULL";
    assert_eq!(
        report,
        [
            format!("n1 failed {stops}"),
            format!("n2 failed {stops}"),
            format!("n1 {late}"),
            format!("n2 {late}")
        ]
    );
}
