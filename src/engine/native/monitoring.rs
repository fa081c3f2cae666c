//! What the subscriptions of a node are like.

use super::{Native, published};
use crate::engine::{Monitoring, PassedOver, Path, SubscriptionState};
use crate::node::{Query, Statement};

impl Monitoring for Native {
    fn subscriptions(&self) -> Query<SubscriptionState> {
        Query::new(
            include_str!("subscriptions.sql"),
            &[],
            SubscriptionState::read,
        )
    }

    fn subscription_details(&self) -> Statement {
        // What an error was is in no catalog; that there was one is counted. A walsender that has nothing to send
        // greets its reader with a keepalive.
        Statement::new(
            include_str!("subscription_details.sql")
                .replace(":tables", &published::known())
                .replace(":subscriptions", &self.subscriptions().statement.sql),
            &[],
        )
    }

    fn sent_tables(&self) -> String {
        published::sent()
    }

    fn worker_error(&self, path: &Path) -> Query<String> {
        // What an error was is in the log alone; PostgreSQL 18 counts conflicts by their kind.
        Query::new(
            include_str!("worker_error.sql"),
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
