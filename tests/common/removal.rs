//! A node leaves: what the suites about that share.

use super::engines::On;
use super::{APPLY_WORKERS, gate, wait_no_sessions};
use lab::{
    CallFailed, Called, Cluster, Server, add_node, assert_same_content, load, quote_literal,
    wait_quiet,
};

/// What the members begin with.
pub fn content() -> String {
    format!("{}{}", load::SCHEMA, gate::CONTENT)
}

pub fn call(target: &str, dsn: Option<&str>, more: &str) -> String {
    let dsn = dsn.map_or("NULL".into(), quote_literal);
    format!(
        "CALL spock.remove_node({}, {dsn}{more})",
        quote_literal(target)
    )
}

/// Removes `target`, by a CALL on `here`.
pub fn remove(here: &Server, target: &Server) -> Called {
    remove_named(here, target.name())
}

pub fn remove_named(here: &Server, target: &str) -> Called {
    here.call(&call(target, None, ""))
        .unwrap_or_else(|failed| panic!("{failed}"))
}

pub fn remove_by_force(here: &Server, target: &str) -> Called {
    here.call(&call(target, None, ", force := true"))
        .unwrap_or_else(|failed| panic!("{failed}"))
}

pub fn remove_fails(here: &Server, target: &str, dsn: Option<&str>) -> CallFailed {
    here.sql_error(&call(target, dsn, ""))
}

/// Adds the server with this number to the cluster of the first.
pub fn join(cluster: &Cluster, number: usize) {
    let new = cluster.n(number);
    add_node(new, new.name(), cluster.n(1), "n1").unwrap_or_else(|failed| panic!("{failed}"));
}

pub fn assert_equal(nodes: &[&Server]) {
    wait_quiet(nodes);
    assert_same_content(nodes);
}

/// Topic and query for what a server has of a node called `NODE`.
const NATIVE_TRACES: &[(&str, &str)] = &[
    (
        "subscriptions",
        "SELECT string_agg(subname, ' ') FROM pg_subscription s WHERE s::text ~ '_NODE(_|$)'",
    ),
    (
        "registry",
        "SELECT string_agg(n::text, ' ') FROM zodan.node n WHERE n.name = 'NODE'",
    ),
    (
        "markers",
        "SELECT string_agg(m::text, ' ') FROM zodan.marker m WHERE m.node = 'NODE'",
    ),
    (
        "pending cleanup",
        "SELECT string_agg(o::text, ' ') FROM zodan.pending_cleanup o WHERE 'NODE' IN (o.member, o.removed)",
    ),
    (
        "sessions",
        "SELECT string_agg(a::text, ' ') FROM pg_stat_activity a
          WHERE application_name ~ '_NODE(_|$)' AND pid <> pg_backend_pid()",
    ),
];

const SPOCK_TRACES: &[(&str, &str)] = &[
    (
        "subscriptions",
        "SELECT string_agg(sub_name, ' ') FROM spock.subscription WHERE sub_name ~ '_NODE(_|$)'",
    ),
    (
        "origins",
        "SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname ~ '_NODE(_|$)'",
    ),
    (
        "nodes",
        "SELECT string_agg(node_name, ' ') FROM spock.node WHERE node_name = 'NODE'",
    ),
    (
        "interfaces",
        "SELECT string_agg(if_name, ' ') FROM spock.node_interface WHERE if_name = 'NODE'",
    ),
];

const TRACES: &[(&str, &str)] = &[
    (
        "slots",
        "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name ~ '_NODE(_|$)'",
    ),
    (
        "advisory locks",
        "SELECT string_agg(l::text, ' ') FROM pg_locks l WHERE locktype = 'advisory' AND 'NODE' <> ''",
    ),
];

/// Panics if anything on `server`, now one of `members` nodes, names the node `gone`: what replicates, what is
/// registered, who is at work.
pub fn assert_no_trace(on: On, server: &Server, gone: &str, members: usize) {
    wait_no_sessions(&[server]);
    let of_engine = match on {
        On::Native => NATIVE_TRACES,
        On::Spock => SPOCK_TRACES,
    };
    for (what, query) in of_engine.iter().chain(TRACES) {
        server.wait_for(&query.replace("NODE", gone), "");
        assert_eq!(server.value(&query.replace("NODE", gone)), "", "{what}");
    }
    let paths = (members - 1).to_string();
    let count: &[&str] = match on {
        On::Native => &[
            "SELECT count(*) FROM pg_subscription",
            "SELECT count(*) FROM pg_replication_slots",
            APPLY_WORKERS,
        ],
        On::Spock => &[
            "SELECT count(*) FROM spock.subscription",
            "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'spock_output' AND slot_name NOT LIKE 'spk_recovery%'",
        ],
    };
    for count in count {
        server.wait_for(count, &paths);
    }
    server.wait_for("SELECT count(*) FROM pg_replication_origin", &paths);
}

/// Panics if the database is still a node in any respect, or was left read-only.
pub fn assert_no_node(on: On, server: &Server) {
    wait_no_sessions(&[server]);
    let of_engine = match on {
        On::Native => {
            "(SELECT string_agg(subname, ' ') FROM pg_subscription),
             (SELECT string_agg(pubname, ' ') FROM pg_publication),
             (SELECT string_agg(n::text, ' ') FROM zodan.node n),
             (SELECT string_agg(n::text, ' ') FROM zodan.local_node n),
             (SELECT string_agg(m::text, ' ') FROM zodan.membership m)"
        }
        On::Spock => {
            "(SELECT string_agg(sub_name, ' ') FROM spock.subscription),
             (SELECT string_agg(node_name, ' ') FROM spock.node)"
        }
    };
    let left = format!(
        "SELECT concat_ws(' ', {of_engine},
            (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots),
            (SELECT string_agg(roname, ' ') FROM pg_replication_origin),
            (SELECT string_agg(s::text, ' ') FROM pg_db_role_setting s))"
    );
    assert_eq!(server.value(&left), "");
}

/// A join of n4 that was killed while it copied.
pub fn kill_join_of_n4(cluster: &Cluster) {
    let n4 = cluster.n(4);
    let gate = gate::close(n4);
    let join = super::Running::start(
        n4,
        &lab::cluster::add_node_call(n4, "n4", cluster.n(1), "n1"),
    );
    gate::wait(n4);
    n4.sql(&format!("SELECT pg_terminate_backend({}, 10000)", join.pid));
    join.ends_terminated();
    drop(gate);
    wait_no_sessions(&cluster.all());
}

/// An apply worker of `reader` learns that the slot it wants to read is not there.
pub fn wait_for_refusal(reader: &Server, slot: &str) {
    let log = quote_literal(&reader.log_path().display().to_string());
    reader.wait_for(
        &format!("SELECT pg_read_file({log}) LIKE '%replication slot \"{slot}\" does not exist%'"),
        "t",
    );
}
