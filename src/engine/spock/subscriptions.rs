//! Subscriptions are made, started, stopped and dropped.

use super::Spock;
use super::sets::{Subscription, array};
use crate::engine::{Disabling, Path, Paths, Subscriptions};
use crate::error::{Error, Result, SqlState};
use crate::lsn::Position;
use crate::node::{Member, Query, Statement};

impl Subscriptions for Spock {
    fn subscribe(&self, path: &Path, provider: &Member, _tables: &[String]) -> Result<Statement> {
        // forward_origins stays empty: a node sends on nothing but its own changes.
        let wanted = self.wanted(path);
        Ok(Statement::new(
            "SELECT spock.sub_create(subscription_name := $1::name, provider_dsn := $2,
                        replication_sets := $3::text[], synchronize_structure := false,
                        synchronize_data := false, enabled := false,
                        apply_delay := coalesce(nullif($4, ''), '0')::interval)",
            &[
                &path.subscription,
                &provider.dsn.reveal(),
                &array(&wanted.sets),
                &wanted.delay,
            ],
        ))
    }

    fn start_at(&self, path: &Path, position: &Position) -> Result<Statement> {
        let lsn = position.of(&path.provider)?;
        Ok(Statement::new(
            "SELECT pg_replication_origin_advance($1, $2::pg_lsn)",
            &[&path.slot, &lsn.to_string()],
        ))
    }

    fn enable(&self, path: &Path) -> Statement {
        Statement::new("SELECT spock.sub_enable($1::name)", &[&path.subscription])
    }

    fn enable_all(&self, paths: &[Path]) -> Vec<Statement> {
        // With one commit: after the first one Spock is busy with its worker, and the next waits.
        let names: Vec<&str> = paths.iter().map(|p| p.subscription.as_str()).collect();
        vec![Statement::new(
            "SELECT spock.sub_enable(name::name) FROM unnest(string_to_array($1, ',')) name",
            &[&names.join(",")],
        )]
    }

    fn wake_launcher(&self, idle: &Path) -> Vec<Statement> {
        // Spock's manager starts its workers one by one and does not see for a second that one has
        // started, unless it is woken. Meanwhile it holds a lock that other changes of subscriptions
        // wait for; those of the sets do not, and every one of them wakes it.
        vec![Statement::new(
            "SELECT spock.sub_remove_repset(s.sub_name, s.sub_replication_sets[1]::name),
                    spock.sub_add_repset(s.sub_name, s.sub_replication_sets[1]::name)
               FROM spock.subscription s WHERE s.sub_name = $1 AND NOT s.sub_enabled",
            &[&idle.subscription],
        )]
    }

    fn disable(&self, path: &Path) -> Statement {
        Statement::new(
            "SELECT spock.sub_disable(sub_name, true) FROM spock.subscription WHERE sub_name = $1",
            &[&path.subscription],
        )
    }

    fn disable_between_transactions(&self, path: &Path) -> Disabling {
        // A worker that is told to end in the middle of a transaction leaves that as one that has failed,
        // and the next worker discards it. One that loses its connection does not, and stays away for
        // spock.restart_delay_default.
        Disabling::OnceIdle(Statement::new(
            "SELECT spock.sub_disable($1::name, true)
              WHERE NOT EXISTS (
                    SELECT FROM spock.subscription s, pg_database d, pg_stat_activity a
                     WHERE s.sub_name = $1 AND d.datname = current_database()
                       AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id))",
            &[&path.subscription],
        ))
    }

    fn stopping_workers(&self) -> Query<u64> {
        Query::new(
            "SELECT count(*) FROM spock.subscription s, pg_database d, pg_stat_activity a
              WHERE NOT s.sub_enabled AND d.datname = current_database()
                AND a.backend_type = format('spock apply %s:%s', d.oid, s.sub_id)",
            &[],
            |row| row.only(),
        )
    }

    fn unsubscribe(&self, subscription: &str) -> Vec<Statement> {
        // A subscription that is still copying waits for its own copy for ever, and with it Spock's
        // manager: the copy is ended first.
        vec![
            Statement::new(
                "SELECT spock.sub_disable(sub_name, false) FROM spock.subscription WHERE sub_name = $1",
                &[subscription],
            ),
            Statement::new(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE application_name = $1 || '_copy' AND datname = current_database()",
                &[subscription],
            ),
            Statement::new("SELECT spock.sub_drop($1::name, true)", &[subscription]),
        ]
    }

    fn end_subscriptions(&self) -> Vec<Statement> {
        // To drop one would drop the slot on its provider: an address without a server keeps it from that.
        vec![
            Statement::new(
                "UPDATE spock.node_interface SET if_dsn = 'host=/nowhere'
                  WHERE if_nodeid NOT IN (SELECT node_id FROM spock.local_node)",
                &[],
            ),
            Statement::new(
                "SELECT spock.sub_drop(sub_name, true) FROM spock.subscription",
                &[],
            ),
        ]
    }

    fn stop_subscriptions(&self) -> Statement {
        Statement::new(
            "SELECT spock.sub_disable(sub_name, true) FROM spock.subscription WHERE sub_enabled",
            &[],
        )
    }

    fn refresh(&self, _path: &Path) -> Result<Statement> {
        Err(Error::refused(
            SqlState::FEATURE_NOT_SUPPORTED,
            "with spock replication sets say which tables are replicated",
            "Add the table to a replication set on every node: spock.repset_add_table.",
        ))
    }

    fn forward(&self, path: &Path, others_too: bool) -> Statement {
        let wanted = if others_too { "all" } else { "" };
        if self.alters_options {
            return Statement::new(
                "SELECT spock.sub_alter_options($1::name,
                            jsonb_build_object('forward_origins', string_to_array($2, ',')))",
                &[&path.subscription, wanted],
            );
        }
        // Before 6.0 nothing but sub_create sets it. The worker reads it when it starts.
        Statement::new(
            "UPDATE spock.subscription SET sub_forward_origins = nullif(string_to_array($2, ','), '{}')
              WHERE sub_name = $1 AND NOT sub_enabled",
            &[&path.subscription, wanted],
        )
    }

    fn source_sends_all(&self) -> bool {
        self.source_sends_all
    }
}

impl Spock {
    /// What a subscription with the new node at one end is to be like.
    pub(super) fn wanted(&self, path: &Path) -> Subscription {
        let ends = (path.provider.clone(), path.subscriber.clone());
        let nth = self.paths(&path.provider, &path.subscriber);
        let nth = nth.iter().position(|p| p == path).unwrap_or_default();
        let all = self.to_make.get(&ends);
        all.and_then(|all| all.get(nth))
            .cloned()
            .unwrap_or_default()
    }
}
