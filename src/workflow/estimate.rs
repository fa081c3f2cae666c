//! How long things take, before anything of it has been measured: on two cores and a disk of their own.

use std::time::Duration;

/// Bytes of tables, on the disk of the source, that arrive in a second.
const COPY: u64 = 40 << 20;
/// Bytes of indexes that are built in a second.
const BUILD: u64 = 40 << 20;

pub fn time_to_copy(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / COPY as f64)
}

pub fn time_to_build(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / BUILD as f64)
}
