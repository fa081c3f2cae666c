SELECT s.set_name, n.nspname, c.relname, coalesce(t.set_att_list, '{}') AS column_list,
       coalesce(to_json(t.set_att_list), '[]') AS columns,
       pg_get_expr(t.set_row_filter, t.set_reloid) AS filter,
       coalesce((SELECT json_agg(DISTINCT coalesce(a.attname, '*'))
                   FROM regexp_matches(t.set_row_filter::text, ':varattno (-?[0-9]+)', 'g') v (no)
                   LEFT JOIN pg_attribute a ON a.attrelid = t.set_reloid AND a.attnum = v.no[1]::integer), '[]') AS filter_columns
  FROM :local_sets JOIN spock.replication_set_table t ON t.set_id = s.set_id
  JOIN pg_class c ON c.oid = t.set_reloid JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1, 2, 3
