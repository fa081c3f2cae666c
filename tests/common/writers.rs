//! Writers that change the rows of each other.

use lab::Server;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Ends threads that look at the flag, also where a test fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What [`insert_and_change`] needs.
pub const CHASED_TABLE: &str =
    "CREATE TABLE chased (id bigint PRIMARY KEY, v text, at timestamptz DEFAULT clock_timestamp())";

/// What `first` inserts from `id` on, `then` changes a second later, and `first` deletes some of that after as long.
/// Among members that is long enough for the row to be everywhere before it is changed.
pub fn insert_and_change(first: &Server, then: &Server, mut id: u64, over: &AtomicBool) {
    let (mut one, mut other) = (first.client(), then.client());
    let range = format!("id BETWEEN {id} AND {}", id + 999_999);
    let later = "at < clock_timestamp() - interval '1 s'";
    let update = format!(
        "UPDATE chased SET v = 'upd', at = clock_timestamp() WHERE v = 'ins' AND {range} AND {later}"
    );
    let delete =
        format!("DELETE FROM chased WHERE v = 'upd' AND id % 3 = 0 AND {range} AND {later}");
    while !over.load(Ordering::Relaxed) {
        one.execute(
            &format!("INSERT INTO chased (id, v) VALUES ({id}, 'ins')"),
            &[],
        )
        .unwrap();
        id += 1;
        other.execute(&update, &[]).unwrap();
        one.execute(&delete, &[]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
}

/// Each of three nodes inserts rows that the next one changes, during `meanwhile`. Rounds have rows of their own.
pub fn while_nodes_change_each_others_rows<T>(
    nodes: [&Server; 3],
    round: u64,
    meanwhile: impl FnOnce() -> T,
) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&over);
        for (i, first) in nodes.into_iter().enumerate() {
            let (then, over) = (nodes[(i + 1) % 3], &over);
            let from = (10 * round + i as u64 + 1) * 1_000_000;
            scope.spawn(move || insert_and_change(first, then, from, over));
        }
        let came = meanwhile();
        drop(end);
        came
    })
}
