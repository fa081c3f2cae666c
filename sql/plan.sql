-- What a CALL would do, with the arguments of the CALL: in psql it is enough to write SELECT * FROM for CALL, and _plan behind
-- the name. What the CALL would refuse is refused here too.

CREATE FUNCTION spock.add_node_plan(
    src_node_name     text,
    src_dsn           text,
    new_node_name     text,
    new_node_dsn      text,
    verb              boolean DEFAULT false,
    new_node_location text    DEFAULT 'NY',
    new_node_country  text    DEFAULT 'USA',
    new_node_info     jsonb   DEFAULT '{}'::jsonb,
    verify            boolean DEFAULT false,
    readers           text[]  DEFAULT '{}',
    OUT step    integer,
    OUT phase   integer,
    OUT node    text,
    OUT action  text,
    OUT reason  text,
    OUT undo    text,
    OUT rows    bigint,
    OUT bytes   bigint,
    OUT seconds double precision)
RETURNS SETOF record
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'add_node_plan_wrapper';
REVOKE ALL ON FUNCTION spock.add_node_plan(text, text, text, text, boolean, text, text, jsonb, boolean, text[]) FROM PUBLIC;
COMMENT ON FUNCTION spock.add_node_plan(text, text, text, text, boolean, text, text, jsonb, boolean, text[]) IS
    'The steps of spock.add_node with the same arguments, as zodan.step will have them, with what each is for and what takes it back; rows and bytes are those of the source''s statistics and disk, seconds a guess. Changes nothing';

CREATE FUNCTION spock.remove_node_plan(
    target_node_name text,
    target_node_dsn  text    DEFAULT NULL,
    verbose_mode     boolean DEFAULT true,
    force            boolean DEFAULT false,
    OUT step    integer,
    OUT phase   integer,
    OUT node    text,
    OUT action  text,
    OUT reason  text,
    OUT undo    text,
    OUT rows    bigint,
    OUT bytes   bigint,
    OUT seconds double precision)
RETURNS SETOF record
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'remove_node_plan_wrapper';
REVOKE ALL ON FUNCTION spock.remove_node_plan(text, text, boolean, boolean) FROM PUBLIC;
COMMENT ON FUNCTION spock.remove_node_plan(text, text, boolean, boolean) IS
    'The steps of spock.remove_node with the same arguments, as zodan.step will have them, with what each is for and what takes it back. Changes nothing';

CREATE FUNCTION spock.recover_plan(
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
    verify           boolean     DEFAULT false,
    OUT step    integer,
    OUT phase   integer,
    OUT node    text,
    OUT action  text,
    OUT reason  text,
    OUT undo    text,
    OUT rows    bigint,
    OUT bytes   bigint,
    OUT seconds double precision)
RETURNS SETOF record
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'recover_plan_wrapper';
REVOKE ALL ON FUNCTION spock.recover_plan(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean, boolean, boolean) FROM PUBLIC;
COMMENT ON FUNCTION spock.recover_plan(text, text, text, text, text, pg_lsn, pg_lsn, timestamptz, boolean, boolean, boolean) IS
    'The steps of spock.recover_run with the same arguments, as zodan.step will have them; no row if there is nothing to do. bytes are those of the failed node''s WAL, seconds a guess. Changes nothing';
