//! Whether the new node has room for what the source has, and what it has otherwise.

use super::Known;
use crate::copy;
use crate::error::{Finding, Result, SqlState};
use crate::node::server;
use crate::workflow::cluster::JoinNodes;
use crate::workflow::findings::Check;

/// Tables of the new node would be published to members that do not have them, and what has the
/// name of something on the source would stop the copy half-way.
pub fn empty(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let mut findings = vec![];
    let new = nodes.new.name.clone();
    let mut named = |what: &str, names: Vec<String>, hint: &str| {
        let (shown, more) = names.split_at(names.len().min(10));
        if !shown.is_empty() {
            let more = match more.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            findings.push(Finding::new(
                &new,
                SqlState::DUPLICATE_OBJECT,
                format!("{what}: {}{more}", shown.join(", ")),
                hint,
            ));
        }
    };
    let tables = server::user_tables().on(nodes.new)?;
    let collisions: Vec<String> =
        copy::collisions(&mut nodes.source.session, &mut nodes.new.session)?
            .into_iter()
            // A table of the same name is told as a table.
            .filter(|c| !tables.iter().any(|t| c.ends_with(t.as_str())))
            .collect();
    named(
        "the database is not empty, it has tables",
        tables,
        "Drop them, or use an empty database.",
    );
    named(
        "objects of the source exist here already",
        collisions,
        "Drop them on the new node.",
    );
    check.record_all([new.as_str()], findings);
    Ok(())
}

pub fn requirements(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let findings = copy::requirements(nodes.source, nodes.new)?;
    check.record_all([nodes.new.name.as_str()], findings);
    Ok(())
}

/// What the database of the new node has otherwise than that of the source, and no copy of its structure brings.
pub fn database_itself(nodes: &mut JoinNodes, _: &Known, check: &mut Check) -> Result<()> {
    let of_source = server::database_itself().one(nodes.source)?;
    let of_new = server::database_itself().one(nodes.new)?;
    let (new_limit, source_limit) = (of_new.connection_limit, of_source.connection_limit);
    let others: Vec<String> = [
        ("privileges", of_new.privileges, of_source.privileges),
        ("limit of connections", new_limit, source_limit),
        ("comment", of_new.comment, of_source.comment),
    ]
    .into_iter()
    .filter(|(_, of_new, of_source)| of_new != of_source)
    .map(|(what, of_new, of_source)| format!("{what} \"{of_new}\", not \"{of_source}\""))
    .collect();
    let new = &nodes.new.name;
    let other = (!others.is_empty()).then(|| {
        let message = format!(
            "the database has other attributes than that of node \"{}\": {}",
            nodes.source.name,
            others.join(", ")
        );
        let hint = "They are not copied: GRANT and REVOKE ON DATABASE, ALTER DATABASE, COMMENT ON DATABASE.";
        Finding::warning(new, message, hint)
    });
    check.record(new, "", other);
    Ok(())
}
