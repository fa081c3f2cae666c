//! Bad input to a join, each with its own message, SQLSTATE and hint, and nothing changed anywhere, whatever the cluster
//! replicates with.

mod common;

use common::engines::{On, on_both_engines};
use common::refused::{Before, fails_in, text};
use common::{Call, Running, assert_failed, assert_findings, fingerprint_meanwhile, open_writer};
use lab::{CallFailed, Cluster};
use std::time::Duration;

on_both_engines! {
    join_with_wrong_arguments_is_refused,
    join_is_refused_when_the_new_node_lacks_what_the_structure_needs,
    join_warns_of_attributes_of_the_database,
    join_is_refused_inside_a_transaction,
    join_is_refused_to_others_than_superusers,
    join_is_refused_while_another_one_runs,
}

/// A mesh of all servers but the last, which is to be refused.
fn mesh_and_new(on: On, servers: usize) -> Cluster {
    let content = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2)";
    on.start(servers - 1, 1, content)
}

/// One of the arguments of a call.
type Argument = fn(&mut Call) -> &mut Option<String>;

fn join_with_wrong_arguments_is_refused(on: On) {
    let cluster = mesh_and_new(on, 3);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let before = Before::of(cluster.all());
    let good = Call::of(n3, n1);
    let with: [(&str, Argument); 4] = [
        ("src_node_name", |call| &mut call.src_node_name),
        ("src_dsn", |call| &mut call.src_dsn),
        ("new_node_name", |call| &mut call.new_node_name),
        ("new_node_dsn", |call| &mut call.new_node_dsn),
    ];
    let refuse = |argument: Argument, value: Option<String>| {
        let mut call = good.clone();
        *argument(&mut call) = value;
        call.fails_on(n3)
    };
    for (name, argument) in with {
        let null = refuse(argument, None);
        assert_failed(
            &null,
            "22004",
            &format!("argument {name} must not be null"),
            &format!("Give a value for {name}"),
        );
        let empty = refuse(argument, text(""));
        let hint = if name.ends_with("dsn") {
            "Give a connection string such as"
        } else {
            "Give the name of the node"
        };
        assert_failed(
            &empty,
            "22023",
            &format!("argument {name} must not be empty"),
            hint,
        );
        if name.ends_with("dsn") {
            for bad in [
                "nonsense",
                "host='open",
                "hst=127.0.0.1",
                "host=127.0.0.1 = 5432",
                "postgresql://127.0.0.1:fivefourthreetwo/d",
                "postgresql://postgres:half@way@127.0.0.1/d",
            ] {
                let failed = refuse(argument, text(bad));
                assert_failed(
                    &failed,
                    "22023",
                    &format!("argument {name} is not a connection string"),
                    "keyword=value pairs",
                );
            }
        } else {
            let long = refuse(argument, text("x".repeat(64)));
            assert_failed(
                &long,
                "42622",
                &format!("argument {name} is 64 bytes long"),
                "shorter",
            );
            // Bytes, not characters: 40 of these are 80 bytes.
            let wide = refuse(argument, text("ü".repeat(40)));
            assert_failed(
                &wide,
                "42622",
                &format!("argument {name} is 80 bytes long"),
                "shorter",
            );
            for odd in [" n3", "n3 ", "n\n3", "n\t3", "n\u{1b}3", " "] {
                let failed = refuse(argument, text(odd));
                assert_failed(
                    &failed,
                    "42602",
                    &format!("argument {name} "),
                    "Choose a name without",
                );
            }
        }
    }
    before.still();
    let same = Call {
        new_node_name: text("n1"),
        ..good.clone()
    };
    before.refuses(
        n3,
        &same,
        "22023",
        "argument new_node_name is the name of the source, \"n1\"",
        "a name of its own",
    );
    // A call with fewer arguments is not ours to answer, but must not do anything.
    let few = n3.sql_error("CALL spock.add_node('n1', 'host=127.0.0.1')");
    assert_eq!(few.code(), "42883", "{few}");
    before.still();
}

fn join_is_refused_when_the_new_node_lacks_what_the_structure_needs(on: On) {
    let cluster = mesh_and_new(on, 3);
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let call = Call::of(n3, n1);
    n1.sql("CREATE ROLE \"Owner-1\" NOLOGIN; ALTER TABLE item OWNER TO \"Owner-1\"");
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "42704",
        "node \"n3\": role \"Owner-1\" is missing, which the structure of node \"n1\" names",
        "pg_dumpall --roles-only",
    );
    n1.sql("CREATE ROLE reader; GRANT SELECT ON item TO reader");
    let hint = "Create the roles as they are on the source";
    let before = Before::of(cluster.all());
    assert_findings(
        &call.fails_on(n3),
        &[
            ("42704", "role \"Owner-1\" is missing", hint),
            ("42704", "role \"reader\" is missing", hint),
        ],
    );
    before.still();
    n3.sql("CREATE ROLE \"Owner-1\"; CREATE ROLE reader");

    // The files of all servers are the same, so an extension that the new node lacks has to be made up.
    n1.sql("CREATE EXTENSION hstore; UPDATE pg_extension SET extname = 'made_up' WHERE extname = 'hstore'");
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "42704",
        "node \"n3\": extension \"made_up\" is not available",
        "Install its files on the new node's server",
    );
    n1.sql(
        "UPDATE pg_extension SET extname = 'hstore', extversion = '0.1' WHERE extname = 'made_up'",
    );
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "0A000",
        "node \"n3\": extension \"hstore\" is available in version",
        "Install the same release on both servers",
    );
    n1.sql("DROP EXTENSION hstore");
    n1.sql("CREATE EXTENSION hstore VERSION '1.4'");
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "0A000",
        "node \"n1\" has version 1.4",
        "CREATE EXTENSION \"hstore\" WITH SCHEMA \"public\" VERSION '1.4'",
    );
    n1.sql("DROP EXTENSION hstore");

    // A function of the library by a name of one's own is none of the extension's.
    n1.sql(
        "CREATE EXTENSION hstore; ALTER EXTENSION hstore DROP FUNCTION slice(hstore, text[]);
         CREATE FUNCTION own_keys(hstore) RETURNS text[] LANGUAGE c AS '$libdir/hstore', 'hstore_akeys'",
    );
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "42710",
        "node \"n1\": function public.slice(public.hstore,text[]) is in the library of extension \"hstore\", but does not belong to it any more",
        "ALTER EXTENSION \"hstore\" ADD FUNCTION public.slice(public.hstore,text[])",
    );
    n1.sql("ALTER EXTENSION hstore ADD FUNCTION slice(hstore, text[])");

    n1.sql(
        "CREATE FUNCTION area(numeric) RETURNS numeric LANGUAGE sql AS 'SELECT $1';
         CREATE FUNCTION area(int, int) RETURNS int LANGUAGE sql AS 'SELECT $1'",
    );
    n3.sql("CREATE FUNCTION area(r numeric) RETURNS numeric LANGUAGE sql AS 'SELECT 2 * r'");
    Before::of(cluster.all()).refuses(
        n3,
        &call,
        "42710",
        "node \"n3\": objects of the source exist here already: function public.area(numeric)",
        "Drop them on the new node",
    );
    n3.sql("DROP FUNCTION area(numeric)");

    for table in ["item", "\"Left over\""] {
        n3.sql(&format!(
            "CREATE TABLE {table} (id int); INSERT INTO {table} VALUES (7)"
        ));
        Before::of(cluster.all()).refuses(
            n3,
            &call,
            "42710",
            &format!("node \"n3\": the database is not empty, it has tables: public.{table}"),
            "Drop them, or use an empty database",
        );
        n3.sql(&format!("DROP TABLE {table}"));
    }
    if let Err(failed) = n3.call(&call.sql()) {
        panic!("with all of it put right it should have joined: {failed}");
    }
}

/// What belongs to the database itself is in no copy of its structure.
fn join_warns_of_attributes_of_the_database(on: On) {
    let cluster = mesh_and_new(on, 2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(
        "CREATE ROLE app; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO app;
         ALTER DATABASE postgres CONNECTION LIMIT 70; COMMENT ON DATABASE postgres IS 'the shop'",
    );
    n2.sql("CREATE ROLE app");
    let called = n2
        .call(&Call::of(n2, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    let told = called
        .notices
        .iter()
        .find(|n| n.message.contains("other attributes"));
    let told = told.unwrap_or_else(|| panic!("{called:?}"));
    assert_eq!(told.severity, "WARNING");
    for text in [
        "node \"n2\": the database has other attributes than that of node \"n1\": privileges \"",
        "PUBLIC connect",
        "not \"PUBLIC temporary, app connect, ",
        "limit of connections \"-1\", not \"70\"",
        ", not \"the shop\"",
    ] {
        assert!(told.message.contains(text), "{text}: {}", told.message);
    }
}

fn join_is_refused_inside_a_transaction(on: On) {
    let cluster = mesh_and_new(on, 2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let call = Call::of(n2, n1).sql();
    n2.sql(&format!(
        "CREATE FUNCTION public.joining() RETURNS void LANGUAGE plpgsql AS $$BEGIN {call}; END$$;
         CREATE PROCEDURE public.trying() LANGUAGE plpgsql AS
             $$BEGIN BEGIN {call}; EXCEPTION WHEN division_by_zero THEN NULL; END; END$$;
         CREATE PROCEDURE public.guarded() LANGUAGE plpgsql SET work_mem = '8MB' AS $$BEGIN {call}; END$$"
    ));
    let before = Before::of(cluster.all());
    let refused = |how: &str, failed: &CallFailed| {
        assert_failed(
            failed,
            "25001",
            "CALL spock.add_node cannot run inside a transaction block",
            "Run the CALL on its own",
        );
        assert!(
            failed.hint().contains("outside functions"),
            "{how}: {failed}"
        );
        before.still();
    };
    let mut session = n2.client();
    session.batch_execute("BEGIN").expect("begin");
    refused("a transaction block", &fails_in(&mut session, &call));
    session.batch_execute("ROLLBACK").expect("roll back");
    refused(
        "several statements in one message",
        &fails_in(&mut session, &format!("SELECT 1; {call}")),
    );
    refused(
        "a function",
        &fails_in(&mut session, "SELECT public.joining()"),
    );
    refused(
        "a function in DO",
        &fails_in(&mut session, "DO $$BEGIN PERFORM public.joining(); END$$"),
    );
    refused(
        "an exception block",
        &fails_in(&mut session, "CALL public.trying()"),
    );
    refused(
        "an exception block in DO",
        &fails_in(
            &mut session,
            &format!(
                "DO $$BEGIN BEGIN {call}; EXCEPTION WHEN division_by_zero THEN NULL; END; END$$"
            ),
        ),
    );
    refused(
        "a procedure with a SET clause",
        &fails_in(&mut session, "CALL public.guarded()"),
    );
}

fn join_is_refused_to_others_than_superusers(on: On) {
    let cluster = mesh_and_new(on, 2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for server in cluster.all() {
        server.sql("CREATE ROLE app LOGIN");
    }
    let call = Call::of(n2, n1);
    let mut app = n2.client_as("app", "postgres");
    let before = Before::of(cluster.all());
    // Without the rights PostgreSQL itself refuses, and has no hint.
    let failed = fails_in(&mut app, &call.sql());
    assert_eq!(failed.code(), "42501", "{failed}");
    assert!(failed.message().contains("permission denied"), "{failed}");
    before.still();
    n2.sql("GRANT USAGE ON SCHEMA spock TO app");
    let before = Before::of(cluster.all());
    let failed = fails_in(&mut app, &call.sql());
    assert_eq!(failed.code(), "42501", "{failed}");
    assert!(
        failed
            .message()
            .contains("permission denied for procedure add_node"),
        "{failed}"
    );
    before.still();
    n2.sql("GRANT EXECUTE ON PROCEDURE spock.add_node TO app");
    let before = Before::of(cluster.all());
    assert_failed(
        &fails_in(&mut app, &call.sql()),
        "42501",
        "superuser",
        "superuser",
    );
    before.still();

    // The roles of the connection strings.
    for (node, call) in [
        (
            "n1",
            Call {
                src_dsn: text(n1.dsn().replace("user=postgres", "user=app")),
                ..call.clone()
            },
        ),
        (
            "n2",
            Call {
                new_node_dsn: text(n2.dsn().replace("user=postgres", "user=app")),
                ..call.clone()
            },
        ),
    ] {
        before.refuses(
            n2,
            &call,
            "42501",
            &format!("node \"{node}\": the role of the connection is not a superuser"),
            "Connect to every node as a superuser",
        );
    }
}

fn join_is_refused_while_another_one_runs(on: On) {
    let cluster = on.start(2, 2, "CREATE TABLE item (id int PRIMARY KEY)");
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    let mut writer = open_writer(n1);
    let first = Running::start(n3, &Call::of(n3, n1).sql());
    first.wait_notice("waiting for a write transaction on node \"n1\"");
    let holders: Vec<String> = [n1, n2]
        .iter()
        .map(|member| {
            member.value(
                "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE l.locktype = 'advisory' AND a.application_name = 'zodan add_node n3'",
            )
        })
        .collect();
    let before = fingerprint_meanwhile(&cluster.all());
    // By the same source, by another member, and of the very same node again. Whatever the source, the
    // members are locked in the same order: of two, one gets through.
    for (new, source, locked, holder) in [
        (n4, n1, "n1", Some(&holders[0])),
        (n4, n2, "n1", Some(&holders[0])),
        (n3, n1, "n3", None),
    ] {
        let second = Call::of(new, source).fails_on(new);
        assert!(second.elapsed < Duration::from_secs(2), "{second}");
        assert_failed(
            &second,
            "55P03",
            &format!("another membership change is in progress: node \"{locked}\" is locked"),
            "Wait until the other CALL has ended",
        );
        assert!(
            second.detail().contains("\"zodan add_node n3\""),
            "{second}"
        );
        if let Some(pid) = holder {
            assert!(
                second.detail().contains(&format!("held by pid {pid} ")),
                "{second}"
            );
        }
        assert!(!first.is_finished());
    }
    n4.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zodan%'",
        "0",
    );
    before.assert_same(&fingerprint_meanwhile(&cluster.all()));
    writer.batch_execute("ROLLBACK").expect("end the writer");
    first.succeeds();
    if let Err(failed) = n4.call(&Call::of(n4, n2).sql()) {
        panic!("the lock outlived its holder: {failed}");
    }
}
