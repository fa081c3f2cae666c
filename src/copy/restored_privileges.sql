SELECT o.class::text AS catalog, o.oid, o.name,
       CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS grantee,
       a.privilege_type AS privilege, a.is_grantable AS grantable
  FROM (
    SELECT 'pg_class'::regclass AS class, c.oid, c.relnamespace AS schema, c.relowner AS owner,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS name,
           CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS kind, c.relacl AS acl
      FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, p.pronamespace, p.proowner, 'ROUTINE ' || p.oid::regprocedure, 'f', p.proacl
      FROM pg_proc p
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, t.typnamespace, t.typowner, 'TYPE ' || format_type(t.oid, NULL), 'T', t.typacl
      FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
     WHERE t.typtype IN ('b', 'd', 'e', 'r', 'c') AND coalesce(c.relkind, 'c') = 'c'
       AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    UNION ALL
    SELECT 'pg_namespace'::regclass, n.oid, n.oid, n.nspowner, 'SCHEMA ' || quote_ident(n.nspname), 'n', n.nspacl
      FROM pg_namespace n WHERE n.oid >= 16384
  ) o
  JOIN pg_namespace n ON n.oid = o.schema
  LEFT JOIN LATERAL aclexplode(coalesce(o.acl, acldefault(o.kind::"char", o.owner))) a ON a.grantee <> o.owner
 WHERE o.oid >= 16384 AND n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
