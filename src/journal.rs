//! The journal of a run: `zodan.run` and `zodan.step`, written and committed before a side effect
//! and again after it, so that whoever comes later knows what may have to be undone.

use crate::copy::Inventory;
use crate::error::{Error, Result};
use crate::node::Local;
use serde::{Deserialize, Serialize};

/// A side effect, as an undo finds it again. Never holds a connection string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// A replication slot on the node.
    Slot { slot: String },
    /// A subscription on the node.
    Subscription { subscription: String },
    /// The node has been made a provider: publication and registry.
    Provider,
    /// A row about `member` in the registry of the node.
    Registration { member: String },
    /// Apply is paused on the node.
    Pause,
    /// Markers of the node.
    Marker,
    /// A replication origin on the node.
    Origin { origin: String },
    /// Everything that was copied into the node; the list says what was there before.
    Objects { before: Inventory },
    /// New sessions of the node's database are read-only.
    ReadOnly {
        database: String,
        before: Option<String>,
    },
    /// A statement on the node; the one that takes it back.
    Statement { undo: String },
    /// A statement on a table of the node, and the statement that takes it back.
    Table { undo: String },
}

/// A step whose effect may still be there.
#[derive(Clone, Debug)]
pub struct Begun {
    pub step: i32,
    pub node: String,
    pub description: String,
    pub effect: Effect,
}

/// A run that nobody runs any more and that was not ended.
#[derive(Clone, Debug)]
pub struct Interrupted {
    pub run: i64,
    pub command: String,
    pub node: String,
}

#[derive(Clone)]
pub struct Journal {
    local: Local,
    run: i64,
    next: i32,
}

impl Journal {
    pub fn begin(
        local: &Local,
        command: &str,
        engine: &str,
        source: &str,
        node: &str,
    ) -> Result<Self> {
        let rows = local.query(
            "INSERT INTO zodan.run (command, engine, source_node, node)
             SELECT $1, $2, $3, $4 FROM zodan.unreplicated() RETURNING id",
            &[command, engine, source, node],
        )?;
        Ok(Self {
            local: local.clone(),
            run: rows.one()?.parse(0)?,
            next: 1,
        })
    }

    /// The journal of a run that was interrupted.
    pub fn reopen(local: &Local, run: i64) -> Self {
        Self {
            local: local.clone(),
            run,
            next: i32::MAX,
        }
    }

    /// Runs without an end. The caller holds the membership lock of this node, so nobody runs them.
    pub fn interrupted(local: &Local) -> Result<Vec<Interrupted>> {
        let rows = local.query(
            "SELECT id, command, node FROM zodan.run
              WHERE state IN ('running', 'failed') ORDER BY id DESC",
            &[],
        )?;
        rows.iter()
            .map(|row| {
                Ok(Interrupted {
                    run: row.parse(0)?,
                    command: row.text(1).to_owned(),
                    node: row.text(2).to_owned(),
                })
            })
            .collect()
    }

    /// Steps with effects that have not been undone, the last one first.
    pub fn begun(&self) -> Result<Vec<Begun>> {
        let rows = self.local.query(
            "SELECT step, node, description, effect FROM zodan.step
              WHERE run_id = $1::bigint AND effect IS NOT NULL AND state <> 'undone'
              ORDER BY step DESC",
            &[&self.run.to_string()],
        )?;
        rows.iter()
            .map(|row| {
                Ok(Begun {
                    step: row.parse(0)?,
                    node: row.text(1).to_owned(),
                    description: row.text(2).to_owned(),
                    effect: serde_json::from_str(row.text(3))
                        .map_err(|e| Error::internal(format!("zodan.step.effect: {e}")))?,
                })
            })
            .collect()
    }

    /// Writes down what is about to be done, and commits that.
    pub fn intend(
        &mut self,
        phase: usize,
        node: &str,
        description: &str,
        effect: &Effect,
    ) -> Result<i32> {
        let step = self.next;
        let effect = serde_json::to_string(effect)
            .map_err(|e| Error::internal(format!("zodan.step.effect: {e}")))?;
        self.local.query(
            "INSERT INTO zodan.step (run_id, step, phase, node, description, effect)
             SELECT $1::bigint, $2::integer, $3::integer, $4, $5, $6::jsonb FROM zodan.unreplicated()",
            &[&self.run.to_string(), &step.to_string(), &phase.to_string(), node, description, &effect],
        )?;
        self.next += 1;
        Ok(step)
    }

    pub fn done(&self, step: i32) -> Result<()> {
        self.set(step, "done", "")
    }

    pub fn undone(&self, step: i32) -> Result<()> {
        self.set(step, "undone", "")
    }

    pub fn not_undone(&self, step: i32, why: &str) -> Result<()> {
        self.set(step, "not undone", why)
    }

    fn set(&self, step: i32, state: &str, message: &str) -> Result<()> {
        self.local.query(
            "UPDATE zodan.step SET state = $3, ended_at = clock_timestamp(), message = nullif($4, '')
               FROM zodan.unreplicated()
              WHERE run_id = $1::bigint AND step = $2::integer",
            &[&self.run.to_string(), &step.to_string(), state, message],
        )?;
        Ok(())
    }

    pub fn note_pause(&self, millis: f64) -> Result<()> {
        self.local.query(
            "UPDATE zodan.run
                SET apply_pause_ms = greatest(coalesce(apply_pause_ms, 0), $2::numeric)
               FROM zodan.unreplicated() WHERE id = $1::bigint",
            &[&self.run.to_string(), &format!("{millis:.1}")],
        )?;
        Ok(())
    }

    pub fn note_copy(&self, tables: u64, rows: u64, bytes: u64) -> Result<()> {
        self.local.query(
            "UPDATE zodan.run SET copied_tables = $2::bigint, copied_rows = $3::bigint,
                                  copied_bytes = $4::bigint
               FROM zodan.unreplicated() WHERE id = $1::bigint",
            &[
                &self.run.to_string(),
                &tables.to_string(),
                &rows.to_string(),
                &bytes.to_string(),
            ],
        )?;
        Ok(())
    }

    pub fn end(&self, state: &str, error: Option<&Error>) -> Result<()> {
        let sqlstate = error.map_or(String::new(), |e| e.sqlstate().to_string());
        let message = error.map_or(String::new(), |e| crate::libpq::scrub(&e.to_string()));
        self.local.query(
            "UPDATE zodan.run SET state = $2, ended_at = clock_timestamp(),
                    sqlstate = coalesce(nullif($3, ''), sqlstate),
                    message = coalesce(nullif($4, ''), message)
               FROM zodan.unreplicated() WHERE id = $1::bigint",
            &[&self.run.to_string(), state, &sqlstate, &message],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_survive_the_journal() {
        for effect in [
            Effect::Slot { slot: "s".into() },
            Effect::Provider,
            Effect::ReadOnly {
                database: "d\"b".into(),
                before: None,
            },
            Effect::Objects {
                before: Inventory::default(),
            },
        ] {
            let text = serde_json::to_string(&effect).unwrap();
            assert_eq!(serde_json::from_str::<Effect>(&text).unwrap(), effect);
        }
    }
}
