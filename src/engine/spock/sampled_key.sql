SELECT string_agg(quote_ident(a.attname), ', ') AS columns,
       least(100, :blocks * 100 / greatest(1, (SELECT sum(pg_relation_size(t.relid)) FROM pg_partition_tree(c.oid) t)
                                               / current_setting('block_size')::numeric)) AS percent
  FROM pg_class c
  JOIN pg_index i ON :identity_index
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
 WHERE c.oid = to_regclass($1)
 GROUP BY c.oid
