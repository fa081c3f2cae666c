SELECT '' AS subscription, format('%I.%I', n.nspname, c.relname) AS table_name, true AS applied
  FROM :sent_tables WHERE NOT :of_extension
 UNION ALL
SELECT s.subname, CASE WHEN c.oid IS NOT NULL THEN format('%I.%I', n.nspname, c.relname) END,
       r.srsubstate IN ('r', 's')
  FROM pg_subscription s
  JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
  LEFT JOIN (pg_subscription_rel r
             JOIN pg_class c ON c.oid = r.srrelid AND NOT :of_extension
             JOIN pg_namespace n ON n.oid = c.relnamespace) ON r.srsubid = s.oid
 WHERE 'zodan' = ANY (s.subpublications)
