//! One test for both engines: what is promised of native logical replication and of pgEdge Spock alike.

use super::plan::slot;
use super::{quick, wait_mesh};
use lab::spock::{self, Mesh};
use lab::{Cluster, Server, ServerOptions};

/// The engine that the cluster of a test replicates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Native,
    Spock,
}

/// Makes two tests of each of these functions of an [`On`], `native::NAME` and `spock::NAME`. The latter says in a line
/// that it is skipped where the server under test has no Spock. A function that is not named here does not compile: it
/// is never used.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod native {
            $(#[test]
            fn $name() {
                super::$name($crate::common::engines::On::Native);
            })+
        }
        mod spock {
            $(#[test]
            fn $name() {
                if lab::spock::announced().is_some() {
                    super::$name($crate::common::engines::On::Spock);
                }
            })+
        }
    };
}
pub(crate) use on_both_engines;

impl On {
    /// A mesh of `members` that begins with `content`, and `spare` servers more, all with the extension zodan.
    pub fn start(self, members: usize, spare: usize, content: &str) -> Cluster {
        self.start_with(members, spare, content, &[])
    }

    /// The same with more settings for every server.
    pub fn start_with(
        self,
        members: usize,
        spare: usize,
        content: &str,
        settings: &[(&str, &str)],
    ) -> Cluster {
        match self {
            On::Native => {
                let set =
                    |options: ServerOptions, (name, value): &(&str, &str)| options.set(name, value);
                let options = settings.iter().fold(quick(), set);
                let cluster = Cluster::start_with(members + spare, &options);
                cluster.form_mesh(members, content);
                wait_mesh(&cluster.first(members));
                cluster
            }
            On::Spock => {
                let mesh = Mesh {
                    content,
                    settings,
                    ..Mesh::default()
                };
                let mut cluster = mesh.start_with_extension(members);
                for number in 2..=spare {
                    spock::grow(&mut cluster, &format!("n{}", members + number));
                }
                cluster
            }
        }
    }

    /// Waits until every subscription of `servers` among each other replicates.
    pub fn wait_mesh(self, servers: &[&Server]) {
        match self {
            On::Native => wait_mesh(servers),
            On::Spock => {
                for server in servers {
                    let replicating =
                        "SELECT count(*) FROM spock.sub_show_status() WHERE status = 'replicating'";
                    server.wait_for(replicating, &(servers.len() - 1).to_string());
                }
            }
        }
    }

    /// The subscription that `subscriber` has to `provider` in a mesh that a test has made.
    pub fn subscription(self, subscriber: &Server, provider: &Server) -> String {
        format!("sub_{}_{}", provider.name(), subscriber.name())
    }

    /// The slot that `subscriber`, whatever its node is called, reads on `provider`, whose node has its server's name.
    pub fn slot(self, subscriber: &Server, provider: &Server) -> String {
        match self {
            On::Native => slot(provider, subscriber),
            On::Spock => subscriber.value(&format!(
                "SELECT sub_slot_name FROM spock.subscription JOIN spock.node ON node_id = sub_origin WHERE node_name = '{}'",
                provider.name()
            )),
        }
    }

    /// Whether a database applies anything: a query for `t` or `f`, and nothing where it has no subscription.
    pub fn any_enabled(self) -> &'static str {
        match self {
            On::Native => "SELECT bool_or(subenabled) FROM pg_subscription",
            On::Spock => "SELECT bool_or(sub_enabled) FROM spock.subscription",
        }
    }

    /// From now on `subscriber` gets nothing from `provider`.
    pub fn suspend(self, subscriber: &Server, provider: &Server) {
        let name = self.subscription(subscriber, provider);
        match self {
            On::Native => {
                subscriber.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
                subscriber.wait_for(
                    &format!("SELECT count(*) FROM pg_stat_subscription WHERE subname = '{name}' AND pid IS NOT NULL"),
                    "0",
                );
            }
            On::Spock => {
                subscriber.sql(&format!("SELECT spock.sub_disable('{name}', true)"));
                subscriber.wait_for(
                    &format!("SELECT status FROM spock.sub_show_status('{name}')"),
                    "disabled",
                );
                let slot = subscriber.value(&format!(
                    "SELECT sub_slot_name FROM spock.subscription WHERE sub_name = '{name}'"
                ));
                provider.wait_for(
                    &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
                    "f",
                );
            }
        }
    }

    /// `subscriber` gets what `provider` sends again.
    pub fn resume(self, subscriber: &Server, provider: &Server) {
        let name = self.subscription(subscriber, provider);
        subscriber.sql(&match self {
            On::Native => format!("ALTER SUBSCRIPTION {name} ENABLE"),
            On::Spock => format!("SELECT spock.sub_enable('{name}')"),
        });
    }
}
