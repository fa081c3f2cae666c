-- What the cluster is like. The functions run as their owner, so that whoever may execute them needs no
-- rights on the registry, whose connection strings may hold passwords. They read, and what they show of
-- connection strings is redacted.

CREATE FUNCTION spock.get_nodes(
    OUT node_name text,
    OUT location  text,
    OUT country   text,
    OUT dsn       text,
    OUT info      jsonb,
    OUT joined    timestamptz,
    OUT engine    text,
    OUT is_local  boolean)
RETURNS SETOF record
LANGUAGE c VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'
AS 'MODULE_PATHNAME', 'get_nodes_wrapper';
REVOKE ALL ON FUNCTION spock.get_nodes() FROM PUBLIC;
COMMENT ON FUNCTION spock.get_nodes() IS
    'The members of the cluster by name, as the registry of this node has them: the same on every member but for is_local; no row where the database is no node. dsn without passwords; joined is null with Spock, which does not note it';

CREATE FUNCTION spock.cluster_status(
    OUT provider           text,
    OUT subscriber         text,
    OUT state              text,
    OUT lag_bytes          bigint,
    OUT lag_time           interval,
    OUT retained_bytes     bigint,
    OUT last_error         text,
    OUT provider_up        boolean,
    OUT provider_problem   text,
    OUT provider_version   text,
    OUT provider_role      text,
    OUT subscriber_up      boolean,
    OUT subscriber_problem text,
    OUT subscriber_version text,
    OUT subscriber_role    text,
    OUT engine             text,
    OUT subscription       text,
    OUT slot_name          text,
    OUT slot_active        boolean,
    OUT wal_status         text)
RETURNS SETOF record
LANGUAGE c VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'
AS 'MODULE_PATHNAME', 'cluster_status_wrapper';
REVOKE ALL ON FUNCTION spock.cluster_status() FROM PUBLIC;
COMMENT ON FUNCTION spock.cluster_status() IS
    'Every path from a provider to a subscriber as its two ends see it, asked of all members at the same time within zodan.status_timeout; who does not answer is marked. state: replicating, syncing, initializing, down, disabled, missing, or unknown where the subscriber does not answer. lag_bytes, retained_bytes: WAL in bytes';

CREATE FUNCTION spock.show_all_nodes(
    OUT node_id   integer,
    OUT node_name text,
    OUT location  text,
    OUT country   text,
    OUT if_dsn    text,
    OUT status    text,
    OUT version   text,
    OUT problem   text)
RETURNS SETOF record
LANGUAGE c VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'
AS 'MODULE_PATHNAME', 'show_all_nodes_wrapper';
REVOKE ALL ON FUNCTION spock.show_all_nodes() FROM PUBLIC;
COMMENT ON FUNCTION spock.show_all_nodes() IS
    'The members of the cluster in the columns of the Z0DAN tutorial, and whether each is up. node_id is null on the native engine, if_dsn is without passwords';

CREATE FUNCTION spock.show_all_subscription_status(
    OUT node_name         text,
    OUT subscription_name text,
    OUT status            text,
    OUT provider_node     text,
    OUT slot_name         text,
    OUT replication_sets  text[],
    OUT problem           text)
RETURNS SETOF record
LANGUAGE c VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'
AS 'MODULE_PATHNAME', 'show_all_subscription_status_wrapper';
REVOKE ALL ON FUNCTION spock.show_all_subscription_status() FROM PUBLIC;
COMMENT ON FUNCTION spock.show_all_subscription_status() IS
    'Every subscription that the mesh needs, by subscriber, in the columns of the Z0DAN tutorial; status as in spock.cluster_status(). replication_sets are publications on the native engine';

-- The same as the public scripts have it, for statements that are written for them. They commit nothing, so they may have a SET
-- clause; they connect to where they are told to, so they do not run as their owner.
CREATE PROCEDURE spock.show_all_nodes(
    cluster_dsn text,
    verb        boolean DEFAULT true)
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'print_nodes_wrapper';
REVOKE ALL ON PROCEDURE spock.show_all_nodes(text, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.show_all_nodes(text, boolean) IS
    'Prints the members of the cluster that cluster_dsn leads to, and whether each is up; with verb := false it only fails where there is no cluster';

CREATE PROCEDURE spock.show_all_subscription_status(
    cluster_dsn text,
    verb        boolean DEFAULT true)
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'print_subscriptions_wrapper';
REVOKE ALL ON PROCEDURE spock.show_all_subscription_status(text, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.show_all_subscription_status(text, boolean) IS
    'Prints every subscription of the cluster that cluster_dsn leads to, and its state; with verb := false it only fails where there is no cluster';

CREATE FUNCTION spock.topology(format text DEFAULT 'text') RETURNS SETOF text
LANGUAGE c VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'
AS 'MODULE_PATHNAME', 'topology_wrapper';
REVOKE ALL ON FUNCTION spock.topology(text) FROM PUBLIC;
COMMENT ON FUNCTION spock.topology(text) IS
    'The mesh with its states, drawn line by line: text, dot (Graphviz) or mermaid';
