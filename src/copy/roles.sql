WITH db AS (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
SELECT DISTINCT r.rolname
  FROM (
    SELECT s.refobjid
      FROM pg_catalog.pg_shdepend s JOIN db ON s.dbid = db.oid
     WHERE s.refclassid = 'pg_authid'::regclass AND s.classid <> 'pg_extension'::regclass
       AND NOT (s.deptype = 'o'
                AND EXISTS (SELECT FROM pg_catalog.pg_depend d
                             WHERE d.classid = s.classid AND d.objid = s.objid AND d.deptype = 'e'))
     UNION ALL
    SELECT s.setrole FROM pg_catalog.pg_db_role_setting s JOIN db ON s.setdatabase = db.oid
     UNION ALL
    SELECT o.owner
      FROM (SELECT 'pg_class'::regclass, oid, relowner, relnamespace FROM pg_catalog.pg_class
             WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
             UNION ALL
            SELECT 'pg_proc'::regclass, oid, proowner, pronamespace FROM pg_catalog.pg_proc
             UNION ALL
            SELECT 'pg_type'::regclass, oid, typowner, typnamespace FROM pg_catalog.pg_type
             UNION ALL
            SELECT 'pg_namespace'::regclass, oid, nspowner, oid FROM pg_catalog.pg_namespace
           ) AS o(class, oid, owner, schema)
      JOIN pg_catalog.pg_namespace n ON n.oid = o.schema
     WHERE o.oid >= 16384 AND n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_'
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                        WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
  ) AS named(role)
  JOIN pg_catalog.pg_roles r ON r.oid = named.role
 ORDER BY 1
