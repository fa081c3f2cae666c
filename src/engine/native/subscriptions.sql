SELECT s.subname AS name, s.subenabled AS enabled, w.pid IS NOT NULL AS working,
       coalesce(e.apply_error_count, 0) AS errors, o.remote_lsn AS applied, NULL AS perhaps_applied,
       NULL AS skipped_change
  FROM pg_subscription s
  JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
  LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
                                  AND to_jsonb(w) ->> 'leader_pid' IS NULL
  LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
  LEFT JOIN pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid
 WHERE 'zodan' = ANY (s.subpublications)
 ORDER BY s.subname
