//! What the checks ask of every member on PostgreSQL's own replication. No parameters, since who only looks has none.

use crate::node::Statement;
use crate::quote::literal;

/// `schema, table, owner, kind, what, function or privileges, statement, exempt`: tables whose rows cannot be applied
/// with the rights of their owners, which is how apply workers do it. Those that are exempt have only an attribute of
/// the owner to thank for it, which the role of that name may lack elsewhere.
pub fn owners() -> Statement {
    Statement::new(
        "WITH RECURSIVE tab AS (
             SELECT c.oid, c.relacl, c.relrowsecurity AND c.relforcerowsecurity AS forced, n.nspname, c.relname,
                    c.relowner, r.rolname, r.rolsuper, r.rolbypassrls
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
              WHERE c.relkind = 'r' AND c.relpersistence = 'p'
                AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')),
         closed AS (
             SELECT p.oid, p.proowner, p.proacl FROM pg_proc p
              WHERE p.proacl IS NOT NULL
                AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) x WHERE x.grantee = 0 AND x.privilege_type = 'EXECUTE')),
         needs AS (
             SELECT d.classid, d.objid, f.oid AS proc
               FROM closed f JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = f.oid
              UNION
             SELECT d.classid, d.objid, f.oid
               FROM closed f JOIN pg_operator o ON o.oprcode = f.oid
               JOIN pg_depend d ON d.refclassid = 'pg_operator'::regclass AND d.refobjid = o.oid),
         checked (typ, conname, proc) AS (
             SELECT k.contypid, k.conname, u.proc
               FROM needs u JOIN pg_constraint k ON u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
              WHERE k.contypid <> 0
              UNION
             SELECT t.oid, c.conname, c.proc
               FROM checked c JOIN pg_type t
                 ON c.typ IN (t.typbasetype, CASE t.typsubscript WHEN 'array_subscript_handler'::regproc THEN t.typelem END)
                 OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_attribute a
                                                 WHERE a.attrelid = t.typrelid AND a.atttypid = c.typ
                                                   AND a.attnum > 0 AND NOT a.attisdropped)),
         code (relid, what, proc) AS (
             SELECT k.conrelid, format('constraint %I', k.conname), u.proc
               FROM needs u JOIN pg_constraint k ON u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
              WHERE k.contype = 'c' AND k.conrelid <> 0
              UNION ALL
             SELECT a.attrelid, format('column %I with constraint %I of a domain', a.attname, c.conname), c.proc
               FROM checked c JOIN pg_attribute a ON a.atttypid = c.typ AND a.attnum > 0 AND NOT a.attisdropped
              UNION ALL
             SELECT l.relid, format('partition key of %s', p.partrelid::regclass), u.proc
               FROM needs u
               JOIN pg_partitioned_table p ON u.classid = 'pg_class'::regclass AND u.objid = p.partrelid
              CROSS JOIN pg_partition_tree(p.partrelid) l
              WHERE l.isleaf
              UNION ALL
             SELECT e.adrelid, format('generated column %I', a.attname), u.proc
               FROM needs u JOIN pg_attrdef e ON u.classid = 'pg_attrdef'::regclass AND e.oid = u.objid
               JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum AND a.attgenerated = 's'
              UNION ALL
             SELECT i.indrelid, format('index %I', c.relname), u.proc
               FROM needs u JOIN pg_index i ON u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid
               JOIN pg_class c ON c.oid = i.indexrelid)
         SELECT t.nspname, t.relname, t.rolname, 'security', '', '', NULL, t.rolsuper OR t.rolbypassrls
           FROM tab t WHERE t.forced
          UNION ALL
         SELECT t.nspname, t.relname, t.rolname, 'function', min(k.what), p.oid::regprocedure::text,
                format('GRANT EXECUTE ON FUNCTION %s TO %I', p.oid::regprocedure, t.rolname), t.rolsuper
           FROM code k JOIN tab t ON t.oid = k.relid JOIN pg_proc p ON p.oid = k.proc
          WHERE CASE WHEN t.rolsuper THEN p.proowner <> t.relowner
                          AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) x
                                           WHERE x.grantee = t.relowner AND x.privilege_type = 'EXECUTE')
                     ELSE NOT has_function_privilege(t.relowner, p.oid, 'EXECUTE') END
          GROUP BY t.nspname, t.relname, t.rolname, p.oid, t.rolsuper
          UNION ALL
         SELECT t.nspname, t.relname, t.rolname, 'privilege', '', string_agg(DISTINCT w.privilege, ', '),
                format('GRANT %s ON %I.%I TO %I', string_agg(DISTINCT w.privilege, ', '), t.nspname, t.relname, t.rolname), false
           FROM tab t CROSS JOIN aclexplode(t.relacl) x
          CROSS JOIN LATERAL (SELECT x.privilege_type
                               UNION SELECT 'SELECT' WHERE x.privilege_type IN ('UPDATE', 'DELETE')) AS w (privilege)
          WHERE x.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
            AND NOT has_table_privilege(t.relowner, t.oid, w.privilege)
          GROUP BY t.nspname, t.relname, t.rolname
          ORDER BY 1, 2, 4, 6",
        &[],
    )
}

/// `role, superuser, passes row-level security` of the roles that are there.
pub fn attributes<'a>(roles: impl IntoIterator<Item = &'a str>) -> Statement {
    let roles: Vec<String> = roles.into_iter().map(literal).collect();
    Statement::new(
        format!(
            "SELECT rolname, rolsuper, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname IN ({})",
            roles.join(", ")
        ),
        &[],
    )
}

/// `what, column, is`: the columns of tables with their types; a table itself without a column, an enumerated type with
/// its labels; the key by which updates tell a row, where there is one.
pub fn tables() -> Statement {
    Statement::new(
        "SELECT format('table %I.%I', n.nspname, c.relname), coalesce(quote_ident(a.attname), ''),
                coalesce(format_type(a.atttypid, a.atttypmod)
                         || CASE WHEN a.attgenerated <> '' THEN ' generated' ELSE '' END, '')
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
                string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname COLLATE \"C\")
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_index k ON k.indrelid = c.oid AND k.indislive AND k.indisvalid AND k.indisunique AND k.indimmediate
                          AND k.indpred IS NULL
                          AND CASE c.relreplident WHEN 'd' THEN k.indisprimary
                                                  WHEN 'i' THEN k.indisreplident ELSE false END
           JOIN pg_attribute a ON a.attrelid = c.oid
                              AND a.attnum = ANY ((k.indkey::int2[])[0:k.indnkeyatts - 1])
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan')
          GROUP BY n.nspname, c.relname",
        &[],
    )
}

/// The same as one value.
pub fn tables_digest() -> Statement {
    Statement::new(
        format!(
            "SELECT md5(string_agg(concat_ws(E'\\n', x.t, x.c, x.y), E'\\n'
                                   ORDER BY x.t COLLATE \"C\", x.c COLLATE \"C\"))
               FROM ({}) AS x (t, c, y)",
            tables().sql
        ),
        &[],
    )
}

/// Tables of extensions are left out of what is compared: they may be each node's own, and so not be subscribed to on
/// purpose.
const OF_EXTENSION: &str = "
    EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')";

/// `c`, `n`: the tables that the node sends.
const SENT_TABLES: &str = "
    pg_publication p CROSS JOIN LATERAL pg_get_publication_tables(p.pubname::text) g
    JOIN pg_class c ON c.oid = g.relid AND p.pubname = 'zodan' JOIN pg_namespace n ON n.oid = c.relnamespace";

/// `subscription, table, whether its changes are applied`; what the node itself sends has no subscription.
pub fn subscribed() -> Statement {
    Statement::new(
        format!(
            "SELECT '', format('%I.%I', n.nspname, c.relname), true
               FROM {SENT_TABLES} WHERE NOT {OF_EXTENSION}
              UNION ALL
             SELECT s.subname, CASE WHEN c.oid IS NOT NULL THEN format('%I.%I', n.nspname, c.relname) END,
                    r.srsubstate IN ('r', 's')
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
               LEFT JOIN (pg_subscription_rel r
                          JOIN pg_class c ON c.oid = r.srrelid AND NOT {OF_EXTENSION}
                          JOIN pg_namespace n ON n.oid = c.relnamespace) ON r.srsubid = s.oid
              WHERE 'zodan' = ANY (s.subpublications)"
        ),
        &[],
    )
}

/// `subscription, digest` of the same.
pub fn subscribed_digest() -> Statement {
    Statement::new(
        format!(
            "SELECT x.s, md5(string_agg(x.t || x.a, E'\\n' ORDER BY x.t COLLATE \"C\"))
               FROM ({}) AS x (s, t, a) GROUP BY 1",
            subscribed().sql
        ),
        &[],
    )
}

/// `publication, '', whether it is for all tables` of publications of others that have zodan's own tables, and `slot,
/// plugin, false` of the slots of the database.
pub fn publications() -> Statement {
    Statement::new(
        "SELECT p.pubname, '', p.puballtables
           FROM pg_publication p
          WHERE p.pubname <> 'zodan'
            AND (p.puballtables
                 OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
                             WHERE s.pnpubid = p.oid AND n.nspname = 'zodan')
                 OR EXISTS (SELECT FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid
                              JOIN pg_namespace n ON n.oid = c.relnamespace
                             WHERE r.prpubid = p.oid AND n.nspname = 'zodan'))
          UNION ALL
         SELECT s.slot_name, s.plugin, false
           FROM pg_replication_slots s
          WHERE s.slot_type = 'logical' AND s.database = current_database()
          ORDER BY 2, 1",
        &[],
    )
}

/// One value for all the tables that the node sends.
pub fn sent() -> String {
    format!(
        "(SELECT coalesce(md5(string_agg(x.t, E'\\n' ORDER BY x.t COLLATE \"C\")), '')
            FROM (SELECT format('%I.%I', n.nspname, c.relname) FROM {SENT_TABLES} WHERE NOT {OF_EXTENSION}) AS x (t))"
    )
}

/// The same for the tables that subscription `s` applies.
pub fn known() -> String {
    format!(
        "(SELECT coalesce(md5(string_agg(x.t, E'\\n' ORDER BY x.t COLLATE \"C\")), '')
            FROM (SELECT format('%I.%I', n.nspname, c.relname)
                    FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid
                    JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE r.srsubid = s.oid AND r.srsubstate IN ('r', 's') AND NOT {OF_EXTENSION}) AS x (t))"
    )
}
