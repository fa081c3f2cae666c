//! Brings a database back to what it was, from wherever the copy got to.

use super::inventory::{Defaults, Grant, Inventory, Schema, defaults, privileges, schemas};
use super::objects::{Object, objects};
use super::settings;
use crate::error::{Error, Result, SqlState};
use crate::node::Session;
use crate::quote::{ident, literal};
use std::collections::BTreeSet;

/// Objects that one statement drops: each one takes locks until it is through.
const BATCH: usize = 50;
/// What has a smaller one has been there since initdb.
const FIRST_USER_OID: u32 = 16384;
/// How many names of what is left an error holds.
const TOLD: usize = 10;

/// Every kind of `pg_identify_object` that [`objects`] may list, as DROP calls it, in the order in which
/// they are dropped. Event triggers first, since they would see all that follows; what contains others last.
const KINDS: [(&str, &str); 30] = [
    ("event trigger", "EVENT TRIGGER"),
    ("publication", "PUBLICATION"),
    ("materialized view", "MATERIALIZED VIEW"),
    ("view", "VIEW"),
    ("foreign table", "FOREIGN TABLE"),
    ("table", "TABLE"),
    ("sequence", "SEQUENCE"),
    ("policy", "POLICY"),
    ("statistics object", "STATISTICS"),
    ("cast", "CAST"),
    ("transform", "TRANSFORM"),
    ("conversion", "CONVERSION"),
    ("text search configuration", "TEXT SEARCH CONFIGURATION"),
    ("text search dictionary", "TEXT SEARCH DICTIONARY"),
    ("text search template", "TEXT SEARCH TEMPLATE"),
    ("text search parser", "TEXT SEARCH PARSER"),
    ("operator class", "OPERATOR CLASS"),
    ("operator family", "OPERATOR FAMILY"),
    ("operator", "OPERATOR"),
    ("aggregate", "ROUTINE"),
    ("function", "ROUTINE"),
    ("procedure", "ROUTINE"),
    ("type", "TYPE"),
    ("composite type", "TYPE"),
    ("collation", "COLLATION"),
    ("access method", "ACCESS METHOD"),
    ("user mapping", "USER MAPPING"),
    ("server", "SERVER"),
    ("foreign-data wrapper", "FOREIGN DATA WRAPPER"),
    ("language", "LANGUAGE"),
];
const LAST: [(&str, &str); 2] = [("extension", "EXTENSION"), ("schema", "SCHEMA")];

/// Kinds of which one statement can drop many.
const MANY: [&str; 6] = [
    "materialized view",
    "view",
    "foreign table",
    "table",
    "sequence",
    "type",
];

/// Drops everything that the restore brought and puts back what it changes of the rest. Of any state in
/// between it makes the same, and what is gone already is no error. Returns what others have made since the
/// inventory, and what is left alone: what the source does not have the restore has not made.
pub fn undo(
    session: &mut Session,
    before: &Inventory,
    restorable: Option<&BTreeSet<String>>,
) -> Result<Vec<String>> {
    #[cfg(not(feature = "pg18"))]
    super::check_constraints::count_again(session)?;
    let others = drop_new(session, before, restorable)?;
    let now = schemas(session)?;
    for schema in &before.schemas {
        if let Some(now) = now.iter().find(|s| s.name == schema.name) {
            run(session, restore_schema(now, schema))?;
        }
    }
    for now in privileges(session)? {
        let key = (now.catalog.clone(), now.oid);
        if now.oid < FIRST_USER_OID || before.objects.contains(&key) {
            let wanted = before
                .privileges
                .iter()
                .find(|p| (&p.catalog, p.oid) == (&key.0, key.1));
            let wanted = wanted.map_or(&now.initial, |p| &p.grants);
            run(
                session,
                changes(&now.grants, wanted, &format!("ON {}", now.name)),
            )?;
        }
    }
    for now in defaults(session)? {
        let same =
            |d: &&Defaults| (&d.role, &d.schema, d.kind) == (&now.role, &now.schema, now.kind);
        let wanted = before
            .defaults
            .iter()
            .find(same)
            .map_or(&now.initial, |d| &d.grants);
        run(session, restore_defaults(&now, wanted))?;
    }
    settings::restore(session, &before.settings)?;
    Ok(others)
}

fn run(session: &mut Session, statements: Vec<String>) -> Result<()> {
    for statement in statements {
        session.query(&statement, &[])?;
    }
    Ok(())
}

/// Cascades make most of the list obsolete while it is worked off, and some of it undroppable until
/// something else is gone, so the list is read again until nothing is left. Something of it has to go each
/// time.
fn drop_new(
    session: &mut Session,
    before: &Inventory,
    restorable: Option<&BTreeSet<String>>,
) -> Result<Vec<String>> {
    let mut last: Option<BTreeSet<(String, u32)>> = None;
    let mut first_error = None;
    loop {
        let (mut doomed, others): (Vec<Object>, Vec<Object>) = objects(session)?
            .into_iter()
            .filter(|o| !o.member && !o.owned && !before.objects.contains(&o.key()))
            .partition(|o| restorable.is_none_or(|restorable| restorable.contains(&o.name())));
        doomed.sort_by_key(|o| rank(&o.kind)); // stable: partitions stay before their parents
        if doomed.is_empty() {
            return Ok(others.iter().map(Object::name).collect());
        }
        let left: BTreeSet<(String, u32)> = doomed.iter().map(Object::key).collect();
        if last.is_some_and(|last| last.is_subset(&left)) {
            return Err(stuck(&doomed, first_error));
        }
        last = Some(left);
        first_error = None;
        for batch in batches(&doomed) {
            match attempt(session, batch, &others) {
                Ok(()) => {}
                Err(error) if is_interrupt(&error) => return Err(error),
                // One of them is in the way of the others.
                Err(_) if batch.len() > 1 => {
                    for object in batch {
                        match attempt(session, std::slice::from_ref(object), &others) {
                            Ok(()) => {}
                            Err(error) if is_interrupt(&error) => return Err(error),
                            Err(error) => first_error = first_error.or(Some(error)),
                        }
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
    }
}

fn attempt(session: &mut Session, batch: &[Object], others: &[Object]) -> Result<()> {
    match session.query(&drop_statement(batch, others)?, &[]) {
        Err(error) if !error.is_undefined() => Err(error),
        _ => Ok(()),
    }
}

fn is_interrupt(error: &Error) -> bool {
    let state = error.sqlstate();
    state == SqlState::QUERY_CANCELED
        || state == SqlState::CONNECTION_FAILURE
        || matches!(error, Error::Interrupted { .. } | Error::Lost { .. })
}

fn stuck(left: &[Object], why: Option<Error>) -> Error {
    let mut names: Vec<String> = left.iter().take(TOLD).map(Object::name).collect();
    if left.len() > TOLD {
        names.push(format!("{} more", left.len() - TOLD));
    }
    let why = why.map_or(String::new(), |error| format!(": {error}"));
    Error::refused(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        format!("{} cannot be dropped{why}", names.join(", ")),
        "Drop it by hand, or what is in its way, and run the CALL again.",
    )
}

fn kinds() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    KINDS.iter().chain(&LAST)
}

/// A kind that is not known yet comes before those that contain others.
fn rank(kind: &str) -> usize {
    let unknown = 2 * KINDS.len();
    match kinds().position(|(k, _)| *k == kind) {
        None => unknown,
        Some(i) if i < KINDS.len() => i,
        Some(i) => unknown + i,
    }
}

/// Neighbours of the same kind together, as far as that is possible.
fn batches(objects: &[Object]) -> impl Iterator<Item = &[Object]> {
    objects.chunk_by(|a, b| a.kind == b.kind).flat_map(|same| {
        let size = if MANY.contains(&same[0].kind.as_str()) {
            BATCH
        } else {
            1
        };
        same.chunks(size)
    })
}

/// Objects of the same kind. The server itself looks up what they are called, so nothing depends on how
/// their names come through. What others made neither goes along nor loses what it rests on.
fn drop_statement(batch: &[Object], others: &[Object]) -> Result<String> {
    let kind = &batch[0].kind;
    let Some((_, verb)) = kinds().find(|(k, _)| k == kind) else {
        return Err(Error::internal(format!("no statement drops a {kind}")));
    };
    // These have no dependents and know no CASCADE.
    let cascade = match *verb {
        "USER MAPPING" => "",
        _ => " CASCADE",
    };
    let (count, check) = if others.is_empty() {
        (String::new(), String::new())
    } else {
        let ties = format!(
            "(SELECT count(*) FROM pg_depend d, {} WHERE (d.classid, d.objid) = (o.class, o.oid)
                                                      OR (d.refclassid, d.refobjid) = (o.class, o.oid))",
            values(others)
        );
        (
            format!("ties := {ties};"),
            format!(
                "IF ties <> {ties} THEN
                     RAISE EXCEPTION USING ERRCODE = '2BP01',
                         MESSAGE = 'what others have made meanwhile depends on it';
                 END IF;"
            ),
        )
    };
    let body = format!(
        "DECLARE names text; ties bigint;
         BEGIN
             SELECT string_agg(name, ', ') INTO names FROM (SELECT {NAME} AS name FROM {}) n;
             {count}
             EXECUTE 'DROP {verb} ' || names || '{cascade}';
             {check}
         END",
        values(batch)
    );
    Ok(format!(
        "SET LOCAL client_min_messages = warning; DO {}",
        literal(&body)
    ))
}

/// What DROP takes for the object `o`, or NULL if it is gone.
const NAME: &str = "
CASE o.class
    WHEN 'pg_user_mapping'::regclass THEN
        (SELECT format('FOR %s SERVER %I', CASE m.umuser WHEN 0 THEN 'PUBLIC'
                                                ELSE quote_ident(pg_get_userbyid(m.umuser)) END, s.srvname)
           FROM pg_user_mapping m JOIN pg_foreign_server s ON s.oid = m.umserver WHERE m.oid = o.oid)
    WHEN 'pg_transform'::regclass THEN
        (SELECT format('FOR %s LANGUAGE %I', format_type(t.trftype, NULL), l.lanname)
           FROM pg_transform t JOIN pg_language l ON l.oid = t.trflang WHERE t.oid = o.oid)
    ELSE (pg_identify_object(o.class, o.oid, 0)).identity
END";

fn values(objects: &[Object]) -> String {
    let rows: Vec<String> = objects
        .iter()
        .map(|o| format!("({}::regclass, {}::oid)", literal(&o.catalog), o.oid))
        .collect();
    format!("(VALUES {}) o(class, oid)", rows.join(", "))
}

fn restore_schema(now: &Schema, before: &Schema) -> Vec<String> {
    let schema = ident(&now.name);
    let mut statements = vec![];
    if now.owner != before.owner {
        statements.push(format!(
            "ALTER SCHEMA {schema} OWNER TO {}",
            ident(&before.owner)
        ));
    }
    if now.comment != before.comment {
        let comment = before
            .comment
            .as_ref()
            .map_or("NULL".into(), |c| literal(c));
        statements.push(format!("COMMENT ON SCHEMA {schema} IS {comment}"));
    }
    // A new owner takes his predecessor's grants over, so after that they cannot be compared.
    if now.grants != before.grants || now.owner != before.owner {
        let all: BTreeSet<Grant> = now.grants.union(&before.grants).cloned().collect();
        let on = format!("ON SCHEMA {schema}");
        statements.extend(
            revoke(&all, &on)
                .into_iter()
                .chain(grant(&before.grants, &on)),
        );
    }
    statements
}

fn restore_defaults(now: &Defaults, wanted: &BTreeSet<Grant>) -> Vec<String> {
    if now.grants == *wanted {
        return vec![];
    }
    let kind = match now.kind {
        'r' => "TABLES",
        'S' => "SEQUENCES",
        'f' => "FUNCTIONS",
        'T' => "TYPES",
        'n' => "SCHEMAS",
        _ => "LARGE OBJECTS",
    };
    let schema = now
        .schema
        .as_ref()
        .map_or(String::new(), |s| format!(" IN SCHEMA {}", ident(s)));
    let prefix = format!(
        "ALTER DEFAULT PRIVILEGES FOR ROLE {}{schema}",
        ident(&now.role)
    );
    let on = format!("ON {kind}");
    changes(&now.grants, wanted, &on)
        .into_iter()
        .map(|statement| format!("{prefix} {statement}"))
        .collect()
}

/// Only what differs, so that the others keep their order.
pub(super) fn changes(now: &BTreeSet<Grant>, wanted: &BTreeSet<Grant>, on: &str) -> Vec<String> {
    let gone = now
        .difference(wanted)
        .map(|g| format!("REVOKE {} {on} FROM {}", g.privilege, grantee(&g.grantee)));
    let missing: BTreeSet<Grant> = wanted.difference(now).cloned().collect();
    gone.chain(grant(&missing, on)).collect()
}

fn revoke(grants: &BTreeSet<Grant>, on: &str) -> Vec<String> {
    let grantees: BTreeSet<&Option<String>> = grants.iter().map(|g| &g.grantee).collect();
    grantees
        .into_iter()
        .map(|g| format!("REVOKE ALL {on} FROM {}", grantee(g)))
        .collect()
}

fn grant(grants: &BTreeSet<Grant>, on: &str) -> Vec<String> {
    grants
        .iter()
        .map(|g| {
            let option = if g.grantable {
                " WITH GRANT OPTION"
            } else {
                ""
            };
            format!(
                "GRANT {} {on} TO {}{option}",
                g.privilege,
                grantee(&g.grantee)
            )
        })
        .collect()
}

fn grantee(name: &Option<String>) -> String {
    name.as_ref().map_or("PUBLIC".into(), |n| ident(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, identity: &str) -> Object {
        Object {
            catalog: "pg_class".into(),
            oid: 1,
            kind: kind.into(),
            identity: identity.into(),
            member: false,
            owned: false,
        }
    }

    #[test]
    fn statements() {
        let statement = |kind: &str, others: &[Object]| {
            drop_statement(&[object(kind, "a.\"B c\"")], others).unwrap()
        };
        for (kind, verb) in [
            ("table", "DROP TABLE "),
            ("aggregate", "DROP ROUTINE "),
            ("foreign-data wrapper", "DROP FOREIGN DATA WRAPPER "),
            ("operator class", "DROP OPERATOR CLASS "),
        ] {
            assert!(statement(kind, &[]).contains(verb), "{kind}");
        }
        assert!(statement("cast", &[]).contains("CASCADE"));
        assert!(!statement("user mapping", &[]).contains("CASCADE"));
        assert!(!statement("table", &[]).contains("2BP01"));
        assert!(statement("table", &[object("view", "v")]).contains("2BP01"));
        assert!(drop_statement(&[object("large object", "1")], &[]).is_err());
    }

    #[test]
    fn errors_name_what_is_left() {
        let left: Vec<Object> = (0..12).map(|i| object("table", &format!("t{i}"))).collect();
        let error = stuck(&left, None).to_string();
        assert!(error.starts_with("table t0, table t1, "), "{error}");
        assert!(
            error.ends_with("table t9, 2 more cannot be dropped"),
            "{error}"
        );
    }

    #[test]
    fn batches_are_of_one_kind() {
        let mut objects: Vec<Object> = (0..120)
            .map(|i| object("table", &format!("t{i}")))
            .collect();
        objects.extend([
            object("function", "f()"),
            object("function", "g()"),
            object("schema", "s"),
        ]);
        let sizes: Vec<usize> = batches(&objects).map(<[_]>::len).collect();
        assert_eq!(sizes, [50, 50, 20, 1, 1, 1]);
    }

    #[test]
    fn order() {
        let mut kinds = [
            "schema",
            "type",
            "table",
            "extension",
            "event trigger",
            "cast",
            "unheard of",
        ];
        kinds.sort_by_key(|k| rank(k));
        assert_eq!(
            kinds,
            [
                "event trigger",
                "table",
                "cast",
                "type",
                "unheard of",
                "extension",
                "schema"
            ]
        );
    }

    #[test]
    fn the_difference_is_granted_and_revoked() {
        let g = |who: Option<&str>, what: &str, grantable| Grant {
            grantee: who.map(String::from),
            privilege: what.into(),
            grantable,
        };
        let public = g(None, "EXECUTE", false);
        let now = [public.clone(), g(Some("a b"), "SELECT", true)].into();
        let wanted = [public, g(Some("a b"), "SELECT", false)].into();
        assert!(changes(&now, &now, "ON TABLE t").is_empty());
        assert_eq!(
            changes(&now, &wanted, "ON TABLE t"),
            [
                "REVOKE SELECT ON TABLE t FROM \"a b\"",
                "GRANT SELECT ON TABLE t TO \"a b\""
            ]
        );
    }

    #[test]
    fn privileges_are_put_back() {
        let g = |who: Option<&str>, what: &str| Grant {
            grantee: who.map(String::from),
            privilege: what.into(),
            grantable: false,
        };
        let before = Schema {
            name: "public".into(),
            owner: "pg_database_owner".into(),
            comment: Some("it's".into()),
            grants: [g(None, "USAGE")].into(),
        };
        let mut now = before.clone();
        assert!(restore_schema(&now, &before).is_empty());
        now.grants.insert(g(Some("o'r"), "CREATE"));
        now.comment = None;
        assert_eq!(
            restore_schema(&now, &before),
            [
                "COMMENT ON SCHEMA \"public\" IS 'it''s'",
                "REVOKE ALL ON SCHEMA \"public\" FROM PUBLIC",
                "REVOKE ALL ON SCHEMA \"public\" FROM \"o'r\"",
                "GRANT USAGE ON SCHEMA \"public\" TO PUBLIC",
            ]
        );
    }
}
