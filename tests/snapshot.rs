//! What the exported snapshot of the source needs is there as long as it is read.

mod common;

use common::Hang;
use lab::cluster::add_node_call;
use lab::{Cluster, assert_same_content, wait_quiet};

/// While it exports a snapshot, PostgreSQL itself does not keep row versions for a moment.
#[test]
fn row_versions_are_kept_before_the_slot_is_created() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    cluster.form_mesh(
        1,
        "CREATE TABLE busy (id bigint PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
         INSERT INTO busy SELECT i, repeat('x', 100) FROM generate_series(1, 10000) i",
    );
    let (hang, call) = Hang::start(
        n2,
        "",
        "within old row versions are kept",
        &add_node_call(n2, "n2", n1, "n1"),
    );
    n1.sql("DELETE FROM busy WHERE id > 1");
    n1.sql("VACUUM busy");
    let pages = "SELECT pg_relation_size('busy') / current_setting('block_size')::int > 1";
    assert_eq!(n1.value(pages), "t", "what was deleted has been removed");
    hang.release();
    call.join().unwrap_or_else(|e| panic!("{e}"));
    n1.sql("VACUUM busy");
    assert_eq!(n1.value(pages), "f", "nothing keeps it any more");
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}
