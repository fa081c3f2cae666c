//! A server has several databases, each perhaps a node of another cluster with the same node names. What one cluster
//! does, no other feels.

mod common;

use common::plan::planned_slot;
use common::{Call, Hang, assert_failed, quick, wait_mesh};
use lab::postgres::{self, Client};
use lab::server::{PATIENCE, quote_ident};
use lab::{CallFailed, Cluster, Server, ServerOptions, quote_literal};
use std::thread;
use std::time::Instant;

/// One database of a server.
#[derive(Clone, Copy)]
struct Database<'a> {
    server: &'a Server,
    name: &'a str,
}

impl<'a> Database<'a> {
    fn dsn(self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname='{}'",
            self.server.port(),
            self.name
        )
    }

    fn client(self) -> Client {
        self.server.client_as("postgres", self.name)
    }

    fn run(self, sql: &str) -> Result<(), postgres::Error> {
        self.client().batch_execute(sql)
    }

    fn sql(self, sql: &str) {
        let place = format!("{} of {}", self.name, self.server.name());
        self.run(sql)
            .unwrap_or_else(|e| panic!("{place}: {}\n{sql}", lab::explain(&e)));
    }

    fn value(self, query: &str) -> String {
        let rows = self.client().simple_query(query).expect(query);
        let row = rows.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
            _ => None,
        });
        row.unwrap_or_default()
    }

    fn wait_for(self, query: &str, want: &str) {
        let begun = Instant::now();
        loop {
            let value = self.value(query);
            if value == want {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of {}: {query}: {value}, not {want}",
                self.name,
                self.server.name()
            );
            thread::sleep(common::POLL);
        }
    }

    fn joins(self, source: Database) {
        self.sql(&self.join_of(source));
    }

    fn join_of(self, source: Database) -> String {
        format!(
            "CALL spock.add_node('{}', {}, '{}', {})",
            source.server.name(),
            quote_literal(&source.dsn()),
            self.server.name(),
            quote_literal(&self.dsn())
        )
    }
}

/// Does the same in all databases, at the same time.
fn at_once(databases: &[&str], work: impl Fn(&str) + Sync) {
    thread::scope(|scope| {
        for database in databases {
            scope.spawn(|| work(database));
        }
    });
}

/// Three nodes in each of the databases.
fn meshes(cluster: &Cluster, databases: &[&'static str]) {
    for server in cluster.all() {
        for database in databases {
            server.sql(&format!("CREATE DATABASE {}", quote_ident(database)));
            at(server, database).sql("CREATE EXTENSION zodan");
        }
    }
    at_once(databases, |database| {
        let [n1, n2, n3] = [1, 2, 3].map(|i| at(cluster.n(i), database));
        n1.sql(
            "CREATE TABLE t (id int PRIMARY KEY, node text); INSERT INTO t SELECT i, 'n1' FROM generate_series(1, 1000) i",
        );
        n2.joins(n1);
        n3.joins(n2);
    });
}

fn at<'a>(server: &'a Server, name: &'a str) -> Database<'a> {
    Database { server, name }
}

const CONTENT: &str = "SELECT count(*) || ' ' || coalesce(sum(hashtext(t::text)), 0) FROM t";

/// A row written on each of the nodes is on all of them in the end.
fn assert_replicates(nodes: &[Database], round: i32) {
    for (i, node) in nodes.iter().enumerate() {
        let id = round * 10 + i as i32;
        node.sql(&format!("INSERT INTO t VALUES ({id}, '{}')", node.name));
    }
    for node in nodes {
        let count = format!("SELECT count(*) FROM t WHERE id / 10 = {round}");
        node.wait_for(&count, &nodes.len().to_string());
    }
    for node in &nodes[1..] {
        assert_eq!(node.value(CONTENT), nodes[0].value(CONTENT));
    }
}

const SLOTS: &str =
    "SELECT string_agg(database || ' ' || regexp_replace(slot_name, '([0-9a-f]{8}){1,2}$', 'HASH'), ', '
    ORDER BY database COLLATE \"C\", slot_name COLLATE \"C\") FROM pg_replication_slots";

/// `my-db` and `my_db` differ in a character that names of slots do not have.
const DATABASES: [&str; 3] = ["my-db", "my_db", "shop"];

#[test]
fn clusters_on_the_same_servers_do_not_disturb_each_other() {
    let options = quick().set("shared_preload_libraries", "zodan");
    let cluster = Cluster::start_with(3, &options);
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    meshes(&cluster, &DATABASES);
    for database in DATABASES {
        let nodes = [n1, n2, n3].map(|server| at(server, database));
        assert_replicates(&nodes, 1000);
        for node in nodes {
            let kept = "SELECT count(*) FROM zodan.recovery_status WHERE retained_from IS NOT NULL";
            node.wait_for(kept, "2");
        }
    }
    assert_eq!(
        n1.value(SLOTS),
        "my-db spk_recovery_my_db_HASH, my-db sub_n1_n2_my_db_HASH, my-db sub_n1_n3_my_db_HASH, \
         my_db spk_recovery_my_db, my_db sub_n1_n2_my_db_HASH, my_db sub_n1_n3_my_db_HASH, \
         shop spk_recovery_shop, shop sub_n1_n2_shop_HASH, shop sub_n1_n3_shop_HASH"
    );
    let copies = "SELECT string_agg(slot_name, ', ' ORDER BY 1) FROM pg_replication_slots WHERE slot_name LIKE '%clone%'";

    // n3 dies. n2 lacks something of it in two of the databases, and in each another thing is done about that.
    for database in ["my_db", "shop"] {
        at(n2, database).sql("ALTER SUBSCRIPTION sub_n3_n2 DISABLE");
        at(n3, database).sql("INSERT INTO t SELECT i, 'late' FROM generate_series(20000, 20099) i");
        at(n1, database).wait_for("SELECT count(*) FROM t WHERE node = 'late'", "100");
    }
    n3.crash();
    for database in ["my_db", "shop"] {
        at(n2, database).sql("ALTER SUBSCRIPTION sub_n3_n2 ENABLE");
    }
    at_once(&DATABASES, |database| {
        let call = match database {
            "my-db" => "CALL spock.remove_node('n3')",
            _ => "CALL spock.recover_run('n3')",
        };
        at(n1, database).sql(call);
    });
    for database in ["my_db", "shop"] {
        let late = "SELECT count(*) FROM t WHERE node = 'late'";
        assert_eq!(at(n2, database).value(late), "100");
    }
    assert_eq!(n1.value(copies), "");
    assert_eq!(
        n1.value(SLOTS),
        "my-db spk_recovery_my_db_HASH, my-db sub_n1_n2_my_db_HASH, \
         my_db spk_recovery_my_db, my_db sub_n1_n2_my_db_HASH, my_db sub_n1_n3_my_db_HASH, \
         shop spk_recovery_shop, shop sub_n1_n2_shop_HASH, shop sub_n1_n3_shop_HASH"
    );
    assert_replicates(&[at(n1, "my-db"), at(n2, "my-db")], 1001);

    // Where it was not removed it goes on when it is back.
    n3.boot();
    for database in ["my_db", "shop"] {
        assert_replicates(&[n1, n2, n3].map(|server| at(server, database)), 1002);
    }
    // One cluster is taken down, and the others do not notice.
    at_once(&["my_db"], |database| {
        at(n1, database).sql("CALL spock.remove_node('n3')");
        at(n1, database).sql("CALL spock.remove_node('n2')");
    });
    assert_replicates(&[n1, n2, n3].map(|server| at(server, "shop")), 1003);
    assert_replicates(&[at(n1, "my-db"), at(n2, "my-db")], 1003);
}

/// What has the name of a leftover, and is of another database.
#[test]
fn leftover_slots_of_another_database_are_reported_and_kept() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (id int PRIMARY KEY)");
    let (n1, n3) = (cluster.n(1), cluster.n(3));
    wait_mesh(&[n1, cluster.n(2)]);
    n1.sql("CREATE DATABASE crm");
    let slot = planned_slot(n3, &Call::of(n3, n1).sql(), "n1");
    at(n1, "crm").sql(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ));
    let there = format!("SELECT database FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_failed(
        &Call::of(n3, n1).fails_on(n3),
        "42710",
        &format!(
            "node \"n1\": replication slot {slot} exists already: of database \"crm\", read by nobody at the moment"
        ),
        "this one is somebody else's: give the new node another name.",
    );
    assert_eq!(n1.value(&there), "crm");
    // n3 becomes a node with another one.
    let mut other = Call::of(n3, n1);
    other.new_node_name = Some("n9".into());
    n3.call(&other.sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    let failed = n1.sql_error("CALL spock.remove_node('n3')");
    assert_eq!(failed.code(), "42704", "{failed}");
    assert_eq!(n1.value(&there), "crm");
}

/// A mesh of n1 and n2, and n3 to be added; the CALL of that hangs at a point.
fn held<'a>(cluster: &'a Cluster, point: &str) -> (Hang<'a>, common::Running) {
    let n3 = cluster.n(3);
    Hang::start(n3, "", point, &Call::of(n3, cluster.n(1)).sql())
}

fn assert_slot_refused(failed: &CallFailed, slot: &str) {
    assert_failed(
        failed,
        "42710",
        &format!(
            "node \"n2\": replication slot {slot} exists already: of this database, read by nobody at the moment"
        ),
        "It was not made by this run, so it is not touched.",
    );
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
}

/// Somebody makes a thing of the name that the run is about to use, between the checks and that.
#[test]
fn undo_keeps_what_somebody_else_made_meanwhile() {
    let cluster = Cluster::start_with(3, &quick());
    cluster.form_mesh(2, "CREATE TABLE t (id int PRIMARY KEY)");
    let (n1, n2, n3) = (cluster.n(1), cluster.n(2), cluster.n(3));
    wait_mesh(&[n1, n2]);

    let slot = planned_slot(n3, &Call::of(n3, n1).sql(), "n2");
    let by_hand = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let stays = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    let (hang, call) = held(&cluster, "3 before create slot sub_n2_n3_postgres on n2");
    n2.sql(&by_hand);
    hang.release();
    assert_slot_refused(&call.fails(), &slot);
    assert_eq!(n2.value(&stays), "1");
    n2.sql(&drop);

    // The same where the session is killed then: the next CALL cleans up.
    let (hang, call) = held(&cluster, "3 before create slot sub_n2_n3_postgres on n2");
    n2.sql(&by_hand);
    n3.sql(&format!("SELECT pg_terminate_backend({}, 10000)", call.pid));
    call.ends_terminated();
    hang.release();
    assert_slot_refused(&Call::of(n3, n1).fails_on(n3), &slot);
    assert_eq!(n2.value(&stays), "1");
    n2.sql(&drop);

    let (hang, call) = held(&cluster, "8 before subscribe to \"n3\" on n2");
    n2.sql(
        "CREATE SUBSCRIPTION sub_n3_n2 CONNECTION 'host=127.0.0.1 port=1' PUBLICATION other
           WITH (connect = false, slot_name = NONE)",
    );
    hang.release();
    let failed = call.fails();
    assert_eq!(failed.code(), "42710", "{failed}");
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    let publications = "SELECT subpublications FROM pg_subscription WHERE subname = 'sub_n3_n2'";
    assert_eq!(n2.value(publications), "{other}");
    assert_eq!(n1.value("SELECT count(*) FROM pg_subscription"), "1");
    n2.sql("DROP SUBSCRIPTION sub_n3_n2");
    n3.call(&Call::of(n3, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    wait_mesh(&cluster.all());
}

#[test]
fn publication_of_somebody_else_is_kept() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let point = "3 before make \"n1\" the first node of a cluster on n1";
    let (hang, call) = Hang::start(n2, "", point, &Call::of(n2, n1).sql());
    n1.sql("CREATE PUBLICATION zodan FOR TABLE t");
    hang.release();
    let failed = call.fails();
    assert_eq!(failed.code(), "42710", "{failed}");
    assert_eq!(n1.value("SELECT puballtables FROM pg_publication"), "f");
}

/// How often a node worker has been started, by the log of the server.
fn node_workers_started(server: &Server) -> usize {
    let text = "registering background worker \"zodan node worker\"";
    let log = server.log();
    log.lines()
        .filter(|line| line.contains(text) && !line.contains("unregistering"))
        .count()
}

fn talkative(database: &str) -> ServerOptions {
    quick().database(database).set("log_min_messages", "debug1")
}

/// Nobody but a node has a process of zodan in its database, and there need be no database `postgres`.
#[test]
fn launcher_keeps_no_database_from_being_dropped() {
    let options = talkative("inventory").set("shared_preload_libraries", "zodan");
    let cluster = Cluster::start_with(2, &options);
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    for i in 1..=5 {
        n1.sql(&format!("CREATE DATABASE other{i}"));
    }
    for server in [n1, n2] {
        server.sql("DROP DATABASE postgres");
        server.restart();
        let launcher = "SELECT string_agg(coalesce(datname, 'none'), ' ') FROM pg_stat_activity
                         WHERE backend_type = 'zodan launcher'";
        server.wait_for(launcher, "none");
    }
    n2.call(&Call::of(n2, n1).sql())
        .unwrap_or_else(|failed| panic!("{failed}"));
    for server in [n1, n2] {
        server.wait_for(
            "SELECT slot_name FROM zodan.recovery_status",
            "spk_recovery_inventory",
        );
        assert_eq!(node_workers_started(server), 1, "{}", server.name());
    }
    n1.sql("CREATE DATABASE copy TEMPLATE other1");
    n1.sql("DROP DATABASE other1");

    // One that has left can be dropped at once.
    n2.call("CALL spock.remove_node('n2')")
        .unwrap_or_else(|failed| panic!("{failed}"));
    let mut admin = n2.client_as("postgres", "template1");
    admin
        .batch_execute("DROP DATABASE inventory")
        .unwrap_or_else(|e| panic!("{}", lab::explain(&e)));
    // A fast shutdown ends all.
    for server in [n1, n2] {
        server.stop();
        assert!(!server.log().contains("PANIC"), "{}", server.log());
    }
}

#[test]
fn node_worker_of_a_dropped_database_ends() {
    let cluster = Cluster::start_with(2, &talkative("inventory"));
    cluster.form_mesh(2, "");
    let n2 = cluster.n(2);
    let oid = n2.value("SELECT oid FROM pg_database WHERE datname = current_database()");
    let worker = n2.value("SELECT zodan.start_node_worker()");
    assert_eq!(n2.value("SELECT zodan.start_node_worker()"), worker);
    n2.wait_for("SELECT count(*) FROM zodan.recovery_status", "1");
    n2.sql("SELECT zodan.drop_subscription('sub_n1_n2')");
    let mut admin = n2.client_as("postgres", "template1");
    cluster
        .n(1)
        .sql("SELECT zodan.drop_subscription('sub_n2_n1')");
    // The slot may still have its reader.
    let begun = Instant::now();
    while let Err(error) = admin.batch_execute("DROP DATABASE inventory WITH (FORCE)") {
        assert!(begun.elapsed() < PATIENCE, "{}", lab::explain(&error));
        thread::sleep(common::POLL);
    }
    let unregistered = "unregistering background worker \"zodan node worker\"";
    while !n2.log().contains(unregistered) {
        assert!(begun.elapsed() < PATIENCE, "{}", n2.log());
        thread::sleep(common::POLL);
    }
    // By its number: the name may not have been there yet when the server had just been started.
    let gone = format!("FATAL:  database {oid} does not exist");
    assert!(!n2.log().contains(&gone), "{}", n2.log());
}

/// The launcher has lost sight of a node worker: there is still one alone.
#[test]
fn database_has_one_node_worker_when_the_launcher_restarts() {
    let options = talkative("inventory")
        .set("shared_preload_libraries", "zodan")
        .set("zodan.recovery_slots", "off");
    let cluster = Cluster::start_with(2, &options);
    cluster.form_mesh(2, "");
    let n1 = cluster.n(1);
    assert_eq!(node_workers_started(n1), 0);
    n1.configure("zodan.recovery_slots", "on");
    n1.reload();
    let workers = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type = 'zodan node worker'";
    n1.wait_for("SELECT count(*) FROM zodan.recovery_status", "1");
    let worker = n1.value(workers);
    n1.sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'zodan launcher'",
    );
    let begun = Instant::now();
    while node_workers_started(n1) < 2 {
        assert!(begun.elapsed() < PATIENCE, "{}", n1.log());
        thread::sleep(common::POLL);
    }
    n1.wait_for(workers, &worker);
    assert_eq!(n1.value("SELECT zodan.start_node_worker()"), worker);
}
