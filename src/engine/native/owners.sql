WITH RECURSIVE tab AS (
    SELECT c.oid, c.relacl, c.relrowsecurity AND c.relforcerowsecurity AS forced, n.nspname, c.relname,
           c.relowner, r.rolname, r.rolsuper, r.rolbypassrls
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
     WHERE c.relkind = 'r' AND c.relpersistence = 'p'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')),
closed AS (
    SELECT p.oid, p.proowner, p.proacl FROM pg_proc p
     WHERE p.proacl IS NOT NULL
       AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) x WHERE x.grantee = 0 AND x.privilege_type = 'EXECUTE')),
needs AS (
    SELECT d.classid, d.objid, f.oid AS proc
      FROM closed f JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = f.oid
     UNION
    SELECT d.classid, d.objid, f.oid
      FROM closed f JOIN pg_operator o ON o.oprcode = f.oid
      JOIN pg_depend d ON d.refclassid = 'pg_operator'::regclass AND d.refobjid = o.oid),
checked (typ, conname, proc) AS (
    SELECT k.contypid, k.conname, u.proc
      FROM needs u JOIN pg_constraint k ON u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
     WHERE k.contypid <> 0
     UNION
    SELECT t.oid, c.conname, c.proc
      FROM checked c JOIN pg_type t
        ON c.typ IN (t.typbasetype, CASE t.typsubscript WHEN 'array_subscript_handler'::regproc THEN t.typelem END)
        OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_attribute a
                                        WHERE a.attrelid = t.typrelid AND a.atttypid = c.typ
                                          AND a.attnum > 0 AND NOT a.attisdropped)),
code (relid, what, proc) AS (
    SELECT k.conrelid, format('constraint %I', k.conname), u.proc
      FROM needs u JOIN pg_constraint k ON u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
     WHERE k.contype = 'c' AND k.conrelid <> 0
     UNION ALL
    SELECT a.attrelid, format('column %I with constraint %I of a domain', a.attname, c.conname), c.proc
      FROM checked c JOIN pg_attribute a ON a.atttypid = c.typ AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT l.relid, format('partition key of %s', p.partrelid::regclass), u.proc
      FROM needs u
      JOIN pg_partitioned_table p ON u.classid = 'pg_class'::regclass AND u.objid = p.partrelid
     CROSS JOIN pg_partition_tree(p.partrelid) l
     WHERE l.isleaf
     UNION ALL
    SELECT e.adrelid, format('generated column %I', a.attname), u.proc
      FROM needs u JOIN pg_attrdef e ON u.classid = 'pg_attrdef'::regclass AND e.oid = u.objid
      JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum AND a.attgenerated = 's'
     UNION ALL
    SELECT i.indrelid, format('index %I', c.relname), u.proc
      FROM needs u JOIN pg_index i ON u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid
      JOIN pg_class c ON c.oid = i.indexrelid)
SELECT t.nspname, t.relname, t.rolname, 'security' AS kind, '' AS what, '' AS lacks, NULL AS statement,
       t.rolsuper OR t.rolbypassrls AS exempt
  FROM tab t WHERE t.forced
 UNION ALL
SELECT t.nspname, t.relname, t.rolname, 'function', min(k.what), p.oid::regprocedure::text,
       format('GRANT EXECUTE ON FUNCTION %s TO %I', p.oid::regprocedure, t.rolname), t.rolsuper
  FROM code k JOIN tab t ON t.oid = k.relid JOIN pg_proc p ON p.oid = k.proc
 WHERE CASE WHEN t.rolsuper THEN p.proowner <> t.relowner
                 AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) x
                                  WHERE x.grantee = t.relowner AND x.privilege_type = 'EXECUTE')
            ELSE NOT has_function_privilege(t.relowner, p.oid, 'EXECUTE') END
 GROUP BY t.nspname, t.relname, t.rolname, p.oid, t.rolsuper
 UNION ALL
SELECT t.nspname, t.relname, t.rolname, 'privilege', '', string_agg(DISTINCT w.privilege, ', '),
       format('GRANT %s ON %I.%I TO %I', string_agg(DISTINCT w.privilege, ', '), t.nspname, t.relname, t.rolname), false
  FROM tab t CROSS JOIN aclexplode(t.relacl) x
 CROSS JOIN LATERAL (SELECT x.privilege_type
                      UNION SELECT 'SELECT' WHERE x.privilege_type IN ('UPDATE', 'DELETE')) AS w (privilege)
 WHERE x.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
   AND NOT has_table_privilege(t.relowner, t.oid, w.privilege)
 GROUP BY t.nspname, t.relname, t.rolname
 ORDER BY 1, 2, 4, 6
