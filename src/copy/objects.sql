SELECT o.class::text AS catalog, o.oid, i.type AS kind,
       CASE WHEN m.oid IS NULL THEN i.identity
            ELSE format('%s SERVER %I', CASE m.umuser WHEN 0 THEN 'PUBLIC'
                                             ELSE quote_ident(pg_get_userbyid(m.umuser)) END,
                        (SELECT srvname FROM pg_foreign_server s WHERE s.oid = m.umserver)) END AS identity,
       EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = o.class AND d.deptype = 'e'
                  AND (d.objid = o.oid
                       OR o.class = 'pg_class'::regclass
                          AND d.objid = (SELECT indrelid FROM pg_index WHERE indexrelid = o.oid))) AS member,
       o.part OR EXISTS (SELECT FROM pg_depend d
                          WHERE d.classid = o.class AND d.objid = o.oid AND d.objsubid = 0 AND d.deptype = 'i') AS owned
  FROM (
    SELECT 'pg_class'::regclass AS class, oid, relnamespace AS schema, relkind IN ('i', 'I') AS part,
           NOT relispartition AS late
      FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'i', 'I')
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, t.typnamespace, false, true
      FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
     WHERE (t.typtype IN ('b', 'd', 'e', 'r', 'p') OR c.relkind = 'c')
       AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, false, true FROM pg_proc
    UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, false, true FROM pg_operator
    UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace, false, true FROM pg_opclass
    UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace, false, true FROM pg_opfamily
    UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, false, true FROM pg_collation
    UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace, false, true FROM pg_conversion
    UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, false, true FROM pg_ts_config
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, false, true FROM pg_ts_dict
    UNION ALL SELECT 'pg_ts_parser'::regclass, oid, prsnamespace, false, true FROM pg_ts_parser
    UNION ALL SELECT 'pg_ts_template'::regclass, oid, tmplnamespace, false, true FROM pg_ts_template
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxnamespace, true, true FROM pg_statistic_ext
    UNION ALL SELECT 'pg_namespace'::regclass, oid, oid, false, true FROM pg_namespace
    UNION ALL SELECT 'pg_language'::regclass, oid, 0, false, true FROM pg_language
    UNION ALL SELECT 'pg_cast'::regclass, oid, 0, false, true FROM pg_cast
    UNION ALL SELECT 'pg_transform'::regclass, oid, 0, false, true FROM pg_transform
    UNION ALL SELECT 'pg_am'::regclass, oid, 0, false, true FROM pg_am
    UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0, false, true FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0, false, true FROM pg_foreign_server
    UNION ALL SELECT 'pg_user_mapping'::regclass, oid, 0, false, true FROM pg_user_mapping
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid, 0, false, true FROM pg_event_trigger
    UNION ALL SELECT 'pg_extension'::regclass, oid, 0, false, true
                FROM pg_extension WHERE extname <> ALL ($2::text[])
    UNION ALL SELECT 'pg_policy'::regclass, p.oid, c.relnamespace, false, true
                FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    UNION ALL SELECT 'pg_publication'::regclass, oid, 0, false, true
                FROM pg_publication WHERE pubname <> ALL ($3::text[])
  ) o
  LEFT JOIN pg_namespace n ON n.oid = o.schema
  LEFT JOIN pg_user_mapping m ON o.class = 'pg_user_mapping'::regclass AND m.oid = o.oid
  CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) i
 WHERE o.oid >= 16384 AND i.identity IS NOT NULL
   AND (n.nspname IS NULL OR n.nspname <> ALL ($1::text[]) AND n.nspname !~ '^pg_')
 ORDER BY o.late, o.oid
