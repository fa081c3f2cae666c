//! Commits that are made to be seen elsewhere.

use super::Native;
use crate::engine::{Markers, Path};
use crate::node::Statement;

impl Markers for Native {
    fn emit_marker(&self, id: &str, provider: &str) -> Vec<Statement> {
        vec![Statement::new(
            "INSERT INTO zodan.marker (id, node) VALUES ($1, $2) RETURNING id",
            &[id, provider],
        )]
    }

    fn marker_seen(&self, _path: &Path, token: &str) -> Statement {
        Statement::new(
            "SELECT EXISTS (SELECT FROM zodan.marker WHERE id = $1)",
            &[token],
        )
    }

    fn forget_markers(&self, provider: &str) -> Option<Statement> {
        Some(Statement::new(
            "DELETE FROM zodan.marker WHERE node = $1",
            &[provider],
        ))
    }

    fn forget_marker(&self, token: &str) -> Option<Statement> {
        Some(Statement::new(
            "DELETE FROM zodan.marker WHERE id = $1",
            &[token],
        ))
    }
}
