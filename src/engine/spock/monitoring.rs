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
            "SELECT s.sub_name AS name, s.sub_enabled AS enabled,
                    s.sub_enabled AND t.status = 'replicating'
                    AND EXISTS (SELECT FROM pg_stat_activity a, pg_database d
                                 WHERE d.datname = current_database()
                                   AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)) AS working,
                    0 AS errors, o.remote_lsn AS applied,
                    (SELECT concat_ws(': ', nullif(concat_ws(' ', e.operation, e.table_schema || '.' || e.table_name), ''),
                                      e.error_message)
                       FROM spock.exception_log e
                      WHERE e.retry_errored_at >= (to_jsonb(s) ->> 'sub_created_at')::timestamptz
                        AND e.error_message !~ '^unavailable|did not find row to be updated|find relation$'
                        AND (e.remote_origin = s.sub_origin
                             OR e.remote_origin = 0 AND e.operation = 'SUB_DISABLE'
                                AND strpos(e.error_message, format(' %s ', s.sub_name)) > 0)
                      ORDER BY e.operation = 'SUB_DISABLE', e.retry_errored_at DESC LIMIT 1) AS skipped_change
               FROM spock.subscription s
               JOIN spock.local_node l ON l.node_id = s.sub_target
               LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name
               LEFT JOIN pg_replication_origin_status o ON o.external_id = s.sub_slot_name
              ORDER BY s.sub_name",
            &[],
            SubscriptionState::read,
        )
    }

    fn subscription_details(&self) -> Statement {
        Statement::new(
            format!(
                "SELECT x.name AS subscription, n.node_name::text AS provider, s.sub_slot_name::text AS slot,
                        CASE WHEN NOT x.enabled THEN 'disabled' WHEN x.working THEN 'replicating'
                             WHEN t.status IN ('initializing', 'syncing', 'synchronizing') THEN t.status
                             ELSE 'down' END AS status,
                        NULL::boolean AS received, s.sub_replication_sets AS replication_sets, x.skipped_change AS last_error,
                        {} AS left_out, x.applied::text
                   FROM ({}) AS x
                   JOIN spock.subscription s ON s.sub_name = x.name
                   JOIN spock.local_node l ON l.node_id = s.sub_target
                   JOIN spock.node n ON n.node_id = s.sub_origin
                   LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name",
                conditions::left_out_of(),
                self.subscriptions().statement.sql
            ),
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
            format!(
                "SELECT format('START_REPLICATION SLOT %I LOGICAL 0/0 (startup_params_format %L, expected_encoding %L, '
                               'min_proto_version %L, max_proto_version %L, spock_version %L, spock_version_num %L, '
                               '\"spock.forward_origins\" %L, \"spock.replication_set_names\" %L)',
                               s.sub_slot_name, '1', getdatabaseencoding(), '{PROTOCOL}', '{PROTOCOL}',
                               spock.spock_version(), spock.spock_version_num(),
                               coalesce((SELECT string_agg(quote_ident(f), ',') FROM unnest(s.sub_forward_origins) f), ''),
                               coalesce((SELECT string_agg(quote_ident(r), ',') FROM unnest(s.sub_replication_sets) r), ''))
                   FROM spock.subscription s WHERE s.sub_name = $1"
            ),
            &[&path.subscription],
            |row| row.only(),
        )
    }
}
