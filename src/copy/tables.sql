WITH RECURSIVE member AS (
  SELECT objid FROM pg_depend
   WHERE classid = 'pg_class'::regclass AND deptype = 'e'
), config AS (
  SELECT t.oid, t.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS t(oid, condition)
), chosen AS (
  SELECT c.oid, c.relfilenode, n.nspname, c.relname, c.relispartition, am.amname = 'heap' AS heap, c.reltuples, c.relpages,
         (SELECT nullif(regexp_replace(condition, '^\s*WHERE\s', '', 'i'), '') FROM config WHERE config.oid = c.oid) AS filter
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_am am ON am.oid = c.relam
   WHERE c.relkind = 'r' AND c.relpersistence = 'p'
     AND n.nspname <> ALL ($1::text[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
     AND (c.oid NOT IN (SELECT objid FROM member) OR c.oid IN (SELECT oid FROM config)
          OR format('%I.%I', n.nspname, c.relname) = ANY ($2::text[]))
), part AS (
  SELECT DISTINCT a.atttypid AS root, a.atttypid AS typ
    FROM pg_attribute a JOIN chosen ON chosen.oid = a.attrelid
   WHERE a.attnum > 0 AND NOT a.attisdropped
   UNION
  SELECT part.root, inner_type.oid
    FROM part JOIN pg_type t ON t.oid = part.typ
   CROSS JOIN LATERAL (
         SELECT t.typbasetype WHERE t.typtype = 'd'
          UNION ALL SELECT t.typelem WHERE t.typelem <> 0 AND t.typlen = -1
          UNION ALL SELECT a.atttypid FROM pg_attribute a
                     WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
                       AND a.attnum > 0 AND NOT a.attisdropped
          UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
          UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid
         ) AS inner_type(oid)
), textual AS (
  SELECT DISTINCT part.root
    FROM part JOIN pg_type t ON t.oid = part.typ
   WHERE (t.typsend = 0 OR t.typreceive = 0
          OR t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^reg')
), unsteady AS (
  SELECT p.partrelid
    FROM pg_partitioned_table p
   WHERE p.partstrat = 'h'
     AND EXISTS (SELECT FROM pg_opclass o JOIN pg_am am ON am.oid = o.opcmethod
                  WHERE o.oid = ANY (p.partclass) AND am.amname = 'hash'
                    AND o.opcname IN ('enum_ops', 'array_ops', 'record_ops', 'range_ops', 'multirange_ops'))
)
SELECT c.nspname AS schema, c.relname AS name, rn.nspname AS root_schema, r.relname AS root_name, pg_table_size(c.oid) AS bytes,
       CASE WHEN c.heap THEN pg_relation_size(c.oid) / current_setting('block_size')::int END AS blocks,
       (SELECT json_agg(json_build_object('name', a.attname,
                                          'binary', a.atttypid NOT IN (SELECT root FROM textual))
                        ORDER BY a.attnum)
          FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns,
       c.filter, c.oid IN (SELECT objid FROM member) AS extension,
       CASE WHEN pg_relation_size(c.oid) = 0 THEN 0
            WHEN c.reltuples >= 0 AND c.relpages > 0
            THEN round(pg_relation_size(c.oid) / current_setting('block_size')::numeric * c.reltuples::numeric / c.relpages) END AS rows,
       c.oid, c.relfilenode AS file
  FROM chosen c
  LEFT JOIN pg_class r
         ON c.relispartition AND r.oid = pg_partition_root(c.oid)
        AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a(oid) JOIN unsteady ON partrelid = a.oid)
  LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
 ORDER BY 1, 2
