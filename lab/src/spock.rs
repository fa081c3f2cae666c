//! Clusters that replicate with pgEdge Spock, where the server under test has it.
//!
//! The meshes are made with Spock's own SQL and nothing of ours: only the server that is to be added has the
//! extension zodan. The servers of a mesh must be able to preload Spock, so they are started with [`options`].

use crate::server::{Server, ServerOptions, quote_literal};
use crate::{Cluster, pg, quiet};
use std::io::Write;
use std::sync::OnceLock;

/// The version of Spock that the server under test offers, if it does.
pub fn available() -> Option<String> {
    static VERSION: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let version = Server::start("spock")
            .value("SELECT default_version FROM pg_available_extensions WHERE name = 'spock'");
        (!version.is_empty()).then_some(version)
    };
    VERSION.get_or_init(ask).clone()
}

/// The version of Spock as [`available`], said on standard error; where there is none, that the test is skipped.
pub fn announced() -> Option<String> {
    let version = available();
    let line = match &version {
        Some(version) => format!("Spock {version}, {}\n", pg::version()),
        None => "skipped: the server under test has no Spock\n".into(),
    };
    // Not by eprint, which the test runner keeps to itself. Nothing depends on the line.
    let _ = std::io::stderr().write_all(line.as_bytes());
    version
}

/// What a server needs to run Spock.
pub fn options() -> ServerOptions {
    let options = ServerOptions::default()
        .set("shared_preload_libraries", "spock")
        .set("track_commit_timestamp", "on")
        .set("shared_buffers", "32MB")
        .set("max_worker_processes", "300")
        .set("wal_retrieve_retry_interval", "100ms");
    // Servers with this setting load no plugin that it does not name.
    if pg::has_setting("output_plugin_libraries") {
        options.set(
            "output_plugin_libraries",
            "pgoutput, test_decoding, spock_output",
        )
    } else {
        options
    }
}

/// A mesh of `members` that begins with `content`, and one server more, all with the extension zodan; `None`, and a
/// word that the test is skipped, without Spock.
pub fn mesh(members: usize, content: &str) -> Option<Cluster> {
    announced()?;
    let mesh = Mesh {
        content,
        ..Mesh::default()
    };
    Some(mesh.start_with_extension(members))
}

/// What a mesh is to be like.
#[derive(Default)]
pub struct Mesh<'a> {
    /// Run on every server first: roles, for instance.
    pub everywhere: &'a str,
    /// Run on the first member. The others get a copy of what is there then.
    pub content: &'a str,
    /// Run on every member when it is a node and has its content; the place for what is to be in a
    /// replication set. `{n}` is the name of its server. By default [`ADD_ALL`].
    pub sets: Option<&'a str>,
    /// The subscriptions that every member has to every other one. By default `sub_{p}_{s}` to all sets.
    pub subscriptions: &'a [Subscription<'a>],
    /// The members' names; `n1`, `n2`, ... where there are none.
    pub names: &'a [&'a str],
    /// More settings for every server.
    pub settings: &'a [(&'a str, &'a str)],
    /// The servers that the others reach through a proxy.
    pub proxied: &'a [&'a str],
}

/// One of the subscriptions of a pair of members, of whose servers `{p}` is the name of the provider's and `{s}` of the
/// subscriber's.
pub struct Subscription<'a> {
    pub name: &'a str,
    /// An array literal of replication sets.
    pub sets: &'a str,
    /// More arguments of `spock.sub_create`, each after a comma.
    pub arguments: &'a str,
}

/// Adds every table to the set `default`, those without a key to `default_insert_only`.
pub const ADD_ALL: &str = "
SELECT spock.repset_add_table(CASE WHEN EXISTS (SELECT FROM pg_constraint p
                                                 WHERE p.conrelid = c.oid AND p.contype = 'p')
                                   THEN 'default' ELSE 'default_insert_only' END, c.oid::regclass)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'spock', 'zodan')
 ORDER BY 1";

impl Mesh<'_> {
    /// Starts `members` servers and one more. The first make a mesh; the last has the extensions only.
    pub fn start(&self, members: usize) -> Cluster {
        let mut options = options();
        for (name, value) in self.settings {
            options = options.set(name, value);
        }
        let cluster = Cluster::start_each(members + 1, |name| match self.proxied.contains(&name) {
            true => options.clone().proxy(),
            false => options.clone(),
        });
        for server in cluster.all() {
            prepare(server);
            server.sql(self.everywhere);
        }
        self.form(&cluster.first(members));
        cluster.n(members + 1).sql("CREATE EXTENSION zodan");
        cluster
    }

    /// The same with the extension zodan on every server.
    pub fn start_with_extension(&self, members: usize) -> Cluster {
        let cluster = self.start(members);
        for member in cluster.first(members) {
            member.sql("CREATE EXTENSION zodan");
        }
        cluster
    }

    fn form(&self, members: &[&Server]) {
        let first = members[0];
        first.sql(quiet::SCHEMA);
        first.sql(self.content);
        for member in &members[1..] {
            copy(first, member);
        }
        let names: Vec<&str> = members
            .iter()
            .enumerate()
            .map(|(i, member)| self.names.get(i).copied().unwrap_or(member.name()))
            .collect();
        for (member, name) in members.iter().zip(&names) {
            member.sql(&format!(
                "SELECT spock.node_create({}, {})",
                quote_literal(name),
                quote_literal(&member.dsn())
            ));
            let sets = self.sets.unwrap_or(ADD_ALL);
            member.sql(&sets.replace("{n}", member.name()));
        }
        for (s, subscriber) in members.iter().enumerate() {
            for (p, provider) in members.iter().enumerate() {
                if p == s {
                    continue;
                }
                let ends = |text: &str| {
                    let text = text.replace("{p}", provider.name());
                    text.replace("{s}", subscriber.name())
                };
                for of in self.subscriptions {
                    let (name, sets) = (ends(of.name), ends(of.sets));
                    subscribe_to(subscriber, provider, &name, &sets, of.arguments);
                }
                if self.subscriptions.is_empty() {
                    subscribe(subscriber, provider, &format!("sub_n{}_n{}", p + 1, s + 1));
                }
            }
        }
    }
}

fn prepare(server: &Server) {
    server.sql("CREATE EXTENSION spock");
    // Spock starts a short-lived worker for each database without Spock whenever a subscription is enabled, and
    // now and then takes the place of another worker for that one's (seen with 6.0, the code of 5.0 is the same):
    // the worker of some subscription then crashes. Without such a database it does not happen.
    server.sql("ALTER DATABASE template1 WITH ALLOW_CONNECTIONS false");
}

/// Starts one more empty server with both extensions.
pub fn grow(cluster: &mut Cluster, name: &str) {
    let server = cluster.grow(name, &options());
    prepare(server);
    server.sql("CREATE EXTENSION zodan");
}

/// Copies the database's own content with pg_dump, so that it is the same to the bit.
pub fn copy(from: &Server, to: &Server) {
    let out = from
        .tool("pg_dump")
        .args(["-N", "spock", "-N", "zodan"])
        .output()
        .unwrap_or_else(|e| panic!("cannot run pg_dump: {e}"));
    assert!(
        out.status.success(),
        "pg_dump of {}: {}",
        from.name(),
        String::from_utf8_lossy(&out.stderr)
    );
    let restored = to.psql(&["-q"], &String::from_utf8_lossy(&out.stdout));
    assert!(
        restored.status.success(),
        "the dump of {} on {}: {}",
        from.name(),
        to.name(),
        restored.stderr
    );
}

/// Subscribes to every replication set of `provider`, and waits until the subscription replicates: several that
/// start at the same time get into each other's way.
pub fn subscribe(subscriber: &Server, provider: &Server, subscription: &str) {
    let sets = provider.value(
        "SELECT array_agg(set_name) FROM spock.replication_set JOIN spock.local_node ON node_id = set_nodeid",
    );
    subscribe_to(subscriber, provider, subscription, &sets, "");
}

/// The same to these sets, an array literal, with more arguments of `spock.sub_create`.
pub fn subscribe_to(
    subscriber: &Server,
    provider: &Server,
    subscription: &str,
    sets: &str,
    arguments: &str,
) {
    subscriber.sql(&format!(
        "SELECT spock.sub_create({}, {}, {}::text[]{arguments})",
        quote_literal(subscription),
        quote_literal(&provider.dsn()),
        quote_literal(sets)
    ));
    subscriber.wait_for(
        &format!(
            "SELECT status FROM spock.sub_show_status({})",
            quote_literal(subscription)
        ),
        "replicating",
    );
    let slot = subscriber.value(&format!(
        "SELECT sub_slot_name FROM spock.subscription WHERE sub_name = {}",
        quote_literal(subscription)
    ));
    provider.wait_for(
        &format!(
            "SELECT active FROM pg_replication_slots WHERE slot_name = {}",
            quote_literal(&slot)
        ),
        "t",
    );
}
