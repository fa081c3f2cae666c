//! What Spock's settings and tables on a node say against a join, or against the health of its cluster.

use super::{Spock, set_tables};
use crate::engine::{EngineCheck, EngineFindings, Judged, MemberCheck, On};
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::wait;
use crate::node::{Node, Query, Statement, ask_all};
use crate::quote::{ident, literal};
use crate::settings;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Settings by which members do different things with the same change, beside `spock.readonly`.
const ALIKE: [&str; 6] = [
    "spock.exception_behaviour",
    "spock.exception_logging",
    "spock.conflict_resolution",
    "spock.check_all_uc_indexes",
    "spock.enable_ddl_replication",
    "spock.include_ddl_repset",
];

/// Where Spock does not know when a subscription was made, entries of its log count for so long.
const LOG_DAYS: u32 = 30;

/// A setting as an apply worker begins with it.
struct Effective {
    name: String,
    value: String,
    /// The statement that resets it where it is set.
    reset: String,
}

/// Settings as an apply worker begins with them, which runs as the bootstrap superuser.
fn effective(names: &[&str]) -> Query<Effective> {
    let names: Vec<String> = names.iter().copied().map(literal).collect();
    Query::new(
        include_str!("effective_settings.sql").replace(":names", &names.join(", ")),
        &[],
        |row| {
            Ok(Effective {
                name: row.get("name")?,
                value: row.get("value")?,
                reset: row.get("reset")?,
            })
        },
    )
}

fn readonly() -> Query<Effective> {
    effective(&["spock.readonly"])
}

/// A node on which apply workers write nothing.
fn judge_readonly(node: &str, settings: &[Effective]) -> Option<Finding> {
    let Effective { reset, .. } = settings.iter().find(|s| s.value == "all")?;
    let (statement, then) = match reset.starts_with("ALTER SYSTEM") {
        true => (reset.clone(), ", and reload"),
        // Before 6.0 nobody else can do that.
        false => (format!("SET spock.readonly = 'off'; {reset}"), ""),
    };
    Some(
        Finding::new(
            node,
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "spock.readonly is all, so apply workers write nothing there",
            format!(
                "{statement}{then}. Applications alone are kept from writing by the value local, user before Spock 6."
            ),
        )
        .fixed_by(statement),
    )
}

/// A table that a subscription is bringing, or has failed to bring.
pub(super) struct Unsynced {
    subscription: String,
    table: String,
    status: String,
    resync: String,
    wait: String,
}

/// Tables of the node that one of its subscriptions is bringing, or has failed to bring. Meanwhile the subscription passes
/// over their changes.
pub(super) fn unsynced() -> Query<Unsynced> {
    Query::new(include_str!("unsynced.sql"), &[], |row| {
        Ok(Unsynced {
            subscription: row.get("sub")?,
            table: row.get("tab")?,
            status: row.get("status")?,
            resync: row.get("resync")?,
            wait: row.get("wait")?,
        })
    })
}

const FAILED: &str = "f";

fn unsynced_table(node: &str, unsynced: &Unsynced) -> Finding {
    let Unsynced {
        subscription,
        table,
        status,
        resync,
        wait,
    } = unsynced;
    let finding = |message: String, hint: String| {
        Finding::new(node, SqlState::NOT_IN_PREREQUISITE_STATE, message, hint)
    };
    match status.as_str() {
        FAILED => finding(
            format!(
                "subscription {subscription} has failed to synchronize table {table}, and passes over what is written to it"
            ),
            format!(
                "{resync}; it empties the table first. The log of that server says what it failed of."
            ),
        ),
        status => finding(
            format!("subscription {subscription} is synchronizing table {table} (status {status})"),
            format!("Wait for its end: {wait}"),
        )
        .fixed_by(wait.as_str()),
    }
}

fn judge_unsynced(answers: &[(String, Vec<Unsynced>)]) -> Vec<Judged> {
    let all = answers
        .iter()
        .flat_map(|(node, tables)| tables.iter().map(move |table| (node, table)));
    all.map(|(node, table)| {
        let finding = unsynced_table(node, table);
        match table.status.as_str() {
            FAILED => Judged::Failed(finding),
            _ => Judged::Warned(finding),
        }
    })
    .collect()
}

/// Refuses a snapshot in which the source has but a part of a table.
pub(super) fn in_sync(source: &str, unsynced: &[Unsynced]) -> Result<()> {
    let findings: Vec<Finding> = unsynced
        .iter()
        .map(|table| unsynced_table(source, table))
        .collect();
    match findings.is_empty() {
        true => Ok(()),
        false => Err(Error::Checks(findings)),
    }
}

/// Entry `e` of the log belongs to subscription `s` as it is now, and no later synchronization has brought the table
/// anew.
pub(super) fn counts() -> String {
    format!(
        "(e.remote_origin = s.sub_origin
          OR e.remote_origin = 0 AND e.operation = 'SUB_DISABLE'
             AND strpos(e.error_message, format(' %s ', s.sub_name)) > 0)
         AND e.retry_errored_at >= coalesce((to_jsonb(s) ->> 'sub_created_at')::timestamptz, now() - interval '{LOG_DAYS} days')
         AND NOT EXISTS (SELECT FROM spock.local_sync_status y
                          WHERE y.sync_nspname = e.table_schema AND y.sync_relname = e.table_name
                            AND y.sync_status = 'r'
                            AND CASE WHEN current_setting('track_commit_timestamp')::boolean
                                     THEN pg_xact_commit_timestamp(y.xmin) > e.retry_errored_at END)"
    )
}

/// What was left out for good of what `s` brings: not an update of a row that is gone, which every member leaves out
/// by itself, nor what other versions log beside the change that failed.
const LEFT_OUT: &str = "e.operation <> 'SUB_DISABLE' AND e.error_message !~ '^unavailable|did not find row to be updated'";

/// An expression: how many changes `s` has left out for good, since when, and the last that has a reason of its own; null
/// for none.
pub(super) fn left_out_of() -> String {
    format!(
        "(SELECT format('%s %s left out since %s, the last: %s', count(*), CASE count(*) WHEN 1 THEN 'change' ELSE 'changes' END,
                        min(e.retry_errored_at)::timestamptz(0),
                        (max(ARRAY[(e.error_message !~ '^transdiscard:')::text || to_char(e.retry_errored_at, 'YYYYMMDDHH24MISSUS'),
                                   concat_ws(': ', nullif(concat_ws(' ', e.operation, e.table_schema || '.' || nullif(e.table_name, '')), ''),
                                             e.error_message)]))[2])
            FROM spock.exception_log e WHERE {} AND {LEFT_OUT} HAVING count(*) > 0)",
        counts()
    )
}

/// What stands in the log of exceptions.
struct Logged {
    count: String,
    since: String,
    /// What empties it.
    delete: String,
}

/// No row where nothing stands in it.
fn exceptions() -> Query<Logged> {
    Query::new(
        format!(
            "SELECT count(*), min(e.retry_errored_at)::timestamptz(0) AS since,
                    format('DELETE FROM spock.exception_log WHERE retry_errored_at <= %L', max(e.retry_errored_at)) AS delete
               FROM spock.exception_log e
              WHERE EXISTS (SELECT FROM spock.subscription s WHERE {})
             HAVING count(*) > 0",
            counts()
        ),
        &[],
        |row| {
            Ok(Logged {
                count: row.get("count")?,
                since: row.get("since")?,
                delete: row.get("delete")?,
            })
        },
    )
}

fn judge_exceptions(answers: &[(String, Vec<Logged>)]) -> Vec<Judged> {
    let logged = |(node, logged): &(String, Vec<Logged>)| {
        let Logged {
            count,
            since,
            delete,
        } = logged.first()?;
        let message = format!(
            "spock.exception_log has {count} entries since {since}: changes that its apply workers did not apply as they were sent"
        );
        // To forget them is for a person to decide.
        let hint = format!(
            "Compare the nodes, spock.verify_nodes(), and mend what differs. Then: {delete}"
        );
        let finding = Finding::new(node, SqlState::OK, message, hint);
        Some(Judged::Warned(finding))
    };
    answers.iter().filter_map(logged).collect()
}

/// The settings have one value on all members, and what a worker leaves out is logged.
fn judge_alike(answers: &[(String, Vec<Effective>)]) -> Vec<Judged> {
    let Some((first, theirs)) = answers.first() else {
        return vec![];
    };
    let mut found = vec![];
    for (node, settings) in answers {
        let silent = |s: &&Effective| s.name == "spock.exception_logging" && s.value == "none";
        if let Some(silent) = settings.iter().find(silent) {
            found.push(Judged::Warned(Finding::new(
                node,
                SqlState::OK,
                "spock.exception_logging is none: what its apply workers leave out is told nowhere",
                format!("{}, and reload.", silent.reset),
            )));
        }
    }
    let theirs: BTreeMap<&String, &String> = theirs.iter().map(|s| (&s.name, &s.value)).collect();
    for (node, settings) in &answers[1..] {
        for Effective { name, value, .. } in settings {
            match theirs.get(name) {
                Some(other) if *other != value => found.push(Judged::Warned(Finding::new(
                    node,
                    SqlState::OK,
                    format!("{name} is {value}, on node \"{first}\" {other}"),
                    "Give all members the same: what one applies another may leave out, or resolve otherwise.",
                ))),
                _ => {}
            }
        }
    }
    found
}

pub(super) const INSTALLED: &str = "Spock";
pub(super) const TIMESTAMPS: &str = "track_commit_timestamp";
pub(super) const GROUPS: &str = "groups of slots";
const WRITING: &str = "apply workers";
const FORWARDING: &str = "forwarding";
const RESERVED: &str = "reserved schemas";
const SYNCHRONIZED: &str = "tables of the source";
const SENDING: &str = "sent tables";
pub(super) const SLOTS: &str = "readers of slots";
pub(super) const EXTENSIONS: &str = "reserved extensions";
pub(super) const NODE: &str = "number of the node";

/// In the order in which they are made.
pub(in crate::engine) const BEFORE_A_JOIN: [EngineCheck; 11] = {
    const fn of(name: &'static str, on: On, wanted: &'static str) -> EngineCheck {
        EngineCheck { name, wanted, on }
    }
    [
        of(
            INSTALLED,
            On::Every,
            "installed and preloaded, its major and minor version the same everywhere",
        ),
        of(TIMESTAMPS, On::Every, "on"),
        of(
            GROUPS,
            On::Members,
            "none among the subscriptions between two members",
        ),
        of(WRITING, On::Every, "may write"),
        of(
            FORWARDING,
            On::Members,
            "no subscription brings changes of others than its provider",
        ),
        of(RESERVED, On::Source, "nothing that is replicated is in one"),
        of(SYNCHRONIZED, On::Source, "synchronized"),
        of(
            SENDING,
            On::Source,
            "their rows come from nodes that send them",
        ),
        of(SLOTS, On::Members, "every slot of a member is read by it"),
        of(EXTENSIONS, On::New, "those of the source are installed"),
        of(NODE, On::Every, "free, and the new node is none yet"),
    ]
};

/// What every member is asked, before a join and afterwards.
pub(in crate::engine) fn of_members() -> Vec<MemberCheck> {
    vec![
        MemberCheck::new("spock.readonly", "not all", true, readonly(), |answers| {
            let found = answers.iter();
            let found = found.filter_map(|(n, settings)| judge_readonly(n, settings));
            found.map(Judged::Failed).collect()
        }),
        MemberCheck::new(
            "synchronization of tables",
            "done",
            false,
            unsynced(),
            judge_unsynced,
        ),
        MemberCheck::new(
            "settings of Spock",
            "the same on all nodes",
            true,
            effective(&ALIKE),
            judge_alike,
        ),
        MemberCheck::new(
            "exceptions",
            "none logged",
            false,
            exceptions(),
            judge_exceptions,
        ),
    ]
}

/// What makes a join impossible, or its result wrong. The source is the first of `members`.
pub(super) fn before_the_first_change(
    spock: &Spock,
    members: &mut [&mut Node],
    new: &mut Node,
) -> Result<EngineFindings> {
    let [
        mut writing,
        mut forwarding,
        mut reserved,
        mut synchronized,
        mut sending,
    ] = [(); 5].map(|()| vec![]);
    check_readonly(members, new, &mut writing)?;
    check_forwarding(members, &mut forwarding)?;
    if let Some(source) = members.first_mut() {
        check_reserved(spock, source, new, &mut reserved)?;
        check_synchronized(source, &mut synchronized)?;
        let sent = set_tables(source)?;
        spock.check_filled_twice(members, &sent, &mut sending)?;
    }
    Ok(vec![
        (WRITING, writing),
        (FORWARDING, forwarding),
        (RESERVED, reserved),
        (SYNCHRONIZED, synchronized),
        (SENDING, sending),
    ])
}

fn check_readonly(
    members: &mut [&mut Node],
    new: &mut Node,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let mut nodes: Vec<&mut Node> = members.iter_mut().map(|m| &mut **m).collect();
    nodes.push(new);
    let answers = ask_all(nodes.iter_mut().map(|n| &mut **n), &readonly())?;
    let answers = nodes.iter().zip(&answers);
    findings.extend(answers.filter_map(|(node, settings)| judge_readonly(&node.name, settings)));
    Ok(())
}

/// A subscription that also brings what its provider has from others: what the new node writes would come twice, and
/// Spock 6 enables no other subscription beside such a one.
fn check_forwarding(members: &mut [&mut Node], findings: &mut Vec<Finding>) -> Result<()> {
    let question = "SELECT s.sub_name, n.node_name, array_to_string(s.sub_forward_origins, ', ') AS origins,
                           CASE WHEN to_regprocedure('spock.sub_alter_options(name, jsonb)') IS NOT NULL
                                THEN format('SELECT spock.sub_alter_options(%L, %L)', s.sub_name, '{\"forward_origins\": []}') END AS clear
                      FROM spock.subscription s JOIN spock.node n ON n.node_id = s.sub_origin
                      JOIN spock.local_node l ON l.node_id = s.sub_target
                     WHERE s.sub_enabled AND cardinality(s.sub_forward_origins) > 0 ORDER BY 1";
    let question = Statement::new(question, &[]);
    let answers = ask_all(members.iter_mut().map(|m| &mut **m), &question)?;
    for (member, rows) in members.iter().zip(&answers) {
        for row in rows {
            // In a chain or a star nobody else brings them, so it is not for a statement alone.
            let clear = match row.get::<Option<String>>("clear")? {
                Some(statement) => statement,
                None => "drop the subscription, when it has applied all that its provider has, and create it again with forward_origins := '{}'.".into(),
            };
            findings.push(Finding::new(
                &member.name,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "subscription {} from node \"{}\" forwards changes of other nodes (forward_origins is {}), and every node of a mesh subscribes to those itself",
                    row.get::<&str>("sub_name")?,
                    row.get::<&str>("node_name")?,
                    row.get::<&str>("origins")?
                ),
                format!("Let every node subscribe to every other. Then: {clear}"),
            ));
        }
    }
    Ok(())
}

/// Tables whose rows would come, in schemas whose structure does not; and what else needs such a schema.
fn check_reserved(
    spock: &Spock,
    source: &mut Node,
    new: &mut Node,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let reserved = &spock.excluded.schemas;
    // Tables of extensions that are there have been looked at.
    let of_extensions = Query::<(String, String)>::new(
        "SELECT n.nspname, c.relname
           FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind IN ('r', 'p')",
        &[],
        |row| Ok((row.get("nspname")?, row.get("relname")?)),
    );
    let of_extensions = of_extensions.on(source)?;
    let own = set_tables(source)?;
    let taken = spock.subscriptions_of(&source.name, &new.name);
    let comes = own
        .iter()
        .filter(|t| taken.iter().any(|sets| sets.contains(&t.set)));
    let mut reported = BTreeSet::new();
    for table in comes.chain(spock.peers_tables(&source.name)) {
        let quoted = crate::quote::qualified(&table.schema, &table.name);
        let installed = of_extensions
            .iter()
            .any(|(schema, name)| (schema, name) == (&table.schema, &table.name));
        if installed || !reserved.contains(&table.schema) || !reported.insert(quoted.clone()) {
            continue;
        }
        findings.push(Finding::new(
            &source.name,
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "table {quoted} is in replication set {}, but Spock reserves its schema to each node, so its structure is not copied",
                table.set
            ),
            format!(
                "Decide which: SELECT spock.repset_remove_table({}, {}), on every member that has it in a set; or, since Spock 6, SELECT spock.reserved_object_remove({}, 'schema').",
                literal(&table.set),
                literal(&quoted),
                literal(&table.schema)
            ),
        ));
    }
    check_dependents(reserved, source, findings)?;
    let knows = "SELECT to_regclass('spock.reserved_object') IS NOT NULL";
    if !new.query(knows, &[])?.one()?.only::<bool>()? {
        return Ok(());
    }
    let blocked = Query::<String>::new(
        "SELECT name FROM spock.reserved_object WHERE kind = 'schema' AND block_in_repset",
        &[],
        |row| row.only(),
    );
    let blocked = blocked.on(new)?;
    for table in own.iter().filter(|t| blocked.contains(&t.schema)) {
        let quoted = crate::quote::qualified(&table.schema, &table.name);
        if !reported.insert(quoted.clone()) {
            continue;
        }
        let statement = format!(
            "SELECT spock.reserved_object_remove({}, 'schema')",
            literal(&table.schema)
        );
        findings.push(
            Finding::new(
                &new.name,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "schema {} is reserved here, so table {quoted} cannot be in replication set {} as on node \"{}\"",
                    ident(&table.schema),
                    table.set,
                    source.name
                ),
                statement.as_str(),
            )
            .fixed_by(statement),
        );
    }
    Ok(())
}

/// Objects of other schemas that need one in a reserved schema, which is nowhere in what is restored.
fn check_dependents(
    reserved: &[String],
    source: &mut Node,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let list: Vec<String> = reserved.iter().map(|s| literal(s)).collect();
    let list = list.join(", ");
    if list.is_empty() {
        return Ok(());
    }
    let dependents = source.query(
        &include_str!("dependents.sql").replace(":reserved", &list),
        &[],
    )?;
    for row in &dependents {
        findings.push(Finding::new(
            &source.name,
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!(
                "{} needs {}, whose schema Spock reserves to each node, so that its structure is not copied",
                row.get::<&str>("dependent")?,
                row.get::<&str>("needed")?
            ),
            format!(
                "Move one of the two to another schema; or, since Spock 6, take the reservation away: SELECT spock.reserved_object_remove({}, 'schema').",
                literal(row.get("nspname")?)
            ),
        ));
    }
    Ok(())
}

/// What the source has of a table that is being synchronized is not all, and its changes are not applied as they come.
/// A synchronization that is about to end gets the time that a connection may take.
fn check_synchronized(source: &mut Node, findings: &mut Vec<Finding>) -> Result<()> {
    let begun = Instant::now();
    let mut rest = Duration::from_millis(10);
    loop {
        let tables = unsynced().on(source)?;
        let failed = tables.iter().any(|table| table.status == FAILED);
        if tables.is_empty() {
            return Ok(());
        }
        if failed || begun.elapsed() > settings::connect_timeout() {
            findings.extend(
                tables
                    .iter()
                    .map(|table| unsynced_table(&source.name, table)),
            );
            return Ok(());
        }
        wait::on_latch(rest)?;
        rest = (rest * 3 / 2).min(Duration::from_millis(100));
    }
}

/// One text: what can be seen on the subscriber of why the worker of `subscription` makes no progress. What its last error
/// was stands in the log alone, unless it gave a change up.
pub(super) fn worker_error(subscription: &str) -> Query<String> {
    Query::new(
        include_str!("worker_error.sql")
            .replace(":readonly", &readonly().statement.sql)
            .replace(":unsynced", &unsynced().statement.sql)
            .replace(":counts", &counts()),
        &[subscription],
        |row| row.only(),
    )
}

#[cfg(test)]
mod tests {
    use super::{ALIKE, of_members};

    #[test]
    fn what_members_are_asked_has_no_parameters() {
        for check in of_members() {
            assert!(check.question.params.is_empty(), "{}", check.name);
            assert!(!check.question.sql.contains('$'), "{}", check.name);
        }
        assert!(ALIKE.iter().all(|name| name.starts_with("spock.")));
    }
}
