SELECT n.nspname AS table_schema, t.relname AS table_name,
       CASE WHEN b.blocks_total > 0 THEN 0.5 * b.blocks_done / b.blocks_total
            WHEN b.tuples_total > 0 THEN 0.5 + 0.5 * b.tuples_done / b.tuples_total
            ELSE 0 END AS done
  FROM pg_catalog.pg_stat_progress_create_index b
  JOIN pg_catalog.pg_class t ON t.oid = b.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE b.datname = pg_catalog.current_database()
 ORDER BY 1, 2
