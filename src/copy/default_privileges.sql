SELECT pg_get_userbyid(d.defaclrole) AS role, n.nspname AS schema, d.defaclobjtype AS kind, e.initial,
       CASE e.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(e.grantee) END AS grantee,
       e.privilege_type AS privilege, e.is_grantable AS grantable
  FROM pg_catalog.pg_default_acl d
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
  LEFT JOIN LATERAL (
       SELECT false AS initial, a.* FROM aclexplode(d.defaclacl) a
        UNION ALL
       SELECT true, a.*
         FROM aclexplode(acldefault(
                CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole)) a
        WHERE n.oid IS NULL) e ON true
 WHERE n.nspname IS NULL OR n.nspname <> ALL ($1::text[])
