//! What a copy of the source has to be like.

use super::Native;
use crate::copy;
use crate::engine::{ConflictRule, CopyPlan, CopyRules, Excluded, triggers};
use crate::error::Result;
use crate::node::{Node, Query, own_database};

impl CopyRules for Native {
    fn apply_runs_statements(&self, source: &mut Node) -> Result<bool> {
        // Triggers that fire for replicated rows may run any, and so may those that fire when subscriptions connect.
        let triggers = triggers::of_apply().one(source)?;
        let rows = source.query(
            "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D')",
            &[],
        )?;
        Ok(triggers || rows.one()?.only()?)
    }

    fn apply_role(&self) -> Query<String> {
        Query::new("SELECT current_user", &[], |row| row.only())
    }

    fn copy_plan(&self, source: &mut Node, _new: &str, snapshot: &str) -> Result<CopyPlan> {
        let source = copy::Source {
            node: &source.name,
            dsn: &source.dsn,
            snapshot,
        };
        Ok(CopyPlan {
            // Origins belong to the server.
            origin: format!("zodan_copy_{}", own_database()),
            names_follow: false,
            preexisting: vec![],
            tables: copy::tables(&source, &[])?,
            structure_only: vec![],
            settings: vec![],
            excluded: Excluded::default(),
        })
    }

    fn copy_replication_sets(&self, _source: &mut Node, _new: &mut Node) -> Result<Vec<String>> {
        Ok(vec![]) // the publication is for all tables
    }

    fn last_update_wins(&self, table: &str, wanted: bool) -> ConflictRule {
        ConflictRule::Trigger(Query::new(
            "SELECT zodan.set_last_update_wins($1::regclass, $2::boolean)",
            &[table, if wanted { "true" } else { "false" }],
            |row| row.only(),
        ))
    }
}
