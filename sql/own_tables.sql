-- zodan's tables are each node's own, all but the markers. Where a member sends on whatever it has (the catch-up of a
-- join), the rows of its own tables come along.

CREATE FUNCTION zodan.applying() RETURNS boolean
LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'applying_wrapper';
REVOKE ALL ON FUNCTION zodan.applying() FROM PUBLIC;
COMMENT ON FUNCTION zodan.applying() IS
    'Whether the session is a worker that applies what another server has sent';

CREATE FUNCTION zodan.keep_own() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN zodan.applying() THEN NULL WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;
REVOKE ALL ON FUNCTION zodan.keep_own() FROM PUBLIC;
COMMENT ON FUNCTION zodan.keep_own() IS
    'Trigger of zodan''s own tables: leaves out what comes by replication';

DO $$
DECLARE
    own text;
BEGIN
    FOR own IN
        SELECT c.oid::regclass FROM pg_catalog.pg_class c
         WHERE c.relnamespace = 'zodan'::pg_catalog.regnamespace AND c.relkind = 'r'
           AND c.oid <> 'zodan.marker'::pg_catalog.regclass
    LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER keep_own BEFORE INSERT OR UPDATE OR DELETE ON %s
                 FOR EACH ROW EXECUTE FUNCTION zodan.keep_own()', own);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE REPLICA TRIGGER keep_own', own);
        EXECUTE pg_catalog.format(
            'COMMENT ON TRIGGER keep_own ON %s IS ''See zodan.keep_own()''', own);
    END LOOP;
END
$$;
