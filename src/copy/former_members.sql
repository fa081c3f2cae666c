WITH member AS (
    SELECT p.oid, p.probin, p.prosrc, d.refobjid AS extension
      FROM pg_catalog.pg_proc p
      JOIN pg_catalog.pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
     WHERE p.probin IS NOT NULL)
SELECT DISTINCT e.extname AS extension, p.oid::regprocedure::text AS function
  FROM pg_catalog.pg_proc p
  JOIN member m ON m.probin = p.probin
  JOIN pg_catalog.pg_extension e ON e.oid = m.extension
 WHERE p.oid >= 16384 AND p.oid NOT IN (SELECT oid FROM member) AND e.extname <> ALL ($1::text[])
   AND NOT EXISTS (SELECT FROM member s WHERE s.probin = p.probin AND s.prosrc = p.prosrc)
 ORDER BY 1, 2
