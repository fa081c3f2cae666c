//! How much of the tables has arrived, from the counts of the workers and what was expected of them.

use super::shared::{Count, Job};

/// Where the copy is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyProgress {
    /// Rows and bytes received so far.
    pub rows: u64,
    pub bytes: u64,
    /// Rows there will be: those of tables that are there, and estimates for the others.
    pub rows_expected: u64,
    /// Bytes on the disk of the source: of all tables, and of what has been copied of them.
    pub planned: u64,
    pub planned_done: u64,
    /// Tables that are being copied now.
    pub tables: Vec<String>,
    /// Pieces that are done.
    pub pieces: u64,
}

/// A table of which everything has arrived.
pub struct Complete {
    pub table: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Counts arrivals.
pub struct Counter<'a> {
    job: &'a Job,
    /// How many tasks each table has.
    tasks: Vec<u64>,
    reported: Vec<bool>,
}

impl<'a> Counter<'a> {
    pub fn new(job: &'a Job) -> Self {
        let mut tasks = vec![0; job.tables.len()];
        job.tasks.iter().for_each(|task| tasks[task.table] += 1);
        Self {
            job,
            reported: vec![false; tasks.len()],
            tasks,
        }
    }

    /// What has arrived, with the tasks that are being worked on.
    pub fn look(&self, counts: &[Count], at_work: impl Iterator<Item = usize>) -> CopyProgress {
        let mut arrival = CopyProgress::default();
        for ((table, count), tasks) in self.job.tables.iter().zip(counts).zip(&self.tasks) {
            let done = count.tasks();
            let complete = done == *tasks;
            arrival.pieces += done;
            let rows = count.rows();
            arrival.rows += rows;
            arrival.bytes += count.bytes();
            arrival.planned += table.bytes;
            if complete {
                arrival.rows_expected += rows;
                arrival.planned_done += table.bytes;
            } else {
                let share = match table.rows {
                    Some(expected) => share(rows, expected),
                    None => share(count.bytes(), table.bytes),
                };
                arrival.rows_expected += match table.rows {
                    Some(expected) => expected.max(rows),
                    None if share > 0.0 => (rows as f64 / share) as u64,
                    None => 0,
                };
                arrival.planned_done += (table.bytes as f64 * share) as u64;
            }
        }
        let label = |task: usize| Some(self.job.tables[self.job.tasks.get(task)?.table].label());
        arrival.tables = at_work.filter_map(label).collect();
        arrival.tables.sort();
        arrival.tables.dedup();
        arrival
    }

    /// Tables that are complete and have not been told before.
    pub fn complete(&mut self, counts: &[Count]) -> Vec<Complete> {
        let mut complete = vec![];
        for (i, count) in counts.iter().enumerate() {
            if !self.reported[i] && count.tasks() == self.tasks[i] {
                self.reported[i] = true;
                complete.push(Complete {
                    table: self.job.tables[i].label(),
                    rows: count.rows(),
                    bytes: count.bytes(),
                });
            }
        }
        complete
    }
}

/// How much of a table has arrived of which so much is expected, in rows or in bytes. That is an estimate:
/// beyond nine tenths of it whatever comes counts for less, so that it always moves and never comes to
/// the end.
fn share(arrived: u64, expected: u64) -> f64 {
    const SURE: f64 = 0.9;
    let part = arrived as f64 / expected.max(1) as f64;
    if part <= SURE {
        return part;
    }
    let rest = 1.0 - SURE;
    SURE + rest * (1.0 - (-(part - SURE) / rest).exp())
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn an_estimate_that_is_wrong_neither_stops_nor_ends() {
        assert_eq!(share(0, 100), 0.0);
        assert_eq!(share(50, 100), 0.5);
        let beyond: Vec<f64> = (90..=150).map(|rows| share(rows, 100)).collect();
        assert!(beyond.windows(2).all(|w| w[0] < w[1] && w[1] < 1.0));
        assert!(share(100, 100) > 0.95);
        assert!(share(1, 0) < 1.0);
    }
}
