SELECT name, reset_val FROM pg_settings
 WHERE (name, reset_val) IN (('array_nulls', 'off'), ('xmloption', 'document'))
   AND EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                      JOIN pg_type t ON t.oid = a.atttypid
                WHERE c.relkind = 'r' AND c.oid >= 16384 AND NOT a.attisdropped
                  AND CASE name WHEN 'xmloption' THEN t.oid = 'xml'::regtype
                                ELSE t.typcategory = 'A' END)
UNION ALL
SELECT name, reset_val FROM pg_settings WHERE name = 'lc_monetary'
UNION ALL
SELECT 'money', '' WHERE EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                                  WHERE c.relkind = 'r' AND c.oid >= 16384 AND NOT a.attisdropped
                                    AND a.atttypid IN ('money'::regtype, 'money[]'::regtype))
UNION ALL
SELECT split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
  FROM pg_db_role_setting s, unnest(s.setconfig) c
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
   AND (c LIKE 'transaction\_timeout=%' AND c <> 'transaction_timeout=0'
        OR c LIKE 'role=%' AND NOT EXISTS (SELECT FROM pg_roles r
                                            WHERE r.rolsuper AND c = 'role=' || r.rolname)
                           AND c NOT IN ('role=', 'role=none'))
