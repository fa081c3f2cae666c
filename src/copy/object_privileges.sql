SELECT o.class::text AS catalog, o.oid, o.name, e.initial,
       CASE e.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(e.grantee) END AS grantee,
       e.privilege_type AS privilege, e.is_grantable AS grantable
  FROM (
    SELECT 'pg_class'::regclass AS class, c.oid, c.relowner AS owner, c.relacl AS acl,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS name,
           CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS kind
      FROM pg_class c WHERE c.relnamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, p.proowner, p.proacl, 'ROUTINE ' || p.oid::regprocedure, 'f'
      FROM pg_proc p WHERE p.pronamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, t.typowner, t.typacl, 'TYPE ' || format_type(t.oid, NULL), 'T'
      FROM pg_type t WHERE t.typnamespace::regnamespace::text <> ALL ($1::text[])
    UNION ALL
    SELECT 'pg_language'::regclass, l.oid, l.lanowner, l.lanacl, 'LANGUAGE ' || quote_ident(l.lanname), 'l'
      FROM pg_language l
    UNION ALL
    SELECT 'pg_foreign_data_wrapper'::regclass, w.oid, w.fdwowner, w.fdwacl, 'FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname), 'F'
      FROM pg_foreign_data_wrapper w
    UNION ALL
    SELECT 'pg_foreign_server'::regclass, s.oid, s.srvowner, s.srvacl, 'FOREIGN SERVER ' || quote_ident(s.srvname), 'S'
      FROM pg_foreign_server s
  ) o
  LEFT JOIN pg_init_privs i ON (i.classoid, i.objoid, i.objsubid) = (o.class, o.oid, 0)
  LEFT JOIN LATERAL (
       SELECT false AS initial, a.* FROM aclexplode(o.acl) a
        UNION ALL
       SELECT true, a.* FROM aclexplode(coalesce(i.initprivs, acldefault(o.kind::"char", o.owner))) a) e ON true
 WHERE o.acl IS NOT NULL AND o.acl IS DISTINCT FROM i.initprivs
