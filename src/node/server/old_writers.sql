SELECT 'pid ' || pid AS who, coalesce(usename, '') AS usename, application_name,
       extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds, backend_xid
  FROM pg_stat_activity
 WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
   AND xact_start < clock_timestamp() - $1::interval
 UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid), owner, '',
       extract(epoch FROM clock_timestamp() - prepared)::bigint, transaction
  FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - $1::interval
 ORDER BY 4 DESC
