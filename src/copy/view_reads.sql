SELECT DISTINCT n.nspname AS schema, c.relname AS name, rn.nspname AS read_schema, r.relname AS read_name
  FROM pg_catalog.pg_rewrite w
  JOIN pg_catalog.pg_class c ON c.oid = w.ev_class AND c.relkind IN ('v', 'm')
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                             AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid
  JOIN pg_catalog.pg_class r ON r.oid = d.refobjid AND r.relkind IN ('v', 'm')
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE c.oid >= 16384
