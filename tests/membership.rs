//! One membership for all: every member has the same registry, with a generation that grows by one with each
//! change. Only a majority changes it, and who was away catches up.

mod common;

use common::{assert_failed, fingerprint, quick, wait_mesh, wait_no_sessions};
use lab::{Cluster, Network, Server, ServerOptions, add_node, assert_same_content, wait_quiet};

const CONTENT: &str = "CREATE TABLE item (id integer PRIMARY KEY, node text NOT NULL)";

const GENERATION: &str = "SELECT generation FROM zodan.membership";

/// Everything that a registry says.
const REGISTRY: &str = "SELECT registry::text FROM zodan.registry()";

/// Servers on which a lost network is noticed soon.
fn alert() -> ServerOptions {
    quick()
        .set("zodan.connect_timeout", "1s")
        .set("wal_receiver_timeout", "2s")
        .set("wal_sender_timeout", "2s")
}

fn mesh(members: usize, extra: usize) -> Cluster {
    let cluster = Cluster::start_with(members + extra, &quick());
    cluster.form_mesh(members, CONTENT);
    wait_mesh(&cluster.first(members));
    cluster
}

fn generation(server: &Server) -> u64 {
    let text = server.value(GENERATION);
    text.parse().unwrap_or_else(|_| panic!("{text:?}"))
}

/// Panics unless all have the very same registry, of this generation and with these members.
fn assert_one_registry(servers: &[&Server], generation: u64, members: &str) {
    let first = servers[0].value(REGISTRY);
    for server in servers {
        assert_eq!(server.value(GENERATION), generation.to_string());
        assert_eq!(
            server.value("SELECT string_agg(node_name, ' ') FROM spock.get_nodes()"),
            members
        );
        assert_eq!(server.value(REGISTRY), first, "{}", server.name());
    }
}

fn remove(target: &str, force: bool) -> String {
    format!("CALL spock.remove_node('{target}', force := {force})")
}

fn call(server: &Server, sql: &str) {
    server.call(sql).unwrap_or_else(|failed| panic!("{failed}"));
}

/// A row of each arrives on every other.
fn assert_replicates(servers: &[&Server], round: i32) {
    for (i, server) in servers.iter().enumerate() {
        server.sql(&format!(
            "INSERT INTO item VALUES ({round}{i}, '{}')",
            server.name()
        ));
    }
    wait_quiet(servers);
    assert_same_content(servers);
}

#[test]
fn membership_changes_give_every_member_the_same_generation() {
    let cluster = mesh(3, 1);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    assert_one_registry(&[n1, n2, n3], 3, "n1 n2 n3");
    let numbers = "SELECT string_agg(name || number, ' ' ORDER BY name) FROM zodan.node";
    assert_eq!(n3.value(numbers), "n10 n21 n32");
    call(n2, &remove("n3", false));
    assert_one_registry(&[n1, n2], 4, "n1 n2");
    assert_eq!(n3.value(GENERATION), "");
    add_node(n4, "n4", n2, "n2").unwrap_or_else(|failed| panic!("{failed}"));
    assert_one_registry(&[n1, n2, n4], 5, "n1 n2 n4");
    // The number of a node that has left is not given again.
    assert_eq!(n1.value(numbers), "n10 n21 n43");
    call(n4, &remove("n4", false));
    call(n1, &remove("n2", false));
    assert_one_registry(&[n1], 7, "n1");
}

#[test]
fn undone_join_leaves_the_same_registry_everywhere() {
    let cluster = mesh(2, 1);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    // The changes of the new node do not arrive on n2, which is noticed when it has been registered.
    n2.sql(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'nothing from %', NEW.node; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON zodan.marker FOR EACH ROW WHEN (NEW.node = 'n3')
             EXECUTE FUNCTION public.refuse();
         ALTER TABLE zodan.marker ENABLE ALWAYS TRIGGER refuse",
    );
    let before = fingerprint(&cluster.all());
    let failed = add_node(n3, "n3", n1, "n1").expect_err("n2 refuses");
    assert_failed(
        &failed,
        "55000",
        "subscription sub_n3_n2 of node \"n2\" keeps failing on the same change",
        "The log of the subscriber says why",
    );
    before.assert_same_now(&cluster.all());
    assert_one_registry(&[n1, n2], 4, "n1 n2");
    n2.sql("DROP TRIGGER refuse ON zodan.marker; DROP FUNCTION public.refuse()");
    add_node(n3, "n3", n1, "n1").unwrap_or_else(|failed| panic!("{failed}"));
    assert_one_registry(&[n1, n2, n3], 5, "n1 n2 n3");
}

/// n4 and n5 on one side, the other three on the other.
#[test]
fn minority_is_refused_and_catches_up_with_the_majority() {
    let network = Network::start(6, |name| match name {
        "n4" => alert().set("shared_preload_libraries", "zodan"),
        _ => alert(),
    });
    let cluster = &network.cluster;
    cluster.create_extension();
    let [n1, n2, n3, n4, n5, n6] = [1, 2, 3, 4, 5, 6].map(|i| cluster.n(i));
    n1.sql(lab::quiet::SCHEMA);
    n1.sql(CONTENT);
    for new in [n2, n3, n4, n5] {
        network
            .add_node(new, n1)
            .unwrap_or_else(|failed| panic!("{failed}"));
    }
    wait_mesh(&cluster.first(5));
    assert_one_registry(&cluster.first(5), 5, "n1 n2 n3 n4 n5");
    network.part(&["n4", "n5", "n6"]);

    let minority = [
        n4.sql_error(&remove("n1", false)),
        n4.sql_error(&remove("n1", true)),
        n5.sql_error(&remove("n4", true)),
        n5.sql_error(&remove("n5", false)),
        network.add_node(n6, n4).expect_err("it is a minority"),
    ];
    for failed in &minority {
        assert_failed(
            failed,
            "ZD001",
            "cannot reach a majority: 2 of 5 members reachable",
            "run it where most of them are",
        );
        for away in ["n1", "n2", "n3"] {
            let told = format!("Node \"{away}\": could not connect to node \"{away}\"");
            assert!(failed.detail().contains(&told), "{failed}");
        }
    }
    assert_one_registry(&cluster.first(5), 5, "n1 n2 n3 n4 n5");

    for node in [n1, n2, n3] {
        node.wait_for(
            "SELECT count(*) FROM pg_stat_subscription
              WHERE subname ~ '_n[45]_|sub_n[45]' AND received_lsn IS NOT NULL",
            "0",
        );
    }
    let refused = n1.sql_error(&remove("n5", false));
    assert_eq!(refused.code(), "08001", "{refused}");
    call(n1, &remove("n5", true));
    assert_one_registry(&[n1, n2, n3], 6, "n1 n2 n3 n4");
    assert_one_registry(&[n4, n5], 5, "n1 n2 n3 n4 n5");

    network.heal();
    // By its background worker.
    n4.wait_for(GENERATION, "6");
    n4.wait_for(
        "SELECT count(*) FROM pg_subscription WHERE subname = 'sub_n5_n4'",
        "0",
    );
    n4.wait_for(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'sub_n4_n5_%'",
        "0",
    );
    for node in [n1, n2, n3] {
        node.wait_for("SELECT count(*) FROM zodan.pending_cleanup", "0");
    }
    let members = [n1, n2, n3, n4];
    assert_one_registry(&members, 6, "n1 n2 n3 n4");
    wait_mesh(&members);
    assert_replicates(&members, 1);
    // n5 still takes itself for a member, and does no harm.
    for refused in [
        n5.sql_error(&remove("n1", true)),
        n5.sql_error("CALL spock.recover_run('n1')"),
        network.add_node(n6, n5).expect_err("n5 is no member"),
    ] {
        assert_failed(
            &refused,
            "55000",
            "node \"n5\" was removed from the cluster while it was away",
            "CALL spock.remove_node('n5') makes it a database like any other",
        );
    }
    assert_one_registry(&members, 6, "n1 n2 n3 n4");
    call(n5, &remove("n5", false));
    assert_eq!(n5.value(GENERATION), "");
    network
        .add_node(n6, n4)
        .unwrap_or_else(|failed| panic!("{failed}"));
    assert_one_registry(&[n1, n2, n3, n4, n6], 7, "n1 n2 n3 n4 n6");
}

/// n3 is down while n4 leaves; what it calls next knows better than its own registry.
#[test]
fn member_that_was_down_catches_up_by_its_own_next_call() {
    let cluster = mesh(4, 1);
    let [n1, n2, n3, n4, n5] = [1, 2, 3, 4, 5].map(|i| cluster.n(i));
    n3.stop();
    call(n1, &remove("n4", true));
    assert_one_registry(&[n1, n2], 5, "n1 n2 n3");
    n3.boot();
    assert_eq!(generation(n3), 4);
    wait_mesh_of(n3, 2);
    add_node(n5, "n5", n3, "n3").unwrap_or_else(|failed| panic!("{failed}"));
    let members = [n1, n2, n3, n5];
    assert_one_registry(&members, 6, "n1 n2 n3 n5");
    wait_mesh(&members);
    for node in members {
        assert_eq!(
            node.value("SELECT count(*) FROM zodan.pending_cleanup"),
            "0"
        );
        assert_eq!(node.value("SELECT count(*) FROM pg_subscription"), "3");
        assert_eq!(node.value("SELECT count(*) FROM pg_replication_slots"), "3");
    }
    assert_replicates(&members, 1);
    assert_eq!(n4.value("SELECT count(*) FROM zodan.local_node"), "0");
}

fn wait_mesh_of(server: &Server, connected: usize) {
    server.wait_for(
        "SELECT count(*) FROM pg_stat_subscription WHERE received_lsn IS NOT NULL AND relid IS NULL",
        &connected.to_string(),
    );
}

/// The same by a call of another member, and with a change that n3 knows nothing of at all.
#[test]
fn member_that_was_down_catches_up_by_the_next_call_of_another() {
    let cluster = mesh(5, 0);
    let [n1, n2, n3, n4, n5] = [1, 2, 3, 4, 5].map(|i| cluster.n(i));
    n3.stop();
    call(n1, &remove("n4", true));
    call(n2, &remove("n5", true));
    assert_one_registry(&[n1, n2], 7, "n1 n2 n3");
    n3.boot();
    for node in [n1, n2] {
        wait_mesh_of(node, 2);
    }
    let said = n1
        .call(&remove("n4", false))
        .unwrap_or_else(|failed| panic!("{failed}"));
    let said: Vec<&str> = said.notices.iter().map(|n| n.message.as_str()).collect();
    for gone in ["n4", "n5"] {
        let told = format!("cleaned up \"{gone}\" on node \"n3\"");
        assert!(said.contains(&told.as_str()), "{said:?}");
    }
    assert_one_registry(&[n1, n2, n3], 7, "n1 n2 n3");
    wait_mesh(&[n1, n2, n3]);
    for node in [n1, n2, n3] {
        assert_eq!(
            node.value("SELECT count(*) FROM zodan.pending_cleanup"),
            "0"
        );
    }
    for node in [n4, n5] {
        assert_eq!(node.value("SELECT count(*) FROM zodan.local_node"), "0");
    }
}

/// Who noted what n4 owes is away when it is back: it learns of the removal from n5, which had been away as well.
#[test]
fn member_that_was_down_catches_up_without_a_note_of_its_cleanup() {
    let cluster = mesh(5, 0);
    let [n1, n2, n4, n5] = [1, 2, 4, 5].map(|i| cluster.n(i));
    n4.stop();
    n5.stop();
    call(n1, &remove("n3", true));
    let owed = "SELECT string_agg(DISTINCT member, ' ' ORDER BY member) FROM zodan.pending_cleanup";
    assert_eq!([n1, n2].map(|n| n.value(owed)), ["n4 n5", "n4 n5"]);
    n5.boot();
    assert_eq!(n5.value("SELECT zodan.start_node_worker() > 0"), "t");
    for node in [n1, n2] {
        node.wait_for(owed, "n4");
    }
    assert_one_registry(&[n1, n2, n5], 6, "n1 n2 n4 n5");
    assert_eq!(n5.value(owed), "");
    n1.stop();
    n2.stop();
    n4.boot();
    assert_eq!(n4.value("SELECT zodan.start_node_worker() > 0"), "t");
    n4.wait_for(GENERATION, "6");
    assert_one_registry(&[n4, n5], 6, "n1 n2 n4 n5");
    for left in [
        "SELECT count(*) FROM pg_subscription WHERE subname = 'sub_n3_n4'",
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'sub_n4_n3_%'",
    ] {
        assert_eq!(n4.value(left), "0");
    }
    n1.boot();
    n2.boot();
    for node in [n1, n2] {
        node.wait_for("SELECT count(*) FROM zodan.pending_cleanup", "0");
    }
    let members = [n1, n2, n4, n5];
    wait_mesh(&members);
    assert_replicates(&members, 1);
}

/// Of two nodes one has died, and the other cannot know that it has.
#[test]
fn removal_of_the_dead_one_of_two_nodes_needs_force() {
    let cluster = mesh(2, 0);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.crash();
    wait_mesh_of(n1, 0);
    let refused = n1.sql_error(&remove("n2", false));
    assert_failed(
        &refused,
        "ZD001",
        "cannot reach a majority: 1 of 2 members reachable",
        "with force := true half of the members are enough",
    );
    assert_one_registry(&[n1], 2, "n1 n2");
    call(n1, &remove("n2", true));
    assert_one_registry(&[n1], 3, "n1");
    n2.boot();
    assert_failed(
        &n2.sql_error(&remove("n1", true)),
        "55000",
        "node \"n2\" was removed from the cluster while it was away",
        "CALL spock.remove_node('n2')",
    );
    call(n2, &remove("n2", false));
    assert_eq!(n2.value("SELECT count(*) FROM zodan.node"), "0");
    assert_one_registry(&[n1], 3, "n1");
}

/// Most members are lost for good.
#[test]
fn removal_without_a_majority_is_refused_unless_allowed() {
    let cluster = mesh(3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    n2.crash();
    n3.crash();
    wait_mesh_of(n1, 0);
    assert_eq!(n1.sql_error(&remove("n2", true)).code(), "ZD001");
    let mut client = n1.client();
    let off = "SET zodan.require_majority = off";
    client.batch_execute(off).expect("set it");
    client
        .batch_execute(&remove("n2", true))
        .expect("it is off");
    assert_one_registry(&[n1], 4, "n1 n3");
    client
        .batch_execute(&remove("n3", false))
        .expect("it is off");
    assert_one_registry(&[n1], 5, "n1");
}

/// A change that reached one member only, because who made it died: the next call brings it to all.
#[test]
fn membership_change_on_one_member_only_is_completed_by_the_next_call() {
    let cluster = mesh(3, 0);
    let [n1, n2, n3] = [1, 2, 3].map(|i| cluster.n(i));
    let next = "SELECT zodan.apply_registry(jsonb_set(jsonb_set(registry, '{generation}', '4'), '{changed_at}',
                    to_jsonb((registry ->> 'changed_at')::bigint + 1))) FROM zodan.registry()";
    assert_eq!(n2.value(next), "t");
    assert_eq!((generation(n1), generation(n2)), (3, 4));
    // A registry never goes back.
    let old = n1.value(REGISTRY);
    let adopt = format!("SELECT zodan.apply_registry({})", lab::quote_literal(&old));
    assert_eq!(n2.value(&adopt), "f");
    assert_failed(
        &n1.sql_error(&remove("n9", false)),
        "42704",
        "which is not a node of this cluster",
        "The nodes are: n1, n2, n3.",
    );
    assert_one_registry(&[n1, n2, n3], 4, "n1 n2 n3");
    call(n3, &remove("n3", false));
    assert_one_registry(&[n1, n2], 5, "n1 n2");
}

#[test]
fn registry_is_changed_only_by_the_session_with_the_lock() {
    let cluster = mesh(2, 0);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let registry = lab::quote_literal(&n1.value(REGISTRY));
    let adopt = format!("SELECT zodan.apply_registry({registry})");
    let mut holder = n1.client_named("holder");
    holder
        .batch_execute("SELECT pg_advisory_lock(2054120557, 1)")
        .expect("hold the lock");
    assert_failed(
        &n1.sql_error(&adopt),
        "55P03",
        "another membership change is in progress",
        "Wait until the other CALL has ended",
    );
    holder.batch_execute(&adopt).expect("it holds the lock");
    drop(holder);
    wait_no_sessions(&[n1]);
    let other = n1.value(
        "SELECT jsonb_set(registry, '{cluster}', to_jsonb(gen_random_uuid()))::text FROM zodan.registry()",
    );
    assert_failed(
        &n2.sql_error(&format!(
            "SELECT zodan.apply_registry({})",
            lab::quote_literal(&other)
        )),
        "55000",
        "the database is a member of another cluster",
        "Correct the connection string",
    );
    assert_one_registry(&[n1, n2], 2, "n1 n2");
}

/// What a DBA sees of a member that is behind, and of a node that is none any more.
#[test]
fn member_with_an_old_registry_is_shown_as_behind() {
    let cluster = mesh(4, 0);
    let [n1, n2, n3, n4] = [1, 2, 3, 4].map(|i| cluster.n(i));
    n3.stop();
    call(n1, &remove("n4", true));
    n3.boot();
    wait_mesh_of(n3, 2);
    wait_mesh_of(n1, 2);
    let report = |status: &str| {
        n2.rows(&format!(
            "SELECT node, found, remedy FROM spock.health_report('n1', {}, NULL, NULL, 'post')
              WHERE \"check\" = 'registry' AND status = '{status}'",
            lab::quote_literal(&n1.dsn())
        ))
    };
    let expected = [
        "n3",
        "also has \"n4\", has generation 4 of 5",
        "It was away, and catches up with the next CALL or by its own node worker.",
    ];
    assert_eq!(
        report("failed"),
        [expected.map(|s| Some(s.to_owned())).to_vec()]
    );
    assert_eq!(n3.value("SELECT zodan.start_node_worker() > 0"), "t");
    n3.wait_for(GENERATION, "5");
    assert_one_registry(&[n1, n2, n3], 5, "n1 n2 n3");
    assert!(report("failed").is_empty());
    assert_eq!(n4.value("SELECT count(*) FROM zodan.membership"), "0");
}

/// A firewall turns everybody away, and the node itself goes on reading.
#[test]
fn removal_is_refused_while_an_unreachable_node_reads_from_members() {
    let network = Network::start(3, |_| alert());
    let [n1, n2, n3] = [1, 2, 3].map(|i| network.cluster.n(i));
    network.cluster.create_extension();
    n1.sql(CONTENT);
    network.add_node(n2, n1).unwrap_or_else(|e| panic!("{e}"));
    network.add_node(n3, n1).unwrap_or_else(|e| panic!("{e}"));
    wait_mesh(&network.cluster.all());
    network.shield("n3");
    n3.sql("INSERT INTO item VALUES (1, 'n3')");
    let before = fingerprint(&[n1, n2]);
    for (call, why) in [
        ("CALL spock.remove_node('n3')", " streams from slot sub_"),
        ("CALL spock.recover_run('n3')", "node \"n3\" is alive: "),
    ] {
        let failed = n1.sql_error(call);
        assert_eq!(failed.code(), "55006", "{failed}");
        let told = failed.to_string();
        assert!(told.contains(why), "{told}");
    }
    before.assert_same_now(&[n1, n2]);
    network.heal();
    wait_mesh(&network.cluster.all());
    n1.call("CALL spock.remove_node('n3')")
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(n2.value("SELECT node FROM item"), "n3");
}
