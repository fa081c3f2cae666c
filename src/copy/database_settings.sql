SELECT r.rolname AS role, split_part(c, '=', 1) AS name, substr(c, strpos(c, '=') + 1) AS value
  FROM pg_catalog.pg_db_role_setting s
  JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
 CROSS JOIN LATERAL unnest(s.setconfig) c
 WHERE (s.setrole = 0) = (r.rolname IS NULL)
   AND NOT (s.setrole = 0 AND split_part(c, '=', 1) = 'default_transaction_read_only')
 ORDER BY 1 NULLS FIRST, 2
