CREATE FUNCTION spock.health_report(
    src_node_name text,
    src_dsn       text,
    new_node_name text DEFAULT NULL,
    new_node_dsn  text DEFAULT NULL,
    check_type    text DEFAULT 'pre',
    OUT node      text,
    OUT "check"   text,
    OUT status    text,
    OUT found     text,
    OUT wanted    text,
    OUT remedy    text,
    OUT statement text)
RETURNS SETOF record
LANGUAGE c VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'health_report_wrapper';
REVOKE ALL ON FUNCTION spock.health_report(text, text, text, text, text) FROM PUBLIC;
COMMENT ON FUNCTION spock.health_report(text, text, text, text, text) IS
    'What the checks find: with pre, on the new node, exactly those of spock.add_node; with post, or without a new node, whether the mesh of the source''s cluster is whole. status: ok, warning, failed. statement: the remedy as a statement to run on that node, where there is one. Changes nothing';

-- It commits nothing, so it may have a SET clause.
CREATE PROCEDURE spock.health_check(
    src_node_name text,
    src_dsn       text,
    new_node_name text    DEFAULT NULL,
    new_node_dsn  text    DEFAULT NULL,
    check_type    text    DEFAULT 'pre',
    verb          boolean DEFAULT false)
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'health_check_wrapper';
REVOKE ALL ON PROCEDURE spock.health_check(text, text, text, text, text, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.health_check(text, text, text, text, text, boolean) IS
    'Prints what spock.health_report finds, with verb what is well too, and fails if a check does: before a join with the error of spock.add_node';
