-- What tells a membership of a cluster on Spock from those before it under the same name.

CREATE TABLE zodan.former_node (
    name  text PRIMARY KEY,
    times integer NOT NULL CHECK (times > 0)
);
REVOKE ALL ON zodan.former_node FROM PUBLIC;
COMMENT ON TABLE zodan.former_node IS
    'Spock: names of nodes that were removed from the cluster; the subscriptions and slots of the next node of such a name are called otherwise';
COMMENT ON COLUMN zodan.former_node.times IS 'How often a node of the name was removed';
