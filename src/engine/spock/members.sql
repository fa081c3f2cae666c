SELECT DISTINCT ON (n.node_name) n.node_name AS name, n.location, n.country, i.if_dsn AS dsn,
       '' AS system_identifier, '' AS database, n.info, '' AS joined_at, n.node_id AS id,
       NULL AS number, NULL AS cluster
  FROM spock.node n JOIN spock.node_interface i ON i.if_nodeid = n.node_id
 WHERE EXISTS (SELECT FROM spock.local_node)
 ORDER BY n.node_name,
       i.if_id IN (SELECT node_local_interface FROM spock.local_node
                    UNION ALL SELECT sub_origin_if FROM spock.subscription) DESC,
       i.if_name <> n.node_name
