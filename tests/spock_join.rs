//! A node joins a Spock cluster: what arrives, whatever the nodes are called and however they are reached.

mod common;

use common::gate;
use lab::digest::assert_same_structure;
use lab::spock::{self, Mesh};
use lab::{
    Called, Cluster, Server, add_node, assert_same_content, load, quote_literal, schema, wait_quiet,
};

fn joined(new: &Server, name: &str, source: &Server, source_name: &str) -> Called {
    add_node(new, name, source, source_name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn said(called: &Called) -> String {
    let lines: Vec<String> = called.notices.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Tables of zodan in replication sets.
const ZODAN_IN_SETS: &str =
    "SELECT count(*) FROM spock.replication_set_table t JOIN pg_class c ON c.oid = t.set_reloid
                              WHERE c.relnamespace = 'zodan'::regnamespace";

/// `members` nodes with `content`, and an empty server more.
fn mesh(members: usize, content: &str) -> Cluster {
    let mesh = Mesh {
        content,
        ..Mesh::default()
    };
    mesh.start(members)
}

#[test]
fn tables_of_all_kinds_are_copied_and_replicated() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        everywhere: schema::ROLES,
        content: &schema::kinds(5_000),
        ..Mesh::default()
    }
    .start(2);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    joined(n3, "n3", n1, "n1");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_same_structure(n1, n3);
    assert_eq!(
        n3.value(
            "SELECT string_agg(format('%s %s', matviewname, ispopulated), ', ' ORDER BY matviewname)
               FROM pg_matviews"
        ),
        "turnover t, turnover_top t, unpopulated f"
    );
    let top = "SELECT sum(total)::text FROM shop.turnover_top";
    assert_eq!(n1.value(top), n3.value(top));
    assert_eq!(
        n3.value("SELECT count(*) FROM pg_db_role_setting"),
        "0",
        "writes are let in again"
    );
}

#[test]
fn join_prints_the_cluster_at_its_end() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, load::SCHEMA);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let called = n3
        .call(&format!(
            "CALL spock.add_node('n1', {}, 'n3', {}, false, 'Oslo', 'Norway', '{{\"tier\": 1}}')",
            quote_literal(&n1.dsn()),
            quote_literal(&n3.dsn())
        ))
        .unwrap_or_else(|e| panic!("{e}"));
    let said = said(&called);
    for line in [
        "node_name | location | country",
        "n3        | Oslo     | Norway",
        "n3        | sub_n2_n3         | replicating | n2",
        "n1        | sub_n3_n1         | replicating | n3",
        "origin_name | receiver_name | commit_timestamp",
        "n3          | n2 ",
    ] {
        assert!(said.contains(line), "no line with {line:?} in\n{said}");
    }
    assert!(!said.contains("WARNING"), "{said}");
    for node in cluster.all() {
        assert_eq!(
            node.value("SELECT string_agg(node_name, ',' ORDER BY node_name) FROM spock.node"),
            "n1,n2,n3"
        );
        assert_eq!(
            node.value("SELECT count(*) FROM spock.sub_show_status() WHERE status = 'replicating'"),
            "2"
        );
    }
    assert_eq!(
        n3.value(
            "SELECT concat_ws(' ', location, country, info) FROM spock.node WHERE node_name = 'n3'"
        ),
        "Oslo Norway {\"tier\": 1}"
    );
}

/// Spock decides whether a standby of a node keeps a copy of its slots; ours are as its own.
#[test]
fn slots_of_a_join_have_the_failover_flag_of_the_others() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, "");
    joined(cluster.n(3), "n3", cluster.n(1), "n1");
    let flags = "SELECT count(*) || ' ' || string_agg(DISTINCT coalesce(to_jsonb(s) ->> 'failover', 'unknown'), ',')
                   FROM pg_replication_slots s";
    let first = cluster.n(1).value(flags);
    assert!(first.starts_with("2 ") && !first.contains(','), "{first}");
    for node in cluster.all() {
        assert_eq!(node.value(flags), first, "{}", node.name());
    }
}

#[test]
fn replication_sets_of_the_source_are_on_the_new_node() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        content: "
            CREATE TABLE everything (id integer PRIMARY KEY, v text);
            CREATE TABLE in_no_set (id integer PRIMARY KEY, v text);
            CREATE TABLE appended (id integer, v text);
            CREATE TABLE filtered (id integer PRIMARY KEY, region text);
            CREATE TABLE partial (id integer PRIMARY KEY, shown text, hidden text);
            CREATE TABLE removed (id integer PRIMARY KEY);
            CREATE TABLE twice (id integer PRIMARY KEY, region text);
            CREATE SEQUENCE numbers;
            INSERT INTO everything SELECT g, 'x' FROM generate_series(1, 10) g;
            INSERT INTO in_no_set SELECT g, 'x' FROM generate_series(1, 10) g;
            INSERT INTO appended SELECT g, 'x' FROM generate_series(1, 10) g;
            INSERT INTO filtered SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 10) g;
            INSERT INTO partial SELECT g, 'shown', 'hidden' FROM generate_series(1, 10) g;
            INSERT INTO removed SELECT generate_series(1, 10);
            INSERT INTO twice SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 10) g;
            SELECT nextval('numbers') FROM generate_series(1, 41)",
        sets: Some(
            "SELECT spock.repset_create('audit', true, false, false, false);
             SELECT spock.repset_create('Odd \"set\", it''s');
             SELECT spock.repset_add_table('default', 'lab.marker');
             SELECT spock.repset_add_table('default', 'everything');
             SELECT spock.repset_add_table('audit', 'everything');
             SELECT spock.repset_add_table('default_insert_only', 'appended');
             SELECT spock.repset_add_table('default', 'filtered', row_filter := $$region = 'eu'$$);
             SELECT spock.repset_add_table('default', 'partial', columns := '{id,shown}');
             SELECT spock.repset_add_table('default', 'removed');
             SELECT spock.repset_remove_table('default', 'removed');
             SELECT spock.repset_add_table('default', 'twice', row_filter := $$region = 'eu'$$);
             SELECT spock.repset_add_table('Odd \"set\", it''s', 'twice', row_filter := $$id > 5$$);
             SELECT spock.repset_add_seq('default', 'numbers')",
        ),
        ..Mesh::default()
    }
    .start(2);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let called = joined(n3, "n3", n1, "n1");
    assert!(!said(&called).contains("WARNING"), "{}", said(&called));
    for query in [
        "SELECT string_agg(concat_ws(' ', set_name, replicate_insert, replicate_update, replicate_delete,
                                     replicate_truncate), '; ' ORDER BY set_name)
           FROM spock.replication_set JOIN spock.local_node ON node_id = set_nodeid",
        "SELECT string_agg(concat_ws(' ', set_name, set_reloid::regclass, set_att_list,
                                     pg_get_expr(set_row_filter, set_reloid)), '; '
                           ORDER BY set_name, set_reloid::regclass::text)
           FROM spock.replication_set_table JOIN spock.replication_set USING (set_id)
           JOIN spock.local_node ON node_id = set_nodeid",
        "SELECT string_agg(concat_ws(' ', set_name, set_seqoid::regclass), '; ')
           FROM spock.replication_set_seq JOIN spock.replication_set USING (set_id)
           JOIN spock.local_node ON node_id = set_nodeid",
    ] {
        assert!(n1.value(query).contains("default"), "{}", n1.value(query));
        assert_eq!(n1.value(query), n3.value(query));
    }
    for subscriber in cluster.all() {
        assert_eq!(
            subscriber.value(
                "SELECT count(*) FROM spock.subscription
                  WHERE sub_replication_sets @> ARRAY['audit', 'Odd \"set\", it''s', 'default']"
            ),
            "2",
            "{}",
            subscriber.name()
        );
    }
    let counts = "SELECT concat_ws(' ', (SELECT count(*) FROM everything), (SELECT count(*) FROM in_no_set),
                         (SELECT count(*) FROM appended), (SELECT count(*) FROM filtered WHERE region = 'us'),
                         (SELECT count(*) FROM filtered), (SELECT count(hidden) FROM partial),
                         (SELECT count(shown) FROM partial), (SELECT count(*) FROM removed),
                         (SELECT count(*) FROM twice))";
    assert_eq!(n3.value(counts), "10 0 10 0 5 0 10 0 3");
    assert_eq!(n3.value("SELECT nextval('numbers')"), "42");

    n3.sql(
        "INSERT INTO everything VALUES (100, 'n3'); INSERT INTO in_no_set VALUES (100, 'n3');
         INSERT INTO appended VALUES (100, 'n3'); INSERT INTO removed VALUES (100);
         INSERT INTO filtered VALUES (100, 'eu'), (101, 'us'); INSERT INTO partial VALUES (100, 's', 'h')",
    );
    wait_quiet(&cluster.all());
    for node in [n1, n2] {
        assert_eq!(
            node.value(
                "SELECT concat_ws(' ', (SELECT count(*) FROM everything WHERE id >= 100),
                        (SELECT count(*) FROM in_no_set WHERE id >= 100),
                        (SELECT count(*) FROM appended WHERE id >= 100),
                        (SELECT count(*) FROM removed WHERE id >= 100),
                        (SELECT count(*) FROM filtered WHERE id >= 100),
                        (SELECT count(*) FROM partial WHERE id >= 100 AND hidden IS NULL))"
            ),
            "1 0 1 0 1 1",
            "{}",
            node.name()
        );
    }
}

#[test]
fn sequences_continue_where_the_source_is() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        "CREATE TABLE a (id serial PRIMARY KEY, v text);
         CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
         INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 500);
         INSERT INTO b (v) SELECT 'x' FROM generate_series(1, 700);
         CREATE MATERIALIZED VIEW sums AS SELECT count(*) FROM a",
    );
    let n3 = cluster.n(3);
    joined(n3, "n3", cluster.n(1), "n1");
    let insert = |table| format!("INSERT INTO {table} (v) VALUES ('new') RETURNING id");
    assert_eq!(n3.value(&insert("a")), "501");
    assert_eq!(n3.value(&insert("b")), "701");
    assert_eq!(n3.value("SELECT count FROM sums"), "500");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

#[test]
fn empty_schema_of_the_new_node_is_used() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        "CREATE SCHEMA shared; CREATE TABLE shared.t (id integer PRIMARY KEY);
         INSERT INTO shared.t SELECT generate_series(1, 10)",
    );
    cluster.n(3).sql("CREATE SCHEMA shared");
    joined(cluster.n(3), "n3", cluster.n(1), "n1");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(cluster.n(3).value("SELECT count(*) FROM shared.t"), "10");
}

#[test]
fn join_works_with_node_names_of_all_kinds() {
    if spock::announced().is_none() {
        return;
    }
    let long = "sixty-bytes-".repeat(5);
    let names = ["n-1", "N2", "n 3", "n'4\"", &long];
    let mut cluster = Mesh {
        content: "CREATE TABLE t (id integer PRIMARY KEY, node text)",
        names: &names[..2],
        ..Mesh::default()
    }
    .start(2);
    for (i, name) in names.iter().enumerate().skip(2) {
        if i > 2 {
            spock::grow(&mut cluster, &format!("n{}", i + 1));
        }
        joined(cluster.n(i + 1), name, cluster.n(1), names[0]);
    }
    for i in 1..=names.len() {
        cluster
            .n(i)
            .sql(&format!("INSERT INTO t VALUES ({i}, 'x')"));
    }
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    for node in cluster.all() {
        assert_eq!(
            node.value("SELECT count(*) FROM spock.sub_show_status() WHERE status = 'replicating'"),
            "4",
            "{}",
            node.name()
        );
    }
}

#[test]
fn join_works_with_connection_strings_of_other_forms() {
    if spock::announced().is_none() {
        return;
    }
    let mut cluster = mesh(1, "CREATE TABLE t (id integer PRIMARY KEY)");
    spock::grow(&mut cluster, "n3");
    let forms: [fn(&Server) -> String; 2] = [Server::dsn_uri, |server| {
        format!(
            "host = 127.0.0.1   port = {} user = postgres dbname = 'postgres'",
            server.port()
        )
    }];
    for (i, form) in (2..).zip(forms) {
        let new = cluster.n(i);
        new.call(&format!(
            "CALL spock.add_node('n1', {}, {}, {})",
            quote_literal(&form(cluster.n(1))),
            quote_literal(new.name()),
            quote_literal(&form(new))
        ))
        .unwrap_or_else(|e| panic!("{e}"));
    }
    cluster.n(3).sql("INSERT INTO t VALUES (1)");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// With everything that Spock can do about DDL by itself, nothing of what the join does is sent to anyone.
#[test]
fn join_replicates_no_ddl_of_its_own() {
    if spock::announced().is_none() {
        return;
    }
    let content = format!(
        "SET spock.enable_ddl_replication = off; {}; {}",
        load::SCHEMA,
        schema::kinds(1_000)
    );
    let cluster = Mesh {
        everywhere: &format!("SET spock.enable_ddl_replication = off; {}", schema::ROLES),
        content: &content,
        settings: &[
            ("spock.enable_ddl_replication", "on"),
            ("spock.include_ddl_repset", "on"),
            ("spock.allow_ddl_from_functions", "on"),
        ],
        ..Mesh::default()
    }
    .start(2);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let queued = "SELECT coalesce(string_agg(left(message::text, 200), E'\\n'), 'nothing')
                    FROM spock.queue WHERE message_type IN ('Q', 'D')";
    let settings = "SELECT coalesce(string_agg(s::text, ' '), 'none') FROM pg_db_role_setting s";
    let before: Vec<String> = cluster.first(2).iter().map(|n| n.value(queued)).collect();
    joined(n3, "n3", n1, "n1");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_same_structure(n1, n3);
    for (node, before) in cluster.first(2).iter().zip(&before) {
        assert_eq!(&node.value(queued), before, "{}", node.name());
        assert_eq!(node.value(settings), "none", "{}", node.name());
    }
    assert_eq!(n3.value(queued), "nothing");
    let sets =
        "SELECT count(*) FROM spock.replication_set_table JOIN spock.replication_set USING (set_id)
                  JOIN spock.local_node ON node_id = set_nodeid";
    assert_eq!(n1.value(sets), n3.value(sets));
    assert_eq!(n3.value(ZODAN_IN_SETS), "0");
    // And DDL goes on being replicated, from the new node too.
    n3.sql("CREATE TABLE made_on_n3 (id integer PRIMARY KEY)");
    n1.wait_for("SELECT to_regclass('public.made_on_n3') IS NOT NULL", "t");
    n3.sql("INSERT INTO made_on_n3 VALUES (1)");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    let before: Vec<String> = cluster.first(2).iter().map(|n| n.value(queued)).collect();
    n3.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    for (node, before) in cluster.first(2).iter().zip(&before) {
        assert_eq!(&node.value(queued), before, "{}", node.name());
        assert_eq!(node.value(settings), "none", "{}", node.name());
    }
}

/// Spock sends CREATE EXTENSION on like all DDL. Nothing of what it makes is replicated.
#[test]
fn create_extension_replicates_nothing_but_itself() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = Mesh {
        settings: &[
            ("spock.enable_ddl_replication", "on"),
            ("spock.include_ddl_repset", "on"),
            ("spock.allow_ddl_from_functions", "on"),
        ],
        content: "SET spock.enable_ddl_replication = off; CREATE TABLE t (id integer PRIMARY KEY)",
        ..Mesh::default()
    }
    .start(2);
    cluster.n(1).sql("CREATE EXTENSION zodan");
    cluster.n(1).sql("INSERT INTO t VALUES (1)");
    wait_quiet(&cluster.first(2));
    for node in cluster.first(2) {
        assert_eq!(
            node.value("SELECT count(*) FROM pg_extension WHERE extname = 'zodan'"),
            "1"
        );
        assert_eq!(node.value(ZODAN_IN_SETS), "0", "{}", node.name());
        assert_eq!(node.value("SELECT count(*) FROM spock.exception_log"), "0");
    }
    joined(cluster.n(3), "n3", cluster.n(2), "n2");
    for node in cluster.all() {
        assert_eq!(node.value(ZODAN_IN_SETS), "0", "{}", node.name());
    }
    assert_eq!(cluster.n(1).value("SELECT count(*) FROM zodan.run"), "0");
}

/// Changes of the source's sets while the copy runs are told one by one, with what to run.
#[test]
fn sets_that_change_during_a_join_are_reported() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(1, gate::CONTENT);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let gate = gate::close(n2);
    let called = std::thread::scope(|scope| {
        let call = scope.spawn(|| joined(n2, "n2", n1, "n1"));
        gate::wait(n2);
        n1.sql(
            "CREATE TABLE late (id integer PRIMARY KEY);
             SELECT spock.repset_add_table('default', 'late');
             INSERT INTO late VALUES (1)",
        );
        drop(gate);
        call.join().unwrap()
    });
    let said = said(&called);
    let what = "WARNING: table \"public\".\"late\" is in replication set default of node \"n1\" and not of \"n2\"";
    assert!(said.contains(what), "{said}");
    assert!(
        said.contains("SELECT spock.repset_add_table('default', '\"public\".\"late\"')"),
        "{said}"
    );
}

/// Applications cannot write on the new node before it is a node, and can as soon as it is.
#[test]
fn new_node_is_read_only_until_the_join_ends() {
    if spock::announced().is_none() {
        return;
    }
    let content = format!(
        "CREATE TABLE t (id integer PRIMARY KEY); GRANT ALL ON t TO app; {}",
        gate::CONTENT
    );
    let cluster = Mesh {
        everywhere: "CREATE ROLE app LOGIN",
        content: &content,
        ..Mesh::default()
    }
    .start(1);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let write = |insist: bool| {
        let mut app = n2.client_as("app", "postgres");
        let insist = if insist {
            "SET default_transaction_read_only = off; "
        } else {
            ""
        };
        let result = app.batch_execute(&format!("{insist}INSERT INTO t VALUES (1)"));
        result.map_err(|e| lab::explain(&e))
    };
    let gate = gate::close(n2);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| joined(n2, "n2", n1, "n1"));
        gate::wait(n2);
        assert!(write(false).unwrap_err().contains("25006"));
        // Before 6.0 the setting that applications cannot turn off holds off superusers too.
        if n2
            .value("SELECT 'local' = ANY (enumvals) FROM pg_settings WHERE name = 'spock.readonly'")
            == "t"
        {
            assert!(write(true).unwrap_err().contains("25006"));
        }
        drop(gate);
        call.join().unwrap();
    });
    assert_eq!(n2.value("SELECT count(*) FROM pg_db_role_setting"), "0");
    assert_eq!(write(false), Ok(()));
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n1.value("SELECT count(*) FROM t"), "1");
}
