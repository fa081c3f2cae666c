SELECT quote_ident(r.rolname) AS whose,
       format('ALTER ROLE %I %sRESET default_transaction_read_only', r.rolname,
              'IN DATABASE ' || quote_ident(d.datname) || ' ') AS reset
  FROM pg_db_role_setting s
  JOIN pg_roles r ON r.oid = s.setrole AND r.rolcanlogin
  LEFT JOIN pg_database d ON d.oid = s.setdatabase,
       unnest(s.setconfig) c
 WHERE (s.setdatabase = 0 OR d.datname = current_database())
   AND c LIKE 'default\_transaction\_read\_only=%'
   AND NOT split_part(c, '=', 2)::boolean
 ORDER BY 1
