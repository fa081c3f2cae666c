//! Brings a database back to what it was, from wherever the copy got to.

use super::inventory::{Defaults, Grant, Inventory, Schema, defaults, schemas};
use super::objects::{Object, objects};
use super::settings;
use crate::error::{Error, Result, SqlState};
use crate::node::Session;
use crate::quote::{ident, literal};
use std::collections::BTreeSet;

/// Objects that one statement drops: each one takes locks until it is through.
const BATCH: usize = 50;

/// Kinds by the order in which they are dropped. Event triggers first, since they would see all that
/// follows; what contains others last.
const ORDER: [&str; 7] = [
    "event trigger",
    "publication",
    "materialized view",
    "view",
    "foreign table",
    "table",
    "sequence",
];
const LAST: [&str; 2] = ["extension", "schema"];

/// Kinds of which one statement can drop many.
const MANY: [&str; 6] = [
    "materialized view",
    "view",
    "foreign table",
    "table",
    "sequence",
    "type",
];

/// Drops everything that `before` does not list and puts back what a restore changes of the rest. Of
/// any state in between it makes the same, and what is gone already is no error.
pub fn undo(session: &mut Session, before: &Inventory) -> Result<()> {
    drop_new(session, before)?;
    let now = schemas(session)?;
    for schema in &before.schemas {
        if let Some(now) = now.iter().find(|s| s.name == schema.name) {
            run(session, restore_schema(now, schema))?;
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
    settings::restore(session, &before.settings)
}

fn run(session: &mut Session, statements: Vec<String>) -> Result<()> {
    for statement in statements {
        session.query(&statement, &[])?;
    }
    Ok(())
}

/// Cascades make most of the list obsolete while it is worked off, and some of it undroppable until
/// something else is gone, so the list is read again until nothing is left.
fn drop_new(session: &mut Session, before: &Inventory) -> Result<()> {
    loop {
        let mut doomed: Vec<Object> = objects(session)?
            .into_iter()
            .filter(|o| !o.member && !o.owned)
            .filter(|o| !before.objects.contains(&(o.catalog.clone(), o.oid)))
            .collect();
        doomed.sort_by_key(|o| rank(&o.kind)); // stable: partitions stay before their parents
        if doomed.is_empty() {
            return Ok(());
        }
        let mut dropped = false;
        let mut first_error = None;
        for batch in batches(&doomed) {
            match attempt(session, batch) {
                Ok(()) => dropped = true,
                Err(error) if is_interrupt(&error) => return Err(error),
                // One of them is in the way of the others.
                Err(_) if batch.len() > 1 => {
                    for object in batch {
                        match attempt(session, std::slice::from_ref(object)) {
                            Ok(()) => dropped = true,
                            Err(error) if is_interrupt(&error) => return Err(error),
                            Err(error) => first_error = first_error.or(Some(error)),
                        }
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if !dropped && let Some(error) = first_error {
            return Err(error);
        }
    }
}

fn attempt(session: &mut Session, batch: &[Object]) -> Result<()> {
    match session.query(&drop_statement(batch), &[]) {
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

fn rank(kind: &str) -> usize {
    let after_the_others = |i: usize| ORDER.len() + 1 + i;
    ORDER
        .iter()
        .position(|k| *k == kind)
        .or_else(|| LAST.iter().position(|k| *k == kind).map(after_the_others))
        .unwrap_or(ORDER.len())
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

/// Objects of the same kind, by identities that are quoted already.
fn drop_statement(batch: &[Object]) -> String {
    let kind = match batch[0].kind.as_str() {
        "function" | "procedure" | "aggregate" => "ROUTINE".to_owned(),
        "composite type" => "TYPE".to_owned(),
        "statistics object" => "STATISTICS".to_owned(),
        kind => kind.to_uppercase(),
    };
    let names: Vec<String> = batch
        .iter()
        .map(|o| match o.kind.as_str() {
            "user mapping" => format!("FOR {}", o.identity),
            _ => o.identity.clone(),
        })
        .collect();
    // User mappings have no dependents and know no CASCADE.
    let cascade = if kind == "USER MAPPING" {
        ""
    } else {
        " CASCADE"
    };
    format!(
        "SET LOCAL client_min_messages = warning; DROP {kind} IF EXISTS {}{cascade}",
        names.join(", ")
    )
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
    revoke(&now.grants, &on)
        .into_iter()
        .chain(grant(wanted, &on))
        .map(|statement| format!("{prefix} {statement}"))
        .collect()
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
            catalog: String::new(),
            oid: 1,
            kind: kind.into(),
            identity: identity.into(),
            member: false,
            owned: false,
        }
    }

    fn dropped(kind: &str, identity: &str) -> String {
        let statement = drop_statement(&[object(kind, identity)]);
        statement.split_once("; ").unwrap().1.to_owned()
    }

    #[test]
    fn statements() {
        assert_eq!(
            dropped("table", "a.\"B c\""),
            "DROP TABLE IF EXISTS a.\"B c\" CASCADE"
        );
        assert_eq!(
            dropped("aggregate", "a.f()"),
            "DROP ROUTINE IF EXISTS a.f() CASCADE"
        );
        assert_eq!(
            dropped("operator class", "a.o USING btree"),
            "DROP OPERATOR CLASS IF EXISTS a.o USING btree CASCADE"
        );
        assert_eq!(
            dropped("cast", "(a AS b)"),
            "DROP CAST IF EXISTS (a AS b) CASCADE"
        );
        assert_eq!(
            dropped("user mapping", "PUBLIC SERVER s"),
            "DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER s"
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
        ];
        kinds.sort_by_key(|k| rank(k));
        assert_eq!(
            kinds,
            [
                "event trigger",
                "table",
                "type",
                "cast",
                "extension",
                "schema"
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
