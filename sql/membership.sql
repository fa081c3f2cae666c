-- The registry of a cluster on PostgreSQL's own replication as one value with a generation. Rows are written
-- by zodan.apply_registry alone.

CREATE TABLE zodan.membership (
    cluster         uuid NOT NULL,
    generation      bigint NOT NULL CHECK (generation > 0),
    changed_at      timestamptz NOT NULL,
    next_number     integer NOT NULL CHECK (next_number > 0),
    sequence_policy text NOT NULL DEFAULT 'copy' CHECK (sequence_policy IN ('copy', 'stride', 'range')),
    sequence_parts  integer NOT NULL DEFAULT 1 CHECK (sequence_parts > 0),
    one_row         boolean PRIMARY KEY DEFAULT true CHECK (one_row)
);
REVOKE ALL ON zodan.membership FROM PUBLIC;
COMMENT ON TABLE zodan.membership IS 'Which registry this member has: the same row on every member; empty where the database is none';
COMMENT ON COLUMN zodan.membership.cluster IS 'Made up when the cluster was founded: generations of different clusters are not compared';
COMMENT ON COLUMN zodan.membership.generation IS 'Grows by one with each change of zodan.node';
COMMENT ON COLUMN zodan.membership.changed_at IS 'When it was changed last, by the clock of the node that the CALL ran on; of two registries of the same generation the later one holds';
COMMENT ON COLUMN zodan.membership.next_number IS 'zodan.node.number of the next node that joins';
COMMENT ON COLUMN zodan.membership.sequence_policy IS 'How the members share their sequences: each has a copy, or its own values in strides or in ranges';
COMMENT ON COLUMN zodan.membership.sequence_parts IS 'Into how many parts sequences are divided; 1 where they are not';

CREATE FUNCTION zodan.registry() RETURNS TABLE (local_name text, registry jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.name, pg_catalog.jsonb_build_object(
               'cluster', m.cluster, 'generation', m.generation,
               'changed_at', (extract(epoch FROM m.changed_at) * 1000000)::bigint,
               'next_number', m.next_number,
               'sequence_policy', m.sequence_policy, 'sequence_parts', m.sequence_parts,
               'members', (SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                                      'name', n.name, 'dsn', n.dsn,
                                      'system_identifier', n.system_identifier, 'database', n.database,
                                      'location', n.location, 'country', n.country, 'info', n.info::text,
                                      'joined_at', n.joined_at, 'number', n.number)
                                      ORDER BY n.joined_at, n.name), '[]')
                             FROM zodan.node n))
      FROM zodan.membership m, zodan.local_node l
$$;
REVOKE ALL ON FUNCTION zodan.registry() FROM PUBLIC;
COMMENT ON FUNCTION zodan.registry() IS
    'Which member this database is, and the registry as it has it, with connection strings that may hold passwords; no row where it is none';

-- 2054120557, 1 is the membership lock: a session that holds it passes, and nobody passes while another one
-- holds it. So a run that has lost its session cannot get in between.
CREATE FUNCTION zodan.apply_registry(registry jsonb) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held zodan.membership;
    given zodan.membership;
BEGIN
    PERFORM zodan.unreplicated();
    IF NOT pg_catalog.pg_try_advisory_xact_lock(2054120557, 1) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'lock_not_available',
            MESSAGE = 'another membership change is in progress',
            HINT = 'Wait until the other CALL has ended, then run this one again.';
    END IF;
    given.cluster := (registry ->> 'cluster')::uuid;
    given.generation := (registry ->> 'generation')::bigint;
    given.changed_at := 'epoch'::timestamptz + (registry ->> 'changed_at')::bigint * '1 microsecond'::interval;
    given.next_number := (registry ->> 'next_number')::integer;
    given.sequence_policy := registry ->> 'sequence_policy';
    given.sequence_parts := (registry ->> 'sequence_parts')::integer;
    given.one_row := true;
    SELECT * INTO held FROM zodan.membership;
    IF held.cluster <> given.cluster THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'the database is a member of another cluster',
            HINT = 'Correct the connection string that leads here.';
    END IF;
    IF held = given THEN
        RETURN true;
    END IF;
    IF (held.generation, held.changed_at) >= (given.generation, given.changed_at) THEN
        RETURN false;
    END IF;
    DELETE FROM zodan.node;
    INSERT INTO zodan.node (name, dsn, system_identifier, database, location, country, info, joined_at, number)
    SELECT m.name, m.dsn, m.system_identifier, m.database, m.location, m.country, m.info::jsonb, m.joined_at, m.number
      FROM pg_catalog.jsonb_to_recordset(registry -> 'members') AS
           m (name text, dsn text, system_identifier text, database text, location text, country text,
              info text, joined_at timestamptz, number integer);
    DELETE FROM zodan.membership;
    INSERT INTO zodan.membership SELECT given.*;
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION zodan.apply_registry(jsonb) FROM PUBLIC;
COMMENT ON FUNCTION zodan.apply_registry(jsonb) IS
    'Makes the registry that of this member, unless it has a newer one: then false. 55P03 while somebody else holds the membership lock, 55000 for the registry of another cluster';
