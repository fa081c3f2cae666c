//! What a copy of the source has to be like.

use super::Native;
use crate::copy::{self, InSnapshot};
use crate::engine::{ConflictRule, CopyPlan, CopyRules, Excluded, triggers};
use crate::error::Result;
use crate::node::{Node, Query, ask_one, own_database};

impl CopyRules for Native {
    fn apply_runs_statements(&self, source: &mut Node) -> Result<bool> {
        // Triggers that fire for replicated rows may run any, and so may those that fire when subscriptions connect.
        let of_login: Query<bool> = Query::new(
            "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D')",
            &[],
            |row| row.only(),
        );
        let (of_apply, of_login) = ask_one(source, &(triggers::of_apply(), of_login))?;
        Ok([of_apply, of_login].concat().contains(&true))
    }

    fn apply_role(&self) -> Query<String> {
        Query::new("SELECT current_user", &[], |row| row.only())
    }

    fn copy_plan(
        &self,
        _source: &mut Node,
        snapshot: &mut InSnapshot,
        _new: &str,
    ) -> Result<CopyPlan> {
        Ok(CopyPlan {
            // Origins belong to the server.
            origin: format!("zodan_copy_{}", own_database()),
            names_follow: false,
            preexisting: vec![],
            tables: copy::tables(snapshot, &[])?,
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
