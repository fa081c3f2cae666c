SELECT p.pubname AS name, '' AS plugin, p.puballtables AS all_tables
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
 ORDER BY 2, 1
