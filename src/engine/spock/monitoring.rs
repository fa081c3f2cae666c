//! What the subscriptions of a node are like.

use super::{Spock, conditions};
use crate::engine::{Lag, Monitoring, PassedOver, Path, SubscriptionState};
use crate::node::{Query, Statement};

/// The version of Spock's protocol that 5.0 and 6.0 speak.
const PROTOCOL: &str = "4";

impl Monitoring for Spock {
    fn subscriptions(&self) -> Query<SubscriptionState> {
        // Spock's own status also says "replicating" of a worker that is registered and does not run,
        // and "down" of one that runs and that Spock has lost: such a subscription does not start
        // again. Errors of a worker that reach nothing but the log are not counted: no SQL shows them.
        // Given up is not what a conflict of the applications makes any member give up, an update of
        // a row that is gone, nor the rows of a table that was made during the join: the drift tells.
        Query::new(
            include_str!("subscriptions.sql"),
            &[],
            SubscriptionState::read,
        )
    }

    fn subscription_details(&self) -> Statement {
        Statement::new(
            include_str!("subscription_details.sql")
                .replace(":left_out_of", &conditions::left_out_of())
                .replace(":subscriptions", &self.subscriptions().statement.sql),
            &[],
        )
    }

    fn worker_error(&self, path: &Path) -> Query<String> {
        conditions::worker_error(&path.subscription)
    }

    fn passed_over(&self) -> Query<PassedOver> {
        Query::new(
            "SELECT DISTINCT e.table_schema, e.table_name
               FROM spock.exception_log e
               JOIN spock.subscription s ON s.sub_origin = e.remote_origin
               JOIN spock.local_node l ON l.node_id = s.sub_target
              WHERE e.error_message ~ 'did not find row'
                AND e.retry_errored_at >= (to_jsonb(s) ->> 'sub_created_at')::timestamptz",
            &[],
            |row| {
                let schema: Option<String> = row.get("table_schema")?;
                Ok(PassedOver {
                    table: schema.zip(row.get("table_name")?),
                })
            },
        )
    }

    fn lag(&self) -> Query<Lag> {
        Query::new(
            "SELECT origin_name, receiver_name, commit_timestamp, replication_lag_bytes, replication_lag
               FROM spock.lag_tracker WHERE origin_name IS NOT NULL
              ORDER BY 1, 2",
            &[],
            |row| {
                Ok(Lag {
                    origin: row.get("origin_name")?,
                    receiver: row.get("receiver_name")?,
                    commit_timestamp: row.get("commit_timestamp")?,
                    bytes: row.get("replication_lag_bytes")?,
                    time: row.get("replication_lag")?,
                })
            },
        )
    }

    fn start_replication(&self, path: &Path) -> Query<String> {
        Query::new(
            include_str!("start_replication.sql").replace(":protocol", PROTOCOL),
            &[&path.subscription],
            |row| row.only(),
        )
    }
}
