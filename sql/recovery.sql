CREATE TABLE zodan.recovery_slot (
    provider       text PRIMARY KEY,
    retained_from pg_lsn NOT NULL,
    changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    gap_since     timestamptz,
    gap_reason    text
);
REVOKE ALL ON zodan.recovery_slot FROM PUBLIC;
COMMENT ON TABLE zodan.recovery_slot IS 'What this node''s recovery slot keeps of each node that it subscribes to';
COMMENT ON COLUMN zodan.recovery_slot.retained_from IS 'The transactions that the provider committed after this position of its WAL are kept, as far as this node has applied them';
COMMENT ON COLUMN zodan.recovery_slot.gap_since IS 'When the slot had to be moved past what some member still lacked';

CREATE VIEW zodan.recovery_status AS
    SELECT s.slot_name, s.restart_lsn, s.confirmed_flush_lsn,
           pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint AS retained_bytes,
           s.wal_status, r.provider, r.retained_from, r.changed_at, r.gap_since, r.gap_reason,
           k.pid AS worker_pid
      FROM pg_catalog.pg_replication_slots s
      LEFT JOIN zodan.recovery_slot r ON true
      LEFT JOIN pg_catalog.pg_stat_activity k
             ON k.backend_type = 'zodan node worker' AND k.datname = s.database
     WHERE s.slot_name LIKE 'spk\_recovery\_%' AND s.slot_name !~ '_clone_[0-9]{1,15}(_t)?$'
       AND s.database = pg_catalog.current_database();
REVOKE ALL ON zodan.recovery_status FROM PUBLIC;
COMMENT ON VIEW zodan.recovery_status IS 'The recovery slot of this database, one row for each node that it protects against';
COMMENT ON COLUMN zodan.recovery_status.retained_bytes IS 'WAL that the slot holds, in bytes';
COMMENT ON COLUMN zodan.recovery_status.worker_pid IS 'The background worker that moves the slot; null if none runs';

CREATE FUNCTION zodan.become_standalone() RETURNS void
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'become_standalone_wrapper';
REVOKE ALL ON FUNCTION zodan.become_standalone() FROM PUBLIC;
COMMENT ON FUNCTION zodan.become_standalone() IS
    'Makes a database that was copied from a node an ordinary one, without touching the node or its slots on others; 55000 on the node itself and where there is none';

CREATE FUNCTION zodan.keep_place() RETURNS void
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'keep_place_wrapper';
REVOKE ALL ON FUNCTION zodan.keep_place() FROM PUBLIC;
COMMENT ON FUNCTION zodan.keep_place() IS
    'Notes in the data directory that this database is a node here, so that a copy of the server can be told from it; a join calls it on the first node of a cluster';

CREATE FUNCTION zodan.start_node_worker() RETURNS integer
LANGUAGE c STRICT
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'start_node_worker_wrapper';
REVOKE ALL ON FUNCTION zodan.start_node_worker() FROM PUBLIC;
COMMENT ON FUNCTION zodan.start_node_worker() IS
    'Starts the background worker that makes and keeps the recovery slot of this database until the server stops, unless one runs; returns its pid; 53400 if no worker can be had, 55000 if the database is no node';

CREATE PROCEDURE spock.recover_run(
    failed_node_name text,
    source_node_name text        DEFAULT NULL,
    source_dsn       text        DEFAULT NULL,
    target_node_name text        DEFAULT NULL,
    target_dsn       text        DEFAULT NULL,
    stop_lsn         pg_lsn      DEFAULT NULL,
    skip_lsn         pg_lsn      DEFAULT NULL,
    stop_timestamp   timestamptz DEFAULT NULL,
    verb             boolean     DEFAULT false,
    force            boolean     DEFAULT false,
    verify           boolean     DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'recover_run_wrapper';
REVOKE ALL ON PROCEDURE spock.recover_run(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean, boolean, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.recover_run(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean, boolean, boolean) IS
    'Brings what one survivor has of a node that died to the survivors that lack it; without a source from the one that has most, without a target to all';

CREATE PROCEDURE spock.recover_precheck(
    failed_node_name text,
    source_node_name text,
    source_dsn       text,
    target_node_name text,
    target_dsn       text,
    verb             boolean,
    OUT recovery_needed boolean)
LANGUAGE c AS 'MODULE_PATHNAME', 'recover_precheck_wrapper';
REVOKE ALL ON PROCEDURE spock.recover_precheck(text, text, text, text, text, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.recover_precheck(text, text, text, text, text, boolean) IS
    'Says whether the target lacks something of the failed node that the source has and can give; changes nothing';

CREATE PROCEDURE spock.recover_phase_clone(
    failed_node_name text,
    source_node_name text,
    source_dsn       text,
    target_node_name text,
    target_dsn       text,
    OUT cloned_slot_name text,
    stop_lsn         pg_lsn      DEFAULT NULL,
    skip_lsn         pg_lsn      DEFAULT NULL,
    stop_timestamp   timestamptz DEFAULT NULL,
    verb             boolean     DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'recover_phase_clone_wrapper';
REVOKE ALL ON PROCEDURE spock.recover_phase_clone(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.recover_phase_clone(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean) IS
    'Clones the recovery slot of the source, holds the target''s subscription to the failed node and brings over what is missing; recover_finalize lets go of both';

CREATE PROCEDURE spock.recover_finalize(
    target_dsn       text,
    target_node_name text,
    failed_node_name text,
    source_dsn       text,
    cloned_slot_name text,
    verb             boolean DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'recover_finalize_wrapper';
REVOKE ALL ON PROCEDURE spock.recover_finalize(text, text, text, text, text, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.recover_finalize(text, text, text, text, text, boolean) IS
    'Drops the cloned slot and lets go of the subscription that recover_phase_clone held';

CREATE FUNCTION zodan.session_origin(origin integer) RETURNS boolean
LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'session_origin_wrapper';
REVOKE ALL ON FUNCTION zodan.session_origin(integer) FROM PUBLIC;
COMMENT ON FUNCTION zodan.session_origin(integer) IS
    'Marks what this session commits from here on as of that origin, while progress stays with the origin that the session was set up for; 55000 without one. Spock marks by the id of the node';

CREATE FUNCTION zodan.commit_position(place pg_lsn, at timestamptz) RETURNS boolean
LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'commit_position_wrapper';
REVOKE ALL ON FUNCTION zodan.commit_position(pg_lsn, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION zodan.commit_position(pg_lsn, timestamptz) IS
    'As pg_replication_origin_xact_setup, but progress moves only if the transaction commits, and not if it is aborted';

CREATE FUNCTION zodan.replay_as_owners() RETURNS boolean
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'replay_as_owners_wrapper';
REVOKE ALL ON FUNCTION zodan.replay_as_owners() FROM PUBLIC;
COMMENT ON FUNCTION zodan.replay_as_owners() IS
    'What this session writes from here on it writes as the owners of the tables, so that constraints, generated columns and indexes run their code; triggers do not fire, save that of spock.enable_last_update_wins';
