WITH workers AS (
    SELECT count(*) FILTER (WHERE backend_type ~ '^logical replication .*worker$') AS logical,
           count(*) FILTER (WHERE backend_type = 'logical replication parallel worker') AS parallel,
           count(*) FILTER (WHERE backend_type NOT IN ('client backend', 'autovacuum launcher',
               'autovacuum worker', 'background writer', 'checkpointer', 'walwriter',
               'walsender', 'walreceiver', 'walsummarizer', 'startup', 'archiver',
               'slotsync worker', 'io worker', 'logger', 'standalone backend')) AS processes
      FROM pg_stat_activity)
SELECT setting, current_setting(setting) AS "limit", parallel
  FROM workers, LATERAL (VALUES ('max_logical_replication_workers', logical),
                                ('max_worker_processes', processes)) AS taken (setting, places)
 WHERE places >= current_setting(setting)::bigint
 ORDER BY setting
 LIMIT 1
