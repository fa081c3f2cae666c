//! Materialized views: their contents are computed anew, from data that is the source's.

use super::sql::array;
use super::{OURS, is_of_users};
use crate::error::{Error, Result};
use crate::node::{Query, Session};
use crate::quote::{literal, qualified};
use std::collections::{HashMap, HashSet};

/// Those that have contents.
pub fn populated() -> Query<String> {
    Query::new(
        "SELECT n.nspname, c.relname
           FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname <> ALL ($1::text[])
          ORDER BY 1, 2",
        &[&array(OURS)],
        |row| Ok(qualified(row.get("nspname")?, row.get("relname")?)),
    )
}

/// Which view or materialized view reads which other relation.
fn view_reads() -> Query<(String, String)> {
    Query::new(include_str!("view_reads.sql"), &[], |row| {
        Ok((
            qualified(row.get("schema")?, row.get("name")?),
            qualified(row.get("read_schema")?, row.get("read_name")?),
        ))
    })
}

/// What has been refreshed, and what stays without contents, and why.
#[derive(Default)]
pub struct Refreshed {
    pub names: Vec<String>,
    pub unfilled: Vec<(String, Error)>,
}

/// Refreshes those that are `populated` on the source, each after those that it reads. One that reads another
/// in a function may come too early, so those that fail are tried again as long as that helps.
/// `defaults` are the settings that their queries expect, see [`super::settings::of_queries`].
pub fn refresh(
    populated: &[String],
    target: &mut Session,
    defaults: &[(String, String)],
) -> Result<Refreshed> {
    let mut done = Refreshed::default();
    if populated.is_empty() {
        return Ok(done);
    }
    let mut reads: HashMap<String, Vec<String>> = HashMap::new();
    for (view, read) in view_reads().on(target)? {
        reads.entry(view).or_default().push(read);
    }
    let settings: Vec<String> = defaults
        .iter()
        .map(|(name, value)| {
            let (name, value) = (literal(name), literal(value));
            format!("pg_catalog.set_config({name}, {value}, true)")
        })
        .collect();
    let mut left = in_order(populated, &reads);
    loop {
        let tried = left.len();
        for name in std::mem::take(&mut left) {
            let statement = format!(
                "SELECT {}; REFRESH MATERIALIZED VIEW {name}",
                settings.join(", ")
            );
            match target.query(&statement, &[]) {
                Ok(_) => done.names.push(name),
                Err(error) if is_of_users(&error) => done.unfilled.push((name, error)),
                Err(error) => {
                    return Err(Error::Local {
                        state: error.sqlstate(),
                        message: format!("could not refresh materialized view {name}: {error}"),
                        detail: error.detail(),
                        hint: error.hint(),
                    });
                }
            }
        }
        if done.unfilled.is_empty() || done.unfilled.len() == tried {
            return Ok(done);
        }
        left = done.unfilled.drain(..).map(|(name, _)| name).collect();
    }
}

/// `wanted` in an order in which each comes after what it reads, directly or through views.
fn in_order(wanted: &[String], reads: &HashMap<String, Vec<String>>) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut ordered = vec![];
    for name in wanted {
        // Depth first without recursion: a name is done when it is met the second time.
        let mut stack = vec![(name, false)];
        while let Some((name, inputs_done)) = stack.pop() {
            if inputs_done {
                ordered.push(name);
            } else if seen.insert(name) {
                stack.push((name, true));
                stack.extend(
                    reads
                        .get(name)
                        .into_iter()
                        .flatten()
                        .map(|input| (input, false)),
                );
            }
        }
    }
    ordered
        .into_iter()
        .filter(|name| wanted.contains(name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::in_order;
    use std::collections::HashMap;

    #[test]
    fn inputs_come_first() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let reads = HashMap::from([
            ("a".to_owned(), names(&["view", "z"])),
            ("view".to_owned(), names(&["m"])),
            ("m".to_owned(), names(&["z"])),
        ]);
        assert_eq!(in_order(&names(&["a", "m", "z"]), &reads), ["z", "m", "a"]);
        assert_eq!(in_order(&names(&["a", "b"]), &reads), ["a", "b"]);
    }
}
