WITH RECURSIVE copied AS (
  SELECT t::regclass::oid AS oid FROM unnest($1::text[]) t
   UNION
  SELECT p.relid FROM unnest($1::text[]) t, pg_partition_tree(t::regclass) p
), unchecked AS (
  SELECT k.oid, k.conrelid, k.conname, k.coninhcount
    FROM copied JOIN pg_class c USING (oid) JOIN pg_constraint k ON k.conrelid = c.oid
   WHERE k.contype = 'c' AND :suspended
   UNION
  SELECT p.oid, p.conrelid, p.conname, p.coninhcount
    FROM unchecked u
    JOIN pg_inherits i ON i.inhrelid = u.conrelid
    JOIN pg_constraint p ON p.conrelid = i.inhparent AND p.conname = u.conname
   WHERE u.coninhcount > 0 AND p.contype = 'c' AND p.convalidated AND NOT p.connoinherit
), line AS (
  SELECT conrelid AS relid, conrelid AS up FROM unchecked
   UNION
  SELECT line.relid, i.inhparent FROM line JOIN pg_inherits i ON i.inhrelid = line.up
), top AS (
  SELECT u.conrelid, u.conname, n.nspname, c.relname
    FROM unchecked u JOIN pg_class c ON c.oid = u.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN unchecked p ON p.conrelid = i.inhparent AND p.conname = u.conname
                      WHERE i.inhrelid = u.conrelid)
), marked AS (
  UPDATE pg_constraint k SET convalidated = false:enforced FROM unchecked u WHERE k.oid = u.oid
), counted AS (
  UPDATE pg_class c
     SET relchecks = (SELECT count(*) FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c')
   WHERE c.oid IN (SELECT conrelid FROM unchecked)
)
SELECT u.conrelid AS relation, n.nspname AS schema, c.relname AS table_name, u.conname AS name, c.relowner AS owner,
       c.relkind = 'r' AS has_rows, pg_get_expr(k.conbin, k.conrelid) AS expression,
       (SELECT json_agg(l.up::bigint) FROM line l WHERE l.relid = u.conrelid AND l.up <> u.conrelid) AS ancestors,
       (SELECT json_agg(json_build_array(t.nspname, t.relname) ORDER BY t.nspname, t.relname)
          FROM line l JOIN top t ON t.conrelid = l.up AND t.conname = u.conname WHERE l.relid = u.conrelid) AS tops
  FROM unchecked u
  JOIN pg_constraint k ON k.oid = u.oid
  JOIN pg_class c ON c.oid = u.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY (SELECT count(*) FROM line l WHERE l.relid = u.conrelid) DESC, 2, 3, 4
