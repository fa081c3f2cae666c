-- A hand-loaded copy of the public scripts would make every CALL ambiguous or block the creation of
-- ours half-way: say so before anything is made.
DO $$
DECLARE
    found text;
BEGIN
    -- The search_path of an extension's script has its schema in it: names would come out unqualified.
    SELECT string_agg(format('DROP %s spock.%I(%s);', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                             p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), E'\n' ORDER BY p.oid)
      INTO found
      FROM pg_catalog.pg_proc p
      JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = 'spock'
       AND p.proname IN ('add_node', 'remove_node', 'recover_run', 'recover_precheck', 'recover_phase_clone',
                         'recover_finalize', 'health_check', 'show_all_nodes', 'show_all_subscription_status')
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                        WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                          AND d.objid = p.oid AND d.deptype = 'e');
    IF found IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_function',
            MESSAGE = 'procedures of the same names were loaded into schema spock by hand',
            DETAIL = found,
            HINT = 'Run the statements of the detail, then CREATE EXTENSION zodan again.';
    END IF;
END
$$;

CREATE SCHEMA zodan;
REVOKE ALL ON SCHEMA zodan FROM PUBLIC;
COMMENT ON SCHEMA zodan IS 'zodan''s own records: members of the cluster, runs and their steps';

CREATE TABLE zodan.node (
    name              text PRIMARY KEY,
    dsn               text NOT NULL,
    system_identifier text NOT NULL,
    database          text NOT NULL,
    location          text,
    country           text,
    info              jsonb,
    joined_at         timestamptz NOT NULL DEFAULT now(),
    number            integer NOT NULL UNIQUE CHECK (number >= 0)
);
REVOKE ALL ON zodan.node FROM PUBLIC;
COMMENT ON TABLE zodan.node IS 'Members of a cluster on PostgreSQL''s own replication; the same on every member';
COMMENT ON COLUMN zodan.node.dsn IS 'Connection string by which the other members subscribe to this one; may hold a password';
COMMENT ON COLUMN zodan.node.number IS 'No other node of the cluster has it or had it: it says which part of each divided sequence is this node''s';
COMMENT ON COLUMN zodan.node.system_identifier IS 'With database: what is behind the name, so that no other is taken for it';

CREATE TABLE zodan.local_node (
    name text PRIMARY KEY,
    one_row boolean NOT NULL DEFAULT true UNIQUE CHECK (one_row)
);
REVOKE ALL ON zodan.local_node FROM PUBLIC;
COMMENT ON TABLE zodan.local_node IS 'Which of the members this database is; empty where it is none';

CREATE TABLE zodan.pending_cleanup (
    member      text NOT NULL,
    dsn         text NOT NULL,
    removed     text NOT NULL,
    action      jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (removed, member, action)
);
REVOKE ALL ON zodan.pending_cleanup FROM PUBLIC;
COMMENT ON TABLE zodan.pending_cleanup IS 'What members that could not be reached when a node was removed still have to forget; CALL spock.remove_node for that node again has them do it';
COMMENT ON COLUMN zodan.pending_cleanup.dsn IS 'How the member was reached when the node was removed; may hold a password';
COMMENT ON COLUMN zodan.pending_cleanup.action IS 'What is to be taken back there, as in zodan.step';

CREATE TABLE zodan.marker (
    id      text PRIMARY KEY,
    node    text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON zodan.marker FROM PUBLIC;
COMMENT ON TABLE zodan.marker IS 'Rows committed on one member to see them arrive on another: the proof that everything before them has been applied there';

CREATE TABLE zodan.paused_subscription (
    name      text PRIMARY KEY,
    paused_at timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON zodan.paused_subscription FROM PUBLIC;
COMMENT ON TABLE zodan.paused_subscription IS 'Subscriptions of this node that are disabled for the moment a snapshot is taken; a row is deleted with the enabling';

CREATE TABLE zodan.run (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command        text NOT NULL,
    engine         text NOT NULL,
    source_node    text NOT NULL,
    source_dsn     text NOT NULL DEFAULT '',
    node           text NOT NULL,
    state          text NOT NULL DEFAULT 'running'
                   CHECK (state IN ('running', 'done', 'undone', 'failed')),
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at       timestamptz,
    apply_pause_ms numeric,
    copied_tables  bigint,
    copied_rows    bigint,
    copied_bytes   bigint,
    sqlstate       text,
    message        text
);
REVOKE ALL ON zodan.run FROM PUBLIC;
COMMENT ON TABLE zodan.run IS 'One row for each CALL on this node, kept as history for zodan.history_days';
COMMENT ON COLUMN zodan.run.source_dsn IS 'How the source was reached, without passwords';
COMMENT ON COLUMN zodan.run.state IS 'running (or interrupted, if no session holds its lock), done, undone (failed and cleaned up), failed (failed, and something is left to clean up)';
COMMENT ON COLUMN zodan.run.apply_pause_ms IS 'How long the source did not apply changes of its peers, in milliseconds: the longest attempt';

CREATE TABLE zodan.step (
    run_id      bigint NOT NULL REFERENCES zodan.run ON DELETE CASCADE,
    step        integer NOT NULL,
    phase       integer NOT NULL,
    node        text NOT NULL,
    description text NOT NULL,
    action      jsonb NOT NULL,
    state       text NOT NULL DEFAULT 'begun'
                CHECK (state IN ('announced', 'begun', 'done', 'undone', 'undo_failed')),
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    message     text,
    PRIMARY KEY (run_id, step)
);
REVOKE ALL ON zodan.step FROM PUBLIC;
COMMENT ON TABLE zodan.step IS 'What each run did, written before the side effect and again after it';
COMMENT ON COLUMN zodan.step.action IS 'The step with all that an undo needs to know; never a password';
COMMENT ON COLUMN zodan.step.state IS 'announced (nothing is there yet that is the run''s), begun, done, undone, undo_failed';

CREATE FUNCTION zodan.unreplicated() RETURNS boolean
LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'unreplicated_wrapper';
REVOKE ALL ON FUNCTION zodan.unreplicated() FROM PUBLIC;
COMMENT ON FUNCTION zodan.unreplicated() IS
    'Marks the current transaction as one that replication with origin = none does not send on: zodan''s tables are published like all others, its records are each node''s own';
