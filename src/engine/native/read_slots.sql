SELECT current_database() AS database, s.subname, s.subslotname,
       to_regclass('zodan.membership') IS NOT NULL AS has_registry,
       (SELECT string_agg(r.slot_name, ',') FROM pg_replication_slots r
         WHERE r.slot_type = 'logical' AND r.database = current_database()) AS slots
  FROM pg_database d
  LEFT JOIN pg_subscription s ON s.subdbid = d.oid AND s.subslotname IS NOT NULL
                             AND 'zodan' = ANY (s.subpublications)
 WHERE d.datname = current_database()
