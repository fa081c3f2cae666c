//! What a recovery reads, and how it writes.

use super::Native;
use crate::engine::{Path, Recovery};
use crate::node::Query;
use crate::replay::{Decoding, Protocol};

impl Recovery for Native {
    fn decoding(&self) -> Decoding {
        Decoding {
            plugin: "pgoutput",
            options: r#"'proto_version', '1', 'publication_names', '"zodan"', 'origin', 'any'"#,
            protocol: Protocol::Pgoutput,
        }
    }

    fn origin(&self, path: &Path) -> Query<String> {
        Query::new(
            "SELECT 'pg_' || s.oid FROM pg_subscription s
               JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
              WHERE s.subname = $1",
            &[&path.subscription],
            |row| row.only(),
        )
    }
}
