-- What the native engine needs on every member. Called over the coordinator's sessions, whose
-- search_path is empty.

CREATE FUNCTION zodan.probe(dsn text) RETURNS TABLE (server text, database text)
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'probe_wrapper';
REVOKE ALL ON FUNCTION zodan.probe(text) FROM PUBLIC;
COMMENT ON FUNCTION zodan.probe(text) IS
    'Connects from this server to another and says which server and database answered; 08001 if none did';

CREATE FUNCTION zodan.start_pause_watchdog(coordinator integer, limit_ms integer) RETURNS integer
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'start_pause_watchdog_wrapper';
REVOKE ALL ON FUNCTION zodan.start_pause_watchdog(integer, integer) FROM PUBLIC;
COMMENT ON FUNCTION zodan.start_pause_watchdog(integer, integer) IS
    'Starts a background worker that resumes apply when the coordinating session (its pid) is gone or limit_ms have passed; returns the worker''s pid; 53400 if no worker can be had';

-- Waits for the coordinator's lock (class 2054120560, "zodp" in ASCII), which is free when the coordinator has resumed or is gone. No
-- transaction id is held meanwhile: a slot creation would wait for it.
CREATE FUNCTION zodan.watch_pause(coordinator integer, limit_ms integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', limit_ms::text, true);
    BEGIN
        PERFORM pg_catalog.pg_advisory_xact_lock_shared(2054120560, coordinator);
    EXCEPTION WHEN lock_not_available THEN
        NULL; -- the limit has passed: resuming makes the attempt invalid, not wrong
    END;
    PERFORM pg_catalog.set_config('lock_timeout', '0', true);
    PERFORM zodan.resume_apply();
END
$$;
REVOKE ALL ON FUNCTION zodan.watch_pause(integer, integer) FROM PUBLIC;
COMMENT ON FUNCTION zodan.watch_pause(integer, integer) IS
    'Body of the watchdog: resumes apply when the coordinating session lets go of its lock, at the latest after limit_ms';

CREATE FUNCTION zodan.pause_apply(subscriptions text[]) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subscription text;
    paused integer := 0;
BEGIN
    PERFORM zodan.unreplicated();
    FOR subscription IN
        SELECT s.subname FROM pg_catalog.pg_subscription s
          JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
         WHERE d.datname = pg_catalog.current_database()
           AND s.subname = ANY (subscriptions) AND s.subenabled
    LOOP
        INSERT INTO zodan.paused_subscription (name) VALUES (subscription);
        EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I DISABLE', subscription);
        paused := paused + 1;
    END LOOP;
    RETURN paused;
END
$$;
REVOKE ALL ON FUNCTION zodan.pause_apply(text[]) FROM PUBLIC;
COMMENT ON FUNCTION zodan.pause_apply(text[]) IS
    'Disables the named subscriptions of this database that are enabled, remembers them, and returns how many there were';

-- The row is deleted first: of two that resume at once (coordinator and watchdog) the second waits
-- for the first and finds nothing left to do.
CREATE FUNCTION zodan.resume_apply() RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subscription text;
    resumed integer := 0;
BEGIN
    PERFORM zodan.unreplicated();
    FOR subscription IN DELETE FROM zodan.paused_subscription RETURNING name LOOP
        IF EXISTS (SELECT FROM pg_catalog.pg_subscription s
                     JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
                    WHERE d.datname = pg_catalog.current_database() AND s.subname = subscription) THEN
            EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I ENABLE', subscription);
            resumed := resumed + 1;
        END IF;
    END LOOP;
    RETURN resumed;
END
$$;
REVOKE ALL ON FUNCTION zodan.resume_apply() FROM PUBLIC;
COMMENT ON FUNCTION zodan.resume_apply() IS
    'Enables what zodan.pause_apply disabled, and returns how many there were';

CREATE FUNCTION zodan.add_subscription_table(subscription oid, relation regclass) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'add_subscription_table_wrapper';
REVOKE ALL ON FUNCTION zodan.add_subscription_table(oid, regclass) FROM PUBLIC;
COMMENT ON FUNCTION zodan.add_subscription_table(oid, regclass) IS
    'Has a subscription apply the changes of a table from now on; 23505 where it does already';

-- The connection string is a parameter, so it is in no statement text that pg_stat_activity shows.
-- The tables are those that the provider publishes. They are given, so that it need not be asked: to connect, and to ask it
-- one thing after the other, is long where it is far.
CREATE FUNCTION zodan.create_subscription(subscription text, dsn text, slot text, tables json) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET client_min_messages = error AS $$
DECLARE
    published text;
    relation pg_catalog.regclass;
    created pg_catalog.oid;
BEGIN
    EXECUTE pg_catalog.format(
        'CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION zodan WITH (connect = false, slot_name = %L, origin = none)',
        subscription, dsn, slot);
    SELECT s.oid INTO STRICT created
      FROM pg_catalog.pg_subscription s
      JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()
     WHERE s.subname = subscription;
    FOR published IN SELECT value FROM pg_catalog.json_array_elements_text(tables) LOOP
        relation := published; -- 42P01 where it is not here
        PERFORM zodan.add_subscription_table(created, relation);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION zodan.create_subscription(text, text, text, json) FROM PUBLIC;
COMMENT ON FUNCTION zodan.create_subscription(text, text, text, json) IS
    'Creates a disabled subscription without copy on a slot that exists already, to the tables of the names; 42P01 where one of them is not here';

CREATE FUNCTION zodan.drop_subscription(subscription text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_subscription s
                 JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
                WHERE d.datname = pg_catalog.current_database() AND s.subname = subscription) THEN
        EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I DISABLE', subscription);
        -- Without a slot name the drop does not call the provider, which may be gone.
        EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subscription);
        EXECUTE pg_catalog.format('DROP SUBSCRIPTION %I', subscription);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION zodan.drop_subscription(text) FROM PUBLIC;
COMMENT ON FUNCTION zodan.drop_subscription(text) IS
    'Drops a subscription of this database without touching the provider''s slot; nothing if there is none';

CREATE FUNCTION zodan.stop_subscriptions() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subscription text;
BEGIN
    FOR subscription IN
        SELECT s.subname FROM pg_catalog.pg_subscription s
          JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
         WHERE d.datname = pg_catalog.current_database() AND s.subenabled AND 'zodan' = ANY (s.subpublications)
    LOOP
        EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I DISABLE', subscription);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION zodan.stop_subscriptions() FROM PUBLIC;
COMMENT ON FUNCTION zodan.stop_subscriptions() IS
    'Disables every subscription of this database to members of its cluster';

-- The command is known by its text only: at its start the server does not say which extension goes. It fires for everybody
-- and for every extension, so the text is looked at first, and the rest with the rights of the owner.
CREATE FUNCTION zodan.keep_member() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    member text;
BEGIN
    IF pg_catalog.current_query() !~* '\mextension\M[^;]*\mzodan\M' THEN
        RETURN;
    END IF;
    SELECT l.name INTO member FROM zodan.local_node l;
    IF member IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_in_use',
            MESSAGE = pg_catalog.format('the database is node "%s" of a cluster that needs the extension zodan', member),
            HINT = pg_catalog.format('Leave the cluster first: CALL spock.remove_node(%L);', member);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION zodan.keep_member() FROM PUBLIC;
COMMENT ON FUNCTION zodan.keep_member() IS
    'Refuses to drop the extension while the database is a node of a cluster on PostgreSQL''s own replication (55006)';

CREATE EVENT TRIGGER zodan_keep_member ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION') EXECUTE FUNCTION zodan.keep_member();
COMMENT ON EVENT TRIGGER zodan_keep_member IS 'See zodan.keep_member()';
