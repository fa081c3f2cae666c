//! What every engine asks of a PostgreSQL server: facts, locks, slots, long transactions.

use super::{Node, Statement};
use crate::error::{Error, Result};
use crate::libpq::Row;
use crate::lsn::Lsn;
use std::time::Duration;

/// A resource of which a server has a fixed number.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub limit: i64,
    pub used: i64,
}

impl Budget {
    pub fn free(self) -> i64 {
        (self.limit - self.used).max(0)
    }
}

/// What the checks look at, of one server.
#[derive(Clone, Debug)]
pub struct Facts {
    pub version: u32,
    pub in_recovery: bool,
    pub system_identifier: String,
    /// As in [`identity`].
    pub server: String,
    pub database: String,
    pub wal_level: String,
    pub replication_slots: Budget,
    pub wal_senders: Budget,
    pub logical_workers: Budget,
    pub worker_processes: Budget,
    pub origins: Budget,
    /// The setting that limits the origins, which has had a name of its own since PostgreSQL 18.
    pub origins_setting: String,
    pub encoding: String,
    pub collation: String,
    /// Megabytes, -1 for no limit.
    pub max_slot_wal_keep_size: i64,
    /// Seconds, 0 for never; PostgreSQL 18 and newer.
    pub idle_slot_timeout: i64,
    /// `output_plugin_libraries` where the server has it.
    pub output_plugins: Option<String>,
    pub database_size: u64,
}

/// Which running server it is. Those made from one image have the same system identifier, and may have been started
/// in the same microsecond, but not with the same port on one machine.
const SERVER: &str = "concat_ws(' ', system_identifier, extract(epoch FROM pg_postmaster_start_time()), current_setting('port'))";

pub fn facts() -> Statement {
    Statement::new(
        format!(
            "SELECT current_setting('server_version_num'),
                pg_is_in_recovery(),
                c.system_identifier,
                current_database(),
                current_setting('wal_level'),
                current_setting('max_replication_slots'),
                (SELECT count(*) FROM pg_replication_slots),
                current_setting('max_wal_senders'),
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'),
                current_setting('max_logical_replication_workers'),
                (SELECT count(*) FROM pg_subscription WHERE subenabled),
                current_setting('max_worker_processes'),
                (SELECT count(*) FROM pg_stat_activity
                  WHERE backend_type NOT IN ('client backend', 'autovacuum launcher',
                        'autovacuum worker', 'background writer', 'checkpointer', 'walwriter',
                        'walsender', 'walreceiver', 'walsummarizer', 'startup', 'archiver',
                        'slotsync worker', 'io worker', 'logger', 'standalone backend')),
                coalesce(current_setting('max_active_replication_origins', true),
                         current_setting('max_replication_slots')),
                (SELECT count(*) FROM pg_replication_origin_status),
                CASE WHEN current_setting('max_active_replication_origins', true) IS NULL
                     THEN 'max_replication_slots' ELSE 'max_active_replication_origins' END,
                pg_encoding_to_char(d.encoding),
                concat_ws(' ', d.datlocprovider, d.datcollate, d.datctype,
                          coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
                          quote_literal(to_jsonb(d) ->> 'daticurules')),
                (SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
                (SELECT setting FROM pg_settings WHERE name = 'idle_replication_slot_timeout'),
                current_setting('output_plugin_libraries', true),
                pg_database_size(current_database()),
                {SERVER}
           FROM pg_control_system() c, pg_database d
          WHERE d.datname = current_database()"
        ),
        &[],
    )
}

impl Facts {
    pub fn parse(row: &Row) -> Result<Self> {
        let budget = |i| {
            Ok::<_, Error>(Budget {
                limit: row.parse(i)?,
                used: row.parse(i + 1)?,
            })
        };
        Ok(Self {
            version: row.parse(0)?,
            in_recovery: row.bool(1),
            system_identifier: row.text(2).to_owned(),
            database: row.text(3).to_owned(),
            wal_level: row.text(4).to_owned(),
            replication_slots: budget(5)?,
            wal_senders: budget(7)?,
            logical_workers: budget(9)?,
            worker_processes: budget(11)?,
            origins: budget(13)?,
            origins_setting: row.text(15).to_owned(),
            encoding: row.text(16).to_owned(),
            collation: row.text(17).to_owned(),
            max_slot_wal_keep_size: row.parse(18)?,
            idle_slot_timeout: row.parse_opt(19)?.unwrap_or(0),
            output_plugins: row.get(20).map(str::to_owned),
            database_size: row.parse(21)?,
            server: row.text(22).to_owned(),
        })
    }
}

/// Which running server and which database this session is on.
pub fn identity() -> Statement {
    Statement::new(
        format!("SELECT {SERVER}, current_database() FROM pg_control_system()"),
        &[],
    )
}

/// Where the server of this session is on its machine.
pub fn place() -> Statement {
    Statement::new(format!("SELECT {PLACE}"), &[])
}

/// Not everybody sees the directory.
const PLACE: &str =
    "(SELECT concat('port ', current_setting('port'), ', data directory ' || max(setting))
                        FROM pg_settings WHERE name = 'data_directory')";

/// Whether the role of the session may do what a run does.
pub fn is_superuser() -> Statement {
    Statement::new("SELECT current_setting('is_superuser') = 'on'", &[])
}

/// Begins a transaction that sees what is committed now, and changes nothing.
pub fn begin_reading() -> Statement {
    Statement::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &[])
}

/// The name of the snapshot of the transaction, for others to read in.
pub fn export_snapshot() -> Statement {
    Statement::new("SELECT pg_export_snapshot()", &[])
}

pub fn now() -> Statement {
    Statement::new("SELECT clock_timestamp()", &[])
}

/// A value that nobody has had.
pub fn unique_id() -> Statement {
    Statement::new("SELECT gen_random_uuid()", &[])
}

/// The advisory lock that whoever changes the membership holds on every member; `zodm` in ASCII.
/// Session level, so it vanishes with the session.
const MEMBERSHIP_LOCK: &str = "2054120557, 1";

/// Takes the membership lock if it is free, and says what for.
pub fn try_membership_lock(purpose: &str) -> Statement {
    Statement::new(
        format!(
            "SELECT pg_try_advisory_lock({MEMBERSHIP_LOCK}),
                    set_config('application_name', substr($1, 1, 63), false)"
        ),
        &[purpose],
    )
}

/// The opposite.
pub fn membership_unlock() -> Statement {
    Statement::new(format!("SELECT pg_advisory_unlock({MEMBERSHIP_LOCK})"), &[])
}

/// `pid, application name, address, since` of who holds the membership lock.
pub fn membership_lock_holder() -> Statement {
    Statement::new(
        format!(
            "SELECT a.pid, a.application_name, coalesce(a.client_addr::text, 'a local socket'),
                    a.backend_start
               FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
              WHERE l.locktype = 'advisory' AND l.granted
                AND (l.classid::bigint, l.objid::bigint) = ({MEMBERSHIP_LOCK})
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        &[],
    )
}

/// A transaction that the creation of a slot has to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    pub who: String,
    pub user: String,
    pub application: String,
    pub seconds: u64,
    pub xid: String,
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (user \"{}\"", self.who, self.user)?;
        if !self.application.is_empty() {
            write!(f, ", application \"{}\"", self.application)?;
        }
        write!(f, ", open for {} s)", self.seconds)
    }
}

/// Write transactions of the whole server that are older than `age`, prepared ones included.
pub fn old_writers(node: &mut Node, age: Duration) -> Result<Vec<Writer>> {
    let age = format!("{} ms", age.as_millis());
    let rows = node.query(
        "SELECT 'pid ' || pid, coalesce(usename, ''), application_name,
                extract(epoch FROM clock_timestamp() - xact_start)::bigint, backend_xid
           FROM pg_stat_activity
          WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
            AND xact_start < clock_timestamp() - $1::interval
          UNION ALL
         SELECT 'prepared transaction ' || quote_literal(gid), owner, '',
                extract(epoch FROM clock_timestamp() - prepared)::bigint, transaction
           FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - $1::interval
          ORDER BY 4 DESC",
        &[&age],
    )?;
    rows.iter()
        .map(|row| {
            Ok(Writer {
                who: row.text(0).to_owned(),
                user: row.text(1).to_owned(),
                application: row.text(2).to_owned(),
                seconds: row.parse::<i64>(3)?.max(0) as u64,
                xid: row.text(4).to_owned(),
            })
        })
        .collect()
}

/// Creates a logical slot and returns its start. With `failover` (PostgreSQL 17 and newer) standbys
/// keep a copy of it.
pub fn create_slot(slot: &str, plugin: &str, failover: bool) -> Statement {
    let failover = if failover { ", failover => true" } else { "" };
    Statement::new(
        format!("SELECT lsn FROM pg_create_logical_replication_slot($1, $2{failover})"),
        &[slot, plugin],
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

/// `pid, application name` of a session that streams from a slot of this database and is not zodan's own.
pub fn slot_reader(slot: &str) -> Statement {
    Statement::new(
        "SELECT a.pid, a.application_name
           FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
          WHERE s.slot_name = $1 AND s.database = current_database()
            AND a.application_name NOT LIKE 'zodan%'",
        &[slot],
    )
}

/// Which of the slots exist, on the whole server: `name, database, whether that is this one, pid, application name`.
/// A physical slot has no database, and one that nobody reads no pid.
pub fn slots_named(slots: &[String]) -> Statement {
    Statement::new(
        "SELECT s.slot_name, s.database, coalesce(s.database = current_database(), false),
                s.active_pid, coalesce(a.application_name, '')
           FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
          WHERE s.slot_name = ANY (string_to_array($1, ',')) ORDER BY 1",
        &[&slots.join(",")],
    )
}

/// Slots that have lost the WAL they need or are not there, of those named of this database, and which of the two.
pub fn slots_lost(slots: &[String]) -> Statement {
    Statement::new(
        "SELECT name, s.slot_name IS NULL
           FROM unnest(string_to_array($1, ',')) name
           LEFT JOIN pg_replication_slots s ON s.slot_name = name AND s.database = current_database()
          WHERE s.slot_name IS NULL OR s.wal_status = 'lost'",
        &[&slots.join(",")],
    )
}

/// `origin, position`: those of `origins` that the server has.
pub fn origins_there(origins: &[String]) -> Statement {
    Statement::new(
        "SELECT o.roname, s.remote_lsn
           FROM pg_replication_origin o LEFT JOIN pg_replication_origin_status s ON s.local_id = o.roident
          WHERE o.roname = ANY (string_to_array($1, ',')) ORDER BY 1",
        &[&origins.join(",")],
    )
}

pub fn origins_named(origin: &str) -> Statement {
    Statement::new(
        "SELECT roname FROM pg_replication_origin WHERE roname = $1",
        &[origin],
    )
}

pub fn create_origin(origin: &str) -> Statement {
    Statement::new("SELECT pg_replication_origin_create($1)", &[origin])
}

pub fn drop_origin(origin: &str) -> Statement {
    Statement::new(
        "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1",
        &[origin],
    )
}

/// The value of `default_transaction_read_only` that the database itself sets, if it sets one.
pub fn database_read_only() -> Statement {
    Statement::new(
        "SELECT split_part(c, '=', 2)
           FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                unnest(s.setconfig) c
          WHERE d.datname = current_database() AND s.setrole = 0
            AND c LIKE 'default\\_transaction\\_read\\_only=%'",
        &[],
    )
}

/// Makes transactions of new sessions of the database read-only, or puts back what was before.
pub fn set_database_read_only(database: &str, value: Option<&str>) -> Statement {
    let database = crate::quote::ident(database);
    Statement::new(
        match value {
            Some(value) => format!(
                "ALTER DATABASE {database} SET default_transaction_read_only = {}",
                crate::quote::literal(value)
            ),
            None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
        },
        &[],
    )
}

/// The same for new sessions of one role in the database.
pub fn set_role_read_only(role: &str, database: &str, value: Option<&str>) -> Statement {
    let (role, database) = (crate::quote::ident(role), crate::quote::ident(database));
    let value = value.map(crate::quote::literal);
    Statement::new(
        match value {
            Some(value) => format!(
                "ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = {value}"
            ),
            None => format!(
                "ALTER ROLE {role} IN DATABASE {database} RESET default_transaction_read_only"
            ),
        },
        &[],
    )
}

/// The value of `default_transaction_read_only` that is set for the role in the database, if there is one.
pub fn role_read_only(role: &str) -> Statement {
    Statement::new(
        "SELECT split_part(c, '=', 2)
           FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
          WHERE d.datname = current_database() AND r.rolname = $1
            AND c LIKE 'default\\_transaction\\_read\\_only=%'",
        &[role],
    )
}

/// `privileges, limit of connections, comment` of this database, which no copy of its structure has. The owner is left out:
/// whoever made the servers has the first, under whatever name.
pub fn database_itself() -> Statement {
    Statement::new(
        "SELECT (SELECT string_agg(x.a, ', ' ORDER BY x.a COLLATE \"C\") FROM (
                    SELECT concat_ws(' ', CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN d.datdba THEN 'the owner'
                                          ELSE pg_get_userbyid(a.grantee) END, lower(a.privilege_type))
                      FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a) AS x (a)),
                d.datconnlimit, coalesce(shobj_description(d.oid, 'pg_database'), '')
           FROM pg_database d WHERE d.datname = current_database()",
        &[],
    )
}

/// Of a row `c` of pg_class.
const OF_NO_EXTENSION: &str = "NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.deptype = 'e')";

/// The tables of this database that belong to its users, as `schema.table`.
pub fn user_tables() -> Statement {
    Statement::new(
        format!(
            "SELECT format('%I.%I', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
            AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zodan', 'spock')
            AND n.nspname NOT LIKE 'pg\\_%'
            AND {OF_NO_EXTENSION}
          ORDER BY 1"
        ),
        &[],
    )
}

/// Rows written in the tables of this database so far, of all kinds: `inserted, changed`. No row
/// where the server does not count. Tables of extensions are not looked at: their scripts store rows
/// when a restore runs them, and some extensions write of their own accord.
pub fn rows_written() -> Statement {
    Statement::new(
        format!(
            "SELECT coalesce(sum(s.n_tup_ins), 0), coalesce(sum(s.n_tup_upd + s.n_tup_del), 0)
           FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND s.schemaname NOT IN ('zodan', 'spock')
            AND {OF_NO_EXTENSION}
         HAVING current_setting('track_counts') = 'on'"
        ),
        &[],
    )
}

/// What keeps writes of this database's sessions from being counted by default: what of them, and the statement that
/// takes it back. Not the server's own setting where the database has one.
pub fn uncounted_defaults() -> Statement {
    Statement::new(
        "WITH set AS (
            SELECT setdatabase, setrole, option_value::boolean AS counts
              FROM pg_db_role_setting, pg_options_to_table(setconfig)
             WHERE option_name = 'track_counts'
               AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))
         SELECT CASE WHEN setrole = 0 THEN 'database ' || current_database()
                     ELSE 'role ' || setrole::regrole END,
                CASE WHEN setrole = 0 THEN format('ALTER DATABASE %I RESET track_counts', current_database())
                     WHEN setdatabase = 0 THEN format('ALTER ROLE %s RESET track_counts', setrole::regrole)
                     ELSE format('ALTER ROLE %s IN DATABASE %I RESET track_counts', setrole::regrole, current_database()) END
           FROM set WHERE NOT counts
         UNION ALL
         SELECT 'the server', 'ALTER SYSTEM SET track_counts = on'
          WHERE NOT EXISTS (SELECT FROM set WHERE setrole = 0)
            AND (EXISTS (SELECT FROM pg_file_settings
                          WHERE name = 'track_counts' AND applied AND NOT setting::boolean)
                 OR EXISTS (SELECT FROM pg_settings
                             WHERE name = 'track_counts' AND reset_val = 'off' AND source = 'command line'))
          ORDER BY 1",
        &[],
    )
}

/// `schema, table, file` of the same tables: one that was truncated has got another file.
pub fn table_files() -> Statement {
    Statement::new(
        format!(
            "SELECT n.nspname, c.relname, pg_relation_filenode(c.oid)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relpersistence = 'p'
            AND n.nspname NOT IN ('zodan', 'spock', 'pg_catalog', 'information_schema')
            AND {OF_NO_EXTENSION}"
        ),
        &[],
    )
}

/// Empties tables together, since they may refer to each other.
pub fn empty(tables: &[String]) -> Statement {
    Statement::new(format!("TRUNCATE {}", tables.join(", ")), &[])
}

/// PostgreSQL's own subscriptions of this database.
pub fn subscriptions() -> Statement {
    Statement::new(
        "SELECT s.subname
           FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
          ORDER BY 1",
        &[],
    )
}

/// How many tables they know, all together.
pub fn subscribed_tables() -> Statement {
    Statement::new(
        "SELECT count(*)
           FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
           JOIN pg_subscription_rel r ON r.srsubid = s.oid",
        &[],
    )
}

/// Client sessions in this database but this one's and zodan's own: `pid, user, application`.
pub fn other_sessions() -> Statement {
    Statement::new(
        "SELECT pid, usename, application_name FROM pg_stat_activity
          WHERE datname = current_database() AND backend_type = 'client backend'
            AND pid <> pg_backend_pid() AND application_name NOT LIKE 'zodan%'
          ORDER BY pid",
        &[],
    )
}

/// Sessions in this database whose part in the row counters is not known yet for all that they have done before
/// `since`: `pid, user, application`. A session adds what it has counted at the end of a transaction, but only
/// when a second has passed since it did so last, and at the latest when it has been idle for ten seconds
/// (PGSTAT_MIN_INTERVAL and PGSTAT_IDLE_INTERVAL of the server's pgstat.c).
pub fn sessions_uncounted(since: &str) -> Statement {
    Statement::new(
        "SELECT pid, usename, application_name FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND application_name <> 'zodan' AND application_name NOT LIKE 'zodan %'
            AND backend_type NOT LIKE 'zodan%' AND backend_type NOT LIKE 'autovacuum%'
            AND backend_type <> 'parallel worker'
            AND NOT (backend_type = 'walsender'
                     AND EXISTS (SELECT FROM pg_stat_replication r
                                  WHERE r.pid = pg_stat_activity.pid AND r.state <> 'startup'))
            AND backend_start < $1::timestamptz
            AND NOT (state = 'idle'
                     AND (state_change > $1::timestamptz + interval '1100 ms'
                          OR clock_timestamp() > state_change + interval '10500 ms'))
          ORDER BY pid",
        &[since],
    )
}

/// Ends the client sessions of this database that began before `since`, but this one, `spared` (a pid)
/// and zodan's own. A row for each.
pub fn end_sessions_before(since: &str, spared: &str) -> Statement {
    Statement::new(
        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND backend_type = 'client backend'
            AND pid NOT IN (pg_backend_pid(), $2::integer)
            AND application_name NOT LIKE 'zodan%' AND backend_start < $1::timestamptz",
        &[since, spared],
    )
}

/// Sessions of this database that are being started: they may have read its settings already, and are not shown yet.
pub fn starting_sessions() -> Statement {
    // Every session has this lock until it is started, and is shown before it lets go of it.
    Statement::new(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.objid
          WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass
            AND l.mode = 'RowExclusiveLock' AND l.granted
            AND d.datname = current_database() AND l.pid <> pg_backend_pid()",
        &[],
    )
}

/// Transactions of this database that are prepared and neither committed nor rolled back.
pub fn prepared_transactions() -> Statement {
    Statement::new(
        "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()",
        &[],
    )
}

/// How many large objects the database has.
pub fn large_objects() -> Statement {
    Statement::new("SELECT count(*) FROM pg_largeobject_metadata", &[])
}

/// Which of the slots of a node are in use.
pub fn active_slots() -> Statement {
    Statement::new(
        "SELECT slot_name FROM pg_replication_slots WHERE active AND database = current_database()",
        &[],
    )
}

/// `name, next value, increment, minimum, maximum, cycles` of the sequences of this database that belong to its
/// users.
pub fn sequences() -> Statement {
    Statement::new(
        "SELECT format('%I.%I', schemaname, sequencename),
                coalesce(last_value::numeric + increment_by, start_value),
                increment_by, min_value, max_value, cycle
           FROM pg_sequences
          WHERE schemaname NOT IN ('zodan', 'spock') AND schemaname NOT LIKE 'pg\\_%'
          ORDER BY 1",
        &[],
    )
}

/// Whether nothing can be written on the server but what a primary sends it.
pub fn is_standby() -> Statement {
    Statement::new("SELECT pg_is_in_recovery()", &[])
}

/// One row: `version, standby, slots, subscriptions, sent, flushed, compared, server, place, recovering`. As JSON the slots, the
/// subscriptions, the members that a comparison with has not come to its end, and those of which a recovery has not; `sent` is an
/// expression. The slots
/// of this database each with `name, active, wal_status, retained_bytes, lag_bytes, lag_us`; the subscriptions as
/// `inbound` has them.
pub fn member_report(inbound: &Statement, sent: Option<&str>) -> Statement {
    let sent = sent.unwrap_or("NULL");
    // A reader that has confirmed everything has no lag to show. Of a slot that nobody reads, PostgreSQL 17
    // knows since when.
    Statement::new(
        format!(
            "SELECT current_setting('server_version'), pg_is_in_recovery(),
                    (SELECT coalesce(json_agg(s), '[]')
                       FROM (SELECT s.slot_name AS name, s.active, s.wal_status,
                                    pg_wal_lsn_diff(p.lsn, s.restart_lsn)::bigint AS retained_bytes,
                                    greatest(0, pg_wal_lsn_diff(p.lsn, greatest(r.replay_lsn, s.confirmed_flush_lsn)))::bigint
                                        AS lag_bytes,
                                    (extract(epoch FROM CASE
                                        WHEN r.pid IS NOT NULL THEN coalesce(r.replay_lag, '0')
                                        ELSE clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz
                                     END) * 1000000)::bigint AS lag_us
                               FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                                 ELSE pg_current_wal_lsn() END) AS p (lsn),
                                    pg_replication_slots s
                               LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
                              WHERE s.slot_type = 'logical' AND s.database = current_database()) s),
                    (SELECT coalesce(json_agg(i), '[]') FROM ({}) i),
                    {sent}, {END_OF_WAL},
                    (SELECT coalesce(json_agg(failed), '[]') FROM {COMPARED}),
                    (SELECT {SERVER} FROM pg_control_system()), {PLACE},
                    (SELECT coalesce(json_agg(failed), '[]') FROM {UNFINISHED})",
            inbound.sql
        ),
        &[],
    )
}

/// `statement` in a transaction that waits for no lock longer than a blink. Whoever waits for a
/// table lock makes everybody after it wait too.
pub fn without_queueing(statement: &str) -> Statement {
    Statement::new(format!("SET LOCAL lock_timeout = '20ms'; {statement}"), &[])
}

/// As [`without_queueing`], and the transaction stays open until [`commit`] or [`rollback`].
pub fn held(statement: &str) -> Statement {
    Statement::new(
        format!("BEGIN; SET LOCAL lock_timeout = '20ms'; {statement}"),
        &[],
    )
}

pub fn commit() -> Statement {
    Statement::new("COMMIT", &[])
}

pub fn rollback() -> Statement {
    Statement::new("ROLLBACK", &[])
}

/// The name of a table, quoted.
pub fn table_name(oid: u32) -> Statement {
    Statement::new(
        "SELECT format('%I.%I', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = $1::oid AND c.relkind IN ('r', 'p')",
        &[&oid.to_string()],
    )
}

/// The recovery slots of this database, without copies of them.
pub fn recovery_slots() -> Statement {
    Statement::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE slot_name LIKE 'spk\\_recovery\\_%' AND slot_name !~ '_clone_[0-9]{1,15}(_t)?$'
            AND database = current_database() AND NOT temporary
          ORDER BY 1",
        &[],
    )
}

/// The same with the copies.
pub fn all_recovery_slots() -> Statement {
    Statement::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE slot_name LIKE 'spk\\_recovery\\_%' AND database = current_database() AND NOT temporary
          ORDER BY 1",
        &[],
    )
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
pub fn slots_of(plugin: &str) -> Statement {
    Statement::new(
        "SELECT slot_name FROM pg_replication_slots
          WHERE database = current_database() AND plugin = $1 AND NOT temporary",
        &[plugin],
    )
}

/// `slot, ''` of each.
pub fn own_slots_left(slots: &[String]) -> Statement {
    of_own_slots("slot_name::text, ''::text", slots, "true")
}

/// `restart, confirmed, retained bytes, lost, active` of a slot.
pub fn slot_state(slot: &str) -> Statement {
    Statement::new(
        "SELECT restart_lsn, confirmed_flush_lsn, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn),
                coalesce(wal_status = 'lost', false), active
           FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()",
        &[slot],
    )
}

/// A copy of a slot, which keeps what the original has now.
pub fn copy_slot(slot: &str, copy: &str) -> Statement {
    Statement::new(
        "SELECT lsn FROM pg_copy_logical_replication_slot($1, $2)",
        &[slot, copy],
    )
}

pub fn advance_slot(slot: &str, lsn: Lsn) -> Statement {
    Statement::new(
        "SELECT pg_replication_slot_advance($1, $2::pg_lsn)",
        &[slot, &lsn.to_string()],
    )
}

/// Event triggers of users that fire for what zodan does, since the server cannot keep them from a session:
/// before PostgreSQL 17.
pub fn unavoidable_event_triggers() -> Statement {
    Statement::new(
        "SELECT e.evtname FROM pg_event_trigger e
          WHERE e.evtenabled <> 'D' AND current_setting('event_triggers', true) IS NULL
            AND NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid
                               AND d.deptype = 'e')
          ORDER BY 1",
        &[],
    )
}

/// Login triggers of users.
pub fn login_triggers() -> Statement {
    Statement::new(
        "SELECT evtname FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D' ORDER BY 1",
        &[],
    )
}

/// Settings by which apply workers of a role like this one's read other values than were sent or do not come to an
/// end, as they are by default for a session of the database. `lc_monetary` always, and `money` where there are
/// amounts of it: what counts is whether the first is the same on all nodes.
pub fn misreading_settings() -> Statement {
    Statement::new(
        "SELECT name, reset_val FROM pg_settings
          WHERE (name, reset_val) IN (('array_nulls', 'off'), ('xmloption', 'document'))
            AND EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                               JOIN pg_type t ON t.oid = a.atttypid
                         WHERE c.relkind = 'r' AND c.oid >= 16384 AND NOT a.attisdropped
                           AND CASE name WHEN 'xmloption' THEN t.oid = 'xml'::regtype
                                         ELSE t.typcategory = 'A' END)
         UNION ALL
         SELECT name, reset_val FROM pg_settings WHERE name = 'lc_monetary'
         UNION ALL
         SELECT 'money', '' WHERE EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                                           WHERE c.relkind = 'r' AND c.oid >= 16384 AND NOT a.attisdropped
                                             AND a.atttypid IN ('money'::regtype, 'money[]'::regtype))
         UNION ALL
         SELECT split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
           FROM pg_db_role_setting s, unnest(s.setconfig) c
          WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
            AND (c LIKE 'transaction\\_timeout=%' AND c <> 'transaction_timeout=0'
                 OR c LIKE 'role=%' AND NOT EXISTS (SELECT FROM pg_roles r
                                                     WHERE r.rolsuper AND c = 'role=' || r.rolname)
                                    AND c NOT IN ('role=', 'role=none'))",
        &[],
    )
}

/// What is committed from here on in this session is of `origin`, and moves its progress. Rows are looked up by their keys, however small
/// the tables were when that was planned.
pub fn begin_replay(origin: &str) -> Statement {
    Statement::new(
        format!(
            "SET session_replication_role = 'replica'; SET synchronous_commit = 'off'; SET plan_cache_mode = 'force_generic_plan';
             SET enable_seqscan = 'off'; SET enable_bitmapscan = 'off'; SET jit = 'off'; SELECT pg_replication_origin_session_setup({})",
            crate::quote::literal(origin)
        ),
        &[],
    )
}

/// What is written from here on is written as the owners of the tables. The extension has to be there.
pub fn replay_as_owners() -> Statement {
    Statement::new("SELECT zodan.replay_as_owners()", &[])
}

/// The end of it; what was replayed is on disk then.
pub fn end_replay() -> Statement {
    Statement::new(
        "SELECT pg_replication_origin_session_reset(); SET synchronous_commit = 'local';
         SELECT pg_logical_emit_message(true, 'zodan', '')",
        &[],
    )
}

/// What the session has written counts for others at once.
pub fn count_now() -> Statement {
    Statement::new("SELECT pg_stat_force_next_flush()", &[])
}

/// Moves the progress of an origin that nobody uses to `lsn`, if it is not there yet.
pub fn advance_origin_to(origin: &str, lsn: Lsn) -> Statement {
    Statement::new(
        "SELECT pg_replication_origin_advance($1, $2::pg_lsn)
          WHERE coalesce(pg_replication_origin_progress($1, true) < $2::pg_lsn, true)",
        &[origin, &lsn.to_string()],
    )
}

/// What the name of the note is made of, by which an unfinished recovery is known: the position and the node. All
/// databases of a server share their origins, so it is for one of them.
const UNFINISHED: &str = "(SELECT roname, m[1] AS lsn, m[2] AS failed
     FROM pg_replication_origin,
          regexp_match(roname, format('^zodan_recovering_%s_([0-9A-F]+/[0-9A-F]+)_(.*)$',
                                      (SELECT oid FROM pg_database WHERE datname = current_database()))) m
    WHERE m IS NOT NULL) note";

/// Notes on the node that from `lsn` on it is being given what it lacks of `failed`, and may not have all that
/// belongs to it. A replication origin that nobody uses, since there is a place for one on every node. An
/// earlier note stays.
pub fn note_recovery(failed: &str, lsn: Lsn) -> Statement {
    Statement::new(
        format!(
            "SELECT pg_replication_origin_create(concat_ws('_', 'zodan_recovering', d.oid, $2::pg_lsn, $1::text))
               FROM pg_database d
              WHERE d.datname = current_database()
                AND NOT EXISTS (SELECT FROM {UNFINISHED} WHERE failed = $1)"
        ),
        &[failed, &lsn.to_string()],
    )
}

/// As [`UNFINISHED`], of a comparison: by which of several subscriptions, and until when the node had the failed one's
/// transactions by it.
const COMPARED: &str = "(SELECT roname, m[1] AS lane, m[2] AS had, m[3] AS failed
     FROM pg_replication_origin,
          regexp_match(roname, format('^zodan_compared_%s_([0-9]+)_(never|-?[0-9]+)_(.*)$',
                                      (SELECT oid FROM pg_database WHERE datname = current_database()))) m
    WHERE m IS NOT NULL) compared";

/// Notes on the node how far it had got `failed` when a comparison began to give it more, in microseconds since 2000.
/// An earlier note stays.
pub fn note_comparison(failed: &str, lane: usize, had: Option<i64>) -> Statement {
    let had = had.map_or("never".into(), |had| had.to_string());
    Statement::new(
        format!(
            "SELECT pg_replication_origin_create(concat_ws('_', 'zodan_compared', d.oid, $2::text, $3::text, $1::text))
               FROM pg_database d
              WHERE d.datname = current_database()
                AND NOT EXISTS (SELECT FROM {COMPARED} WHERE failed = $1 AND lane = $2)"
        ),
        &[failed, &lane.to_string(), &had],
    )
}

/// `stream, had` of a comparison with `failed` that the node has been in and that is not finished; null where it had
/// nothing.
pub fn unfinished_comparison(failed: &str) -> Statement {
    Statement::new(
        format!("SELECT lane, nullif(had, 'never') FROM {COMPARED} WHERE failed = $1"),
        &[failed],
    )
}

/// `failed, lsn` of the recoveries of the node that are not finished.
pub fn unfinished_recoveries() -> Statement {
    Statement::new(format!("SELECT failed, lsn FROM {UNFINISHED}"), &[])
}

/// Whether the node has `zodan.commit_position`.
pub fn has_commit_position() -> Statement {
    Statement::new(
        "SELECT to_regprocedure('zodan.commit_position(pg_lsn, timestamptz)') IS NOT NULL",
        &[],
    )
}

/// Whether the node knows when, and under which origin, its rows were written.
pub fn has_commit_timestamps(node: &mut Node) -> Result<bool> {
    let rows = node.query(
        "SELECT current_setting('track_commit_timestamp') = 'on'",
        &[],
    )?;
    Ok(rows.one()?.bool(0))
}

/// `first, next` of the transaction ids whose commit timestamps the node may know.
pub fn commit_timestamp_range() -> Statement {
    Statement::new(
        "SELECT greatest(3, CASE oldest WHEN 0 THEN 3 ELSE next - (next - oldest) % 4294967296 END), next
           FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
                        oldest_commit_ts_xid::text::bigint AS oldest
                   FROM pg_control_checkpoint()) c",
        &[],
    )
}

/// `last, first after, last of all` of the commit timestamps of the transactions with ids in `window` that bear
/// `origin`, the last one whatever they bear; in microseconds since 2000.
pub fn commits(origin: u32, window: (i64, i64), after: i64) -> Statement {
    Statement::new(
        "SELECT max(at) FILTER (WHERE roident = $3::oid),
                min(at) FILTER (WHERE roident = $3::oid AND at > $4::bigint), max(at)
           FROM (SELECT w.roident,
                        (extract(epoch FROM w.timestamp - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint AS at
                   FROM (SELECT x::text::xid8::xid AS xid FROM generate_series($1::bigint, $2::bigint) x
                          WHERE x % 4294967296 >= 3) x,
                        pg_xact_commit_timestamp_origin(x.xid) w) c",
        &[
            &window.0.to_string(),
            &window.1.to_string(),
            &origin.to_string(),
            &after.to_string(),
        ],
    )
}

/// Takes the note about `failed` away; all notes of the database where that is `None`.
pub fn forget_unfinished(failed: Option<&str>) -> Statement {
    let all = failed.is_none().to_string();
    Statement::new(
        format!(
            "SELECT pg_replication_origin_drop(roname)
               FROM (SELECT roname, failed FROM {UNFINISHED} UNION ALL SELECT roname, failed FROM {COMPARED}) AS notes
              WHERE failed = $1 OR $2::boolean"
        ),
        &[failed.unwrap_or_default(), &all],
    )
}

/// Puts everything that was committed before on disk: apply workers do not wait for that, and decoding
/// reads no further. A commit without a record of its own would not wait either; nobody reads this one.
pub fn flush_wal() -> Statement {
    Statement::new("SELECT pg_logical_emit_message(true, 'zodan', '')", &[])
}

/// Sets a setting of the whole server, where it takes effect with a reload or a restart.
pub fn set_server_setting(setting: &str, value: &str) -> Statement {
    let value = match setting {
        // A list; its elements are names, not one text.
        "output_plugin_libraries" => value.to_owned(),
        _ => crate::quote::literal(value),
    };
    Statement::new(format!("ALTER SYSTEM SET {setting} = {value}"), &[])
}

/// Ends the sessions with these pids.
pub fn end_sessions(pids: &[&str]) -> Statement {
    let pids = pids.join(", ");
    Statement::new(
        format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{pids}]) pid"),
        &[],
    )
}

/// The pid of this session.
pub fn backend_pid() -> Statement {
    Statement::new("SELECT pg_backend_pid()", &[])
}

/// Notes on the server where its node is.
pub fn keep_place() -> Statement {
    Statement::new("SELECT zodan.keep_place()", &[])
}

/// Whether the database has a journal.
pub fn has_journal() -> Statement {
    Statement::new("SELECT to_regclass('zodan.run') IS NOT NULL", &[])
}

/// What others see of this session.
pub fn name_session(name: &str) -> Statement {
    Statement::new("SELECT set_config('application_name', $1, false)", &[name])
}

/// The end of what has been written into the WAL.
pub fn wal_position() -> Statement {
    Statement::new("SELECT pg_current_wal_insert_lsn()", &[])
}

/// Where the node's WAL ends. A standby that gets none has no more than it replays.
const END_OF_WAL: &str = "CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()
      WHEN NOT EXISTS (SELECT FROM pg_stat_wal_receiver) THEN pg_last_wal_replay_lsn() END";

/// Up to where the node's WAL is on disk; null where a standby is still being sent more.
pub fn wal_flushed() -> Statement {
    Statement::new(format!("SELECT {END_OF_WAL}"), &[])
}

/// Those of `readers` that commits of the node wait for, by `synchronous_standby_names`.
pub fn waited_for(readers: &[String]) -> Statement {
    let readers = serde_json::to_string(readers).unwrap_or_default();
    Statement::new(
        "WITH named AS (SELECT lower(btrim(btrim(n), '\"')) AS name
                          FROM regexp_split_to_table(current_setting('synchronous_standby_names'), '[,()]') n)
         SELECT reader FROM jsonb_array_elements_text($1::jsonb) reader
          WHERE lower(reader) IN (SELECT name FROM named)
             OR '*' IN (SELECT name FROM named)
                AND EXISTS (SELECT FROM pg_stat_replication WHERE application_name = reader)
                AND NOT EXISTS (SELECT FROM pg_stat_replication
                                 WHERE application_name <> reader AND sync_state <> 'async')",
        &[&readers],
    )
}

/// `role, statement`: roles whose sessions write in this database although it is read-only by default, and what ends
/// that.
pub fn roles_that_write_on() -> Statement {
    Statement::new(
        "SELECT quote_ident(r.rolname),
                format('ALTER ROLE %I %sRESET default_transaction_read_only', r.rolname,
                       'IN DATABASE ' || quote_ident(d.datname) || ' ')
           FROM pg_db_role_setting s
           JOIN pg_roles r ON r.oid = s.setrole AND r.rolcanlogin
           LEFT JOIN pg_database d ON d.oid = s.setdatabase,
                unnest(s.setconfig) c
          WHERE (s.setdatabase = 0 OR d.datname = current_database())
            AND c LIKE 'default\\_transaction\\_read\\_only=%'
            AND NOT split_part(c, '=', 2)::boolean
          ORDER BY 1",
        &[],
    )
}

/// The first transaction id that nobody has had.
pub fn next_transaction() -> Statement {
    Statement::new("SELECT pg_snapshot_xmax(pg_current_snapshot())", &[])
}

/// The first transaction id that may still be under way.
pub fn oldest_transaction() -> Statement {
    Statement::new("SELECT pg_snapshot_xmin(pg_current_snapshot())", &[])
}

/// The node's records of what its recovery slot keeps, of the members that there are.
pub fn keep_recovery_of(members: &[String]) -> Statement {
    let members = serde_json::to_string(members).unwrap_or_default();
    Statement::new(
        "DELETE FROM zodan.recovery_slot USING zodan.unreplicated()
          WHERE NOT ($1::jsonb ? provider)",
        &[&members],
    )
}

/// None of them is true any more.
pub fn forget_recovery() -> Statement {
    Statement::new(
        "DELETE FROM zodan.recovery_slot USING zodan.unreplicated()",
        &[],
    )
}

/// Notes from where on the slot keeps each provider's transactions. Without `moved` only of those of which
/// nothing is known.
pub fn protect(progress: &std::collections::BTreeMap<String, Lsn>, moved: bool) -> Statement {
    let progress: std::collections::BTreeMap<&String, String> = progress
        .iter()
        .map(|(p, lsn)| (p, lsn.to_string()))
        .collect();
    let progress = serde_json::to_string(&progress).unwrap_or_default();
    let conflict = match moved {
        true => {
            "UPDATE SET retained_from = excluded.retained_from, changed_at = clock_timestamp()
              WHERE zodan.recovery_slot.retained_from < excluded.retained_from"
        }
        false => "NOTHING",
    };
    Statement::new(
        format!(
            "INSERT INTO zodan.recovery_slot (provider, retained_from)
             SELECT key, value::pg_lsn FROM jsonb_each_text($1::jsonb), zodan.unreplicated()
             ON CONFLICT (provider) DO {conflict}"
        ),
        &[&progress],
    )
}

/// Notes that something had to be given up.
pub fn record_gap(why: &str) -> Statement {
    Statement::new(
        "UPDATE zodan.recovery_slot SET gap_since = clock_timestamp(), gap_reason = $1
           FROM zodan.unreplicated()",
        &[why],
    )
}

/// Nothing that was given up is lacking anywhere any more.
pub fn clear_gap() -> Statement {
    Statement::new(
        "UPDATE zodan.recovery_slot SET gap_since = NULL, gap_reason = NULL
           FROM zodan.unreplicated() WHERE gap_since IS NOT NULL",
        &[],
    )
}

/// From where on the node's recovery slot has the transactions of `provider`; null if it is not known.
pub fn retained_from(provider: &str) -> Statement {
    Statement::new(
        "SELECT retained_from FROM zodan.recovery_slot WHERE provider = $1",
        &[provider],
    )
}

pub fn parse_lsn(row: &Row, column: usize) -> Result<Lsn> {
    row.text(column)
        .parse()
        .map_err(|()| Error::internal(format!("\"{}\" is not an LSN", row.text(column))))
}

/// Free bytes of the file system that holds this server's data directory.
pub fn free_disk_space() -> Result<u64> {
    // SAFETY: DataDir is a C string set at server start; statvfs fills the zeroed struct.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(pgrx::pg_sys::DataDir, &mut stat) != 0 {
            return Err(Error::internal(format!(
                "statvfs of the data directory: {}",
                std::io::Error::last_os_error()
            )));
        }
        Ok(stat.f_bavail * stat.f_frsize)
    }
}
