//! Subscriptions are made, started, stopped and dropped.

use super::Native;
use crate::engine::{Path, Subscriptions};
use crate::error::{Error, Result};
use crate::lsn::Position;
use crate::node::{Member, Query, Statement};

impl Subscriptions for Native {
    fn subscribed_tables(&self) -> Query<String> {
        Query::new(
            "SELECT format('%I.%I', n.nspname, c.relname)
               FROM pg_get_publication_tables('zodan') g
               JOIN pg_class c ON c.oid = g.relid JOIN pg_namespace n ON n.oid = c.relnamespace
              ORDER BY 1",
            &[],
            |row| row.only(),
        )
    }

    fn subscribe(&self, path: &Path, provider: &Member, tables: &[String]) -> Result<Statement> {
        let tables = serde_json::to_string(tables)
            .map_err(|_| Error::internal("the names of tables are no JSON"))?;
        Ok(Statement::new(
            "SELECT zodan.create_subscription($1, $2, $3, $4)",
            &[
                &path.subscription,
                &provider.dsn.reveal(),
                &path.slot,
                &tables,
            ],
        ))
    }

    fn start_at(&self, path: &Path, position: &Position) -> Result<Statement> {
        let lsn = position.of(&path.provider)?;
        Ok(Statement::new(
            "SELECT pg_replication_origin_advance('pg_' || s.oid, $2::pg_lsn)
               FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1",
            &[&path.subscription, &lsn.to_string()],
        ))
    }

    fn enable(&self, path: &Path) -> Statement {
        Statement::new(
            format!(
                "ALTER SUBSCRIPTION {} ENABLE",
                crate::quote::ident(&path.subscription)
            ),
            &[],
        )
    }

    fn disable(&self, path: &Path) -> Statement {
        let name = crate::quote::ident(&path.subscription);
        Statement::new(format!("ALTER SUBSCRIPTION {name} DISABLE"), &[])
    }

    fn stopping_workers(&self) -> Query<u64> {
        Query::new(
            "SELECT count(*) FROM pg_stat_subscription w JOIN pg_subscription s ON s.oid = w.subid
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE w.pid IS NOT NULL AND NOT s.subenabled",
            &[],
            |row| row.only(),
        )
    }

    fn end_connecting_workers(&self) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT pg_terminate_backend(w.pid) FROM pg_stat_subscription w JOIN pg_subscription s ON s.oid = w.subid
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE w.pid IS NOT NULL AND NOT s.subenabled
                AND w.received_lsn IS NULL AND w.relid IS NULL AND w.leader_pid IS NULL",
            &[],
        )]
    }

    fn unsubscribe(&self, subscription: &str) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT zodan.drop_subscription($1)",
            &[subscription],
        )]
    }

    fn end_subscriptions(&self) -> Vec<Statement> {
        vec![Statement::new(
            "SELECT zodan.drop_subscription(s.subname)
               FROM pg_subscription s
              WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND 'zodan' = ANY (s.subpublications)",
            &[],
        )]
    }

    fn stop_subscriptions(&self) -> Statement {
        Statement::new("SELECT zodan.stop_subscriptions()", &[])
    }

    fn refresh(&self, path: &Path) -> Result<Statement> {
        let name = crate::quote::ident(&path.subscription);
        Ok(Statement::new(
            format!("ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = false)"),
            &[],
        ))
    }

    fn forward(&self, path: &Path, others_too: bool) -> Statement {
        let name = crate::quote::ident(&path.subscription);
        let origin = if others_too { "any" } else { "none" };
        // Changes of the provider's own zodan tables found no rows: they cast doubt on nothing.
        let forget = match others_too {
            true => String::new(),
            false => format!(
                "; SELECT pg_stat_reset_subscription_stats(s.oid) FROM pg_subscription s
                     JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                    WHERE s.subname = {}",
                crate::quote::literal(&path.subscription)
            ),
        };
        Statement::new(
            format!("ALTER SUBSCRIPTION {name} SET (origin = {origin}){forget}"),
            &[],
        )
    }

    fn source_sends_all(&self) -> bool {
        // Every publication is for all tables.
        !self.source_has_triggers
    }
}
