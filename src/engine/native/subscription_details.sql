SELECT x.name AS subscription, NULL::text AS provider, s.subslotname::text AS slot,
       CASE WHEN NOT x.enabled THEN 'disabled' WHEN NOT x.working THEN 'down'
            WHEN EXISTS (SELECT FROM pg_subscription_rel r
                          WHERE r.srsubid = s.oid AND r.srsubstate NOT IN ('r', 's'))
            THEN 'syncing' ELSE 'replicating' END AS status,
       (SELECT bool_or(w.received_lsn IS NOT NULL) FROM pg_stat_subscription w
         WHERE w.subid = s.oid AND w.relid IS NULL) AS received,
       s.subpublications::text[] AS replication_sets,
       CASE WHEN x.errors > 0
            THEN format('errors of the apply worker so far: %s (see the log of the subscriber)',
                   x.errors) END AS last_error,
       :tables AS tables, x.applied::text
  FROM (:subscriptions) AS x
  JOIN pg_database d ON d.datname = current_database()
  JOIN pg_subscription s ON s.subdbid = d.oid AND s.subname = x.name
