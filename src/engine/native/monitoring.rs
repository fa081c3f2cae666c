//! What the subscriptions of a node are like.

use super::{Native, published};
use crate::engine::{Monitoring, PassedOver, Path, SubscriptionState};
use crate::node::{Query, Statement};

impl Monitoring for Native {
    fn subscriptions(&self) -> Query<SubscriptionState> {
        Query::new(
            "SELECT s.subname AS name, s.subenabled AS enabled, w.pid IS NOT NULL AS working,
                    coalesce(e.apply_error_count, 0) AS errors, o.remote_lsn AS applied, NULL AS skipped_change
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
               LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
                                               AND to_jsonb(w) ->> 'leader_pid' IS NULL
               LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
               LEFT JOIN pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid
              WHERE 'zodan' = ANY (s.subpublications)
              ORDER BY s.subname",
            &[],
            SubscriptionState::read,
        )
    }

    fn subscription_details(&self) -> Statement {
        // What an error was is in no catalog; that there was one is counted. A walsender that has nothing to send
        // greets its reader with a keepalive.
        Statement::new(
            format!(
                "SELECT x.name AS subscription, NULL::text AS provider, s.subslotname::text AS slot,
                        CASE WHEN NOT x.enabled THEN 'disabled' WHEN NOT x.working THEN 'down'
                             WHEN EXISTS (SELECT FROM pg_subscription_rel r
                                           WHERE r.srsubid = s.oid AND r.srsubstate NOT IN ('r', 's'))
                             THEN 'syncing' ELSE 'replicating' END AS status,
                        (SELECT bool_or(w.received_lsn IS NOT NULL) FROM pg_stat_subscription w
                          WHERE w.subid = s.oid AND w.relid IS NULL) AS received,
                        s.subpublications::text[] AS replication_sets,
                        CASE WHEN x.errors > 0
                             THEN format('errors of the apply worker so far: %s (see the log of the subscriber)',
                                    x.errors) END AS last_error,
                        {} AS tables, x.applied::text
                   FROM ({}) AS x
                   JOIN pg_database d ON d.datname = current_database()
                   JOIN pg_subscription s ON s.subdbid = d.oid AND s.subname = x.name",
                published::known(),
                self.subscriptions().statement.sql
            ),
            &[],
        )
    }

    fn sent_tables(&self) -> String {
        published::sent()
    }

    fn worker_error(&self, path: &Path) -> Query<String> {
        // What an error was is in the log alone; PostgreSQL 18 counts conflicts by their kind.
        Query::new(
            "SELECT format('Subscription %s: %s errors of its apply worker so far%s. The log of that server says what they were%s.',
                           s.subname, coalesce(e.apply_error_count, 0),
                           (SELECT ', conflicts: ' || string_agg(format('%s %s', substr(c.key, 7), c.value), ', ' ORDER BY c.key)
                              FROM jsonb_each_text(to_jsonb(e)) c
                             WHERE c.key LIKE 'confl\\_%' AND c.value <> '0'),
                           ': ' || pg_current_logfile())
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
               LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
              WHERE s.subname = $1",
            &[&path.subscription],
            |row| row.only(),
        )
    }

    fn passed_over(&self) -> Query<PassedOver> {
        // Counted since PostgreSQL 18. Deletes say nothing: those of markers come without their rows.
        Query::new(
            "SELECT FROM (SELECT to_jsonb(s) AS counted FROM pg_stat_subscription_stats s JOIN pg_subscription u ON u.oid = s.subid
                      WHERE u.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())) s
             HAVING sum((counted ->> 'confl_update_missing')::bigint) > 0",
            &[],
            |_| Ok(PassedOver { table: None }),
        )
    }

    fn idle_address(&self, path: &Path) -> Query<String> {
        Query::new(
            "SELECT s.subconninfo FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1 AND s.subenabled
                AND NOT EXISTS (SELECT FROM pg_stat_subscription w
                                 WHERE w.subid = s.oid AND w.relid IS NULL AND w.received_lsn IS NOT NULL)",
            &[&path.subscription],
            |row| row.only(),
        )
    }

    fn start_replication(&self, path: &Path) -> Query<String> {
        Query::new(
            "SELECT format('START_REPLICATION SLOT %I LOGICAL 0/0 (proto_version ''1'', publication_names %L)',
                           subslotname, (SELECT string_agg(quote_ident(p), ',') FROM unnest(subpublications) p))
               FROM pg_subscription
              WHERE subname = $1 AND subslotname IS NOT NULL
                AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[&path.subscription],
            |row| row.only(),
        )
    }
}
