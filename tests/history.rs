//! What has been done is kept for `zodan.history_days`, and what is still to be undone for as long as that takes.

mod common;

use common::{Call, assert_failed, quick};
use lab::Cluster;

#[test]
fn old_runs_are_deleted_by_the_next_call() {
    let cluster = Cluster::start_with(2, &quick());
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE EXTENSION zodan; CREATE TABLE t (i int PRIMARY KEY)");
    n2.sql("CREATE EXTENSION zodan");
    let runs = "SELECT string_agg(concat_ws(' ', id, state, (SELECT count(*) > 0 FROM zodan.step WHERE run_id = id)), ', ' ORDER BY id)
                  FROM zodan.run";
    n2.sql(
        "INSERT INTO zodan.run (command, engine, source_node, node, state, started_at, ended_at)
         SELECT 'spock.remove_node', 'native', 'n2', 'n7', state, now() - age, now() - age
           FROM (VALUES ('done', interval '364 days'), ('done', '366 days'), ('undone', '366 days'))
                 v (state, age);
         INSERT INTO zodan.step (run_id, step, phase, node, description, action)
         SELECT id, 1, 3, 'n7', 'marker', jsonb_build_object('kind', 'marker') FROM zodan.run",
    );
    // A call that is refused by the checks changes nothing at all.
    n2.sql("CREATE TABLE there ()");
    assert_failed(
        &Call::of(n2, n1).fails_on(n2),
        "42710",
        "the database is not empty, it has tables: public.there",
        "Drop them",
    );
    n2.sql("DROP TABLE there");
    // Nothing was begun.
    let kept = "1 done t, 2 done t, 3 undone t";
    assert_eq!(n2.value(runs), kept);
    n2.call(&Call::of(n2, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(n2.value(runs), "1 done t, 4 done t");

    // What has still to be gone on with stays, and all stays where that is wanted.
    n1.sql(
        "INSERT INTO zodan.run (command, engine, source_node, node, state, started_at, ended_at)
         SELECT 'spock.remove_node', 'native', 'n1', 'n8', state, now() - interval '9 years', now() - interval '9 years'
           FROM unnest('{done,failed}'::text[]) state",
    );
    for (days, target, left) in [("-1", "n2", "done failed done"), ("0", "n1", "failed done")] {
        n1.configure("zodan.history_days", days);
        n1.reload();
        n1.call(&format!("CALL spock.remove_node('{target}')"))
            .unwrap_or_else(|failed| panic!("{failed}"));
        assert_eq!(
            n1.value("SELECT string_agg(state, ' ' ORDER BY id) FROM zodan.run"),
            left
        );
    }
}
