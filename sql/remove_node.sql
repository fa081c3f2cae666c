CREATE PROCEDURE spock.remove_node(
    target_node_name text,
    target_node_dsn  text    DEFAULT NULL,
    verbose_mode     boolean DEFAULT true,
    force            boolean DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'remove_node_wrapper';
REVOKE ALL ON PROCEDURE spock.remove_node(text, text, boolean, boolean) FROM PUBLIC;
COMMENT ON PROCEDURE spock.remove_node(text, text, boolean, boolean) IS
    'Removes a node, alive, dead or half added, from the cluster of this database; runs on the node itself or on any other';
