SELECT s.sub_name AS sub, format('%I.%I', y.sync_nspname, y.sync_relname) AS tab, y.sync_status AS status,
       format('SELECT spock.sub_resync_table(%L, %L)', s.sub_name, format('%I.%I', y.sync_nspname, y.sync_relname)) AS resync,
       format('SELECT spock.table_wait_for_sync(%L, %L)', s.sub_name, format('%I.%I', y.sync_nspname, y.sync_relname)) AS wait
  FROM spock.local_sync_status y JOIN spock.subscription s ON s.sub_id = y.sync_subid
  JOIN pg_namespace n ON n.nspname = y.sync_nspname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = y.sync_relname
 WHERE y.sync_status <> 'r' AND s.sub_enabled
 ORDER BY 1, 2
