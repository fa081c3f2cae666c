//! Commits that are made to be seen elsewhere.

use super::Native;
use crate::engine::{Markers, Path};
use crate::node::{Query, Statement};

impl Markers for Native {
    fn emit_marker(&self, id: &str, provider: &str) -> Vec<Statement> {
        vec![Statement::new(
            "INSERT INTO zodan.marker (id, node) VALUES ($1, $2) RETURNING id",
            &[id, provider],
        )]
    }

    fn marker_seen(&self, _path: &Path, token: &str) -> Query<bool> {
        Query::new(
            "SELECT EXISTS (SELECT FROM zodan.marker WHERE id = $1)",
            &[token],
            |row| row.only(),
        )
    }

    fn marker_tells_itself(&self) -> bool {
        true
    }

    fn forget_markers(&self, provider: &str) -> Vec<Statement> {
        vec![Statement::new(
            "DELETE FROM zodan.marker WHERE node = $1",
            &[provider],
        )]
    }

    fn forget_marker(&self, token: &str) -> Vec<Statement> {
        vec![Statement::new(
            "DELETE FROM zodan.marker WHERE id = $1",
            &[token],
        )]
    }
}
