//! Commits that are made to be seen elsewhere.

use super::Path;
use crate::node::{Query, Statement};

/// Markers: commits that are made to be seen elsewhere. Whoever has applied one has applied all commits before it.
pub trait Markers {
    /// Commits the marker `id` on the node `provider`, one statement after the other; the last answer is its token.
    fn emit_marker(&self, id: &str, provider: &str) -> Vec<Statement>;

    /// Whether the marker of the token has been applied on the subscriber of `path`, where it is run. Received is not
    /// applied.
    fn marker_seen(&self, path: &Path, token: &str) -> Query<bool>;

    /// Whether that is told by the marker itself. Where it is told by its position, a provider whose WAL has gone back
    /// seems to have had it applied before it was sent.
    fn marker_tells_itself(&self) -> bool {
        false
    }

    /// Removes what markers leave behind on the provider where it is run; nothing is to be run where they leave nothing.
    fn forget_markers(&self, _provider: &str) -> Vec<Statement> {
        vec![]
    }

    /// Removes what the one marker leaves behind.
    fn forget_marker(&self, _token: &str) -> Vec<Statement> {
        vec![]
    }
}
