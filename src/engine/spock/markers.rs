//! Commits that are made to be seen elsewhere.

use super::Spock;
use crate::engine::{Markers, Path};
use crate::node::{Query, Statement};

impl Markers for Spock {
    fn emit_marker(&self, _id: &str, _provider: &str) -> Vec<Statement> {
        // The commit is what the lag is told from. It is not waited for: before 6.0 a commit without
        // rows moves the origin up to a second late. The other kind moves it at once.
        vec![
            Statement::new("SELECT spock.sync_event(true)", &[]),
            Statement::new("SELECT spock.sync_event(false)", &[]),
        ]
    }

    fn marker_seen(&self, path: &Path, token: &str) -> Query<bool> {
        Query::new(
            "SELECT coalesce((SELECT remote_lsn >= $2::pg_lsn FROM pg_replication_origin_status
                               WHERE external_id = $1), false)",
            &[&path.slot, token],
            |row| row.only(),
        )
    }
}
