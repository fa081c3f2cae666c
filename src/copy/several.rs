//! Several pieces with one message, so that a worker waits for the network once for all of them.

use super::pin::pin_several;
use super::plan::Task;
use super::shared::Job;
use super::tables::Table;
use crate::encoding;
use crate::quote::literal;
use std::collections::BTreeMap;

/// The message that asks for the pieces, and first ends the transaction of those before, if there is one.
pub fn message(job: &Job, tasks: &[Task], in_transaction: bool) -> String {
    let tables: BTreeMap<u32, &Table> = tasks
        .iter()
        .map(|task| &job.tables[task.table])
        .map(|table| (table.oid, table))
        .collect();
    let tables: Vec<&Table> = tables.into_values().collect();
    let copies: Vec<String> = tasks
        .iter()
        .map(|task| job.tables[task.table].copy_out(task.range))
        .collect();
    // The rows come in the encoding of both databases; the text of the message has been read by then.
    format!(
        "{}{}; SET LOCAL client_encoding = {}; {}",
        if in_transaction { "COMMIT; " } else { "" },
        pin_several(&job.snapshot, &tables),
        literal(&encoding::of_database()),
        copies.join("; ")
    )
}
