-- Rows that were updated on two members at the same time end up the same on all: the later update stays. What
-- PostgreSQL's own replication does not do by itself, with a time in each row.

-- Fires for what other members send, too. What they send and is older is not applied.
CREATE FUNCTION zodan.last_update_wins() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    zone text;
    older boolean;
BEGIN
    IF pg_catalog.current_setting('session_replication_role') <> 'replica' THEN
        NEW.zodan_updated_at := pg_catalog.clock_timestamp();
        -- Later than what it replaces, whatever the clocks say.
        IF TG_OP = 'UPDATE' AND OLD.zodan_updated_at >= NEW.zodan_updated_at THEN
            NEW.zodan_updated_at := OLD.zodan_updated_at + '1 microsecond'::interval;
        END IF;
        RETURN NEW;
    END IF;
    IF TG_OP = 'INSERT' OR OLD.zodan_updated_at IS NULL THEN
        RETURN NEW;
    END IF;
    older := coalesce(NEW.zodan_updated_at, '-infinity') < OLD.zodan_updated_at;
    IF NEW.zodan_updated_at = OLD.zodan_updated_at THEN
        -- Any rule will do that is the same on every member.
        zone := pg_catalog.current_setting('timezone');
        PERFORM pg_catalog.set_config('timezone', 'UTC', true);
        older := pg_catalog.to_jsonb(NEW)::text COLLATE "C" < pg_catalog.to_jsonb(OLD)::text COLLATE "C";
        PERFORM pg_catalog.set_config('timezone', zone, true);
    END IF;
    IF older THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION zodan.last_update_wins() FROM PUBLIC;
COMMENT ON FUNCTION zodan.last_update_wins() IS
    'Notes in the column zodan_updated_at when a row was written here, and keeps what another member sends from replacing a later update';

CREATE FUNCTION zodan.set_last_update_wins(target regclass, wanted boolean) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fires "char" := (SELECT t.tgenabled FROM pg_catalog.pg_trigger t
                      WHERE t.tgrelid = target AND t.tgname = 'zodan_last_update_wins');
    stamped text := (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = target AND a.attname = 'zodan_updated_at' AND NOT a.attisdropped);
BEGIN
    IF NOT wanted AND fires IS NULL THEN
        RETURN false;
    END IF;
    IF NOT wanted THEN
        EXECUTE pg_catalog.format('DROP TRIGGER zodan_last_update_wins ON %s', target);
        RETURN true;
    END IF;
    -- An update finds the row that another has changed by its key only.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                    WHERE i.indrelid = target AND i.indisvalid AND i.indimmediate
                      AND (i.indisprimary OR i.indisreplident)) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('table %s has no key', target),
            HINT = 'Updates of a row without a key do not find it once it is not the same. Give the table a primary key that is not deferrable.';
    END IF;
    IF stamped <> 'timestamp with time zone' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'datatype_mismatch',
            MESSAGE = pg_catalog.format('column zodan_updated_at of table %s is a %s', target, stamped),
            HINT = 'It has to be a timestamptz that nobody else writes. Rename the column that is there.';
    END IF;
    IF fires = 'A' AND stamped IS NOT NULL THEN
        RETURN false;
    END IF;
    IF stamped IS NULL THEN
        EXECUTE pg_catalog.format('ALTER TABLE %s ADD COLUMN zodan_updated_at timestamptz', target);
    END IF;
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER zodan_last_update_wins BEFORE INSERT OR UPDATE ON %s '
        'FOR EACH ROW EXECUTE FUNCTION zodan.last_update_wins()', target);
    EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER zodan_last_update_wins', target);
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION zodan.set_last_update_wins(regclass, boolean) FROM PUBLIC;
COMMENT ON FUNCTION zodan.set_last_update_wins(regclass, boolean) IS
    'Gives the table of this member the column zodan_updated_at and the trigger zodan_last_update_wins, or takes the trigger away; whether that changed anything; 42804 if the column is there with another type, 55000 if the table has no key';

CREATE FUNCTION spock.enable_last_update_wins(relation regclass) RETURNS integer
LANGUAGE c
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'enable_last_update_wins_wrapper';
REVOKE ALL ON FUNCTION spock.enable_last_update_wins(regclass) FROM PUBLIC;
COMMENT ON FUNCTION spock.enable_last_update_wins(regclass) IS
    'On every member of a cluster on PostgreSQL''s own replication: of two updates of a row of the table the later one stays; adds the column zodan_updated_at. The number of members where that was not so yet';

CREATE FUNCTION spock.disable_last_update_wins(relation regclass) RETURNS integer
LANGUAGE c
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'disable_last_update_wins_wrapper';
REVOKE ALL ON FUNCTION spock.disable_last_update_wins(regclass) FROM PUBLIC;
COMMENT ON FUNCTION spock.disable_last_update_wins(regclass) IS
    'The opposite; the column stays. The number of members where that was not so yet';
