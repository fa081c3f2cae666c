SELECT format('SELECT count(*) FROM %s%s f WHERE %s(num_nulls(%s) = 0 AND NOT EXISTS (SELECT FROM %s%s p WHERE %s))',
              CASE f.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, f.oid::regclass,
              CASE k.confmatchtype WHEN 'f'
                   THEN format('num_nulls(%s) BETWEEN 1 AND %s OR ', columns, cardinality(k.conkey) - 1) ELSE '' END,
              columns, CASE p.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, p.oid::regclass, equal)
  FROM pg_constraint k
  JOIN pg_class f ON f.oid = k.conrelid
  JOIN pg_class p ON p.oid = k.confrelid
 CROSS JOIN LATERAL (
       SELECT string_agg(format('f.%I', fa.attname), ', ' ORDER BY u.i) AS columns,
              string_agg(format('p.%I OPERATOR(%I.%s) f.%I', pa.attname, n.nspname, o.oprname, fa.attname),
                         ' AND ' ORDER BY u.i) AS equal
         FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY u(f, p, op, i)
         JOIN pg_attribute fa ON fa.attrelid = f.oid AND fa.attnum = u.f
         JOIN pg_attribute pa ON pa.attrelid = p.oid AND pa.attnum = u.p
         JOIN pg_operator o ON o.oid = u.op
         JOIN pg_namespace n ON n.oid = o.oprnamespace) c
 WHERE k.conrelid = $1::regclass AND k.conname = $2
