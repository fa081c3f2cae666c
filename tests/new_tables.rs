//! Tables and partitions that are made when the cluster is there already: a subscription that does not know one
//! leaves its rows out, and nothing but these checks says so.

mod common;

use common::{Call, assert_failed, fingerprint, quick, runs, wait_mesh};
use lab::{CallFailed, Cluster, Server, assert_same_content, quote_literal, wait_quiet};

fn states(server: &Server) -> Vec<String> {
    let rows = server.rows(
        "SELECT provider || ' ' || subscriber || ' ' || state || coalesce(': ' || last_error, '')
           FROM spock.cluster_status() ORDER BY 1",
    );
    rows.into_iter().flatten().flatten().collect()
}

fn failed_checks(server: &Server, source: &Server) -> Vec<String> {
    let rows = server.rows(&format!(
        "SELECT node || ' ' || \"check\" || ' ' || found FROM spock.health_report({}, {}, check_type := 'post')
          WHERE status = 'failed' ORDER BY 1",
        quote_literal(source.name()),
        quote_literal(&source.dsn())
    ));
    rows.into_iter().flatten().flatten().collect()
}

/// A refusal that changes nothing.
fn refused(cluster: &Cluster, new: &Server, source: &Server) -> CallFailed {
    let all = cluster.all();
    let before = (fingerprint(&all), runs(&all));
    let failed = Call::of(new, source).fails_on(new);
    before.0.assert_same_now(&all);
    assert_eq!(before.1, runs(&all));
    failed
}

#[test]
fn partition_that_a_subscription_does_not_know_is_refreshed() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(
        2,
        "CREATE TABLE event (at date, v text, PRIMARY KEY (at, v)) PARTITION BY RANGE (at);
         CREATE TABLE \"e 1\" PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    wait_mesh(&cluster.first(2));
    assert_eq!(states(n1), ["n1 n2 replicating", "n2 n1 replicating"]);
    // As the jobs of many do it, every day.
    for member in [n1, n2] {
        member.sql("CREATE TABLE \"e 2\" PARTITION OF event FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')");
    }
    let incomplete =
        "incomplete: its tables are not those that its provider sends (see spock.health_report)";
    assert_eq!(
        states(n1),
        [format!("n1 n2 {incomplete}"), format!("n2 n1 {incomplete}")]
    );
    let leaves_out = |provider: &str, subscriber: &str| {
        format!(
            "subscription sub_{provider}_{subscriber} from node \"{provider}\" leaves out tables that it does not know: public.\"e 2\""
        )
    };
    let found = failed_checks(n2, n1);
    for (node, from) in [("n1", "n2"), ("n2", "n1")] {
        let line = format!("{node} subscribed tables {}", leaves_out(from, node));
        assert!(found.contains(&line), "{line}: {found:?}");
    }
    let failed = refused(&cluster, n3, n1);
    for (node, from) in [("n1", "n2"), ("n2", "n1")] {
        let line = format!("node \"{node}\": {} (55000)", leaves_out(from, node));
        assert!(failed.detail().contains(&line), "{line}\n{failed}");
    }
    assert!(
        failed.hint().contains("CALL spock.refresh_subscriptions()"),
        "{failed}"
    );

    let called = n2
        .call("CALL spock.refresh_subscriptions()")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let said: Vec<&str> = called.notices.iter().map(|n| n.message.as_str()).collect();
    for node in ["n1", "n2"] {
        let line = format!("node \"{node}\": its subscriptions know 1 tables more");
        assert!(said.contains(&line.as_str()), "{said:?}");
    }
    assert!(
        said.last()
            .is_some_and(|l| l.contains("spock.verify_nodes()")),
        "{said:?}"
    );
    wait_mesh(&cluster.first(2));
    for (member, v) in [(n1, "n1"), (n2, "n2")] {
        member.sql(&format!("INSERT INTO event VALUES ('2026-02-03', '{v}')"));
    }
    wait_quiet(&cluster.first(2));
    assert_same_content(&cluster.first(2));
    assert_eq!(states(n1), ["n1 n2 replicating", "n2 n1 replicating"]);
    assert_eq!(failed_checks(n2, n1), Vec::<String>::new());
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

#[test]
fn refresh_is_refused_until_the_table_is_on_all_members() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE TABLE fresh (i int PRIMARY KEY)");
    let failed = n1.sql_error("CALL spock.refresh_subscriptions()");
    assert_eq!(failed.code(), "42P01", "{failed}");
    assert_eq!(
        failed.message(),
        "node \"n2\": relation \"public.fresh\" does not exist"
    );
    n2.sql("CREATE TABLE fresh (i int PRIMARY KEY)");
    n1.sql("CALL spock.refresh_subscriptions()");
    n1.sql("INSERT INTO fresh VALUES (1)");
    n2.wait_for("SELECT count(*) FROM fresh", "1");
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    let failed = n1.sql_error("CALL spock.refresh_subscriptions()");
    assert_failed(
        &failed,
        "55000",
        "subscription sub_n1_n2 of node \"n2\" is disabled, and cannot be refreshed",
        "Enable it there",
    );
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 ENABLE");
    n1.sql("CREATE ROLE nobody");
    let failed = n1.sql_error("GRANT USAGE ON SCHEMA spock TO nobody; SET ROLE nobody; CALL spock.refresh_subscriptions()");
    assert_eq!(failed.code(), "42501", "{failed}");
}

/// For the moment of its snapshot, and until somebody resumes what it left paused when it was killed.
#[test]
fn refresh_waits_until_apply_is_no_longer_paused_by_a_join() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let pause = "SELECT zodan.pause_apply('{sub_n1_n2}')";
    n2.sql(pause);
    n1.sql("CALL spock.refresh_subscriptions()");
    n2.wait_for("SELECT subenabled FROM pg_subscription", "t");
    let mut coordinator = n2.client();
    let watched = "SELECT pg_advisory_lock(2054120560, pg_backend_pid())";
    coordinator
        .batch_execute(&format!("{watched}; {pause}"))
        .unwrap();
    std::thread::scope(|scope| {
        let refresh = scope.spawn(|| n1.sql("CALL spock.refresh_subscriptions()"));
        n2.wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%zodan.paused_subscription%' AND pid <> pg_backend_pid()", "t");
        assert!(!refresh.is_finished());
        coordinator
            .batch_execute("SELECT zodan.resume_apply()")
            .unwrap();
        refresh.join().unwrap();
    });
    n2.wait_for("SELECT subenabled FROM pg_subscription", "t");
}

#[test]
fn join_is_refused_when_members_have_different_tables() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(
        2,
        "CREATE TYPE mood AS ENUM ('good', 'bad');
         CREATE TABLE t (i int PRIMARY KEY, gone int, v varchar(10), m mood); CREATE TABLE s (i int PRIMARY KEY);
         CREATE TABLE k (a int NOT NULL, b int NOT NULL, PRIMARY KEY (a), UNIQUE (b))",
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql(
        "ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD g int GENERATED ALWAYS AS (i) STORED",
    );
    n2.sql(
        "ALTER TABLE t ADD fresh text; ALTER TABLE t ALTER v TYPE text; ALTER TYPE mood ADD VALUE 'mixed';
         ALTER TABLE t ADD g int; ALTER TABLE s RENAME TO r;
         ALTER TABLE k REPLICA IDENTITY USING INDEX k_b_key",
    );
    let failed = refused(&cluster, n3, n1);
    let lines = [
        "node \"n1\": table public.r, column fresh of table public.t, column gone of table public.t: missing here, node \"n2\" has it",
        "node \"n2\": table public.s: missing here, node \"n1\" has it",
        "node \"n2\": column g of table public.t is integer, on node \"n1\" integer generated, column v of table public.t is text, on node \"n1\" character varying(10), the key of table public.k has b, on node \"n1\" a, type public.mood has 'good', 'bad', 'mixed', on node \"n1\" 'good', 'bad'",
    ];
    for line in lines {
        assert!(failed.detail().contains(line), "{line}\n{failed}");
    }
    assert!(
        failed.hint().contains("the same tables, columns and types"),
        "{failed}"
    );
    assert!(
        failed_checks(n2, n1)
            .iter()
            .any(|line| line.starts_with("n2 tables table public.s: missing here")),
        "{:?}",
        failed_checks(n2, n1)
    );
    n1.sql("ALTER TABLE t ADD fresh text, ADD gone int, ALTER v TYPE text, DROP g, ADD g int; ALTER TYPE mood ADD VALUE 'mixed'; ALTER TABLE s RENAME TO r; ALTER TABLE k REPLICA IDENTITY USING INDEX k_b_key");
    assert_eq!(failed_checks(n2, n1), Vec::<String>::new());
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn join_is_refused_while_a_subscription_copies_tables_by_itself() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    for member in [n1, n2] {
        member.sql("CREATE TABLE late (i int PRIMARY KEY); INSERT INTO late VALUES (1)");
    }
    // With a copy of its own, which meets rows that are there.
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 REFRESH PUBLICATION");
    n1.sql("ALTER SUBSCRIPTION sub_n2_n1 REFRESH PUBLICATION WITH (copy_data = false)");
    let failed = Call::of(n3, n1).fails_on(n3);
    assert_failed(
        &failed,
        "55000",
        "node \"n2\": subscription sub_n1_n2 from node \"n1\" copies tables by itself: public.late",
        "Rows that are there already stop such a copy",
    );
}
