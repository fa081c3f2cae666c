WITH set AS (
   SELECT setdatabase, setrole, option_value::boolean AS counts
     FROM pg_db_role_setting, pg_options_to_table(setconfig)
    WHERE option_name = 'track_counts'
      AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))
SELECT CASE WHEN setrole = 0 THEN 'database ' || current_database()
            ELSE 'role ' || setrole::regrole END AS whose,
       CASE WHEN setrole = 0 THEN format('ALTER DATABASE %I RESET track_counts', current_database())
            WHEN setdatabase = 0 THEN format('ALTER ROLE %s RESET track_counts', setrole::regrole)
            ELSE format('ALTER ROLE %s IN DATABASE %I RESET track_counts', setrole::regrole, current_database()) END AS reset
  FROM set WHERE NOT counts
UNION ALL
SELECT 'the server', 'ALTER SYSTEM SET track_counts = on'
 WHERE NOT EXISTS (SELECT FROM set WHERE setrole = 0)
   AND (EXISTS (SELECT FROM pg_file_settings
                 WHERE name = 'track_counts' AND applied AND NOT setting::boolean)
        OR EXISTS (SELECT FROM pg_settings
                    WHERE name = 'track_counts' AND reset_val = 'off' AND source = 'command line'))
 ORDER BY 1
