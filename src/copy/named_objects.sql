SELECT 'pg_extension'::regclass::oid AS catalog, oid, extname AS name, NULL AS schema_owner
  FROM pg_extension WHERE extname = ANY ($1::text[])
UNION ALL
SELECT 'pg_publication'::regclass::oid, oid, pubname, NULL
  FROM pg_publication WHERE pubname = ANY ($2::text[])
UNION ALL
SELECT 'pg_publication_rel'::regclass::oid, r.oid, p.pubname, NULL
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
 WHERE p.pubname = ANY ($2::text[])
UNION ALL
SELECT 'pg_publication_namespace'::regclass::oid, r.oid, p.pubname, NULL
  FROM pg_publication_namespace r JOIN pg_publication p ON p.oid = r.pnpubid
 WHERE p.pubname = ANY ($2::text[])
UNION ALL
SELECT 'pg_namespace'::regclass::oid, oid, nspname, pg_get_userbyid(nspowner)
  FROM pg_namespace
 WHERE nspname <> ALL ($3::text[]) AND nspname <> 'information_schema' AND nspname !~ '^pg_'
