//! A join that fails, at whatever step, leaves every reachable node as it was, raises the first error, and can
//! be tried again at once. A join that is killed is cleaned up by the next.

mod common;

use common::plan::planned_slot;
use common::{
    Call, Fingerprint, Running, WAITS_FOR_ANOTHER, assert_failed, fingerprint, open_writer, quick,
    wait_mesh, wait_no_sessions,
};
use lab::postgres::Client;
use lab::server::PATIENCE;
use lab::{
    CallFailed, Called, Cluster, Load, Server, ServerOptions, assert_same_content, load, wait_quiet,
};
use std::time::{Duration, Instant};

/// How soon a cancelled call has to be over, with all that it has to undo.
const PROMPT: Duration = Duration::from_secs(2);

/// Tables that can be held up or made to fail on one node, by its setting `gate.data` while rows are copied and
/// by `gate.index` while indexes are made: unset, `held` for as long as a [`Gate`] is, or `shut`.
const CONTENT: &str = "
CREATE SCHEMA app;
CREATE FUNCTION app.pass(gate text, id integer DEFAULT 0) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    CASE current_setting('gate.' || gate, true)
        WHEN 'held' THEN PERFORM pg_advisory_xact_lock_shared(hashtext($1));
        WHEN 'shut' THEN RAISE EXCEPTION 'the gate % is shut', gate USING ERRCODE = 'P0007', HINT = 'Open it.';
        ELSE NULL;
    END CASE;
    RETURN true;
END $$;
CREATE SEQUENCE app.number;
CREATE TYPE app.mood AS ENUM ('good', 'bad');
CREATE TABLE app.item (id int PRIMARY KEY, mood app.mood DEFAULT 'good',
                       passed boolean GENERATED ALWAYS AS (app.pass('data', id)) STORED);
CREATE INDEX ON app.item ((app.pass('index')::int + id));
CREATE TABLE app.part (id int PRIMARY KEY, item int REFERENCES app.item);
CREATE VIEW app.items AS SELECT count(*) FROM app.item;
INSERT INTO app.item SELECT generate_series(1, 2000);
INSERT INTO app.part SELECT i, i FROM generate_series(1, 2000) i;
SELECT setval('app.number', 17);
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO pg_monitor;
";

/// A mesh of n1 and n2, and n3 to be added.
fn scene() -> Cluster {
    scene_with(|_| quick().set("zodan.failpoint", "event triggers fire"))
}

fn scene_with(options: impl Fn(&str) -> ServerOptions + Sync) -> Cluster {
    let cluster = Cluster::start_each(3, options);
    cluster.form_mesh(2, &format!("{CONTENT}{}", load::SCHEMA));
    wait_quiet(&cluster.first(2));
    wait_mesh(&cluster.first(2));
    cluster
}

/// The call that adds n3.
fn call(cluster: &Cluster) -> String {
    Call::of(cluster.n(3), cluster.n(1)).sql()
}

/// What n3's own settings say that its copy is to meet at a gate.
fn set_gate(server: &Server, gate: &str, state: &str) {
    server.configure(&format!("gate.{gate}"), state);
    server.reload();
    server.wait_for(&format!("SHOW gate.{gate}"), state);
}

/// Holds everything at a gate of a server.
struct Gate<'a> {
    server: &'a Server,
    name: &'static str,
    holder: Client,
}

impl<'a> Gate<'a> {
    fn close(server: &'a Server, name: &'static str) -> Gate<'a> {
        set_gate(server, name, "held");
        let mut holder = server.client_named("gate");
        holder
            .batch_execute(&format!("SELECT pg_advisory_lock(hashtext('{name}'))"))
            .expect("hold the gate");
        Gate {
            server,
            name,
            holder,
        }
    }

    /// Waits until somebody is there.
    fn wait(&self) {
        self.server.wait_for(
            "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
            "t",
        );
    }

    fn open(mut self) {
        set_gate(self.server, self.name, "open");
        self.holder
            .batch_execute("SELECT pg_advisory_unlock_all()")
            .expect("open the gate");
    }
}

/// Panics unless everything is as it was, the journal says so, and the mesh goes on working.
fn assert_undone(cluster: &Cluster, before: &Fingerprint, failed: &CallFailed) {
    before.assert_same_now(&cluster.all());
    let runs = cluster.n(3).rows(
        "SELECT state, sqlstate, message, ended_at IS NOT NULL FROM zodan.run ORDER BY id DESC LIMIT 1",
    );
    let expected = [
        "undone".to_string(),
        failed.code().into(),
        failed.message(),
        "t".into(),
    ];
    assert_eq!(runs[0], expected.map(Some), "{failed}");
    let steps = "SELECT count(*) FROM zodan.step
                  WHERE state <> 'undone' AND run_id = (SELECT max(id) FROM zodan.run)";
    assert_eq!(cluster.n(3).value(steps), "0", "{failed}");
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    assert_mesh_works(cluster);
}

/// Panics unless writes on n1 and on n2 arrive on the other.
fn assert_mesh_works(cluster: &Cluster) {
    for server in cluster.first(2) {
        server.sql("INSERT INTO app.item SELECT coalesce(max(id), 0) + 1 FROM app.item");
        wait_quiet(&cluster.first(2));
    }
    assert_same_content(&cluster.first(2));
}

/// Adds n3, which must be a full member afterwards.
fn assert_joins(cluster: &Cluster) -> Called {
    let called = cluster
        .n(3)
        .call(&call(cluster))
        .unwrap_or_else(|failed| panic!("the same CALL again: {failed}"));
    wait_mesh(&cluster.all());
    wait_quiet(&cluster.all());
    for server in cluster.all() {
        server.sql("INSERT INTO app.item SELECT max(id) + 1 FROM app.item");
        wait_quiet(&cluster.all());
    }
    assert_same_content(&cluster.all());
    let left = "SELECT count(*) FROM zodan.run WHERE state NOT IN ('done', 'undone')";
    assert_eq!(cluster.n(3).value(left), "0");
    called
}

fn notices(called: &Called) -> String {
    let lines: Vec<String> = called.notices.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Something on a node that fails whenever a statement of this kind has been run there, and only there: it
/// may be copied.
fn forbid(server: &Server, tag: &str) {
    server.sql(&format!(
        "CREATE FUNCTION public.forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN
             IF current_setting('data_directory') = '{}' THEN
                 RAISE EXCEPTION '% is forbidden', tg_tag USING ERRCODE = 'P0009';
             END IF;
         END$$;
         CREATE EVENT TRIGGER forbid ON ddl_command_end WHEN TAG IN ('{tag}') EXECUTE FUNCTION public.forbid()",
        server.data_dir().display()
    ));
}

fn allow(server: &Server) {
    server.sql("DROP EVENT TRIGGER forbid; DROP FUNCTION public.forbid()");
}

#[test]
fn join_is_undone_when_the_structure_cannot_be_restored() {
    let cluster = scene();
    let n3 = cluster.n(3);
    for tag in ["CREATE TABLE", "CREATE TYPE", "CREATE INDEX", "ALTER TABLE"] {
        forbid(n3, tag);
        let before = fingerprint(&cluster.all());
        let failed = n3.sql_error(&call(&cluster));
        assert_eq!(failed.code(), "38000", "{failed}");
        assert!(
            failed.message().contains("node \"n3\": pg_restore failed"),
            "{failed}"
        );
        assert!(
            failed.message().contains(&format!("{tag} is forbidden")),
            "{failed}"
        );
        assert_undone(&cluster, &before, &failed);
        allow(n3);
    }
    set_gate(n3, "index", "shut");
    let before = fingerprint(&cluster.all());
    let failed = n3.sql_error(&call(&cluster));
    assert_eq!(failed.code(), "38000", "{failed}");
    assert!(
        failed.message().contains("the gate index is shut"),
        "{failed}"
    );
    assert_undone(&cluster, &before, &failed);
    set_gate(n3, "index", "open");
    assert_joins(&cluster);
}

#[test]
fn join_is_undone_when_the_data_cannot_be_copied() {
    let cluster = scene();
    let n3 = cluster.n(3);
    set_gate(n3, "data", "shut");
    let before = fingerprint(&cluster.all());
    let failed = n3.sql_error(&call(&cluster));
    assert_failed(&failed, "P0007", "the gate data is shut", "Open it");
    assert_undone(&cluster, &before, &failed);
    set_gate(n3, "data", "open");
    assert_joins(&cluster);
}

/// What the database of the new node had of its own is left: an empty schema that the source has too, a
/// function, grants and settings.
#[test]
fn undo_keeps_what_was_there_before() {
    let cluster = scene();
    let n3 = cluster.n(3);
    n3.sql(
        "CREATE ROLE keeper; CREATE SCHEMA app AUTHORIZATION keeper; COMMENT ON SCHEMA app IS 'mine';
         GRANT USAGE ON SCHEMA app TO pg_monitor;
         CREATE FUNCTION public.own() RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE SCHEMA own; CREATE TYPE own.kind AS (a int);
         ALTER DATABASE postgres SET work_mem = '7MB';
         ALTER DATABASE postgres SET default_transaction_read_only = off;
         ALTER ROLE keeper IN DATABASE postgres SET work_mem = '9MB';
         ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO keeper",
    );
    cluster
        .n(1)
        .sql("ALTER DATABASE postgres SET work_mem = '11MB'");
    for gate in ["data", "index"] {
        set_gate(n3, gate, "shut");
        let before = fingerprint(&cluster.all());
        let failed = n3.sql_error(&call(&cluster));
        assert!(
            failed
                .message()
                .contains(&format!("the gate {gate} is shut")),
            "{failed}"
        );
        assert_undone(&cluster, &before, &failed);
        set_gate(n3, gate, "open");
    }
    assert_joins(&cluster);
}

#[test]
fn join_is_undone_when_the_new_node_cannot_subscribe() {
    let cluster = scene();
    forbid(cluster.n(3), "CREATE SUBSCRIPTION");
    let before = fingerprint(&cluster.all());
    let failed = cluster.n(3).sql_error(&call(&cluster));
    assert_eq!(failed.code(), "P0009", "{failed}");
    assert!(
        failed
            .message()
            .contains("CREATE SUBSCRIPTION is forbidden"),
        "{failed}"
    );
    assert_undone(&cluster, &before, &failed);
    allow(cluster.n(3));
    assert_joins(&cluster);
}

#[test]
fn join_is_undone_when_a_member_cannot_subscribe() {
    let cluster = scene();
    for member in cluster.first(2) {
        forbid(member, "CREATE SUBSCRIPTION");
        let before = fingerprint(&cluster.all());
        let failed = cluster.n(3).sql_error(&call(&cluster));
        assert_eq!(failed.code(), "P0009", "{failed}");
        assert_eq!(
            failed.message(),
            format!(
                "node \"{}\": CREATE SUBSCRIPTION is forbidden",
                member.name()
            )
        );
        assert_undone(&cluster, &before, &failed);
        allow(member);
    }
    assert_joins(&cluster);
}

/// The last phase: all subscriptions are there, but the changes of the new node do not arrive on n2.
#[test]
fn join_is_undone_when_its_verification_fails() {
    let cluster = scene();
    let n2 = cluster.n(2);
    n2.sql(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'nothing from %', NEW.node; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON zodan.marker FOR EACH ROW WHEN (NEW.node = 'n3')
             EXECUTE FUNCTION public.refuse();
         ALTER TABLE zodan.marker ENABLE ALWAYS TRIGGER refuse",
    );
    let before = fingerprint(&cluster.all());
    let failed = cluster.n(3).sql_error(&call(&cluster));
    assert_failed(
        &failed,
        "55000",
        "subscription sub_n3_n2 of node \"n2\" keeps failing on the same change",
        "The log of the subscriber says why",
    );
    let errors = "errors of its apply worker so far. The log of that server says what they were";
    assert!(
        failed.detail().starts_with("Subscription sub_n3_n2: ") && failed.detail().contains(errors),
        "{failed}"
    );
    assert_undone(&cluster, &before, &failed);
    n2.sql("DROP TRIGGER refuse ON zodan.marker; DROP FUNCTION public.refuse()");
    assert_joins(&cluster);
}

/// A source that was no node before is none afterwards.
#[test]
fn undo_of_the_first_join_leaves_no_cluster() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql(CONTENT);
    n1.sql(
        "CREATE TABLE app.log (line text); CREATE TABLE app.nothing (line text);
         ALTER TABLE app.nothing REPLICA IDENTITY NOTHING; INSERT INTO app.log VALUES ('a'), ('b')",
    );
    let call = Call::of(n2, n1).sql();
    let before = fingerprint(&cluster.all());
    for gate in ["data", "index"] {
        set_gate(n2, gate, "shut");
        let failed = n2.sql_error(&call);
        assert!(
            failed
                .message()
                .contains(&format!("the gate {gate} is shut")),
            "{failed}"
        );
        before.assert_same_now(&cluster.all());
        set_gate(n2, gate, "open");
    }
    n1.sql("UPDATE app.log SET line = line || '!'");
    if let Err(failed) = n2.call(&call) {
        panic!("{failed}");
    }
    wait_mesh(&cluster.all());
}

/// Writers on both members do not notice a join that fails, and lose nothing.
#[test]
fn applications_do_not_notice_a_join_that_fails() {
    let cluster = scene();
    let n3 = cluster.n(3);
    let load = Load::start(&cluster.first(2));
    load.wait_commits(20);
    for gate in ["data", "index"] {
        set_gate(n3, gate, "shut");
        let failed = n3.sql_error(&call(&cluster));
        assert!(
            failed
                .message()
                .contains(&format!("the gate {gate} is shut")),
            "{failed}"
        );
        set_gate(n3, gate, "open");
        load.wait_commits(20);
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{report}");
    wait_quiet(&cluster.first(2));
    assert_same_content(&cluster.first(2));
    for member in cluster.first(2) {
        report.assert_present_on(member);
    }
    assert_joins(&cluster);
    report.assert_present_on(n3);
}

#[test]
fn join_is_undone_when_a_peer_crashes_and_stays_down() {
    let cluster = scene();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let reachable = [n1, n3];
    let before = fingerprint(&reachable);
    let slot = planned_slot(n3, &call(&cluster), "n2");
    let mut writer = open_writer(n1);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    n2.crash();
    writer.batch_execute("ROLLBACK").expect("end the writer");
    let failed = running.fails();
    assert_failed(
        &failed,
        "08006",
        "connection to node \"n2\" was lost",
        "Make the node reachable and run the same CALL again",
    );
    assert!(
        failed.hint().contains(&format!(
            "Could not be undone: \"create slot {slot}\" on node \"n2\""
        )),
        "{failed}"
    );
    before.assert_same_now(&reachable);
    let state = "SELECT state || ' ' || sqlstate FROM zodan.run ORDER BY id DESC LIMIT 1";
    assert_eq!(n3.value(state), "failed 08006");

    // It is back, with the slot.
    n2.boot();
    wait_mesh(&cluster.first(2));
    assert_mesh_works(&cluster);
    let there = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(n2.value(&there), "1");
    let called = assert_joins(&cluster);
    assert!(
        notices(&called).contains("cleaning up after the CALL spock.add_node for node \"n3\""),
        "{}",
        notices(&called)
    );
}

#[test]
fn join_is_undone_when_a_peer_restarts() {
    let cluster = scene();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let before = fingerprint(&cluster.all());
    let mut writer = open_writer(n1);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    n2.restart();
    writer.batch_execute("ROLLBACK").expect("end the writer");
    let failed = running.fails();
    assert!(
        ["08006", "57P01"].contains(&failed.code()) && failed.message().contains("node \"n2\""),
        "{failed}"
    );
    assert_undone(&cluster, &before, &failed);
    assert_joins(&cluster);
}

/// All connections to the source are reset while rows are being copied.
#[test]
fn join_is_undone_when_the_source_is_cut_off_during_the_copy() {
    let cluster = scene_with(|name| match name {
        "n1" => quick().proxy(),
        _ => quick(),
    });
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    for gate in ["data", "index"] {
        let before = fingerprint(&cluster.all());
        let gate = Gate::close(n3, gate);
        // A second worker might be about to connect, which is another error.
        let one = "SET zodan.copy_jobs = 1";
        let running = Running::start_after(n3, one, &call(&cluster));
        gate.wait();
        n1.sever();
        gate.open();
        let failed = running.fails();
        assert_eq!(failed.code(), "08006", "{failed}");
        assert!(failed.message().contains("node \"n1\""), "{failed}");
        wait_mesh(&cluster.first(2));
        assert_undone(&cluster, &before, &failed);
    }
    assert_joins(&cluster);
}

/// The network to the source is gone without a word, and somebody gives up waiting.
#[test]
fn ctrl_c_ends_the_wait_for_a_source_that_does_not_answer() {
    let cluster = scene_with(|name| match name {
        "n1" => quick().proxy(),
        _ => quick(),
    });
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let before = fingerprint(&[n3]);
    let slot = planned_slot(n3, &call(&cluster), "n1");
    let mut writer = open_writer(n1);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    n1.cut();
    let pid = running.pid;
    n3.wait_for(
        &format!(
            "SELECT wait_event IN ({WAITS_FOR_ANOTHER}) FROM pg_stat_activity WHERE pid = {pid}"
        ),
        "t",
    );
    let cancelled = Instant::now();
    running.cancel();
    // A Ctrl-C signals a backend twice; here the second signal surely comes when the first has been
    // answered, and must not end the undo.
    n3.wait_for(
        &format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}"),
        "",
    );
    running.cancel();
    let failed = running.fails();
    let took = cancelled.elapsed();
    assert_eq!(failed.code(), "57014", "{failed}");
    assert!(
        failed.hint().contains("Could not be undone: ")
            && failed
                .hint()
                .contains(&format!("\"create slot {slot}\" on node \"n1\"")),
        "{failed}"
    );
    // To settle the session, and to try a new one.
    assert!(took < Duration::from_secs(30), "it took {took:?}");
    before.assert_same_now(&[n3]);
    writer.batch_execute("ROLLBACK").expect("end the writer");
    n1.uncut();
    wait_mesh(&cluster.first(2));
    assert_joins(&cluster);
}

/// Cancels `running`, which must end promptly, with nothing left running anywhere.
fn cancelled(cluster: &Cluster, running: Running, when: &str) -> CallFailed {
    let started = Instant::now();
    running.cancel();
    let failed = running.fails();
    let took = started.elapsed();
    assert_eq!(failed.code(), "57014", "{when}: {failed}");
    assert_eq!(
        failed.message(),
        "canceling statement due to user request",
        "{when}: {failed}"
    );
    assert!(took < PROMPT, "{when}: it took {took:?}: {failed}");
    wait_no_sessions(&cluster.all());
    let took = started.elapsed();
    assert!(took < PROMPT, "{when}: sessions stayed for {took:?}");
    failed
}

/// Cancels `running` as [`cancelled`] does, and looks at what is left.
fn assert_cancelled(cluster: &Cluster, before: &Fingerprint, running: Running, when: &str) {
    let failed = cancelled(cluster, running, when);
    assert_undone(cluster, before, &failed);
}

fn fingerprint_of_quiet(cluster: &Cluster) -> Fingerprint {
    wait_quiet(&cluster.first(2));
    fingerprint(&cluster.all())
}

/// Who creates a slot for the product.
const CREATING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE state = 'active' AND application_name LIKE 'zodan%' AND query LIKE '%pg_create_logical_replication_slot%'";

#[test]
fn ctrl_c_before_the_copy_undoes_the_join() {
    let cluster = scene();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));

    // Phase 3: a writer of n2 is in the way of its slot; it has been named, or is waited for remotely.
    let before = fingerprint(&cluster.all());
    let mut writer = open_writer(n2);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n2\"");
    assert_cancelled(&cluster, &before, running, "phase 3, waiting");
    let before = fingerprint(&cluster.all());
    let running = Running::start_after(n3, "SET zodan.slot_timeout = '60s'", &call(&cluster));
    n2.wait_for(CREATING, "1");
    assert_cancelled(&cluster, &before, running, "phase 3, creating a slot");
    writer.batch_execute("ROLLBACK").expect("end the writer");

    // Phase 4: the source does not get on with what n2 has committed.
    let mut locker = n1.client_named("locker");
    locker
        .batch_execute("BEGIN; LOCK TABLE app.part IN EXCLUSIVE MODE")
        .expect("lock a table");
    n2.sql("DELETE FROM app.part WHERE id = 1");
    n1.wait_for(
        "SELECT count(*) FROM pg_locks WHERE relation = 'app.part'::regclass AND NOT granted",
        "1",
    );
    let before = fingerprint(&cluster.all());
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("phase 4 of 9");
    n2.wait_for("SELECT count(*) FROM zodan.marker", "1");
    let failed = cancelled(&cluster, running, "phase 4");
    before.assert_same_now(&cluster.all());
    locker.batch_execute("ROLLBACK").expect("unlock the table");
    let before = fingerprint_of_quiet(&cluster);
    assert_undone(&cluster, &before, &failed);

    // Phase 5: a writer of n1 is in the way.
    let before = fingerprint(&cluster.all());
    let mut writer = open_writer(n1);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    assert_cancelled(&cluster, &before, running, "phase 5");
    writer.batch_execute("ROLLBACK").expect("end the writer");
    assert_joins(&cluster);
}

#[test]
fn ctrl_c_during_the_copy_undoes_the_join() {
    let cluster = scene();
    let n3 = cluster.n(3);
    for name in ["data", "index"] {
        let gate = Gate::close(n3, name);
        let before = fingerprint(&cluster.all());
        let running = Running::start(n3, &call(&cluster));
        gate.wait();
        assert_cancelled(&cluster, &before, running, name);
        gate.open();
    }
    assert_joins(&cluster);
}

#[test]
fn ctrl_c_while_nodes_subscribe_undoes_the_join() {
    let cluster = scene();
    let n3 = cluster.n(3);
    let before = fingerprint(&cluster.all());
    let mut writer = open_writer(n3);
    let running = Running::start(n3, &call(&cluster));
    n3.wait_for(CREATING, "1");
    assert_cancelled(&cluster, &before, running, "phase 7");
    writer.batch_execute("ROLLBACK").expect("end the writer");
    assert_joins(&cluster);
}

/// How soon a cancel request is noticed, sending it included. It is at the beginning of the undo that a call
/// says so. The fastest of some: the machine may be busy with something else.
fn noticed(cluster: &Cluster, held: impl Fn() -> Running) -> Duration {
    (0..5)
        .map(|_| {
            let running = held();
            let started = Instant::now();
            running.cancel();
            running.wait_notice("failed, undoing: canceling statement due to user request");
            let took = started.elapsed();
            assert_eq!(running.fails().code(), "57014");
            wait_no_sessions(&cluster.all());
            took
        })
        .min()
        .expect("some")
}

/// Whatever is being waited for: another node, a program, a worker.
#[test]
fn ctrl_c_is_noticed_at_once() {
    const AT_ONCE: Duration = Duration::from_millis(100);
    let cluster = scene();
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let call = call(&cluster);
    let before = fingerprint(&cluster.all());
    let mut took = vec![];

    let mut writer = open_writer(n1);
    let waiting = noticed(&cluster, || {
        let running = Running::start(n3, &call);
        running.wait_notice("waiting for a write transaction on node \"n1\"");
        running
    });
    took.push(("a transaction on the source", waiting));
    writer.batch_execute("ROLLBACK").expect("end the writer");

    let mut writer = open_writer(n2);
    let creating = noticed(&cluster, || {
        let running = Running::start_after(n3, "SET zodan.slot_timeout = '60s'", &call);
        n2.wait_for(CREATING, "1");
        running
    });
    took.push(("a statement on a peer", creating));
    writer.batch_execute("ROLLBACK").expect("end the writer");

    for (gate, what) in [("data", "the copy workers"), ("index", "pg_restore")] {
        let gate = Gate::close(n3, gate);
        let copying = noticed(&cluster, || {
            let running = Running::start(n3, &call);
            gate.wait();
            running
        });
        took.push((what, copying));
        gate.open();
    }
    assert!(took.iter().all(|(_, took)| *took < AT_ONCE), "{took:?}");
    before.assert_same_now(&cluster.all());
}

/// The client may see the end of the connection before it has read why.
fn assert_terminated(server: &Server, running: Running) {
    let failed = running.fails();
    assert!(["57P01", ""].contains(&failed.code()), "{failed}");
    assert!(
        server
            .log()
            .contains("FATAL:  terminating connection due to administrator command"),
        "{failed}"
    );
}

/// The end of a killed run: its journal says that it still runs, and the next CALL cleans up and says so.
fn assert_cleaned_up_by_the_next(cluster: &Cluster) {
    let n3 = cluster.n(3);
    wait_no_sessions(&cluster.all());
    let runs = "SELECT string_agg(state, ' ' ORDER BY id) FROM zodan.run";
    assert_eq!(n3.value(runs), "running");
    wait_mesh(&cluster.first(2));
    assert_mesh_works(cluster);
    let called = assert_joins(cluster);
    let said = notices(&called);
    assert!(
        said.contains(
            "cleaning up after the CALL spock.add_node for node \"n3\" that was interrupted (run 1)"
        ),
        "{said}"
    );
    assert_eq!(n3.value(runs), "undone done");
}

#[test]
fn join_terminated_before_the_copy_is_undone_by_the_next_call() {
    let cluster = scene();
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let mut writer = open_writer(n1);
    let running = Running::start(n3, &call(&cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    n3.sql(&format!("SELECT pg_terminate_backend({})", running.pid));
    assert_terminated(n3, running);
    writer.batch_execute("ROLLBACK").expect("end the writer");
    assert_cleaned_up_by_the_next(&cluster);
}

#[test]
fn join_terminated_during_the_copy_is_undone_by_the_next_call() {
    let cluster = scene();
    let n3 = cluster.n(3);
    let gate = Gate::close(n3, "data");
    let running = Running::start(n3, &call(&cluster));
    gate.wait();
    n3.sql(&format!("SELECT pg_terminate_backend({})", running.pid));
    assert_terminated(n3, running);
    gate.open();
    assert_cleaned_up_by_the_next(&cluster);
}

/// SIGKILL: the server of the new node ends all its sessions and recovers.
#[test]
fn join_killed_during_the_copy_is_undone_by_the_next_call() {
    for gate in ["data", "index"] {
        let cluster = scene();
        let n3 = cluster.n(3);
        let gate = Gate::close(n3, gate);
        let running = Running::start(n3, &call(&cluster));
        gate.wait();
        n3.kill_backend(running.pid);
        assert!(running.join().is_err());
        n3.wait_for("SELECT 1", "1");
        set_gate(n3, gate.name, "open");
        assert_cleaned_up_by_the_next(&cluster);
    }
}

/// The new node is a member for everybody by now; only the proof was missing.
#[test]
fn join_killed_at_its_end_is_undone_by_the_next_call() {
    let cluster = scene();
    let (n2, n3) = (cluster.n(2), cluster.n(3));
    let gate = Gate::close(n3, "data");
    let running = Running::start(n3, &call(&cluster));
    gate.wait();
    // Markers of others do not arrive on n2.
    n2.sql(
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(4712); RETURN NEW; END';
         CREATE TRIGGER hold_up BEFORE INSERT ON zodan.marker FOR EACH ROW EXECUTE FUNCTION hold_up();
         ALTER TABLE zodan.marker ENABLE REPLICA TRIGGER hold_up",
    );
    let mut locker = n2.client_named("locker");
    locker
        .batch_execute("SELECT pg_advisory_lock(4712)")
        .expect("hold up the markers");
    gate.open();
    running.wait_notice("phase 9 of 9");
    n3.kill_backend(running.pid);
    assert!(running.join().is_err());
    locker
        .batch_execute("SELECT pg_advisory_unlock(4712)")
        .expect("let the markers pass");
    n2.sql("DROP FUNCTION hold_up CASCADE");
    n3.wait_for("SELECT 1", "1");
    wait_mesh(&cluster.all());
    wait_no_sessions(&cluster.all());
    assert_eq!(n3.value("SELECT state FROM zodan.run"), "running");
    let called = assert_joins(&cluster);
    let said = notices(&called);
    assert!(
        said.contains("cleaning up after the CALL spock.add_node"),
        "{said}"
    );
}

/// The new node's server loses its power, and the whole CALL with it.
#[test]
fn join_is_undone_by_the_next_call_when_the_new_node_crashes() {
    let cluster = scene();
    let n3 = cluster.n(3);
    let gate = Gate::close(n3, "data");
    let running = Running::start(n3, &call(&cluster));
    gate.wait();
    n3.crash();
    assert!(running.join().is_err());
    n3.boot();
    set_gate(n3, "data", "open");
    assert_cleaned_up_by_the_next(&cluster);
}

const PAUSED: &str = "SELECT count(*) FROM zodan.paused_subscription p
                        JOIN pg_subscription s ON s.subname = p.name WHERE NOT s.subenabled";
const WATCHDOGS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'zodan pause watchdog'";

/// Pauses apply on n1 as a join does, by hand, in the session that is returned.
fn pause_by_hand(n1: &Server, limit_ms: u32) -> Client {
    let mut session = n1.client_named("coordinator");
    session
        .batch_execute(&format!(
            "SELECT pg_advisory_lock(2054120560, pg_backend_pid());
             SELECT zodan.start_pause_watchdog(pg_backend_pid(), {limit_ms})"
        ))
        .expect("start the watchdog");
    session
        .batch_execute("SELECT zodan.pause_apply(ARRAY['sub_n2_n1'])")
        .expect("pause");
    session
}

/// Panics unless n1 applies again and has got what n2 wrote meanwhile.
fn assert_resumed(cluster: &Cluster, before: &Fingerprint) {
    let n1 = cluster.n(1);
    n1.wait_for(WATCHDOGS, "0");
    assert_eq!(
        n1.value("SELECT count(*) FROM zodan.paused_subscription"),
        "0"
    );
    before.assert_same_now(&cluster.all());
    wait_mesh(&cluster.first(2));
    assert_mesh_works(cluster);
}

#[test]
fn watchdog_resumes_apply_when_its_coordinator_is_gone() {
    let cluster = scene();
    let n1 = cluster.n(1);
    let before = fingerprint(&cluster.all());
    let session = pause_by_hand(n1, 600_000);
    assert_eq!(n1.value(PAUSED), "1");
    n1.wait_for(WATCHDOGS, "1");
    drop(session);
    n1.wait_for_within(PAUSED, "0", PROMPT);
    assert_resumed(&cluster, &before);

    // Ended by somebody else, without a goodbye.
    let before = fingerprint(&cluster.all());
    let _session = pause_by_hand(n1, 600_000);
    assert_eq!(n1.value(PAUSED), "1");
    n1.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'coordinator'");
    n1.wait_for_within(PAUSED, "0", PROMPT);
    assert_resumed(&cluster, &before);
}

#[test]
fn watchdog_resumes_apply_after_its_time_limit() {
    let cluster = scene();
    let n1 = cluster.n(1);
    let before = fingerprint(&cluster.all());
    let started = Instant::now();
    let mut session = pause_by_hand(n1, 700);
    assert_eq!(n1.value(PAUSED), "1");
    n1.wait_for_within(PAUSED, "0", PROMPT);
    let took = started.elapsed();
    assert!(
        took >= Duration::from_millis(600),
        "apply was resumed after {took:?} already"
    );
    // The coordinator lives, and sees that its pause was none.
    session
        .batch_execute("SELECT pg_advisory_unlock_all()")
        .expect("the session is there still");
    drop(session);
    assert_resumed(&cluster, &before);
}

/// Waits until the write transaction of [`open_writer`] is of an age at which a join waits for it.
fn old_enough(server: &Server) {
    server.wait_for(
        "SELECT clock_timestamp() > xact_start + interval '1 s' FROM pg_stat_activity WHERE application_name = 'writer'",
        "t",
    );
}

/// Holds a real join in the middle of its pause: the writer that it waits for ends, and a younger one, which
/// it does not know of, is in the way of the slot.
fn join_in_its_pause(cluster: &Cluster) -> (Running, Client) {
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let mut old = open_writer(n1);
    old_enough(n1);
    let running = Running::start_after(n3, "SET zodan.slot_timeout = '60s'", &call(cluster));
    running.wait_notice("waiting for a write transaction on node \"n1\"");
    let young = open_writer(n1);
    old.batch_execute("ROLLBACK").expect("end the old writer");
    n1.wait_for(PAUSED, "1");
    (running, young)
}

#[test]
fn apply_resumes_when_the_coordinator_is_killed_in_the_pause() {
    let cluster = scene();
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let (running, mut young) = join_in_its_pause(&cluster);
    n1.wait_for(WATCHDOGS, "1");
    let killed = Instant::now();
    n3.kill_backend(running.pid);
    assert!(running.join().is_err());
    n1.wait_for_within(PAUSED, "0", PROMPT);
    let took = killed.elapsed();
    assert!(took < PROMPT, "apply was paused for {took:?} more");
    // What n2 writes arrives on n1, while the writer that was in the way is still there.
    wait_mesh(&cluster.first(2));
    wait_quiet(&cluster.first(2));
    young
        .batch_execute("ROLLBACK")
        .expect("end the young writer");
    n3.wait_for("SELECT 1", "1");
    assert_cleaned_up_by_the_next(&cluster);
}

#[test]
fn ctrl_c_during_the_pause_resumes_apply() {
    let cluster = scene();
    let n1 = cluster.n(1);
    let before = fingerprint(&cluster.all());
    let (running, mut young) = join_in_its_pause(&cluster);
    assert_cancelled(&cluster, &before, running, "the pause");
    assert_eq!(n1.value(PAUSED), "0");
    young
        .batch_execute("ROLLBACK")
        .expect("end the young writer");
    assert_joins(&cluster);
}

/// The source's server crashes in the pause: nobody there is left to resume, so the next CALL does it, and the
/// failed one says so.
#[test]
fn next_call_resumes_apply_when_the_source_crashed_in_the_pause() {
    let cluster = scene();
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    let (running, _young) = join_in_its_pause(&cluster);
    n1.crash();
    let failed = running.fails();
    assert_failed(
        &failed,
        "08006",
        "connection to node \"n1\" was lost",
        "\"pause apply for the moment of the snapshot\" on node \"n1\"",
    );
    n1.boot();
    let deadline = Instant::now() + PATIENCE;
    while let Err(failed) = n3.call(&call(&cluster)) {
        assert!(Instant::now() < deadline, "{failed}");
    }
    wait_mesh(&cluster.all());
    wait_quiet(&cluster.all());
    assert_same_content(&cluster.all());
}

/// The node of the CALL is lost too, and its journal with it: the node worker of the source is who resumes.
#[test]
fn node_worker_resumes_apply_when_source_and_coordinator_crashed() {
    let cluster = scene_with(|name| match name {
        "n1" => quick().set("shared_preload_libraries", "zodan"),
        _ => quick(),
    });
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    let (running, _young) = join_in_its_pause(&cluster);
    n3.crash();
    n1.crash();
    assert!(running.join().is_err());
    n1.boot();
    n1.wait_for(PAUSED, "0");
    n1.wait_for(
        "SELECT string_agg(subname, ' ') FROM pg_subscription WHERE subenabled",
        "sub_n2_n1",
    );
    wait_mesh(&[n1, n2]);
    n2.sql("INSERT INTO app.item VALUES (9001)");
    n1.wait_for("SELECT count(*) FROM app.item WHERE id = 9001", "1");
}
