//! What the restore would find to be there already.

use super::objects::{Object, objects};
use crate::error::Result;
use crate::node::Session;
use std::collections::HashMap;

/// Kinds that may be on both nodes: the restore takes what it finds.
const HARMLESS: [&str; 3] = ["schema", "extension", "language"];

/// Objects of the source that the new node has already, by kind and name. Where both belong to an
/// extension it is the same one, and that is no collision.
pub fn collisions(source: &mut Session, target: &mut Session) -> Result<Vec<String>> {
    Ok(between(&objects(source)?, &objects(target)?))
}

fn between(source: &[Object], target: &[Object]) -> Vec<String> {
    let mut taken: HashMap<(&str, &str), bool> = HashMap::new();
    for object in target {
        for space in spaces(object) {
            let only_members = taken.entry((space, &object.identity)).or_insert(true);
            *only_members &= object.member;
        }
    }
    source
        .iter()
        .filter(|object| !HARMLESS.contains(&object.kind.as_str()))
        .filter(|object| {
            spaces(object).iter().any(|space| {
                taken
                    .get(&(*space, object.identity.as_str()))
                    .is_some_and(|member| !(*member && object.member))
            })
        })
        .map(|object| format!("{} {}", object.kind, object.identity))
        .collect()
}

/// The catalogs in which the name must be free: a table also takes the name of a type.
fn spaces(object: &Object) -> Vec<&str> {
    let with_row_type = ["table", "view", "materialized view", "foreign table"];
    let mut spaces = vec![object.catalog.as_str()];
    if with_row_type.contains(&object.kind.as_str()) {
        spaces.push("pg_type");
    }
    if object.kind == "composite type" {
        spaces.push("pg_class");
    }
    spaces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(catalog: &str, kind: &str, identity: &str, member: bool) -> Object {
        Object {
            catalog: catalog.into(),
            oid: 16384,
            kind: kind.into(),
            identity: identity.into(),
            member,
            owned: false,
        }
    }

    #[test]
    fn names_are_taken_by_catalog() {
        let source = [
            object("pg_class", "table", "public.a", false),
            object("pg_class", "view", "public.b", false),
            object("pg_class", "sequence", "public.c", false),
            object("pg_proc", "function", "public.f(integer)", false),
            object("pg_namespace", "schema", "public", false),
        ];
        let target = [
            object("pg_class", "view", "public.a", false),
            object("pg_type", "type", "public.b", false),
            object("pg_type", "type", "public.c", false),
            object("pg_proc", "function", "public.f(text)", false),
            object("pg_namespace", "schema", "public", false),
        ];
        assert_eq!(
            between(&source, &target),
            ["table public.a", "view public.b"]
        );
    }

    #[test]
    fn members_of_extensions_collide_only_with_strangers() {
        let member = [object("pg_proc", "function", "public.f()", true)];
        let own = [object("pg_proc", "function", "public.f()", false)];
        assert!(between(&member, &member).is_empty());
        for (a, b) in [(&member, &own), (&own, &member), (&own, &own)] {
            assert_eq!(between(a, b), ["function public.f()"]);
        }
    }
}
