SELECT x.name AS subscription, n.node_name::text AS provider, s.sub_slot_name::text AS slot,
       CASE WHEN NOT x.enabled THEN 'disabled' WHEN x.working THEN 'replicating'
            WHEN t.status IN ('initializing', 'syncing', 'synchronizing') THEN t.status
            ELSE 'down' END AS status,
       NULL::boolean AS received, s.sub_replication_sets AS replication_sets, x.skipped_change AS last_error,
       :left_out_of AS left_out, x.applied::text
  FROM (:subscriptions) AS x
  JOIN spock.subscription s ON s.sub_name = x.name
  JOIN spock.local_node l ON l.node_id = s.sub_target
  JOIN spock.node n ON n.node_id = s.sub_origin
  LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name
