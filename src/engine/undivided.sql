SELECT format('%I.%I', n.nspname, c.relname) AS name, s.sequence IS NOT NULL AS otherwise
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN zodan.sequence s ON s.sequence = c.oid
 WHERE c.relkind = 'S' AND c.relpersistence <> 't'
   AND n.nspname NOT IN :own_schemas AND n.nspname NOT LIKE 'pg\_%'
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
   AND (s.policy, s.parts, s.part) IS DISTINCT FROM ($1, $2::integer, $3::integer)
 ORDER BY 1
