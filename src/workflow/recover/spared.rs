//! Rows of the target that a replay left as they were, since they are newer than the change that was for them: by
//! the clocks, of which one may have been ahead.

use super::{MAX_KEYS_SHOWN, MissingRange, Recovery};
use crate::error::Result;
use crate::replay::{About, Rendering};

impl Recovery {
    /// Counts them, and says which of them are not the same on the source.
    pub fn tell_spared(
        &mut self,
        missing: &MissingRange,
        rendering: &Rendering,
        idle: &[About],
    ) -> Result<()> {
        let (mut spared, mut unlike) = (0, vec![]);
        for about in idle {
            let (Some((table, newer)), Some((_, same))) =
                (rendering.look(about, true), rendering.look(about, false))
            else {
                continue;
            };
            let Some(on_target) = newer.first(self.survivor(&missing.target)?)? else {
                continue;
            };
            spared += 1;
            let on_source = same.first(self.survivor(&missing.source)?)?;
            if on_source.is_none_or(|row| row.digest != on_target.digest) {
                let row = format!("{table} {}", on_target.key);
                if !unlike.contains(&row) {
                    unlike.push(row);
                }
            }
        }
        if spared == 0 {
            return Ok(());
        }
        let message = format!(
            "{spared} changes of \"{}\" were for rows that are newer on node \"{}\", and left them as they are",
            self.request.failed, missing.target
        );
        if unlike.is_empty() {
            self.report.notice(&message);
            return Ok(());
        }
        let all = unlike.len();
        unlike.truncate(MAX_KEYS_SHOWN);
        self.report.warn(
            &format!(
                "{message}; {all} of these rows are not the same on node \"{}\": {}{}",
                missing.source,
                unlike.join(", "),
                if all > unlike.len() { ", ..." } else { "" }
            ),
            "Where the clock of a node was ahead, an earlier row counts as newer. Unless it is still on its way, write the right one on either node; SELECT * FROM spock.verify_nodes() tells what differs.",
        );
        Ok(())
    }
}
