//! What the structure of the source needs and the new node lacks.

use super::labels;
use super::program;
use super::{OURS, sql::array};
use crate::error::{Finding, Result, SqlState};
use crate::node::{Node, Query, ask_one};
use crate::quote::{ident, literal};
use pgrx::pg_sys;
use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::path::{Path, PathBuf};

fn names(sql: &str, params: &[&str]) -> Query<String> {
    Query::new(sql, params, |row| row.only())
}

/// Roles that own something, that a privilege, a default privilege, a policy, a user mapping or a
/// setting of the database names. The first superuser is in no dependency, so owners are looked up as
/// well; his name need not be the same on both nodes.
fn roles() -> Query<String> {
    names(include_str!("roles.sql"), &[&array(OURS)])
}

fn tablespaces() -> Query<String> {
    names(
        "SELECT DISTINCT t.spcname
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace
          WHERE c.oid >= 16384 AND t.oid >= 16384 AND c.relkind <> 't'
          ORDER BY 1",
        &[],
    )
}

/// An extension as a node has it.
struct Extension {
    name: String,
    version: String,
    schema: String,
}

fn installed() -> Query<Extension> {
    Query::new(
        "SELECT e.extname, e.extversion, n.nspname
           FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
          WHERE e.extname <> ALL ($1::text[])
          ORDER BY 1",
        &[&array(OURS)],
        |row| {
            Ok(Extension {
                name: row.get("extname")?,
                version: row.get("extversion")?,
                schema: row.get("nspname")?,
            })
        },
    )
}

/// A version of an extension that a server has the files of.
struct Version {
    extension: String,
    version: String,
    is_default: bool,
}

fn available(extensions: &[Extension]) -> Query<Version> {
    Query::new(
        "SELECT v.name, v.version, v.version = a.default_version AS is_default
           FROM pg_catalog.pg_available_extension_versions v
           JOIN pg_catalog.pg_available_extensions a ON a.name = v.name
          WHERE v.name = ANY ($1::text[])",
        &[&array(extensions.iter().map(|e| &e.name))],
        |row| {
            Ok(Version {
                extension: row.get("name")?,
                version: row.get("version")?,
                is_default: row.get("is_default")?,
            })
        },
    )
}

/// Libraries of functions in C that no extension brings along. PostgreSQL loads them when it restores
/// the functions.
fn libraries() -> Query<String> {
    names(include_str!("libraries.sql"), &[])
}

/// Functions that belonged to an extension once: in its library, and by a symbol that no function of it has any more.
/// Who calls a function of a library by another name has another one of it by the same symbol.
struct FormerMember {
    extension: String,
    function: String,
}

fn former_members() -> Query<FormerMember> {
    Query::new(include_str!("former_members.sql"), &[&array(OURS)], |row| {
        Ok(FormerMember {
            extension: row.get("extension")?,
            function: row.get("function")?,
        })
    })
}

/// Checks what would stop the restore on `target`, which is this server. Changes nothing.
pub fn requirements(source: &mut Node, target: &mut Node) -> Result<Vec<Finding>> {
    let mut findings = missing_programs(&target.name);
    let asked = (
        roles(),
        tablespaces(),
        installed(),
        former_members(),
        libraries(),
        labels::providers(),
    );
    let (roles, tablespaces, installed, former_members, libraries, providers) =
        ask_one(source, &asked)?;
    let present = names("SELECT rolname FROM pg_catalog.pg_roles", &[]).on(target)?;
    let present: BTreeSet<String> = present.into_iter().collect();
    let mut missing = roles;
    missing.retain(|role| !present.contains(role));
    for role in missing {
        findings.push(
            Finding::new(
                &target.name,
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "role {} is missing, which the structure of node \"{}\" names",
                    ident(&role),
                    source.name
                ),
                "Create the roles as they are on the source; pg_dumpall --roles-only prints them.",
            )
            .fixed_by(format!("CREATE ROLE {}", ident(&role))),
        );
    }

    let present = names("SELECT spcname FROM pg_catalog.pg_tablespace", &[]).on(target)?;
    let mut missing = tablespaces;
    missing.retain(|space| !present.contains(space));
    for space in missing {
        findings.push(Finding::new(
            &target.name,
            SqlState::UNDEFINED_OBJECT,
            format!(
                "tablespace {} is missing, in which node \"{}\" has tables",
                ident(&space),
                source.name
            ),
            "Create tablespaces of the same names; pg_dumpall --tablespaces-only prints them.",
        ));
    }

    findings.extend(extensions(source, installed, target)?);

    for former in former_members {
        let (extension, function) = (ident(&former.extension), former.function);
        let add = format!("ALTER EXTENSION {extension} ADD FUNCTION {function}");
        findings.push(
            Finding::new(
                &source.name,
                SqlState::DUPLICATE_OBJECT,
                format!(
                    "function {function} is in the library of extension {extension}, but does not belong to it any more"
                ),
                format!(
                    "CREATE EXTENSION on the new node makes it as well. Give it back: {add}; or drop it."
                ),
            )
            .fixed_by(add),
        );
    }

    for library in libraries {
        if let Some(path) = missing_library(&library) {
            findings.push(Finding::new(
                &target.name,
                SqlState::parse("58P01"),
                format!(
                    "file \"{}\" is missing, which functions of node \"{}\" are in",
                    path.display(),
                    source.name
                ),
                "Install the library that is on the source's server.",
            ));
        }
    }
    findings.extend(labels::not_loaded(&providers, source, target)?);
    Ok(findings)
}

fn missing_programs(node: &str) -> Vec<Finding> {
    ["pg_dump", "pg_restore"]
        .iter()
        .map(|name| program::path(name))
        .filter(|path| !path.exists())
        .map(|path| {
            Finding::new(
                node,
                SqlState::parse("58P01"),
                format!("program \"{}\" is missing", path.display()),
                "Install the client programs of the server's own version.",
            )
        })
        .collect()
}

fn extensions(source: &Node, needed: Vec<Extension>, target: &mut Node) -> Result<Vec<Finding>> {
    let present: HashMap<String, Extension> = installed()
        .on(target)?
        .into_iter()
        .map(|extension| (extension.name.clone(), extension))
        .collect();
    let mut versions: HashMap<String, Available> = HashMap::new();
    for version in available(&needed).on(target)? {
        let entry = versions.entry(version.extension).or_default();
        if version.is_default {
            entry.default.clone_from(&version.version);
        }
        entry.all.push(version.version);
    }
    let findings = needed.iter().filter_map(|wanted| {
        wanted.finding(
            &source.name,
            &target.name,
            present
                .get(&wanted.name)
                .map(|e| (e.version.as_str(), e.schema.as_str())),
            versions.get(&wanted.name),
        )
    });
    Ok(findings.collect())
}

#[derive(Debug, Default)]
struct Available {
    default: String,
    all: Vec<String>,
}

impl Extension {
    /// What is wrong with that of the source on the new node, where it is installed or will be by default.
    fn finding(
        &self,
        source: &str,
        node: &str,
        installed: Option<(&str, &str)>,
        available: Option<&Available>,
    ) -> Option<Finding> {
        let name = ident(&self.name);
        let wanted = format!("node \"{source}\" has version {}", self.version);
        let version = literal(&self.version);
        let (state, message, hint) = match (installed, available) {
            (Some((_, schema)), _) if schema != self.schema => (
                SqlState::DUPLICATE_OBJECT,
                format!(
                    "extension {name} is in schema {}, but on node \"{source}\" in {}",
                    ident(schema),
                    ident(&self.schema)
                ),
                format!(
                    "Drop it, or run: ALTER EXTENSION {name} SET SCHEMA {}",
                    ident(&self.schema)
                ),
            ),
            (Some((present, _)), _) if !same_release(present, &self.version) => (
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("extension {name} has version {present}, {wanted}"),
                format!("Update the older one: ALTER EXTENSION {name} UPDATE TO {version}"),
            ),
            (Some(_), _) => return None,
            (None, None) => (
                SqlState::UNDEFINED_OBJECT,
                format!("extension {name} is not available, {wanted}"),
                "Install its files on the new node's server.".to_owned(),
            ),
            (None, Some(has)) if same_release(&has.default, &self.version) => return None,
            (None, Some(has)) if has.all.contains(&self.version) => (
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "extension {name} would get version {}, {wanted}",
                    has.default
                ),
                format!(
                    "Create it beforehand: CREATE EXTENSION {name} WITH SCHEMA {} VERSION {version}",
                    ident(&self.schema)
                ),
            ),
            (None, Some(has)) => (
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "extension {name} is available in version {} only, {wanted}",
                    has.default
                ),
                "Install the same release on both servers.".to_owned(),
            ),
        };
        Some(Finding::new(node, state, message, hint))
    }
}

/// The same up to major.minor where versions are numbers, else the very same.
fn same_release(a: &str, b: &str) -> bool {
    let release = |text: &str| -> Option<(u64, u64)> {
        let mut numbers = text.split('.');
        let major = numbers.next()?.parse().ok()?;
        Some((major, numbers.next().map_or(Some(0), |n| n.parse().ok())?))
    };
    a == b || release(a).is_some_and(|r| release(b) == Some(r))
}

/// Where the library ought to be, if it is not there. Only for the two forms whose place is known.
fn missing_library(name: &str) -> Option<PathBuf> {
    // SAFETY: set by the postmaster when it starts, and a C string since then.
    let libdir = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    let path = match name.strip_prefix("$libdir/") {
        Some(file) => Path::new(&*libdir.to_string_lossy()).join(file),
        None if name.starts_with('/') => PathBuf::from(name),
        None => return None,
    };
    let mut with_suffix = path.clone().into_os_string();
    with_suffix.push(".so");
    (!path.exists() && !Path::new(&with_suffix).exists()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (a, b) in [
            ("1.6", "1.6"),
            ("3.4.2", "3.4.10"),
            ("2", "2.0"),
            ("unpackaged", "unpackaged"),
        ] {
            assert!(same_release(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("5.0.10", "5.1.0"),
            ("1.10", "1.1"),
            ("2", "2.1"),
            ("x", "y"),
            ("1.x", "1.y"),
        ] {
            assert!(!same_release(a, b), "{a} {b}");
        }
    }

    #[test]
    fn extensions_are_compared_with_what_the_restore_would_make() {
        let wanted = Extension {
            name: "hstore".into(),
            version: "1.8".into(),
            schema: "public".into(),
        };
        let state = |installed, available: Option<&Available>| {
            wanted
                .finding("s", "n", installed, available)
                .map(|f| f.state.to_string())
        };
        let newest = Available {
            default: "1.9".into(),
            all: vec!["1.8".into(), "1.9".into()],
        };
        let equal = Available {
            default: "1.8".into(),
            all: vec!["1.8".into()],
        };
        let other = Available {
            default: "2.0".into(),
            all: vec!["2.0".into()],
        };
        assert_eq!(state(Some(("1.8", "public")), None), None);
        assert_eq!(state(None, Some(&equal)), None);
        assert_eq!(state(None, None).as_deref(), Some("42704"));
        assert_eq!(state(None, Some(&newest)).as_deref(), Some("0A000"));
        assert_eq!(state(None, Some(&other)).as_deref(), Some("0A000"));
        assert_eq!(
            state(Some(("1.7", "public")), Some(&newest)).as_deref(),
            Some("0A000")
        );
        assert_eq!(
            state(Some(("1.8", "ext")), Some(&newest)).as_deref(),
            Some("42710")
        );
    }
}
