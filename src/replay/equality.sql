WITH RECURSIVE base(oid, typ) AS (
    SELECT oid, oid FROM pg_type WHERE typtype <> 'd'
     UNION ALL
    SELECT t.oid, b.typ FROM pg_type t JOIN base b ON b.oid = t.typbasetype WHERE t.typtype = 'd'
)
SELECT n.nspname AS schema, c.relname AS table_name, a.attname AS column, tn.nspname AS type_schema, t.typname AS type,
       k.nspname AS operator_schema, k.oprname AS operator,
       e.typtype NOT IN ('b', 'c') OR e.typtype = 'b' AND EXISTS (
           SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
            WHERE o.opcdefault AND m.amname IN ('btree', 'hash')
              AND (o.opcintype = e.oid
                   OR EXISTS (SELECT FROM pg_cast s
                               WHERE s.castsource = e.oid AND s.casttarget = o.opcintype
                                 AND s.castmethod = 'b' AND s.castcontext = 'i'))) AS comparable,
       b.oid <> b.typ AS domain,
       t.typtype IN ('c', 'r', 'm')
       OR t.typcategory = 'A' AND EXISTS (SELECT FROM pg_type x
                                           WHERE x.oid = t.typelem AND x.typtype IN ('d', 'c', 'r', 'm')) AS nested
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN base b ON b.oid = a.atttypid
  JOIN pg_type t ON t.oid = b.typ
  JOIN pg_namespace tn ON tn.oid = t.typnamespace
  LEFT JOIN base eb ON t.typcategory = 'A' AND eb.oid = t.typelem
  JOIN pg_type e ON e.oid = coalesce(eb.typ, t.oid)
  LEFT JOIN LATERAL (
       SELECT pn.nspname, p.oprname
         FROM pg_index i
         CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS u(attnum, opclass)
         JOIN pg_opclass o ON o.oid = u.opclass
         JOIN pg_am m ON m.oid = o.opcmethod
         JOIN pg_amop x ON x.amopfamily = o.opcfamily AND x.amoppurpose = 's'
                       AND x.amoplefttype = o.opcintype AND x.amoprighttype = o.opcintype
                       AND x.amopstrategy = CASE m.amname WHEN 'btree' THEN 3 WHEN 'hash' THEN 1 END
         JOIN pg_operator p ON p.oid = x.amopopr
         JOIN pg_namespace pn ON pn.oid = p.oprnamespace
        WHERE :identity_index AND u.attnum = a.attnum
        LIMIT 1) k ON true
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
