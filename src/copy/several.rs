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
    // What a copy needs beside its table, as an index, somebody may hold who waits for another of the tables.
    let patience = match tables.len() {
        1 => "",
        _ => "SET LOCAL lock_timeout = '100ms'; ",
    };
    // The rows come in the encoding of both databases. The text of this message has been read by then; that of the next
    // one is UTF-8 again.
    format!(
        "{}{}; {patience}SET LOCAL client_encoding = {}; {}; SET LOCAL client_encoding = 'UTF8'",
        if in_transaction { "COMMIT; " } else { "" },
        pin_several(&job.snapshot, &tables),
        literal(&encoding::of_database()),
        copies.join("; ")
    )
}
