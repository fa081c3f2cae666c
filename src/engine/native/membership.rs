//! A node becomes one, and ceases to be one.

use super::Native;
use crate::engine::{Identity, KeepsRegistry, LocalRegistry, Membership, PendingCleanup, Registry};
use crate::error::{Error, Result};
use crate::libpq::Dsn;
use crate::node::{Member, Query, Statement, server};

impl Membership for Native {
    fn create_node(&self, identity: &Identity) -> Vec<Statement> {
        vec![
            Statement::new("CREATE PUBLICATION zodan FOR ALL TABLES", &[]),
            Statement::new(
                "INSERT INTO zodan.local_node (name) SELECT $1 FROM zodan.unreplicated()",
                &[&identity.member.name],
            ),
        ]
    }

    fn drop_node(&self) -> Vec<Statement> {
        // One transaction: a node or none, never half of one.
        vec![Statement::new(
            "DROP PUBLICATION IF EXISTS zodan;
             DELETE FROM zodan.marker USING zodan.unreplicated();
             DELETE FROM zodan.node USING zodan.unreplicated();
             DELETE FROM zodan.membership USING zodan.unreplicated();
             DELETE FROM zodan.sequence USING zodan.unreplicated();
             DELETE FROM zodan.local_node USING zodan.unreplicated()",
            &[],
        )]
    }

    fn forget_node(&self, name: &str) -> Vec<Statement> {
        [
            "DELETE FROM zodan.marker USING zodan.unreplicated() WHERE node = $1",
            "DELETE FROM zodan.pending_cleanup USING zodan.unreplicated() WHERE member = $1",
            // One that comes back under the name is another.
            "DELETE FROM zodan.recovery_slot USING zodan.unreplicated() WHERE provider = $1",
        ]
        .map(|sql| Statement::new(sql, &[name]))
        .into_iter()
        .chain([server::forget_recoveries(Some(name))])
        .collect()
    }

    fn registry(&self) -> Option<&dyn KeepsRegistry> {
        Some(self)
    }
}

impl KeepsRegistry for Native {
    fn read(&self) -> Query<LocalRegistry> {
        Query::new(
            "SELECT local_name, registry FROM zodan.registry()",
            &[],
            |row| {
                Ok(LocalRegistry {
                    name: row.get("local_name")?,
                    registry: Registry::parse(row.get("registry")?)?,
                })
            },
        )
    }

    fn apply(&self, registry: &Registry) -> Result<Query<bool>> {
        Ok(Query::new(
            "SELECT zodan.apply_registry($1::jsonb)",
            &[&registry.to_text()?],
            |row| row.only(),
        ))
    }

    fn record_cleanup(&self, cleanup: &PendingCleanup) -> Statement {
        Statement::new(
            "INSERT INTO zodan.pending_cleanup (member, dsn, removed, action)
             SELECT $1, $2, $3, $4::jsonb FROM zodan.unreplicated() ON CONFLICT DO NOTHING",
            &[
                &cleanup.member.name,
                &cleanup.member.dsn.reveal(),
                &cleanup.removed,
                &cleanup.action,
            ],
        )
    }

    fn pending_cleanups(&self) -> Query<PendingCleanup> {
        Query::new(
            "SELECT o.member, coalesce(n.dsn, o.dsn) AS dsn, o.action, o.removed
               FROM zodan.pending_cleanup o LEFT JOIN zodan.node n ON n.name = o.member
              ORDER BY o.recorded_at, o.action",
            &[],
            |row| {
                let dsn = Dsn::parse(row.get("dsn")?).map_err(|bad| {
                    Error::internal(format!("zodan.pending_cleanup.dsn {}", bad.problem()))
                })?;
                Ok(PendingCleanup {
                    member: Member {
                        name: row.get("member")?,
                        dsn,
                    },
                    removed: row.get("removed")?,
                    action: row.get("action")?,
                })
            },
        )
    }

    fn cleaned_up(&self, removed: &str, member: &str) -> Statement {
        Statement::new(
            "DELETE FROM zodan.pending_cleanup USING zodan.unreplicated() WHERE removed = $1 AND member = $2",
            &[removed, member],
        )
    }
}
