//! How long things take, before anything of it has been measured: on two cores and a disk of their own.

use crate::copy::{Indexes, Table};
use std::time::Duration;

/// Bytes of tables, on the disk of the source, that arrive in a second.
const COPY: u64 = 40 << 20;
/// Bytes of indexes that are built in a second.
const BUILD: u64 = 40 << 20;
/// Bytes of the failed node's WAL that are brought over in a second.
const REPLAY: u64 = 4 << 20;

/// How much a step has to do.
pub struct Estimate {
    /// `None` where nobody knows.
    pub rows: Option<u64>,
    pub bytes: u64,
    pub time: Duration,
}

impl Estimate {
    pub fn of_copy(tables: &[Table], indexes: &Indexes) -> Self {
        let bytes = tables.iter().map(|t| t.bytes).sum();
        Self {
            rows: tables.iter().map(|t| t.rows).sum(),
            bytes: bytes + indexes.bytes,
            time: time_for(bytes, COPY) + time_to_build(indexes.bytes),
        }
    }

    pub fn of_replay(bytes: u64) -> Self {
        Self {
            rows: None,
            bytes,
            time: time_for(bytes, REPLAY),
        }
    }
}

pub fn time_to_build(bytes: u64) -> Duration {
    time_for(bytes, BUILD)
}

fn time_for(bytes: u64, in_a_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / in_a_second as f64)
}
