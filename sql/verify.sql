CREATE FUNCTION spock.verify_nodes(key_limit integer DEFAULT 10, by_design boolean DEFAULT false)
RETURNS TABLE (table_name text, reference_node text, node text, missing_rows bigint, extra_rows bigint,
               different_rows bigint, keys text[])
LANGUAGE c STRICT VOLATILE
SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'verify_nodes_wrapper';
REVOKE ALL ON FUNCTION spock.verify_nodes(integer, boolean) FROM PUBLIC;
COMMENT ON FUNCTION spock.verify_nodes(integer, boolean) IS
    'Compares the content of every member with that of this one, behind a barrier between all: a row for each table and member that differ, with up to key_limit keys; no row if all are equal; by_design lists instead what differs since nothing is sent that would make it alike; 08001 if a member cannot be reached';
