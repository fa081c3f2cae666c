SELECT g.name,
       lower(coalesce(o.option_value,
                      CASE WHEN g.source IN ('default', 'configuration file', 'command line', 'environment variable')
                           THEN g.reset_val END,
                      (SELECT f.setting FROM pg_file_settings f WHERE lower(f.name) = g.name AND f.applied
                        ORDER BY f.seqno DESC LIMIT 1),
                      g.boot_val)) AS value,
       CASE WHEN o.setrole IS NULL THEN format('ALTER SYSTEM SET %s = %L', g.name, g.boot_val)
            WHEN o.setrole = 0 AND o.setdatabase = 0 THEN format('ALTER ROLE ALL RESET %s', g.name)
            WHEN o.setrole = 0 THEN format('ALTER DATABASE %I RESET %s', current_database(), g.name)
            WHEN o.setdatabase = 0 THEN format('ALTER ROLE %s RESET %s', o.setrole::regrole, g.name)
            ELSE format('ALTER ROLE %s IN DATABASE %I RESET %s', o.setrole::regrole, current_database(), g.name) END AS reset
  FROM pg_settings g
  LEFT JOIN LATERAL (
       SELECT s.setrole, s.setdatabase, t.option_value
         FROM pg_db_role_setting s, pg_options_to_table(s.setconfig) t
        WHERE lower(t.option_name) = g.name AND s.setrole IN (0, 10)
          AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        ORDER BY s.setrole DESC, s.setdatabase DESC LIMIT 1) o ON true
 WHERE g.name IN (:names) ORDER BY 1
