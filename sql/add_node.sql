CREATE PROCEDURE spock.add_node(
    src_node_name     text,
    src_dsn           text,
    new_node_name     text,
    new_node_dsn      text,
    verb              boolean DEFAULT false,
    new_node_location text    DEFAULT 'NY',
    new_node_country  text    DEFAULT 'USA',
    new_node_info     jsonb   DEFAULT '{}'::jsonb,
    verify            boolean DEFAULT false,
    readers           text[]  DEFAULT '{}')
LANGUAGE c AS 'MODULE_PATHNAME', 'add_node_wrapper';
REVOKE ALL ON PROCEDURE spock.add_node(text, text, text, text, boolean, text, text, jsonb, boolean, text[]) FROM PUBLIC;
COMMENT ON PROCEDURE spock.add_node(text, text, text, text, boolean, text, text, jsonb, boolean, text[]) IS
    'Adds this database as a node to the running cluster of the source node, without downtime';
