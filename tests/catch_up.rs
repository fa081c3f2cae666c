//! A node that joins takes from the source what was committed during the copy, and its peers take over at one moment.

mod common;

use common::{
    CHASED_TABLE, Hang, StopOnDrop, insert_and_change, quick, while_nodes_change_each_others_rows,
};
use lab::cluster::add_node_call;
use lab::{Cluster, add_node, assert_same_content, wait_quiet};
use std::sync::atomic::AtomicBool;
use std::thread;

/// From here on the new node takes the changes of all from the source.
const CATCHING_UP: &str = "within the first positions are set";

/// The members change the rows of each other. From each member by its own, such a change could come before its row.
#[test]
fn changes_of_peers_find_their_rows_on_the_new_node() {
    let cluster = Cluster::start(4);
    cluster.form_mesh(
        3,
        &format!(
            "{CHASED_TABLE};
             CREATE TABLE filler (id bigint PRIMARY KEY, v text);
             INSERT INTO filler SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 100000) i"
        ),
    );
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    for round in 0..3 {
        let joined = while_nodes_change_each_others_rows([n3, n2, n1], round, || {
            add_node(n4, "n4", n1, "n1")
        });
        joined.unwrap_or_else(|e| panic!("{e}"));
        wait_quiet(&cluster.all());
        assert_same_content(&[n1, n4]);
        n4.call("CALL spock.remove_node('n4')")
            .unwrap_or_else(|e| panic!("{e}"));
        n4.sql("DROP SCHEMA lab CASCADE; DROP TABLE chased, filler");
    }
}

/// What the new node's slot on a peer holds is decoded before anything of it is sent, and it holds the WAL of the copy.
#[test]
fn join_is_not_delayed_by_what_the_slot_on_a_peer_retains() {
    let cluster = Cluster::start(3);
    let content = format!("{CHASED_TABLE}; CREATE TABLE given_up (id bigint)");
    cluster.form_mesh(2, &content);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let (hang, call) = Hang::start(n3, "", CATCHING_UP, &add_node_call(n3, "n3", n1, "n1"));
    for _ in 0..4 {
        n2.sql("BEGIN; INSERT INTO given_up SELECT i FROM generate_series(1, 400000) i; ROLLBACK");
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&over);
        let over = &over;
        scope.spawn(move || insert_and_change(n2, n1, 1, over));
        n1.wait_for("SELECT count(*) > 100 FROM chased WHERE v = 'upd'", "t");
        hang.release();
        let joined = call.join();
        drop(end);
        joined.unwrap_or_else(|e| panic!("{e}"));
    });
    wait_quiet(&cluster.all());
    assert_same_content(&[n1, n3]);
}

/// What a trigger writes on the source for a change of a peer, the trigger of the new node writes there itself.
#[test]
fn rows_of_triggers_for_replicated_rows_are_written_once() {
    let cluster = Cluster::start_with(4, &quick());
    cluster.form_mesh(
        3,
        "CREATE TABLE o (id int PRIMARY KEY);
         CREATE TABLE a (k uuid PRIMARY KEY DEFAULT gen_random_uuid(), o int);
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS
             $$BEGIN INSERT INTO a (o) VALUES (NEW.id); RETURN NULL; END$$;
         CREATE TRIGGER t AFTER INSERT ON o FOR EACH ROW EXECUTE FUNCTION f();
         ALTER TABLE o ENABLE REPLICA TRIGGER t",
    );
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    let (hang, call) = Hang::start(n4, "", CATCHING_UP, &add_node_call(n4, "n4", n1, "n1"));
    n2.sql("INSERT INTO o SELECT i FROM generate_series(11, 15) i");
    n3.sql("INSERT INTO o SELECT i FROM generate_series(21, 25) i");
    wait_quiet(&cluster.first(3));
    hang.release();
    call.join().unwrap_or_else(|e| panic!("{e}"));
    wait_quiet(&cluster.all());
    for node in [n1, n4] {
        let rows = node.value("SELECT count(*) || ' ' || count(DISTINCT o) FROM a");
        assert_eq!(rows, "10 10", "{}", node.name());
    }
}

/// A change of one peer that is held up on the source holds up neither those of the others there nor the pause.
#[test]
fn change_that_is_blocked_on_the_source_delays_no_other_peer() {
    let cluster = Cluster::start_with(4, &quick());
    cluster.form_mesh(
        3,
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')",
    );
    let (n1, n2, n3, n4) = (cluster.n(1), cluster.n(2), cluster.n(3), cluster.n(4));
    let (hang, call) = Hang::start(n4, "", CATCHING_UP, &add_node_call(n4, "n4", n1, "n1"));
    let mut holder = n1.client();
    holder
        .batch_execute("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE")
        .unwrap();
    n2.sql("UPDATE t SET v = 'new' WHERE id = 1");
    n1.wait_for("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication apply worker' AND wait_event_type = 'Lock'", "1");
    hang.release();
    for id in 2..30 {
        n3.sql(&format!("INSERT INTO t VALUES ({id}, 'of n3')"));
        n1.wait_for(&format!("SELECT count(*) FROM t WHERE id = {id}"), "1");
        assert!(!call.is_finished());
    }
    let paused = "SELECT count(*) FROM zodan.run WHERE state = 'running' AND apply_pause_ms > 900";
    assert_eq!(n4.value(paused), "0");
    holder.batch_execute("COMMIT").unwrap();
    call.join().unwrap_or_else(|e| panic!("{e}"));
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}
