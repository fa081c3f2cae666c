WITH inside AS (
    SELECT o.classid, o.objid, n.nspname, n.oid AS nsp
      FROM pg_namespace n
     CROSS JOIN LATERAL (
           SELECT 'pg_class'::regclass AS classid, oid AS objid FROM pg_class WHERE relnamespace = n.oid
            UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = n.oid
            UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = n.oid
            UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace = n.oid) o
     WHERE n.nspname IN (:reserved)
       AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = o.classid AND e.objid = o.objid
                                                 AND e.deptype = 'e')),
outside AS (
    SELECT i.nspname, i.classid AS refclassid, i.objid AS refobjid, x.classid, x.objid
      FROM inside i JOIN pg_depend d ON d.refclassid = i.classid AND d.refobjid = i.objid AND d.deptype = 'n'
     CROSS JOIN LATERAL (
           SELECT CASE WHEN d.classid IN ('pg_rewrite'::regclass, 'pg_attrdef'::regclass, 'pg_trigger'::regclass,
                                          'pg_policy'::regclass) THEN 'pg_class'::regclass
                       WHEN d.classid = 'pg_constraint'::regclass AND k.conrelid <> 0 THEN 'pg_class'::regclass
                       ELSE d.classid END AS classid,
                  CASE d.classid WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = d.objid)
                                 WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = d.objid)
                                 WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = d.objid)
                                 WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = d.objid)
                                 WHEN 'pg_constraint'::regclass THEN coalesce(nullif(k.conrelid, 0), d.objid)
                                 ELSE d.objid END AS objid
             FROM (SELECT) one LEFT JOIN pg_constraint k
               ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid) x)
SELECT DISTINCT nspname, pg_describe_object(classid, objid, 0) AS dependent,
       pg_describe_object(refclassid, refobjid, 0) AS needed
  FROM outside o
 WHERE NOT EXISTS (SELECT FROM inside i WHERE i.classid = o.classid AND i.objid = o.objid)
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = o.classid AND e.objid = o.objid AND e.deptype = 'e')
   AND (o.classid <> 'pg_class'::regclass
        OR (SELECT n.nspname NOT IN (:reserved, 'pg_toast') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = o.objid))
   AND o.classid <> 'pg_default_acl'::regclass
 ORDER BY 1, 2, 3
