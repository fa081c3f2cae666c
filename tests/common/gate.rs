//! Holds a join up in the middle of the copy: structure and data are on the new node, the indexes are not.

use lab::Server;
use lab::postgres::Client;

/// What the source needs: an index that is built only while nobody holds the gate on the server.
pub const CONTENT: &str = "
CREATE FUNCTION pass(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
    AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN $1; END $$;
CREATE TABLE gate (id integer PRIMARY KEY);
INSERT INTO gate VALUES (1);
CREATE INDEX ON gate (pass(id))";

/// Closes the gate on the server until the session is dropped.
pub fn close(server: &Server) -> Client {
    let mut client = server.client_named("gate");
    client
        .batch_execute("SELECT pg_advisory_lock(4711)")
        .expect("close the gate");
    client
}

/// Waits until somebody stands before the gate.
pub fn wait(server: &Server) {
    server.wait_for(
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted",
        "t",
    );
}
