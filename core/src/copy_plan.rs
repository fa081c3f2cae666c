//! Which worker copies what when: the biggest pieces first, and no piece so big that the others would
//! have to wait for it.

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// Pieces that each worker gets of an even share, so that at the end none waits for long.
const PIECES_PER_WORKER: u64 = 16;
/// Splitting below this gains nothing: a piece is a statement and a transaction.
const SMALLEST_PIECE: u64 = 32 * 1024 * 1024;

/// With one message a worker asks for no more than that, if it is more than one piece, so that the tables of the source
/// are not held for longer than by a piece.
const MOST_AT_A_TIME: u64 = SMALLEST_PIECE;
/// And for no more pieces.
const MOST_PIECES: usize = 512;
/// What is left is divided evenly when it is no more than that for each worker.
const LITTLE: u64 = 8 * 1024 * 1024;

/// What the plan has to know of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// All that has to be read, out-of-line values included.
    pub bytes: u64,
    /// Blocks of the table itself, or `None` where ranges of `ctid` are not ranges of blocks.
    pub blocks: Option<u32>,
}

/// Rows to copy with one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which of the tables.
    pub table: usize,
    pub range: Range,
    /// Its share of the bytes of the table.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Range {
    Whole,
    /// Blocks `from..`, the last range of a table: blocks that are new by now hold no row of the
    /// snapshot, but what we know of the size may be older than the snapshot.
    From(u32),
    /// Blocks `from..to`.
    Blocks(u32, u32),
}

/// The tasks in the order in which the workers take them.
pub fn plan(tables: &[Size], workers: usize) -> Vec<Task> {
    let total: u64 = tables.iter().map(|t| t.bytes).sum();
    let piece = (total / (workers.max(1) as u64 * PIECES_PER_WORKER)).max(SMALLEST_PIECE);
    // Big ones first, in turns by table, so that workers tend to write to different tables instead of
    // extending the same file; then the small ones, which even out the end.
    let mut tasks: Vec<(u64, Task)> = vec![];
    for (table, size) in tables.iter().enumerate() {
        let pieces = match size.blocks {
            Some(blocks) if workers > 1 => (size.bytes / piece).clamp(1, u64::from(blocks.max(1))),
            _ => 1,
        };
        tasks.extend((0..pieces).map(|i| (i, part(table, *size, i, pieces))));
    }
    tasks.sort_by_key(|(i, task)| (task.bytes < piece, *i, Reverse(task.bytes), task.table));
    tasks.into_iter().map(|(_, task)| task).collect()
}

fn part(table: usize, size: Size, i: u64, pieces: u64) -> Task {
    let blocks = u64::from(size.blocks.unwrap_or(0));
    let start = |i: u64| (blocks * i / pieces) as u32;
    let range = match (pieces, i + 1 == pieces) {
        (1, _) => Range::Whole,
        (_, true) => Range::From(start(i)),
        (_, false) => Range::Blocks(start(i), start(i + 1)),
    };
    Task {
        table,
        range,
        bytes: size.bytes / pieces,
    }
}

/// How many of the tasks that are `left`, from the first on, one of so many workers asks for with one message. Fewer
/// towards the end, as guided self-scheduling has it (Polychronopoulos and Kuck, 1987), until so little is left that
/// another round trip takes longer than the difference.
pub fn at_a_time(left: &[Task], workers: usize) -> usize {
    let workers = workers.max(1) as u64;
    let bytes: u64 = left.iter().map(|task| task.bytes).sum();
    let share = match bytes <= LITTLE * workers {
        true => bytes.div_ceil(workers),
        false => (bytes / (2 * workers)).min(MOST_AT_A_TIME),
    };
    let pieces = left.len().div_ceil(workers as usize).min(MOST_PIECES);
    let mut taken = 0;
    let more = left.iter().take(pieces).take_while(|task| {
        let fits = taken == 0 || taken + task.bytes <= share;
        taken += task.bytes;
        fits
    });
    more.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn heap(bytes: u64) -> Size {
        Size {
            bytes,
            blocks: Some((bytes / 8192) as u32),
        }
    }

    /// The blocks that the tasks of a table cover, each exactly once and the end open.
    fn assert_covered(tasks: &[Task], table: usize) {
        let mut ranges: Vec<Range> = tasks
            .iter()
            .filter(|t| t.table == table)
            .map(|t| t.range)
            .collect();
        if ranges == [Range::Whole] {
            return;
        }
        ranges.sort_by_key(|r| match r {
            Range::Whole => panic!("the whole table and a part of it"),
            Range::From(from) | Range::Blocks(from, _) => *from,
        });
        let mut next = 0;
        for (i, range) in ranges.iter().enumerate() {
            match *range {
                Range::Blocks(from, to) => {
                    assert!(from == next && to > from, "{range:?} after {next}");
                    next = to;
                }
                Range::From(from) => assert!(from == next && i + 1 == ranges.len()),
                Range::Whole => unreachable!(),
            }
        }
        assert!(matches!(ranges.last(), Some(Range::From(_))), "{ranges:?}");
    }

    #[test]
    fn every_block_is_in_exactly_one_task() {
        let shapes: [&[Size]; 6] = [
            &[heap(10 * GB), heap(10 * GB)],
            &[heap(100 * GB), heap(8192), heap(0)],
            &[Size {
                bytes: 5 * GB,
                blocks: Some(3),
            }],
            &[
                Size {
                    bytes: 5 * GB,
                    blocks: None,
                },
                heap(GB + 1),
            ],
            &[heap(33 * 1024 * 1024), heap(65 * 1024 * 1024)],
            &[],
        ];
        for tables in shapes {
            for workers in [1, 2, 3, 8, 64] {
                let tasks = plan(tables, workers);
                for table in 0..tables.len() {
                    assert_covered(&tasks, table);
                }
                assert!(tasks.iter().all(|t| t.table < tables.len()));
            }
        }
    }

    #[test]
    fn workers_end_at_the_same_time() {
        for tables in [
            vec![heap(100 * GB), heap(GB), heap(3 * GB)],
            vec![heap(10 * GB), heap(10 * GB)],
            (1..200).map(|n| heap(n * 10_000_000)).collect(),
        ] {
            for workers in [2usize, 4, 8] {
                let mut busy = vec![0u64; workers];
                for task in plan(&tables, workers) {
                    *busy.iter_mut().min().unwrap() += task.bytes;
                }
                let (first, last) = (busy.iter().min().unwrap(), busy.iter().max().unwrap());
                assert!(last * 10 <= first * 11, "{workers} workers: {busy:?}");
            }
        }
    }

    #[test]
    fn big_first_and_in_turns() {
        let tasks = plan(&[heap(8192), heap(4 * GB), heap(4 * GB)], 2);
        let order: Vec<usize> = tasks.iter().take(4).map(|t| t.table).collect();
        assert_eq!(order, [1, 2, 1, 2]);
        assert_eq!(tasks.last().unwrap().table, 0);
    }

    #[test]
    fn small_tables_and_single_workers_are_not_split() {
        assert_eq!(plan(&[heap(60 * 1024 * 1024)], 2).len(), 1);
        assert_eq!(plan(&[heap(100 * GB)], 1).len(), 1);
    }

    /// By worker, the bytes of each message until nothing is left, the idle one asking next.
    fn messages(tasks: &[Task], workers: usize) -> Vec<Vec<u64>> {
        let mut all = vec![vec![]; workers];
        let mut rest = tasks;
        while !rest.is_empty() {
            let count = at_a_time(rest, workers);
            assert!(count > 0);
            let (now, later) = rest.split_at(count);
            let idle = all.iter_mut().min_by_key(|sent| sent.iter().sum::<u64>());
            let bytes = now.iter().map(|task| task.bytes).sum();
            idle.unwrap().push(bytes);
            rest = later;
        }
        all
    }

    #[test]
    fn small_tables_take_few_messages_and_no_worker_waits_long() {
        for count in [1u64, 20, 200, 10_000] {
            let tables: Vec<Size> = (0..count).map(|_| heap(40_000)).collect();
            for workers in [1, 2, 4, 16] {
                let tasks = plan(&tables, workers);
                let sent = messages(&tasks, workers);
                let pieces = count.div_ceil(workers as u64 * MOST_PIECES as u64);
                let most = sent.iter().map(Vec::len).max().unwrap() as u64;
                assert!(most <= 12 + pieces, "{count} {workers}: {most}");
                let bytes: Vec<u64> = sent.iter().map(|sent| sent.iter().sum()).collect();
                let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
                assert!(most - least <= LITTLE + 40_000, "{bytes:?}");
            }
        }
    }

    #[test]
    fn no_message_asks_for_much_but_by_one_big_piece() {
        for tables in [vec![heap(100 * GB), heap(GB)], vec![heap(GB); 3]] {
            let tasks = plan(&tables, 4);
            let mut rest = tasks.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(at_a_time(rest, 4));
                let bytes: u64 = now.iter().map(|task| task.bytes).sum();
                assert!(now.len() == 1 || bytes <= MOST_AT_A_TIME, "{now:?}");
                rest = later;
            }
        }
        assert_eq!(at_a_time(&[], 4), 0);
    }
}
