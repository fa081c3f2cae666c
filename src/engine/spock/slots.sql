SELECT s.slot_name, s.active, rtrim(concat(r.application_name, ' ', r.client_addr::text)) AS reader,
       coalesce(a.query ~ 'spock[.]forward_origins. ''[^'']', false) AS forwards
  FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
  LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.plugin IN ('spock_output', 'spock') AND s.database = current_database() AND s.slot_name ~ '^spk_'
   AND s.slot_name !~ '^spk_recovery_'
 ORDER BY 1
