WITH RECURSIVE tab AS (
    SELECT c.oid, n.nspname, c.relname, c.relreplident AS how,
           k.indexrelid AS key, p.indexrelid AS pk, p.indexrelid IS NOT NULL AND p.indimmediate AS by_pk,
           (SELECT a.attname FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped
             ORDER BY a.attnum LIMIT 1) AS generated,
           (SELECT a.attname FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attgenerated <> ''
               AND a.attnum = ANY ((k.indkey::int2[])[0:k.indnkeyatts - 1]) LIMIT 1) AS generated_key,
           (SELECT a.attname FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attgenerated <> ''
               AND a.attnum = ANY ((p.indkey::int2[])[0:p.indnkeyatts - 1]) LIMIT 1) AS generated_pk
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_index k ON k.indrelid = c.oid AND k.indislive AND k.indisvalid AND k.indisunique
                          AND k.indimmediate AND k.indpred IS NULL
                          AND CASE c.relreplident WHEN 'd' THEN k.indisprimary
                                                  WHEN 'i' THEN k.indisreplident ELSE false END
      LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indislive AND p.indisvalid AND p.indisprimary
     WHERE c.relkind = 'r' AND c.relpersistence = 'p'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')),
part (root, typ) AS (
    SELECT DISTINCT a.atttypid, a.atttypid
      FROM tab t JOIN pg_attribute a ON a.attrelid = t.oid
     WHERE t.key IS NULL AND NOT t.by_pk
       AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
     UNION
    SELECT p.root, x.typ
      FROM part p JOIN pg_type t ON t.oid = p.typ
     CROSS JOIN LATERAL (
           SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL
           SELECT t.typelem WHERE t.typsubscript = 'array_subscript_handler'::regproc
            UNION ALL
           SELECT a.atttypid FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
           SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS x (typ)),
unequal (root, typ) AS (
    SELECT p.root, min(p.typ::bigint)::oid
      FROM part p JOIN pg_type t ON t.oid = p.typ
     WHERE t.typtype = 'b' AND t.typsubscript <> 'array_subscript_handler'::regproc
       AND NOT EXISTS (
               SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
                WHERE o.opcdefault AND m.amname IN ('btree', 'hash')
                  AND (o.opcintype = t.oid
                       OR EXISTS (SELECT FROM pg_cast k
                                   WHERE k.castsource = t.oid AND k.casttarget = o.opcintype
                                     AND k.castmethod = 'b' AND k.castcontext = 'i')))
     GROUP BY p.root),
judged AS (
    SELECT t.*, u.why,
           CASE WHEN :unsent THEN t.generated IS NULL ELSE t.generated_pk IS NULL END
               AND u.why IS NULL AS full_fits,
           t.by_pk AND t.generated_pk IS NULL AND t.how <> 'd' AS pk_fits
      FROM tab t
      LEFT JOIN LATERAL (
           SELECT format('%I %s has no equality', a.attname, format_type(a.atttypid, NULL))
                  || CASE WHEN u.typ = a.atttypid THEN ''
                          ELSE format(', since %s in it has none', format_type(u.typ, NULL)) END
             FROM pg_attribute a JOIN unequal u ON u.root = a.atttypid
            WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              AND NOT t.by_pk
            ORDER BY a.attnum LIMIT 1) AS u (why) ON true)
SELECT j.nspname, j.relname, b.becomes,
       format('ALTER TABLE ONLY %I.%I REPLICA IDENTITY %s', j.nspname, j.relname, b.becomes) AS statement,
       format('ALTER TABLE ONLY %I.%I REPLICA IDENTITY ', j.nspname, j.relname)
       || CASE WHEN j.how = 'f' THEN 'FULL' WHEN j.how = 'd' THEN 'DEFAULT'
               WHEN j.how = 'i' AND j.key IS NOT NULL
               THEN format('USING INDEX %I', (SELECT i.relname FROM pg_class i WHERE i.oid = j.key))
               ELSE 'NOTHING' END AS undo,
       CASE WHEN j.how = 'f' OR j.key IS NOT NULL
            THEN NOT (:unsent AND (j.how = 'f' AND j.generated IS NOT NULL OR j.generated_key IS NOT NULL))
            ELSE false END AS stops_apply,
       CASE WHEN b.becomes IS NOT NULL THEN NULL
            WHEN j.generated_key IS NOT NULL
            THEN format('has a key with the generated column %I, which is not replicated', j.generated_key)
            WHEN :unsent AND j.generated IS NOT NULL
            THEN format('has no usable replica identity: the generated column %I is not replicated', j.generated)
            WHEN j.generated_pk IS NOT NULL
            THEN format('has a key with the generated column %I, which is not replicated', j.generated_pk)
            ELSE format('has no usable replica identity: %s', j.why) END AS why,
       b.becomes IS NULL AND (j.generated_key IS NOT NULL OR j.generated_pk IS NOT NULL
                              OR :unsent AND j.generated IS NOT NULL) AS generated
  FROM judged j
 CROSS JOIN LATERAL (SELECT CASE WHEN j.full_fits THEN 'FULL' WHEN j.pk_fits THEN 'DEFAULT' END) AS b (becomes)
 WHERE CASE j.how WHEN 'f' THEN NOT j.full_fits ELSE j.key IS NULL OR j.generated_key IS NOT NULL END
 ORDER BY 1, 2
