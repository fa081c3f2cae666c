//! A network of servers that falls apart: between any two of them there is a proxy for either direction.
//!
//! Each server has a service file of its own, so that one connection string leads each of them by its own proxy.

use crate::cluster::Cluster;
use crate::dirs;
use crate::ports::{self, Port};
use crate::proxy::Proxy;
use crate::server::{CallFailed, Called, Server, ServerOptions, quote_literal};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::Duration;
use tempfile::TempDir;

/// The servers of a cluster and what is between them.
pub struct Network {
    /// Dropped before the proxies, and those before the service files.
    pub cluster: Cluster,
    /// By the names of the server that connects and of the one that it connects to.
    links: BTreeMap<(String, String), (Port, Proxy)>,
    _services: TempDir,
}

impl Network {
    /// Starts `n` servers; `options` is given the server's name.
    pub fn start(n: usize, options: impl Fn(&str) -> ServerOptions + Sync) -> Network {
        Network::start_far(n, Duration::ZERO, options)
    }

    /// The same, where a round trip between any two servers takes so long.
    pub fn start_far(
        n: usize,
        round_trip: Duration,
        options: impl Fn(&str) -> ServerOptions + Sync,
    ) -> Network {
        let services = dirs::scratch("services-");
        let file = |name: &str| services.path().join(name);
        let cluster = Cluster::start_each(n, |name| {
            options(name).env("PGSERVICEFILE", &file(name).display().to_string())
        });
        let mut links = BTreeMap::new();
        for from in cluster.all() {
            let mut sections = String::new();
            for to in cluster.all() {
                let mut port = to.port();
                if from.name() != to.name() {
                    let (front, listener) = ports::reserve();
                    port = front.number;
                    let between = (from.name().to_owned(), to.name().to_owned());
                    let proxy = Proxy::start_far(listener, to.port(), round_trip / 2);
                    links.insert(between, (front, proxy));
                }
                let name = to.name();
                writeln!(sections, "[{name}]\nhost=127.0.0.1\nport={port}").expect("a string");
            }
            fs::write(file(from.name()), sections).expect("write a service file");
        }
        Network {
            cluster,
            links,
            _services: services,
        }
    }

    /// The connection string of a server, for every other.
    pub fn dsn(&self, server: &Server) -> String {
        format!("service={} user=postgres dbname=postgres", server.name())
    }

    /// The call that adds `new` to the cluster that `source` is in.
    pub fn add_node_call(&self, new: &Server, source: &Server) -> String {
        format!(
            "CALL spock.add_node({}, {}, {}, {})",
            quote_literal(source.name()),
            quote_literal(&self.dsn(source)),
            quote_literal(new.name()),
            quote_literal(&self.dsn(new))
        )
    }

    /// Adds `new` to the cluster that `source` is in, from a session on `new`.
    pub fn add_node(&self, new: &Server, source: &Server) -> Result<Called, CallFailed> {
        new.call(&self.add_node_call(new, source))
    }

    /// Nothing goes through any more between the named servers and all others, in either direction, and nobody
    /// is told.
    pub fn part(&self, island: &[&str]) {
        let inside = |name: &String| island.contains(&name.as_str());
        for ((from, to), (_, proxy)) in &self.links {
            if inside(from) != inside(to) {
                proxy.cut();
            }
        }
    }

    /// Nobody can connect to the named server any more, which can connect to all others.
    pub fn shield(&self, name: &str) {
        for ((_, to), (_, proxy)) in &self.links {
            if to == name {
                proxy.cut();
            }
        }
    }

    /// The connections from and to others: by the server's name, and whether it is the one that connects.
    fn of<'a>(&'a self, name: &'a str, outgoing: bool) -> impl Iterator<Item = &'a Proxy> {
        let links = self.links.iter();
        links.filter_map(move |((from, to), (_, proxy))| {
            let end = if outgoing { from } else { to };
            (end == name).then_some(proxy)
        })
    }

    /// The named server can connect to nobody any more. See [`Network::shield`] for the other direction.
    pub fn confine(&self, name: &str) {
        self.of(name, true).for_each(Proxy::cut);
    }

    /// Resets all connections of the named server with others, once.
    pub fn sever(&self, name: &str) {
        self.of(name, true)
            .chain(self.of(name, false))
            .for_each(Proxy::sever);
    }

    /// So many bytes in a second from each of the others to the named server, and from it to each.
    pub fn limit(&self, name: &str, bytes_per_second: u64) {
        let links = self.of(name, true).chain(self.of(name, false));
        links.for_each(|proxy| proxy.limit(Some(bytes_per_second)));
    }

    /// The network is whole again, and fast.
    pub fn heal(&self) {
        for (_, proxy) in self.links.values() {
            proxy.uncut();
            proxy.limit(None);
        }
    }
}
