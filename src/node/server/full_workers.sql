WITH workers AS (
    SELECT count(*) FILTER (WHERE backend_type ~ '^logical replication .*worker$') AS logical,
           count(*) FILTER (WHERE backend_type = 'logical replication parallel worker') AS parallel,
           count(*) FILTER (WHERE backend_type NOT IN :other_processes) AS processes
      FROM pg_stat_activity)
SELECT setting, current_setting(setting) AS "limit", parallel
  FROM workers, LATERAL (VALUES ('max_logical_replication_workers', logical),
                                ('max_worker_processes', processes)) AS taken (setting, places)
 WHERE places >= current_setting(setting)::bigint
 ORDER BY setting
 LIMIT 1
