SELECT format('table %I.%I', n.nspname, c.relname) AS what, coalesce(quote_ident(a.attname), '') AS column_name,
       coalesce(format_type(a.atttypid, a.atttypmod)
                || CASE WHEN a.attgenerated <> '' THEN ' generated' ELSE '' END, '') AS is_now
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind = 'r' AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')
 UNION ALL
SELECT format('type %s', format_type(e.enumtypid, NULL)), '',
       string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
  FROM pg_enum e GROUP BY e.enumtypid
 UNION ALL
SELECT format('the key of table %I.%I', n.nspname, c.relname), '',
       string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname COLLATE "C")
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_index k ON k.indrelid = c.oid AND k.indislive AND k.indisvalid AND k.indisunique AND k.indimmediate
                 AND k.indpred IS NULL
                 AND CASE c.relreplident WHEN 'd' THEN k.indisprimary
                                         WHEN 'i' THEN k.indisreplident ELSE false END
  JOIN pg_attribute a ON a.attrelid = c.oid
                     AND a.attnum = ANY ((k.indkey::int2[])[0:k.indnkeyatts - 1])
 WHERE c.relkind = 'r' AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')
 GROUP BY n.nspname, c.relname
