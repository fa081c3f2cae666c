//! The health of a cluster: before a join the report has what the join refuses with, word by word; afterwards it
//! tells what is wrong with the mesh.

mod common;

use common::plan::{planned_slot, slot};
use common::{Call, Fingerprint, assert_failed, fingerprint, quick, wait_mesh};
use lab::{CallFailed, Cluster, Server, quote_literal};
use std::collections::BTreeSet;
use std::time::Duration;

const SECRET: &str = "correct-horse";

/// A mesh of two, and one server more.
fn mesh() -> Cluster {
    let cluster = Cluster::start_with(3, &quick().password(SECRET));
    cluster.form_mesh(2, "CREATE TABLE t (i int PRIMARY KEY)");
    wait_mesh(&cluster.first(2));
    cluster
}

/// The arguments of both, for `new` beside `source`.
fn arguments(source: &Server, new: &Server, check_type: &str) -> String {
    [
        source.name(),
        &source.dsn(),
        new.name(),
        &new.dsn(),
        check_type,
    ]
    .map(quote_literal)
    .join(", ")
}

/// `node, check, found` of what has the status.
fn found(server: &Server, arguments: &str, status: &str) -> Vec<[String; 3]> {
    let query = format!(
        "SELECT node, \"check\", found FROM spock.health_report({arguments}) WHERE status = '{status}'"
    );
    let row = |row: Vec<Option<String>>| {
        let mut cells = row.into_iter().map(Option::unwrap_or_default);
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    };
    server.rows(&query).into_iter().map(row).collect()
}

/// Panics unless the report, the check and the join refuse with the same words.
fn assert_one_truth(source: &Server, new: &Server, checks: &[&str]) -> CallFailed {
    let arguments = arguments(source, new, "pre");
    let reported = found(new, &arguments, "failed");
    let names: Vec<&str> = reported
        .iter()
        .map(|[_, check, _]| check.as_str())
        .collect();
    assert_eq!(names, checks, "{reported:?}");
    let refused = Call::of(new, source).fails_on(new);
    let checked = new.sql_error(&format!("CALL spock.health_check({arguments})"));
    for (a, b) in [
        (checked.code(), refused.code()),
        (&checked.message(), &refused.message()),
        (checked.detail(), refused.detail()),
        (checked.hint(), refused.hint()),
    ] {
        assert_eq!(a, b);
    }
    let said: Vec<String> = match reported.as_slice() {
        [[node, _, found]] if refused.detail().is_empty() => {
            vec![format!("node \"{node}\": {found}")]
        }
        _ => reported
            .iter()
            .map(|[node, _, found]| format!("node \"{node}\": {found}"))
            .collect(),
    };
    let told: Vec<String> = match refused.detail().is_empty() {
        true => vec![refused.message()],
        false => refused
            .detail()
            .lines()
            .map(|line| {
                line.rsplit_once(" (")
                    .expect("a state in brackets")
                    .0
                    .to_owned()
            })
            .collect(),
    };
    assert_eq!(said, told);
    refused
}

/// The checks that one of the two tables of the reference has, before a join and of a cluster, as far as the native
/// engine makes them and the report does.
fn documented(table: usize) -> BTreeSet<String> {
    let reference = include_str!("../docs/reference.md");
    let section = reference.split("\n### spock.health_report(").nth(1);
    let mut tables = section
        .expect("a section")
        .split("\n| check | | wanted |\n");
    let rows = tables.nth(1 + table).expect("a table").lines().skip(1);
    let names = rows.map_while(|row| {
        let mut cells = row.strip_prefix("| `")?.splitn(3, " | ");
        let (name, _, wanted) = (cells.next()?, cells.next()?, cells.next()?);
        let made = !wanted.starts_with("Spock: ")
            && !wanted.contains("Only in a CALL")
            && (lab::pg::major() >= 18 || !wanted.contains("since PostgreSQL 18"));
        Some((name.trim_end_matches('`').to_owned(), made))
    });
    names
        .filter(|(_, made)| *made)
        .map(|(name, _)| name)
        .collect()
}

/// The names of all checks that the report has.
fn reported(server: &Server, arguments: &str) -> BTreeSet<String> {
    let query = format!("SELECT DISTINCT \"check\" FROM spock.health_report({arguments})");
    server
        .rows(&query)
        .into_iter()
        .flatten()
        .flatten()
        .collect()
}

fn state(cluster: &Cluster) -> Fingerprint {
    fingerprint(&cluster.all())
}

#[test]
fn health_report_finds_what_the_join_is_refused_with() {
    let cluster = mesh();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let slot = planned_slot(n3, &Call::of(n3, n1).sql(), "n1");
    n1.sql("CREATE ROLE somebody; GRANT SELECT ON t TO somebody");
    n2.configure("max_wal_senders", "1");
    n2.restart();
    wait_mesh(&cluster.first(2));
    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    n1.sql(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ));
    n3.sql("CREATE TABLE mine (i int)");
    let before = state(&cluster);
    let refused = assert_one_truth(
        n1,
        n3,
        &[
            "max_wal_senders",
            "subscriptions",
            "names",
            "empty",
            "structure",
        ],
    );
    assert!(
        refused.detail().contains("role \"somebody\" is missing"),
        "{refused}"
    );
    before.assert_same_now(&cluster.all());

    // What a statement can mend is mended by the one that the report has.
    let mending: Vec<[String; 2]> = n3
        .rows(&format!(
            "SELECT node, statement FROM spock.health_report({}) WHERE statement IS NOT NULL ORDER BY 1, 2",
            arguments(n1, n3, "pre")
        ))
        .into_iter()
        .map(|row| [0, 1].map(|i| row[i].clone().unwrap_or_default()))
        .collect();
    assert_eq!(
        mending,
        [
            ["n2", "ALTER SUBSCRIPTION \"sub_n1_n2\" ENABLE"],
            ["n2", "ALTER SYSTEM SET max_wal_senders = '2'"],
            ["n3", "CREATE ROLE \"somebody\""],
        ]
    );
    for [node, statement] in &mending {
        let server = cluster.all().into_iter().find(|s| s.name() == node);
        server.expect("a node of that name").sql(statement);
    }
    n2.restart();
    wait_mesh(&cluster.first(2));
    n1.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    assert_one_truth(n1, n3, &["empty"]);
    n3.sql("DROP TABLE mine");

    let arguments = arguments(n1, n3, "pre");
    let before = state(&cluster);
    assert_eq!(found(n3, &arguments, "failed"), [[""; 3]; 0]);
    let ok = found(n3, &arguments, "ok");
    let version = format!("PostgreSQL {}", lab::pg::major());
    for known in [
        ["n1", "wal_level", "logical"],
        ["n3", "version", &version],
        ["n2", "subscriptions", ""],
        ["n2", "max_wal_senders", "1 of 2 are in use"],
        ["n3", "empty", ""],
    ] {
        assert!(ok.contains(&known.map(String::from)), "{known:?} in {ok:?}");
    }
    // What is made of a cluster too, the reference has with the cluster.
    let of_both = [
        "replica identity",
        "owners",
        "tables",
        "subscribed tables",
        "publications",
        "subscriptions of others",
    ];
    let mut before_a_join = documented(0);
    before_a_join.extend(of_both.map(String::from));
    assert_eq!(reported(n3, &arguments), before_a_join);
    let called = n3
        .call(&format!("CALL spock.health_check({arguments}, true)"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    let said: Vec<&str> = called.notices.iter().map(|n| n.message.as_str()).collect();
    assert!(said[0].starts_with(" status"), "{said:?}");
    assert!(
        said.last().is_some_and(|l| l.ends_with(", 0 failed")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|l| l.contains("| n1   | wal_level")),
        "{said:?}"
    );
    before.assert_same_now(&cluster.all());
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn health_report_shows_what_ends_the_checks_early() {
    let cluster = mesh();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let early = |checks: &[&str]| {
        let refused = assert_one_truth(n1, n3, checks);
        let warned = found(n3, &arguments(n1, n3, "pre"), "warning");
        assert_eq!(
            warned.last().map(|[_, check, _]| check.as_str()),
            Some("other checks"),
            "{warned:?}"
        );
        refused
    };
    n2.stop();
    assert_eq!(refused_by(n3, n1), "08001");
    n2.boot();
    wait_mesh(&cluster.first(2));
    let mut holder = n2.client_named("zodan add_node n9");
    holder
        .batch_execute("SELECT pg_advisory_lock(2054120557, 1)")
        .expect("take the lock");
    assert_eq!(refused_by(n3, n1), "55P03");
    drop(holder);
    n2.wait_for(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "0",
    );
    // On a member: it is not the new node.
    let on_member = found(n2, &arguments(n1, n3, "pre"), "failed");
    assert_eq!(on_member.len(), 1, "{on_member:?}");
    assert!(
        on_member[0][2].starts_with("argument new_node_dsn leads to database"),
        "{on_member:?}"
    );
    n3.sql("CREATE PUBLICATION zodan");
    let refused = early(&["publication zodan"]);
    assert!(
        refused
            .message()
            .contains("publication zodan exists already"),
        "{refused}"
    );
}

/// The one finding before all checks, which has the words of the join's error; its SQLSTATE.
fn refused_by(new: &Server, source: &Server) -> String {
    let arguments = arguments(source, new, "pre");
    let reported = found(new, &arguments, "failed");
    let refused = Call::of(new, source).fails_on(new);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0][1], "connection");
    // A pid or a time in it may be another.
    assert_eq!(reported[0][2], refused.message());
    let checked = new.sql_error(&format!("CALL spock.health_check({arguments})"));
    assert_eq!(checked.code(), refused.code());
    refused.code().to_owned()
}

#[test]
fn health_report_after_a_join_checks_the_mesh() {
    let cluster = mesh();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    wait_mesh(&cluster.all());
    let post = arguments(n1, n3, "post");
    // From a member as well as from outside; without a new node it is what there is to check.
    let alone = format!("{}, {}", quote_literal(n1.name()), quote_literal(&n1.dsn()));
    for arguments in [&post, &alone] {
        n2.wait_for(
            &format!("SELECT count(*) FROM spock.health_report({arguments}) WHERE status <> 'ok'"),
            "0",
        );
    }
    assert_eq!(reported(n2, &post), documented(1));
    let ok = found(n2, &post, "ok");
    for known in [
        ["n3", "membership", "is a member"],
        ["n2", "registry", "3 members"],
        [
            "n3",
            "subscriptions",
            "from \"n1\": sub_n1_n3 is replicating",
        ],
    ] {
        assert!(ok.contains(&known.map(String::from)), "{known:?} in {ok:?}");
    }
    let clock = |node: &str| ok.iter().any(|row| row[..2] == [node, "clock"]);
    assert!(["n1", "n2", "n3"].into_iter().all(clock), "{ok:?}");
    let called = n1
        .call(&format!("CALL spock.health_check({post})"))
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(called.notices.len(), 1, "{called:?}");
    assert!(
        called.notices[0]
            .message
            .ends_with(" ok, 0 warnings, 0 failed"),
        "{called:?}"
    );

    for (i, node) in cluster.all().iter().enumerate() {
        node.sql(&format!(
            "CREATE SEQUENCE stride INCREMENT 3 START {}; CREATE SEQUENCE plain START {}",
            i + 1,
            i * 1000 + 1
        ));
    }
    n1.sql("CREATE SEQUENCE only_here");
    assert_eq!(
        found(n2, &post, "warning"),
        [("n1", "n2, n3"), ("n2", "n1, n3"), ("n3", "n1, n2")].map(|(node, others)| [
            node.to_owned(),
            "sequences".to_owned(),
            format!("gives values that others give too: public.plain (also on {others})")
        ])
    );

    n2.sql("ALTER SUBSCRIPTION sub_n1_n2 DISABLE");
    n2.sql("DELETE FROM zodan.node USING zodan.unreplicated() WHERE name = 'n3'");
    let active =
        |slot| format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let [of_n2, of_n3] = [n2, n3].map(|reader| slot(n1, reader));
    n1.wait_for(&active(&of_n2), "f");
    assert_eq!(
        found(n1, &post, "failed"),
        [
            ["n2", "registry", "lacks \"n3\""],
            ["n2", "subscriptions", "from \"n1\": sub_n1_n2 is disabled"],
        ]
    );
    assert_failed(
        &n1.sql_error(&format!("CALL spock.health_check({post})")),
        "55000",
        "2 checks of the cluster failed",
        "correct the other",
    );
    n3.crash();
    n1.wait_for(&active(&of_n3), "f");
    let begun = std::time::Instant::now();
    let failed = found(n1, &post, "failed");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(failed[0][..2], ["n3", "connection"], "{failed:?}");
    assert!(failed[0][2].starts_with("no connection: "), "{failed:?}");
    assert!(
        failed.contains(
            &["n3", "subscriptions", "from \"n1\": sub_n1_n3 is unknown"].map(String::from)
        ),
        "{failed:?}"
    );
}

#[test]
fn health_report_is_refused_to_others_and_shows_no_password() {
    let cluster = mesh();
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    for (what, statement) in [
        ("health_report", "SELECT * FROM spock.health_report"),
        ("health_check", "CALL spock.health_check"),
    ] {
        assert_failed(
            &n3.sql_error(&format!("{statement}({})", arguments(n1, n3, "never"))),
            "22023",
            "argument check_type is \"never\", which is not a type of check",
            "pre or post",
        );
        assert_failed(
            &n3.sql_error(&format!("{statement}('n1', 'hostess=x password={SECRET}')")),
            "22023",
            "argument src_dsn is not a connection string",
            "keyword=value",
        );
        assert_failed(
            &n3.sql_error(&format!(
                "{statement}('n1', {}, 'n3')",
                quote_literal(&n1.dsn())
            )),
            "22004",
            "argument new_node_dsn must not be null",
            "Give a value",
        );
        n3.sql(&format!(
            "CREATE ROLE watcher; GRANT USAGE ON SCHEMA spock TO watcher; GRANT EXECUTE ON ROUTINE spock.{what} TO watcher"
        ));
        assert_failed(
            &n3.sql_error(&format!(
                "SET ROLE watcher; {statement}({})",
                arguments(n1, n3, "pre")
            )),
            "42501",
            &format!(
                "only a superuser can run {}spock.{what}",
                if what == "health_check" { "CALL " } else { "" }
            ),
            "Connect as a superuser",
        );
        n3.sql("DROP OWNED BY watcher; DROP ROLE watcher");
    }
    n3.sql("CREATE TABLE mine (i int)");
    let failed = n3.sql_error(&format!(
        "CALL spock.health_check({})",
        arguments(n1, n3, "pre")
    ));
    assert!(!format!("{failed}").contains(SECRET), "{failed}");
    for server in cluster.all() {
        let log = server.log();
        let lines: Vec<&str> = log.lines().filter(|l| l.contains(SECRET)).collect();
        assert!(
            lines.is_empty(),
            "the log of {} has {lines:?}",
            server.name()
        );
    }
}
