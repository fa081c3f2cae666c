//! Replication slots of a database.

use crate::error::Result;
use crate::lsn::{Lsn, Position};
use crate::node::{Query, Statement};

/// Creates a logical slot and returns its start. With `failover` (PostgreSQL 17 and newer) standbys
/// keep a copy of it.
pub fn create_slot(slot: &str, plugin: &str, failover: bool) -> Query<Lsn> {
    let failover = if failover { ", failover => true" } else { "" };
    Query::new(
        format!("SELECT lsn FROM pg_create_logical_replication_slot($1, $2{failover})"),
        &[slot, plugin],
        |row| row.only(),
    )
}

/// The command of the replication protocol that also exports the snapshot of the slot's start.
pub fn create_slot_with_snapshot(slot: &str, plugin: &str, failover: bool) -> String {
    format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL {} (SNAPSHOT 'export'{})",
        crate::quote::ident(slot),
        crate::quote::ident(plugin),
        if failover { ", FAILOVER" } else { "" }
    )
}

/// Ends whoever streams from the slot; how many there were. As all that ends or drops a slot, only if it is one of
/// this database: names of slots are shared by all databases of the server.
pub fn end_slot_user(slot: &str) -> Statement {
    Statement::new(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
          WHERE slot_name = $1 AND database = current_database() AND active_pid IS NOT NULL",
        &[slot],
    )
}

pub fn drop_slot(slot: &str) -> Statement {
    Statement::new(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
          WHERE slot_name = $1 AND database = current_database()",
        &[slot],
    )
}

/// The pid of a session that streams from a slot of this database and is not zodan's own.
pub fn slot_reader(slot: &str) -> Query<i32> {
    Query::new(
        "SELECT a.pid
           FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
          WHERE s.slot_name = $1 AND s.database = current_database()
            AND a.application_name NOT LIKE 'zodan%'",
        &[slot],
        |row| row.only(),
    )
}

/// A slot of the server, of whichever database.
pub struct NamedSlot {
    pub name: String,
    /// A physical slot has none.
    pub database: Option<String>,
    /// Whether that is the database of the session.
    pub is_own: bool,
    /// Who reads it, if anybody does.
    pub pid: Option<String>,
    pub application: String,
}

/// Which of the slots exist, on the whole server.
pub fn slots_named(slots: &[String]) -> Query<NamedSlot> {
    Query::new(
        "SELECT s.slot_name, s.database, coalesce(s.database = current_database(), false) AS is_own,
                s.active_pid, coalesce(a.application_name, '') AS application_name
           FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
          WHERE s.slot_name = ANY (string_to_array($1, ',')) ORDER BY 1",
        &[&slots.join(",")], |row| {
            Ok(NamedSlot {
                name: row.get("slot_name")?,
                database: row.get("database")?,
                is_own: row.get("is_own")?,
                pid: row.get("active_pid")?,
                application: row.get("application_name")?,
            })
        })
}

/// A slot that has lost the WAL it needs, or is not there.
pub struct LostSlot {
    pub name: String,
    pub is_missing: bool,
}

/// Slots that have lost the WAL they need or are not there, of those named of this database.
pub fn slots_lost(slots: &[String]) -> Query<LostSlot> {
    Query::new(
        "SELECT name, s.slot_name IS NULL AS is_missing
           FROM unnest(string_to_array($1, ',')) name
           LEFT JOIN pg_replication_slots s ON s.slot_name = name AND s.database = current_database()
          WHERE s.slot_name IS NULL OR s.wal_status = 'lost'",
        &[&slots.join(",")], |row| {
            Ok(LostSlot {
                name: row.get("name")?,
                is_missing: row.get("is_missing")?,
            })
        })
}

/// Which of the slots of a node are in use.
pub fn active_slots() -> Query<String> {
    Query::new(
        "SELECT slot_name FROM pg_replication_slots WHERE active AND database = current_database()",
        &[],
        |row| row.only(),
    )
}

/// The recovery slots of this database, without copies of them.
pub fn recovery_slots() -> Query<String> {
    Query::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE slot_name LIKE 'spk\\_recovery\\_%' AND slot_name !~ '_clone_[0-9]{1,15}(_t)?$'
            AND database = current_database() AND NOT temporary
          ORDER BY 1",
        &[],
        |row| row.only(),
    )
}

/// The same with the copies.
pub fn all_recovery_slots() -> Query<String> {
    Query::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE slot_name LIKE 'spk\\_recovery\\_%' AND database = current_database() AND NOT temporary
          ORDER BY 1",
        &[], |row| row.only())
}

/// Those of the slots named that this database has, and its recovery slots.
const OWN_SLOTS: &str = "
    pg_replication_slots
    WHERE database = current_database() AND NOT temporary
      AND (slot_name = ANY (string_to_array($1, ',')) OR slot_name LIKE 'spk\\_recovery\\_%')";

fn of_own_slots(what: &str, slots: &[String], which: &str) -> Statement {
    Statement::new(
        format!("SELECT {what} FROM {OWN_SLOTS} AND {which}"),
        &[&slots.join(",")],
    )
}

pub fn end_users_of_own_slots(slots: &[String]) -> Statement {
    of_own_slots(
        "pg_terminate_backend(active_pid)",
        slots,
        "active_pid IS NOT NULL",
    )
}

pub fn drop_own_slots(slots: &[String]) -> Statement {
    of_own_slots(
        "pg_drop_replication_slot(slot_name)",
        slots,
        "active_pid IS NULL",
    )
}

/// Logical slots of the database with this output plugin.
pub fn slots_of(plugin: &str) -> Query<String> {
    Query::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE database = current_database() AND plugin = $1 AND NOT temporary",
        &[plugin],
        |row| row.only(),
    )
}

/// `slot, ''` of each.
pub fn own_slots_left(slots: &[String]) -> Statement {
    of_own_slots("slot_name::text, ''::text", slots, "true")
}

/// Where a slot stands, and what it costs.
pub struct SlotState {
    pub confirmed: Option<Lsn>,
    pub retained_bytes: Option<f64>,
    pub is_lost: bool,
    pub is_active: bool,
}

/// The state of a slot of the database; no row where there is none.
pub fn slot_state(slot: &str) -> Query<SlotState> {
    Query::new(
        "SELECT confirmed_flush_lsn, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) AS retained_bytes,
                coalesce(wal_status = 'lost', false) AS is_lost, active
           FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()",
        &[slot], |row| {
            Ok(SlotState {
                confirmed: row.get("confirmed_flush_lsn")?,
                retained_bytes: row.get("retained_bytes")?,
                is_lost: row.get("is_lost")?,
                is_active: row.get("active")?,
            })
        })
}

/// A copy of a slot, which keeps what the original has now.
pub fn copy_slot(slot: &str, copy: &str) -> Statement {
    Statement::new(
        "SELECT lsn FROM pg_copy_logical_replication_slot($1, $2)",
        &[slot, copy],
    )
}

/// Moves a slot of `provider` to `position`. An error where that is not of the provider.
pub fn advance_slot(provider: &str, slot: &str, position: &Position) -> Result<Statement> {
    let lsn = position.of(provider)?;
    Ok(Statement::new(
        "SELECT pg_replication_slot_advance($1, $2::pg_lsn)",
        &[slot, &lsn.to_string()],
    ))
}

/// Those of `readers` that commits of the node wait for, by `synchronous_standby_names`.
pub fn waited_for(readers: &[String]) -> Query<String> {
    let readers = serde_json::to_string(readers).unwrap_or_default();
    Query::new(
        "WITH named AS (SELECT lower(btrim(btrim(n), '\"')) AS name
                          FROM regexp_split_to_table(current_setting('synchronous_standby_names'), '[,()]') n)
         SELECT reader FROM jsonb_array_elements_text($1::jsonb) reader
          WHERE lower(reader) IN (SELECT name FROM named)
             OR '*' IN (SELECT name FROM named)
                AND EXISTS (SELECT FROM pg_stat_replication WHERE application_name = reader)
                AND NOT EXISTS (SELECT FROM pg_stat_replication
                                 WHERE application_name <> reader AND sync_state <> 'async')",
        &[&readers], |row| row.only())
}
