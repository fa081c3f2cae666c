SELECT s.sub_name AS name, s.sub_enabled AS enabled,
       s.sub_enabled AND t.status = 'replicating'
       AND EXISTS (SELECT FROM pg_stat_activity a, pg_database d
                    WHERE d.datname = current_database()
                      AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)) AS working,
       0 AS errors, o.remote_lsn AS applied,
       (SELECT concat_ws(': ', nullif(concat_ws(' ', e.operation, e.table_schema || '.' || e.table_name), ''),
                         e.error_message)
          FROM spock.exception_log e
         WHERE e.retry_errored_at >= (to_jsonb(s) ->> 'sub_created_at')::timestamptz
           AND e.error_message !~ '^unavailable|did not find row to be updated|find relation$'
           AND (e.remote_origin = s.sub_origin
                OR e.remote_origin = 0 AND e.operation = 'SUB_DISABLE'
                   AND strpos(e.error_message, format(' %s ', s.sub_name)) > 0)
         ORDER BY e.operation = 'SUB_DISABLE', e.retry_errored_at DESC LIMIT 1) AS skipped_change
  FROM spock.subscription s
  JOIN spock.local_node l ON l.node_id = s.sub_target
  LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name
  LEFT JOIN pg_replication_origin_status o ON o.external_id = s.sub_slot_name
 ORDER BY s.sub_name
