//! Several servers, and the mesh that the product makes of them.

use crate::parallel::in_parallel;
use crate::quiet;
use crate::server::{CallFailed, Called, Server, ServerOptions, quote_literal};
use std::ops::Index;

/// Servers named `n1`, `n2`, ... started side by side.
pub struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts `n` servers with the lab's defaults.
    pub fn start(n: usize) -> Cluster {
        Cluster::start_with(n, &ServerOptions::default())
    }

    /// Starts `n` servers with the same options.
    pub fn start_with(n: usize, options: &ServerOptions) -> Cluster {
        Cluster::start_each(n, |_| options.clone())
    }

    /// Starts `n` servers, each with its own options; `options` is given the server's name.
    pub fn start_each(n: usize, options: impl Fn(&str) -> ServerOptions + Sync) -> Cluster {
        let servers = in_parallel(1..=n, |i| {
            let name = format!("n{i}");
            Server::start_with(&name, &options(&name))
        });
        Cluster { servers }
    }

    /// Starts `n` servers and makes a mesh of all of them.
    pub fn mesh(n: usize) -> Cluster {
        let cluster = Cluster::start(n);
        cluster.form_mesh(n, "");
        cluster
    }

    /// Makes a mesh of the first `n` servers with the product, one join after the other. `content` is run on
    /// `n1` before the first join, so all nodes get it. The other servers of the cluster are ready to be added.
    pub fn form_mesh(&self, n: usize, content: &str) {
        self.create_extension();
        let first = self.n(1);
        first.sql(quiet::SCHEMA);
        first.sql(content);
        for i in 2..=n {
            let new = self.n(i);
            if let Err(failed) = add_node(new, new.name(), first, first.name()) {
                panic!("{} could not join: {failed}", new.name());
            }
        }
    }

    /// Creates the extension on every server.
    pub fn create_extension(&self) {
        in_parallel(&self.servers, |server| server.sql("CREATE EXTENSION zodan"));
    }

    /// The server `n<number>`; numbers start at 1.
    pub fn n(&self, number: usize) -> &Server {
        let known = self.servers.len();
        assert!(
            (1..=known).contains(&number),
            "there is no n{number} in a cluster of {known}"
        );
        &self.servers[number - 1]
    }

    /// The first `n` servers.
    pub fn first(&self, n: usize) -> Vec<&Server> {
        self.servers[..n].iter().collect()
    }

    /// All servers.
    pub fn all(&self) -> Vec<&Server> {
        self.servers.iter().collect()
    }

    /// Starts one more server, under any name.
    pub fn grow(&mut self, name: &str, options: &ServerOptions) -> &Server {
        self.servers.push(Server::start_with(name, options));
        &self.servers[self.servers.len() - 1]
    }
}

impl Index<&str> for Cluster {
    type Output = Server;

    fn index(&self, name: &str) -> &Server {
        self.servers
            .iter()
            .find(|server| server.name() == name)
            .unwrap_or_else(|| panic!("there is no {name} in the cluster"))
    }
}

/// The call that adds `new` to the cluster that `source` is in.
pub fn add_node_call(new: &Server, new_name: &str, source: &Server, source_name: &str) -> String {
    format!(
        "CALL spock.add_node(src_node_name := {}, src_dsn := {}, new_node_name := {}, new_node_dsn := {})",
        quote_literal(source_name),
        quote_literal(&source.dsn()),
        quote_literal(new_name),
        quote_literal(&new.dsn())
    )
}

/// Adds `new` to the cluster that `source` is in, from a session on `new`.
pub fn add_node(
    new: &Server,
    new_name: &str,
    source: &Server,
    source_name: &str,
) -> Result<Called, CallFailed> {
    new.call(&add_node_call(new, new_name, source, source_name))
}
