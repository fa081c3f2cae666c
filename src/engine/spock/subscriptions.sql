SELECT s.sub_name AS name, s.sub_enabled AS enabled,
       s.sub_enabled AND t.status = 'replicating'
       AND EXISTS (SELECT FROM pg_stat_activity a, pg_database d
                    WHERE d.datname = current_database()
                      AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)) AS working,
       0 AS errors,
       CASE WHEN c.is_later AND c.is_its_own THEN c.remote_lsn ELSE o.remote_lsn END AS applied,
       CASE WHEN NOT (c.is_later AND c.is_its_own) THEN c.remote_lsn END AS perhaps_applied,
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
  -- Spock commits as the node that the transaction is from, not as the subscription. So a crash leaves the origin of the
  -- subscription at the last checkpoint, and recovery finds what was applied since under the number of the node, where no
  -- origin has a name. It is of this subscription if no other can have come there, and of this life of the server unless
  -- neither has a local position.
  LEFT JOIN LATERAL (
       SELECT n.remote_lsn, n.local_lsn > coalesce(o.local_lsn, '0/0') AS is_later,
              -- Nor of another node that had the name before.
              s.sub_name !~ '_gen[0-9]+$'
              AND (SELECT count(*) FROM spock.subscription x WHERE x.sub_origin = s.sub_origin) = 1
              AND NOT EXISTS (SELECT FROM spock.subscription x WHERE cardinality(x.sub_forward_origins) > 0)
              AND NOT EXISTS (SELECT FROM pg_replication_origin r
                               WHERE r.roname ~ '^spk_'
                                 AND r.roname NOT IN (SELECT x.sub_slot_name FROM spock.subscription x)) AS is_its_own
         FROM pg_replication_origin_status n
        WHERE n.external_id IS NULL AND n.local_id::bigint = s.sub_origin::bigint & 65535
          AND n.remote_lsn > coalesce(o.remote_lsn, '0/0') AND n.local_lsn >= coalesce(o.local_lsn, '0/0')) c ON true
 ORDER BY s.sub_name
