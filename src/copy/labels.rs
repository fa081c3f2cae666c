//! Security labels need the library of their provider wherever they are restored.

use crate::error::{Finding, Result, SqlState};
use crate::libpq::Conn;
use crate::node::{Node, Query, alone};
use crate::quote::ident;

/// The providers of the labels that a node has.
pub fn providers() -> Query<String> {
    Query::new(
        "SELECT DISTINCT provider FROM pg_catalog.pg_seclabel ORDER BY 1",
        &[],
        |row| row.only(),
    )
}

/// Those of `providers`, of labels of the source, that sessions of the target, which is this server, do not load.
pub fn not_loaded(providers: &[String], source: &Node, target: &Node) -> Result<Vec<Finding>> {
    let mut findings = vec![];
    for provider in providers {
        alone()?;
        // There is no list of what is loaded. To take a label away that is not there does nothing.
        let probe = format!(
            "BEGIN; SECURITY LABEL FOR {} ON SCHEMA pg_catalog IS NULL; ROLLBACK",
            ident(provider)
        );
        let answer = Conn::open(&target.name, &target.dsn)?.query(&probe, &[]);
        if answer.is_err_and(|e| e.sqlstate() == SqlState::INVALID_PARAMETER_VALUE) {
            findings.push(Finding::new(
                &target.name,
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "security label provider {} is not loaded, by which node \"{}\" has labels",
                    ident(provider),
                    source.name
                ),
                "Add its library to shared_preload_libraries or, for this database, to session_preload_libraries on the new node.",
            ));
        }
    }
    Ok(findings)
}
