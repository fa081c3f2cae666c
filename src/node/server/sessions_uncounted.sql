SELECT pid, usename, application_name FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND application_name <> 'zodan' AND application_name NOT LIKE 'zodan %'
   AND backend_type NOT LIKE 'zodan%' AND backend_type NOT LIKE 'autovacuum%'
   AND backend_type <> 'parallel worker'
   AND NOT (backend_type = 'walsender'
            AND EXISTS (SELECT FROM pg_stat_replication r
                         WHERE r.pid = pg_stat_activity.pid AND r.state <> 'startup'))
   AND backend_start < $1::timestamptz
   AND NOT (state = 'idle'
            AND (state_change > $1::timestamptz + interval '1100 ms'
                 OR clock_timestamp() > state_change + interval '10500 ms'))
 ORDER BY pid
