//! What two nodes are to have alike: the rows and columns of a table that are sent between them.

use std::collections::BTreeSet;

/// The origin that a row bears, of a table without an alias: 0 for the node itself, null where that is not known any
/// more.
pub const ORIGIN: &str = "(pg_xact_commit_timestamp_origin(CASE current_setting('track_commit_timestamp') \
                          WHEN 'on' THEN xmin END)).roident";

/// When the row was written, likewise, in microseconds since 2000.
pub const WRITTEN: &str = "(extract(epoch FROM \
    (pg_xact_commit_timestamp_origin(CASE current_setting('track_commit_timestamp') WHEN 'on' THEN xmin END)).timestamp \
    - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint";

/// That `i`, a row of `pg_index`, is of the index by which rows of `c`, one of `pg_class`, are told apart.
pub const IDENTITY_INDEX: &str = "i.indrelid = c.oid AND i.indisvalid \
    AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END";

/// Which kinds of changes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub inserts: bool,
    pub updates: bool,
    pub deletes: bool,
    pub truncates: bool,
}

impl Kinds {
    pub const ALL: Self = Self {
        inserts: true,
        updates: true,
        deletes: true,
        truncates: true,
    };
}

/// What of a table two nodes are to have alike. The rest is each node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// On the one and on the other, which rows others are to have: expressions over the columns of the table, as its
    /// node would write them; `None` for all.
    pub rows: [Option<String>; 2],
    /// What a row has to meet for its DELETE to be sent. No more of it than the replica identity may be known then.
    pub deleted: Vec<String>,
    /// `None` for all.
    pub columns: Option<BTreeSet<String>>,
    /// What is sent wherever the table is.
    pub kinds: Kinds,
    /// Each sends the other what is written on it.
    pub both_ways: bool,
    /// Neither sends any of it, and both have got it from a node that is lost.
    pub orphaned: bool,
}

impl Share {
    /// All of the table, and all that happens to it.
    pub fn whole() -> Self {
        Self {
            rows: [None, None],
            deleted: vec![],
            columns: None,
            kinds: Kinds::ALL,
            both_ways: true,
            orphaned: false,
        }
    }

    /// Whether anything of the table may differ by design.
    pub fn is_whole(&self) -> bool {
        *self == Self::whole()
    }
}
