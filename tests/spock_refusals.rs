//! What stops a node from joining a Spock cluster is found before the first change, and what stops it later is
//! taken back.

mod common;

use common::gate;
use common::refused::{all_traces, assert_refused, fails, joins};
use lab::postgres::NoTls;
use lab::spock::{self, Mesh};
use lab::{Cluster, Server, assert_same_content, wait_quiet};
use std::thread;

fn mesh(members: usize, content: &str) -> Cluster {
    let mesh = Mesh {
        content,
        ..Mesh::default()
    };
    mesh.start(members)
}

#[test]
fn join_is_refused_when_the_servers_do_not_fit() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, "CREATE TABLE t (id integer PRIMARY KEY)");
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));

    n3.sql("DROP EXTENSION spock");
    let failed = fails(n3, n1);
    assert_eq!(failed.code(), "42704", "{failed}");
    assert!(
        failed
            .message()
            .contains("the extension spock is not installed"),
        "{failed}"
    );
    assert_eq!(failed.hint(), "Run CREATE EXTENSION spock there.");
    n3.sql("CREATE EXTENSION spock");

    n2.sql("SELECT spock.sub_disable('sub_n1_n2')");
    assert_refused(
        &cluster,
        n3,
        "55000",
        "subscription sub_n1_n2 from node \"n1\" is disabled",
        "Make every subscription of the cluster replicate",
    );
    n2.sql("SELECT spock.sub_enable('sub_n1_n2')");
    n1.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE active",
        "1",
    );

    n3.sql("SELECT spock.node_create('other', 'host=nowhere')");
    let failed = fails(n3, n1);
    assert_eq!(failed.code(), "55006", "{failed}");
    n3.sql("SELECT spock.node_drop('other')");
    joins(n3, n1);
}

/// Spock reserves some extensions to each node (6.0 and newer): their structure is not copied.
#[test]
fn structure_of_a_reserved_extension_is_not_copied() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        1,
        "CREATE EXTENSION hstore; CREATE TABLE t (id integer PRIMARY KEY);
         CREATE SCHEMA private; CREATE TABLE private.own (id integer PRIMARY KEY)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    if n1
        .value("SELECT to_regclass('spock.reserved_object')")
        .is_empty()
    {
        eprintln!("this version of Spock has no table of reserved objects");
        return;
    }
    n1.sql(
        "SELECT spock.repset_remove_table('default', 'private.own');
         SELECT spock.reserved_object_add('hstore', 'extension');
         SELECT spock.reserved_object_add('private', 'schema')",
    );
    assert_refused(
        &cluster,
        n2,
        "42704",
        "extension hstore is not installed",
        "Run CREATE EXTENSION \"hstore\" there.",
    );
    n2.sql("CREATE EXTENSION hstore");
    joins(n2, n1);
    assert_eq!(n2.value("SELECT to_regnamespace('private')"), "");
    assert_eq!(n2.value("SELECT to_regclass('t')"), "t");
}

/// The tables of an extension are replicated, as those of lolor, which keeps large objects in them. A stand-in of
/// another name: an extension that has tables in its schema.
#[test]
fn replicated_tables_of_an_extension_are_copied() {
    if spock::announced().is_none() {
        return;
    }
    let stand_in = "
        CREATE SCHEMA large; CREATE EXTENSION hstore SCHEMA large;
        CREATE TABLE large.object (id oid PRIMARY KEY);
        CREATE TABLE large.page (id oid REFERENCES large.object, pageno integer, data bytea, PRIMARY KEY (id, pageno));
        ALTER EXTENSION hstore ADD TABLE large.object; ALTER EXTENSION hstore ADD TABLE large.page";
    let cluster = mesh(1, "CREATE TABLE t (id integer PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(&format!(
        "{stand_in}; INSERT INTO large.object VALUES (1); INSERT INTO large.page VALUES (1, 0, 'large');
         SELECT spock.repset_add_table('default', 'large.object'), spock.repset_add_table('default', 'large.page')"
    ));
    let missing = |table: &str| {
        format!(
            "table large.{table} does not exist, which is replicated and belongs to extension hstore"
        )
    };
    assert_refused(
        &cluster,
        n2,
        "42P01",
        &missing("object"),
        "Run CREATE EXTENSION \"hstore\" there, in the version of node \"n1\".",
    );
    n2.sql(stand_in);
    n2.sql("INSERT INTO large.object VALUES (7)");
    assert_refused(
        &cluster,
        n2,
        "55000",
        "table large.object of extension hstore has rows",
        "Run TRUNCATE large.object there: its rows come from node \"n1\".",
    );
    // As the hint says, but for the other one that refers to it.
    n2.sql("TRUNCATE large.object, large.page");
    let before = all_traces(&cluster);
    n2.sql("ALTER TABLE large.page ADD CHECK (id <> 1)");
    assert!(
        fails(n2, n1)
            .message()
            .contains("violates check constraint"),
        "one that only the new node has"
    );
    assert_eq!(all_traces(&cluster), before);
    assert_eq!(n2.value("SELECT count(*) FROM large.object"), "0");
    n2.sql("ALTER TABLE large.page DROP CONSTRAINT page_id_check");
    joins(n2, n1);
    n2.sql("INSERT INTO large.object VALUES (2); INSERT INTO large.page VALUES (2, 0, 'from n2')");
    n1.sql("INSERT INTO large.object VALUES (3); INSERT INTO large.page VALUES (3, 0, 'from n1')");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n1.value("SELECT count(*) FROM large.page"), "3");
}

/// The extension itself, where the server under test has it.
#[test]
fn large_objects_of_lolor_are_copied() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(1, "CREATE TABLE t (id integer PRIMARY KEY, object oid)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let offered = "SELECT count(*) FROM pg_available_extensions WHERE name = 'lolor'";
    if n1.value(offered) == "0" {
        eprintln!("skipped: the server under test has no lolor");
        return;
    }
    for (number, node) in [n1, n2].iter().enumerate() {
        node.configure("lolor.node", &(number + 1).to_string());
        node.reload();
        node.sql("CREATE EXTENSION lolor");
    }
    n1.sql(
        "SELECT spock.repset_add_table('default', 'lolor.pg_largeobject'),
                spock.repset_add_table('default', 'lolor.pg_largeobject_metadata')",
    );
    let write = |node: &Server, id: i32, text: &str| {
        node.sql(&format!(
            "INSERT INTO t VALUES ({id}, lo_from_bytea(0, '{text}'))"
        ));
    };
    write(n1, 1, "before");
    joins(n2, n1);
    write(n2, 2, "from n2");
    write(n1, 3, "from n1");
    wait_quiet(&cluster.all());
    for node in cluster.all() {
        assert_eq!(
            node.value(
                "SELECT string_agg(convert_from(lo_get(object), 'UTF8'), ', ' ORDER BY id) FROM t"
            ),
            "before, from n2, from n1"
        );
    }
    assert_same_content(&cluster.all());
}

/// A procedure that was loaded by hand, as from the scripts that come with Spock, would be in the way.
#[test]
fn extension_is_refused_when_its_procedures_were_loaded_by_hand() {
    if spock::announced().is_none() {
        return;
    }
    let server = Server::start_with("n1", &spock::options());
    server.sql(
        "CREATE EXTENSION spock;
         CREATE PROCEDURE spock.add_node(src_node_name text, src_dsn text, new_node_name text,
                                         new_node_dsn text, verb boolean DEFAULT false)
         LANGUAGE plpgsql AS 'BEGIN END'",
    );
    let failed = server.sql_error("CREATE EXTENSION zodan");
    assert_eq!(failed.code(), "42723", "{failed}");
    assert_eq!(
        failed.message(),
        "procedures of the same names were loaded into schema spock by hand"
    );
    assert_eq!(
        failed.detail(),
        "DROP PROCEDURE spock.add_node(IN src_node_name text, IN src_dsn text, IN new_node_name text, \
         IN new_node_dsn text, IN verb boolean);"
    );
    assert!(failed.hint().contains("Run the statements of the detail"));
    server.sql(failed.detail());
    server.sql("CREATE EXTENSION zodan");
}

/// Ctrl-C in the middle of the copy: nothing is left anywhere, and the same CALL works.
#[test]
fn cancelled_join_is_undone_and_can_be_repeated() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(3, gate::CONTENT);
    let n4 = cluster.n(4);
    let before = all_traces(&cluster);
    let gate = gate::close(n4);
    let (mut caller, notices) = n4.client_with_notices();
    let cancel = caller.cancel_token();
    let call = lab::cluster::add_node_call(n4, "n4", cluster.n(1), "n1");
    let running = thread::spawn(move || caller.batch_execute(&call));
    gate::wait(n4);
    cancel.cancel_query(NoTls).unwrap();
    let error = running.join().unwrap().unwrap_err();
    assert_eq!(
        error.code().map(|c| c.code()),
        Some("57014"),
        "{}",
        lab::explain(&error)
    );
    drop(gate);
    let said: Vec<String> = notices
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        all_traces(&cluster),
        before,
        "{}\n{}",
        said.join("\n"),
        lab::explain(&error)
    );
    assert_eq!(n4.value("SELECT state FROM zodan.run"), "undone");
    joins(n4, cluster.n(1));
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// A member's session is lost in the middle: the first error is raised, everything is taken back, also on that
/// member, and the same CALL works.
#[test]
fn failed_join_is_undone_and_can_be_repeated() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, gate::CONTENT);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let before = all_traces(&cluster);
    let gate = gate::close(n3);
    let failed = thread::scope(|scope| {
        let call = scope.spawn(|| fails(n3, n1));
        gate::wait(n3);
        n2.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'zodan%'",
        );
        drop(gate);
        call.join().unwrap()
    });
    assert!(["57P01", "08006"].contains(&failed.code()), "{failed}");
    assert!(failed.message().contains("n2"), "{failed}");
    assert_eq!(all_traces(&cluster), before);
    joins(n3, n1);
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// The calling session is killed in the middle, which leaves everything where it is. The next CALL cleans up.
#[test]
fn killed_join_is_undone_by_the_next_call() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, gate::CONTENT);
    let n3 = cluster.n(3);
    let mut gate = gate::close(n3);
    let mut caller = n3.client_named("caller");
    let call = lab::cluster::add_node_call(n3, "n3", cluster.n(1), "n1");
    let running = thread::spawn(move || caller.batch_execute(&call));
    gate::wait(n3);
    let pid = n3.value("SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL spock.add_node%'");
    n3.kill_backend(pid.parse().unwrap());
    running.join().unwrap().unwrap_err();
    // The server ends every session and recovers.
    while gate.simple_query("SELECT 1").is_ok() {}
    n3.wait_for("SELECT state FROM zodan.run", "running");
    joins(n3, cluster.n(1));
    assert_eq!(
        n3.value("SELECT string_agg(state, ',' ORDER BY id) FROM zodan.run"),
        "undone,done"
    );
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// The node is removed with Spock's own functions and added again under the same name.
#[test]
fn node_removed_with_spock_can_be_added_again() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)",
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    joins(n3, n1);
    n3.sql("INSERT INTO t VALUES (1001)");
    wait_quiet(&cluster.all());
    for member in [n1, n2] {
        member.sql(&format!(
            "SELECT spock.sub_drop('sub_n3_{}')",
            member.name()
        ));
        n3.sql(&format!(
            "SELECT spock.sub_drop('sub_{}_n3')",
            member.name()
        ));
    }
    n3.sql("SELECT spock.node_drop('n3', true)");
    n3.sql("DROP TABLE t; DROP SCHEMA lab CASCADE");
    for member in [n1, n2] {
        member.sql("SELECT spock.node_drop('n3', true)");
    }
    n1.sql("INSERT INTO t VALUES (1002)");
    n2.sql("INSERT INTO t VALUES (1003)");
    joins(n3, n1);
    n3.sql("INSERT INTO t VALUES (1004)");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n2.value("SELECT count(*) FROM t"), "104");
}

/// A change that the new node cannot apply would be missing there, whatever Spock is told to do about it: the
/// join fails with what the worker said, and is taken back.
#[test]
fn join_fails_when_the_new_node_cannot_apply_a_change() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        &format!(
            "{};
             CREATE TABLE fine (id integer PRIMARY KEY);
             CREATE TABLE t (id integer PRIMARY KEY);
             CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF (SELECT node_name FROM spock.node JOIN spock.local_node USING (node_id)) = 'n3' THEN
                     RAISE 'number % is not for this node', NEW.id;
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER picky BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION picky();
             ALTER TABLE t ENABLE ALWAYS TRIGGER picky",
            gate::CONTENT
        ),
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    // Of what fails in a worker's very first transaction, Spock 6.0 keeps no more than that it did.
    let cases = [
        ("transdiscard", true),
        ("discard", true),
        ("sub_disable", true),
        ("sub_disable", false),
    ];
    for (number, (behaviour, told)) in (1..).zip(cases) {
        n3.configure("spock.exception_behaviour", behaviour);
        n3.reload();
        let before = all_traces(&cluster);
        let gate = gate::close(n3);
        let failed = thread::scope(|scope| {
            let call = scope.spawn(|| fails(n3, n1));
            gate::wait(n3);
            if told {
                n2.sql(&format!("INSERT INTO fine VALUES ({number})"));
            }
            n2.sql(&format!("INSERT INTO t VALUES ({number})"));
            drop(gate);
            call.join().unwrap()
        });
        assert_eq!(failed.code(), "55000", "{behaviour}: {failed}");
        let subscription = "subscription sub_n2_n3 of node \"n3\"";
        assert!(
            failed.message().contains(subscription),
            "{behaviour}: {failed}"
        );
        let detail = failed.detail();
        assert!(
            detail.contains(&format!("number {number} is not for this node"))
                || !told && detail.contains("disabling subscription sub_n2_n3 due to exception(s)"),
            "{behaviour}: {failed}"
        );
        assert_eq!(all_traces(&cluster), before, "{behaviour}");
    }
    // What stands in the log from then does not stop a later one.
    joins(n3, n1);
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
    assert_eq!(n3.value("SELECT count(*) FROM t"), "4");
}

/// An update of a row that is gone is given up by every member. The new node does as they do.
#[test]
fn update_of_a_missing_row_does_not_stop_the_join() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        &format!(
            "{}; CREATE TABLE t (id integer PRIMARY KEY, n integer); INSERT INTO t VALUES (1, 0), (2, 0)",
            gate::CONTENT
        ),
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    n1.sql("BEGIN; SELECT spock.repair_mode(true); DELETE FROM t WHERE id = 1; COMMIT");
    let gate = gate::close(n3);
    thread::scope(|scope| {
        let call = scope.spawn(|| joins(n3, n1));
        gate::wait(n3);
        n2.sql("UPDATE t SET n = 1 WHERE id = 1");
        n2.sql("UPDATE t SET n = 2 WHERE id = 2");
        drop(gate);
        call.join().unwrap();
    });
    // The new node catches up with the source, which has nothing of it to send on.
    for (node, left_out) in [(n1, "UPDATE t"), (n3, "")] {
        node.wait_for(
            "SELECT string_agg(concat_ws(' ', id, n), ', ') FROM t",
            "2 2",
        );
        assert_eq!(
            node.value(
                "SELECT string_agg(operation || ' ' || table_name, ', ') FROM spock.exception_log"
            ),
            left_out,
            "{}",
            node.name()
        );
    }
}

/// Without its slot on a peer, the new node would never get what was committed there during the copy.
#[test]
fn join_fails_when_its_slot_is_dropped_during_the_copy() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(2, gate::CONTENT);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let before = all_traces(&cluster);
    let gate = gate::close(n3);
    let failed = thread::scope(|scope| {
        let call = scope.spawn(|| fails(n3, n1));
        gate::wait(n3);
        n2.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active",
        );
        drop(gate);
        call.join().unwrap()
    });
    assert_eq!(failed.code(), "55000", "{failed}");
    assert!(
        failed
            .message()
            .contains("on node \"n2\" was dropped while the copy ran"),
        "{failed}"
    );
    assert_eq!(all_traces(&cluster), before);
    joins(n3, n1);
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// Spock's own limit for a wait, where it has one and it is set.
#[test]
fn join_fails_when_changes_of_a_peer_do_not_arrive_in_time() {
    if spock::announced().is_none() {
        return;
    }
    let cluster = mesh(
        2,
        "CREATE TABLE t (id integer PRIMARY KEY, body text); INSERT INTO t VALUES (1, 'x')",
    );
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    if n3.value("SELECT count(*) FROM pg_settings WHERE name = 'spock.sync_timeout'") == "0" {
        return;
    }
    n3.configure("spock.sync_timeout", "2s");
    n3.reload();
    let before = all_traces(&cluster);
    let mut holder = n1.client();
    holder
        .batch_execute("BEGIN; SELECT FROM t FOR UPDATE")
        .expect("hold a row that n2 changes");
    n2.sql("UPDATE t SET body = 'y'");
    let failed = fails(n3, n1);
    assert_eq!(failed.code(), "55000", "{failed}");
    assert_eq!(
        failed.message(),
        "node \"n1\": applying what its peers committed took longer than spock.sync_timeout, 2 s"
    );
    assert!(
        failed
            .hint()
            .contains("Raise spock.sync_timeout, or set it to 0."),
        "{failed}"
    );
    holder.batch_execute("ROLLBACK").expect("let it go");
    wait_quiet(&cluster.first(2));
    assert_eq!(all_traces(&cluster), before);
    joins(n3, n1);
}
